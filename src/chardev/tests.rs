use std::cell::RefCell;
use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::time::Duration;

use lockstep_event::{Context, IoThread};
use lockstep_qapi::opts::{self, Opts};
use lockstep_qapi::schema::{ChardevBackend, DataFormat};
use lockstep_util::{ErrorClass, YankInstance, YankRegistry};

use super::*;

fn run<F: Future<Output = ()>>(f: impl FnOnce(ChardevRegistry) -> F) {
    let context = Context::new("test").unwrap();
    let registry = ChardevRegistry::new(YankRegistry::new());
    context.run(async {
        tokio::time::timeout(Duration::from_secs(20), f(registry)).await.expect("the test hangs");
    });
}

fn backend(text: &str) -> ChardevBackend {
    let opts = opts::parse(&format!("{text},id=x"), Some("backend")).unwrap();
    options::describe(&opts).unwrap().backend
}

async fn made(registry: &ChardevRegistry, id: &str, text: &str) {
    registry.create(id, backend(text)).await.unwrap();
}

fn filename(registry: &ChardevRegistry, id: &str) -> String {
    registry.query().into_iter().find(|c| c.label == id).unwrap().filename
}

fn port_of(filename: &str) -> u16 {
    filename.trim_end_matches(",server=on").rsplit(':').next().unwrap().parse().unwrap()
}

/// Reads until `want` bytes have come.
async fn read(stream: &mut CharStream, want: usize) -> Vec<u8> {
    let mut got = Vec::new();
    let mut buf = [0; 4096];
    while got.len() < want {
        if stream.event(true).await == StreamEvent::Readable
            && let Ok(n) = stream.try_read(&mut buf)
        {
            got.extend(&buf[..n]);
        }
    }
    got
}

#[test]
fn a_client_of_our_own_listener_and_back() {
    run(|registry| async move {
        made(&registry, "s", "socket,host=127.0.0.1,port=0,server=on,wait=off").await;
        let idle = filename(&registry, "s");
        assert!(idle.starts_with("disconnected:tcp:127.0.0.1:") && idle.ends_with(",server=on"), "{idle}");
        let port = port_of(&idle);
        made(&registry, "c", &format!("socket,host=127.0.0.1,port={port}")).await;
        let mut server = registry.attach("s").unwrap().into_stream();
        let mut client = registry.attach("c").unwrap().into_stream();
        assert_eq!(server.event(true).await, StreamEvent::Opened);
        assert_eq!(client.event(true).await, StreamEvent::Opened);
        let (s, c) = (filename(&registry, "s"), filename(&registry, "c"));
        let peer = s.split(" <-> ").nth(1).unwrap().to_owned();
        assert_eq!(s, format!("tcp:127.0.0.1:{port},server=on <-> {peer}"));
        assert_eq!(c, format!("tcp:{peer} <-> 127.0.0.1:{port}"));
        client.writer().send(&[IoSlice::new(b"hel"), IoSlice::new(b"lo")]).unwrap();
        assert_eq!(read(&mut server, 5).await, b"hello");
        drop(client);
        registry.remove("c").unwrap();
        loop {
            match server.event(true).await {
                StreamEvent::Readable => drop(server.try_read(&mut [0; 9])),
                event => break assert_eq!(event, StreamEvent::Closed),
            }
        }
        assert_eq!(filename(&registry, "s"), idle);
        // It listens again.
        made(&registry, "c2", &format!("socket,host=127.0.0.1,port={port}")).await;
        assert_eq!(server.event(true).await, StreamEvent::Opened);
    });
}

#[test]
fn a_client_connects_again_and_again() {
    run(|registry| async move {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        made(&registry, "c", &format!("socket,host=127.0.0.1,port={port},reconnect-ms=1")).await;
        let mut stream = registry.attach("c").unwrap().into_stream();
        for _ in 0..3 {
            assert_eq!(stream.event(true).await, StreamEvent::Opened);
            drop(listener.accept().unwrap());
            loop {
                match stream.event(true).await {
                    StreamEvent::Readable => drop(stream.try_read(&mut [0; 9])),
                    event => break assert_eq!(event, StreamEvent::Closed),
                }
            }
        }
    });
}

