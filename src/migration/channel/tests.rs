//! Channels that carry, break off and refuse.

use super::*;
use std::io;
use std::thread;

struct NoFds;

impl FdSource for NoFds {
    fn take_fd(&self, name: &str) -> Result<OwnedFd> {
        Err(lockstep_util::err!("File descriptor named '{name}' has not been found"))
    }
}

fn open_now(uri: &str) -> Result<std::sync::Arc<Channel>> {
    match open(&Address::parse(uri)?, &NoFds, Yank::new()?)? {
        Opening::Done(channel) => Ok(channel),
        Opening::Connect(connect) => connect.connect(),
    }
}

#[test]
fn addresses_are_parsed_as_qemu_does() {
    let text = |uri: &str| Address::parse(uri).unwrap_err().to_string();
    assert_eq!(text("bogus:1"), "unknown migration protocol: bogus:1");
    assert_eq!(text("tcp:xx"), "error parsing address 'xx'");
    assert_eq!(text("file:"), "file URI has no file name");
    let Address::Tcp(inet) = Address::parse("tcp:[::1]:99,to=101,ipv6=on").unwrap() else { panic!() };
    assert_eq!((inet.host.as_str(), inet.port.as_str(), inet.to, inet.ipv6), ("::1", "99", Some(101), Some(true)));
    assert_eq!(Address::parse("file:/a,b,offset=4k").unwrap(), Address::File { path: "/a,b".into(), offset: 4096 });
    assert_eq!(Address::parse("exec:a b").unwrap(), Address::Exec(["/bin/sh", "-c", "a b"].map(String::from).to_vec()));
}

#[test]
fn the_channels_argument_says_the_same() {
    let inet = serde_json::json!({"channel-type": "main",
        "addr": {"transport": "socket", "type": "inet", "host": "h", "port": "1"}});
    assert_eq!(Address::from_channels(&[inet]).unwrap(), Address::parse("tcp:h:1").unwrap());
    let file =
        serde_json::json!({"channel-type": "main", "addr": {"transport": "file", "filename": "/x", "offset": 3}});
    assert_eq!(Address::from_channels(&[file]).unwrap(), Address::File { path: "/x".into(), offset: 3 });
    assert!(Address::from_channels(&[]).is_err());
}

#[test]
fn failures_are_worded_as_qemu_words_them() {
    let text = |uri: &str| open_now(uri).unwrap_err().to_string();
    assert_eq!(text("unix:/nope/s"), "Failed to connect to '/nope/s': No such file or directory");
    assert_eq!(text("file:/nope/x"), "Could not create '/nope/x': No such file or directory");
    assert_eq!(text("fd:nofd"), "File descriptor named 'nofd' has not been found");
    assert_eq!(text("tcp:127.0.0.1:1"), "Failed to connect to '127.0.0.1:1': Connection refused");
}

#[test]
fn a_port_of_zero_is_chosen_and_told() {
    let address = Address::parse("tcp:127.0.0.1:0").unwrap();
    let Incoming::Listening(listener) = listen(&address, &NoFds, Yank::new().unwrap()).unwrap() else { panic!() };
    let port = listener.address()["port"].as_str().unwrap().to_owned();
    let client = thread::spawn(move || open_now(&format!("tcp:127.0.0.1:{port}")).unwrap());
    let server = listener.accept().unwrap();
    let client = client.join().unwrap();
    client.write_all(&[b"ab", b"", b"c"]).unwrap();
    client.finish().unwrap();
    let (mut got, mut buf) = (Vec::new(), [0; 8]);
    loop {
        match server.read(&mut buf).unwrap() {
            0 => break,
            n => got.extend_from_slice(&buf[..n]),
        }
    }
    assert_eq!(got, b"abc");
}

#[test]
fn a_command_takes_all_before_the_channel_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    let channel = open_now(&format!("exec:sleep 0.05; cat > {}", path.display())).unwrap();
    channel.write_all(&[&vec![7; 200_000]]).unwrap();
    channel.finish().unwrap();
    assert_eq!(std::fs::read(path).unwrap().len(), 200_000);
}

#[test]
fn a_file_begins_at_its_offset() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    let channel = open_now(&format!("file:{},offset=10", path.display())).unwrap();
    channel.write_all(&[b"xyz"]).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"\0\0\0\0\0\0\0\0\0\0xyz");
}

#[test]
fn pulling_ends_a_read_a_write_and_an_accept_that_wait() {
    let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
    let channel = Channel::from_fd(a.into(), Yank::new().unwrap()).unwrap();
    let (reader, writer) = (channel.clone(), channel.clone());
    let read = thread::spawn(move || reader.read(&mut [0; 1]));
    let write = thread::spawn(move || writer.write_all(&[&vec![0; 64 << 20]]));
    let address = Address::parse("tcp:127.0.0.1:0").unwrap();
    let Incoming::Listening(listener) = listen(&address, &NoFds, Yank::new().unwrap()).unwrap() else { panic!() };
    let yank = listener.yank();
    let accept = thread::spawn(move || listener.accept());
    channel.yank().pull();
    yank.pull();
    // A read that had not begun waiting may also see the end that the shutdown makes.
    assert!(read.join().unwrap().map_or_else(|e| e.kind() == io::ErrorKind::ConnectionAborted, |n| n == 0));
    assert!(write.join().unwrap().is_err());
    assert!(accept.join().unwrap().is_err());
}
