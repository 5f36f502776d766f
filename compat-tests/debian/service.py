#!/usr/bin/python3
"""What the tests' clients talk to in the Debian guest: echo on port 7, HTTP on port 80 with the paths of the small guest's server.

Only modules of python3-minimal.
"""
import os
import socket
import threading
import time

STORE = "/srv/kv"


def serve(port, handle):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("", port))
    listener.listen(64)
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=guarded, args=(handle, connection), daemon=True).start()


def guarded(handle, connection):
    try:
        handle(connection)
    except OSError:
        pass
    finally:
        connection.close()


def echo(connection):
    while part := connection.recv(65536):
        connection.sendall(part)


def http(connection):
    stream = connection.makefile("rwb")
    while line := stream.readline():
        method, target, _ = line.decode("latin-1").split(" ", 2)
        length = 0
        while (line := stream.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            if name.lower() == "content-length":
                length = int(value)
        status, body = answer(method, target, stream.read(length) if length else b"")
        stream.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
        stream.flush()


def answer(method, target, body):
    ok, missing = b"200 OK", b"404 Not Found"
    if target.startswith("/kv/"):
        path = os.path.join(STORE, os.path.basename(target))
        if method == "PUT":
            # Acknowledged means: on the disk.
            file = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(file, body)
            os.fsync(file)
            os.close(file)
            os.rename(path + ".new", path)
            folder = os.open(STORE, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
            return ok, b""
        try:
            with open(path, "rb") as file:
                return ok, file.read()
        except FileNotFoundError:
            return missing, b""
    if target == "/":
        return ok, b"Debian\n"
    if target == "/stats":
        return ok, b'{"uptime": %d}\n' % time.monotonic()
    if target == "/random":
        return ok, os.urandom(16).hex().encode() + b"\n"
    return missing, b""


os.makedirs(STORE, exist_ok=True)
threading.Thread(target=serve, args=(7, echo), daemon=True).start()
serve(80, http)