#[test]
fn waiting_for_a_client_ends_when_it_comes() {
    run(|registry| async move {
        let probe = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = probe.local_addr().unwrap().port();
        drop(probe);
        let client = std::thread::spawn(move || {
            loop {
                if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) {
                    return stream;
                }
                std::thread::yield_now();
            }
        });
        made(&registry, "s", &format!("socket,host=127.0.0.1,port={port},server=on")).await;
        let mut stream = registry.attach("s").unwrap().into_stream();
        assert_eq!(stream.event(true).await, StreamEvent::Opened);
        client.join().unwrap().write_all(b"x").unwrap();
        assert_eq!(read(&mut stream, 1).await, b"x");
    });
}

#[test]
fn unix_sockets_are_named_and_unlinked() {
    run(|registry| async move {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sock").to_str().unwrap().to_owned();
        made(&registry, "s", &format!("socket,path={path},server=on,wait=off")).await;
        assert_eq!(filename(&registry, "s"), format!("disconnected:unix:{path},server=on"));
        made(&registry, "c", &format!("socket,path={path}")).await;
        assert_eq!(filename(&registry, "c"), format!("unix:{path}"));
        let mut stream = registry.attach("s").unwrap().into_stream();
        assert_eq!(stream.event(true).await, StreamEvent::Opened);
        assert_eq!(filename(&registry, "s"), format!("unix:{path},server=on"));
        drop(stream);
        registry.remove("s").unwrap();
        tokio::task::yield_now().await;
        assert!(!std::path::Path::new(&path).exists());
    });
}

#[test]
fn a_peer_that_does_not_read_fills_a_queue_and_blocks_nobody() {
    run(|registry| async move {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        made(&registry, "c", &format!("socket,host=127.0.0.1,port={port}")).await;
        let (mut peer, _) = listener.accept().unwrap();
        let stream = registry.attach("c").unwrap().into_stream();
        let writer = stream.writer();
        let block = vec![7u8; 100_000];
        let mut sent = 0;
        loop {
            match writer.send(&[IoSlice::new(&block)]) {
                Ok(()) => sent += block.len(),
                Err(e) => break assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
        assert!(writer.queued() > 0 && writer.unsent() >= writer.queued());
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; sent];
            peer.read_exact(&mut got).unwrap();
            got.iter().all(|&b| b == 7)
        });
        while writer.queued() > 0 {
            writer.progress().await;
        }
        assert!(reader.join().unwrap());
    });
}

#[test]
fn a_frontend_on_an_iothread_reads_and_is_replaced() {
    run(|registry| async move {
        made(&registry, "s", "socket,host=127.0.0.1,port=0,server=on,wait=off").await;
        let port = port_of(&filename(&registry, "s"));
        let io = IoThread::spawn("io").unwrap();
        for round in 0..3u8 {
            let frontend = registry.attach("s").unwrap();
            assert_eq!(registry.attach("s").unwrap_err().message(), "chardev 's' is already in use");
            assert_eq!(registry.remove("s").unwrap_err().message(), "Chardev 's' is busy");
            let (tx, mut rx) = tokio::sync::mpsc::unbounded_channel();
            let events = tx.clone();
            frontend.start(
                &io.handle(),
                CharHandlers {
                    can_read: Box::new(|| 1),
                    read: Box::new(move |data| tx.send(data.to_vec()).unwrap()),
                    event: Box::new(move |event| events.send(format!("{event:?}").into_bytes()).unwrap()),
                },
            );
            let mut peer = TcpStream::connect(("127.0.0.1", port)).unwrap();
            peer.write_all(&[round, 9]).unwrap();
            assert_eq!(rx.recv().await.unwrap(), b"Opened");
            assert_eq!(rx.recv().await.unwrap(), [round]);
            assert_eq!(rx.recv().await.unwrap(), [9]);
            assert!(frontend.write(b"pong"));
            let mut got = [0; 4];
            peer.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"pong");
            drop(peer);
            assert_eq!(rx.recv().await.unwrap(), b"Closed");
        }
        registry.remove("s").unwrap();
        assert_eq!(registry.remove("s").unwrap_err().message(), "Chardev 's' not found");
    });
}

#[test]
fn a_listener_that_was_removed_frees_its_address_at_once() {
    run(|registry| async move {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sock");
        for address in ["host=127.0.0.1,port=0".to_owned(), format!("path={}", path.display())] {
            made(&registry, "s", &format!("socket,{address},server=on,wait=off")).await;
            let name = filename(&registry, "s");
            let address =
                if address.starts_with("host") { format!("host=127.0.0.1,port={}", port_of(&name)) } else { address };
            // Nothing here lets the task of the first one run before the second listens.
            registry.remove("s").unwrap();
            made(&registry, "s", &format!("socket,{address},server=on,wait=off")).await;
            tokio::task::yield_now().await;
            made(&registry, "c", &format!("socket,{address}")).await;
            let mut stream = registry.attach("s").unwrap().into_stream();
            assert_eq!(stream.event(true).await, StreamEvent::Opened);
            drop(stream);
            registry.remove("c").unwrap();
            registry.remove("s").unwrap();
        }
        assert!(!path.exists());
    });
}

#[test]
fn a_yank_ends_a_connection_from_any_thread() {
    let yank = YankRegistry::new();
    let context = Context::new("test").unwrap();
    let registry = ChardevRegistry::new(yank.clone());
    context.run(async {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        made(&registry, "c", &format!("socket,host=127.0.0.1,port={port}")).await;
        made(&registry, "n", "null").await;
        assert_eq!(yank.instances(), [YankInstance::Chardev("c".into())]);
        let mut stream = registry.attach("c").unwrap().into_stream();
        assert_eq!(stream.event(true).await, StreamEvent::Opened);
        let other = yank.clone();
        std::thread::spawn(move || other.yank(&[YankInstance::Chardev("c".into())])).join().unwrap().unwrap();
        assert_eq!(stream.event(true).await, StreamEvent::Readable);
        assert_eq!(stream.try_read(&mut [0; 9]).unwrap(), 0);
        assert_eq!(stream.event(true).await, StreamEvent::Closed);
        drop(stream);
        registry.remove("c").unwrap();
        assert!(yank.instances().is_empty());
    });
}

#[test]
fn errors_are_worded_as_qemus() {
    run(|registry| async move {
        let message = |r: lockstep_util::Result<_>| match r {
            Ok(_) => panic!("no error"),
            Err(e) => (e.class(), e.message().to_owned()),
        };
        let generic = |text: &str| (ErrorClass::GenericError, text.to_owned());
        made(&registry, "s", "socket,host=127.0.0.1,port=0,server=on,wait=off").await;
        let port = port_of(&filename(&registry, "s"));
        let server = |p: u16| backend(&format!("socket,host=127.0.0.1,port={p},server=on,wait=off"));
        assert_eq!(message(registry.add("s", server(port)).await), generic("Chardev with id 's' already exists"));
        assert_eq!(
            message(registry.add("t", server(port)).await),
            generic("Failed to add chardev 't': Failed to find an available port: Address already in use")
        );
        assert_eq!(
            message(registry.add("c", backend("socket,host=127.0.0.1,port=1")).await),
            generic("Failed to add chardev 'c': Failed to connect to '127.0.0.1:1': Connection refused")
        );
        assert_eq!(
            message(registry.add("c", backend("socket,host=127.0.0.1,port=foo")).await).1,
            "Failed to add chardev 'c': address resolution failed for 127.0.0.1:foo: \
             Servname not supported for ai_socktype"
        );
        assert_eq!(
            message(registry.add("c", backend("socket,path=/nosuch.sock")).await).1,
            "Failed to add chardev 'c': Failed to connect to '/nosuch.sock': No such file or directory"
        );
        for (text, error) in [
            ("socket,host=a,port=1,wait=off", "'wait' option is incompatible with socket in client connect mode"),
            (
                "socket,host=a,port=1,reconnect=1,reconnect-ms=1",
                "'reconnect' and 'reconnect-ms' are mutually exclusive",
            ),
            (
                "socket,host=a,port=1,reconnect=1,server=on",
                "'reconnect' option is incompatible with socket in server listen mode",
            ),
            ("socket,fd=foo", "Unable to parse FD number foo"),
            ("ringbuf,size=1000", "size of ringbuf chardev must be power of two"),
            ("mux,chardev=zz", "mux: base chardev zz not found"),
            ("file,path=/nodir/x", "Could not open '/nodir/x': No such file or directory"),
            ("pipe,path=/nodir/x", "Could not open '/nodir/x': No such file or directory"),
        ] {
            let text = backend(text);
            assert_eq!(message(registry.create("e", text).await), generic(error));
        }
        assert_eq!(registry.attach("nope").unwrap_err(), lockstep_util::Error::device_not_found("nope"));
        made(&registry, "n", "null").await;
        assert_eq!(registry.require_socket("n").unwrap_err().message(), "chardev \"n\" is not reconnectable");
        assert_eq!(registry.ringbuf_read("n", 1, None).unwrap_err().message(), "n is not a ringbuf device");
        let e = registry.change("zz", backend("null")).await.unwrap_err();
        assert_eq!(e.message(), "Chardev 'zz' does not exist");
        let _used = registry.attach("n").unwrap();
        let e = registry.change("n", backend("null")).await.unwrap_err();
        assert_eq!(e.message(), "Chardev user does not support chardev hotswap");
    });
}

#[test]
fn option_errors_are_worded_as_qemus() {
    for (text, error) in [
        ("socket", "chardev: no id specified"),
        ("id=a", "chardev: \"a\" missing backend"),
        ("bogus,id=a", "'bogus' is not a valid char driver name"),
        ("socket,id=a,host=h", "chardev: socket: no port given"),
        ("socket,id=a,host=h,path=p", "None or one of 'path', 'fd' or 'host' option required."),
        ("socket,id=a,host=h,port=1,foo=bar", "Invalid parameter 'foo'"),
        ("file,id=a", "chardev: file: no filename given"),
        ("pipe,id=a", "chardev: pipe: no device path given"),
        ("udp,id=a", "chardev: udp: remote port not specified"),
    ] {
        let opts = opts::parse(text, Some("backend")).unwrap();
        assert_eq!(options::describe(&opts).unwrap_err().message(), error, "{text}");
    }
}

#[test]
fn short_forms_mean_what_they_say() {
    let short = |text| {
        let opts: Opts = options::parse_short("serial0", text).unwrap();
        let described = options::describe(&opts).unwrap();
        (described.backend, described.mux)
    };
    assert_eq!(short("null"), (backend("null"), false));
    assert_eq!(short("mon:stdio"), (backend("stdio,signal=off"), true));
    assert_eq!(short("file:/tmp/a,b"), (backend("file,path=/tmp/a,,b"), false));
    assert_eq!(
        short("tcp:127.0.0.1:44,server=on,wait=off"),
        (backend("socket,host=127.0.0.1,port=44,server=on,wait=off"), false)
    );
    assert_eq!(short("unix:/x,server=on"), (backend("socket,path=/x,server=on"), false));
    assert!(options::parse_short("serial0", "nonsense").is_err());
}

#[test]
fn a_file_takes_output_and_gives_input_until_its_end() {
    run(|registry| async move {
        let folder = tempfile::tempdir().unwrap();
        let (out, input) = (folder.path().join("out"), folder.path().join("in"));
        std::fs::write(&input, b"from the file").unwrap();
        made(&registry, "f", &format!("file,path={},input-path={}", out.display(), input.display())).await;
        let mut stream = registry.attach("f").unwrap().into_stream();
        assert_eq!(stream.event(true).await, StreamEvent::Opened);
        stream.writer().send(&[IoSlice::new(b"to "), IoSlice::new(b"the file")]).unwrap();
        assert_eq!(read(&mut stream, 13).await, b"from the file");
        assert_eq!(stream.event(true).await, StreamEvent::Readable);
        assert_eq!(stream.try_read(&mut [0; 9]).unwrap(), 0);
        assert_eq!(stream.event(true).await, StreamEvent::Closed);
        assert_eq!(std::fs::read(&out).unwrap(), b"to the file");
    });
}

#[test]
fn a_pty_talks_to_whoever_opens_it() {
    run(|registry| async move {
        let name = registry.add("p", backend("pty")).await.unwrap().pty.unwrap();
        assert_eq!(filename(&registry, "p"), format!("pty:{name}"));
        let mut stream = registry.attach("p").unwrap().into_stream();
        assert_eq!(stream.event(true).await, StreamEvent::Opened);
        let mut user = std::fs::OpenOptions::new().read(true).write(true).open(&name).unwrap();
        user.write_all(b"typed\n").unwrap();
        assert_eq!(read(&mut stream, 6).await, b"typed\n");
        stream.writer().send(&[IoSlice::new(b"shown")]).unwrap();
        let mut got = [0; 5];
        user.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"shown");
    });
}

#[test]
fn a_ring_buffer_is_written_and_read_by_command() {
    run(|registry| async move {
        made(&registry, "r", "ringbuf,size=8").await;
        registry.ringbuf_write("r", "hello", None).unwrap();
        assert_eq!(registry.ringbuf_read("r", 3, None).unwrap(), "hel");
        registry.ringbuf_write("r", "AAEC", Some(DataFormat::Base64)).unwrap();
        assert_eq!(registry.ringbuf_read("r", 99, Some(DataFormat::Base64)).unwrap(), "bG8AAQI=");
        assert!(registry.attach("r").unwrap().write(b"guest"));
        assert_eq!(registry.ringbuf_read("r", 99, None).unwrap(), "guest");
    });
}

#[test]
fn a_device_is_changed_under_a_user_that_allows_it() {
    run(|registry| async move {
        made(&registry, "d", "null").await;
        let frontend = registry.attach_hotswap("d").unwrap();
        registry.change("d", backend("ringbuf,size=64")).await.unwrap();
        assert_eq!(filename(&registry, "d"), "ringbuf");
        assert!(frontend.write(b"kept"));
        assert_eq!(registry.ringbuf_read("d", 9, None).unwrap(), "kept");
        assert!(registry.change("d", backend("file,path=/nodir/x")).await.is_err());
        assert!(frontend.write(b"still there"));
    });
}

#[test]
fn a_multiplexer_gives_the_input_to_one_and_takes_output_from_all() {
    run(|registry| async move {
        let quits = Rc::new(RefCell::new(0));
        let q = quits.clone();
        registry.on_quit(move || *q.borrow_mut() += 1);
        let name = registry.add("base", backend("pty")).await.unwrap().pty.unwrap();
        made(&registry, "m", "mux,chardev=base").await;
        let mut serial = registry.attach("m").unwrap().into_stream();
        let mut monitor = registry.attach("m").unwrap().into_stream();
        assert_eq!(registry.remove("base").unwrap_err().message(), "Chardev 'base' is busy");
        let mut user = std::fs::OpenOptions::new().read(true).write(true).open(&name).unwrap();
        user.write_all(b"to monitor\x01cto serial\x01\x01\x01cx\x01x").unwrap();
        assert_eq!(read(&mut monitor, 11).await, b"to monitorx");
        assert_eq!(read(&mut serial, 10).await, b"to serial\x01");
        for stream in [&serial, &monitor] {
            stream.writer().send(&[IoSlice::new(b"out")]).unwrap();
        }
        let all = tokio::task::spawn_blocking(move || {
            let mut got = [0; 6 + 18];
            user.read_exact(&mut got).unwrap();
            got.to_vec()
        });
        let all = String::from_utf8(all.await.unwrap()).unwrap();
        assert!(all.contains("out") && all.contains("QEMU: Terminated"), "{all}");
        assert_eq!(*quits.borrow(), 1);
    });
}

#[test]
fn a_loopback_pair_keeps_order_and_bounds_without_the_kernel() {
    run(|registry| async move {
        made(&registry, "s", "socket,host=127.0.0.1,port=0,server=on,wait=off").await;
        let port = port_of(&filename(&registry, "s"));
        made(&registry, "c", &format!("socket,host=127.0.0.1,port={port}")).await;
        let mut server = registry.attach("s").unwrap().into_stream();
        let client = registry.attach("c").unwrap().into_stream();
        assert_eq!(server.event(true).await, StreamEvent::Opened);
        tokio::task::yield_now().await;
        assert_eq!(registry.loopback_peer("c").as_deref(), Some("s"));
        let writer = client.writer();
        let data: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
        let mut sent = 0;
        let mut got: Vec<u8> = Vec::new();
        let mut buf = vec![0; 70_000];
        while got.len() < data.len() {
            while sent < data.len() {
                let end = (sent + 99_999).min(data.len());
                match writer.send(&[IoSlice::new(&data[sent..sent + 5]), IoSlice::new(&data[sent + 5..end])]) {
                    Ok(()) => sent = end,
                    Err(e) => {
                        assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock);
                        break;
                    }
                }
            }
            assert!(writer.unsent() <= 3 << 20);
            if server.event(true).await == StreamEvent::Readable
                && let Ok(n) = server.try_read(&mut buf)
            {
                got.extend(&buf[..n]);
            }
        }
        assert!(got == data);
        assert_eq!((writer.unsent(), writer.accepted(), server.received()), (0, 3_000_000, 3_000_000));
        // What was said before the end is heard.
        writer.send(&[IoSlice::new(b"bye")]).unwrap();
        drop(client);
        registry.remove("c").unwrap();
        assert_eq!(read(&mut server, 3).await, b"bye");
        loop {
            match server.event(true).await {
                StreamEvent::Readable => assert_eq!(server.try_read(&mut buf).unwrap(), 0),
                event => break assert_eq!(event, StreamEvent::Closed),
            }
        }
        assert!(filename(&registry, "s").starts_with("disconnected:"));
    });
}

#[test]
fn a_reader_offers_a_way_past_the_bytes_only_while_none_are_on_their_way() {
    run(|registry| async move {
        made(&registry, "s", "socket,host=127.0.0.1,port=0,server=on,wait=off").await;
        let port = port_of(&filename(&registry, "s"));
        made(&registry, "c", &format!("socket,host=127.0.0.1,port={port}")).await;
        let mut server = registry.attach("s").unwrap().into_stream();
        let writer = registry.attach("c").unwrap().into_output().writer();
        while registry.loopback_peer("c").is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(server.event(true).await, StreamEvent::Opened);
        tokio::task::yield_now().await;
        // Looks at the connection once more, which has become a pair of queues meanwhile.
        assert!(tokio::time::timeout(Duration::from_millis(1), server.event(true)).await.is_err());
        let way: std::sync::Arc<dyn std::any::Any + Send + Sync> = std::sync::Arc::new(7u32);
        assert_eq!(writer.direct::<u32>(), None);
        server.offer_direct(&way);
        assert_eq!(writer.direct::<u32>().as_deref(), Some(&7));
        assert_eq!(writer.direct::<String>(), None, "both have to agree on what it is");
        writer.send(&[IoSlice::new(b"bytes")]).unwrap();
        assert_eq!(writer.direct::<u32>(), None, "they come first");
        server.offer_direct(&way);
        assert_eq!(writer.direct::<u32>(), None);
        assert_eq!(read(&mut server, 5).await, b"bytes");
        assert_eq!(writer.direct::<u32>(), None, "the reader still has them in its hands");
        server.offer_direct(&way);
        assert!(writer.direct::<u32>().is_some());
        drop(server);
        assert_eq!(writer.direct::<u32>(), None);
    });
}

#[test]
fn a_frontend_that_only_writes_notices_when_its_peer_goes_and_a_client_connects_again() {
    run(|registry| async move {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        made(&registry, "c", &format!("socket,host=127.0.0.1,port={port},reconnect-ms=10")).await;
        let frontend = registry.attach("c").unwrap();
        frontend.start_output();
        for round in 0..3 {
            let accepted = listener.try_clone().unwrap();
            let mut peer = tokio::task::spawn_blocking(move || accepted.accept().unwrap().0).await.unwrap();
            while !frontend.is_open() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // What nobody reads is no end.
            peer.write_all(b"unexpected").unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
            assert!(frontend.is_open(), "round {round}");
            assert!(frontend.write(b"heard"));
            peer.read_exact(&mut [0; 5]).unwrap();
        }
    });
}
