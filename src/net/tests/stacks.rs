//! Two real TCP stacks in the place of the guests, a third as the client: whatever they do with the same services, no
//! checkpoint is asked for. Needs root; says so and passes without.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use super::colo::Pair;
use super::*;
use crate::backend::tap_sys;

const MAC_CLIENT: &str = "52:54:00:00:00:01";
const MAC_GUEST: &str = "52:54:00:12:34:56";
const PORT: u16 = 8080;
const GREETING_PORT: u16 = 8081;
const GREETING: &[u8] = b"220 ready\r\n";
/// VLAN 5, where a test wants one.
const TAG: [u8; 4] = [0x81, 0x00, 0x00, 0x05];

/// How long a card is deaf.
const DEAF: Duration = Duration::from_millis(5);

/// How the client's cable treats packets, in percent.
#[derive(Clone, Copy, Default)]
pub(super) struct Cable {
    loss: u32,
    reorder: u32,
    duplicate: u32,
    /// Makes the secondary's card lose what comes for a while, all of which the primary's gets.
    deaf: u32,
    vlan: bool,
}

fn ip(args: &str) -> bool {
    Command::new("ip").args(args.split(' ')).status().is_ok_and(|status| status.success())
}

/// Runs `work` on a thread in a network of its own, with a tap device `t0` set up; gives the device.
fn host<T: Send + 'static>(
    number: u8,
    mac: &'static str,
    peer: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<(OwnedFd, thread::JoinHandle<T>)> {
    let (tx, rx) = mpsc::channel();
    let other = 3 - number;
    let thread = thread::spawn(move || {
        // SAFETY: unshare takes a number and concerns this thread only.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            drop(tx);
            panic!("no namespace");
        }
        let tap = tap_sys::open("t0", false).expect("a tap device");
        let set_up = ip("link set lo up")
            && ip(&format!("link set t0 address {mac}"))
            && ip(&format!("addr add 10.0.0.{number}/24 dev t0"))
            && ip(&format!("-6 addr add fd00::{number}/64 dev t0 nodad"))
            && ip("link set t0 up")
            && ip(&format!("neigh add 10.0.0.{other} lladdr {peer} dev t0"))
            && ip(&format!("-6 neigh add fd00::{other} lladdr {peer} dev t0"));
        assert!(set_up, "ip(8) fails");
        tx.send(tap.fd).unwrap();
        work()
    });
    rx.recv().ok().map(|fd| (fd, thread))
}

/// The service: `U` and a length takes an upload and answers with its sum, `D` and a length gives a download, `F` and a length fetches a
/// download from the client and answers with its sum, `E` echoes. On the next port it greets before it listens.
fn serve() {
    for (address, port) in [("0.0.0.0", PORT), ("::", PORT), ("0.0.0.0", GREETING_PORT)] {
        let socket: SocketAddr = SocketAddr::new(address.parse().unwrap(), port);
        let listener = socket2::Socket::new(socket2::Domain::for_address(socket), socket2::Type::STREAM, None).unwrap();
        listener.set_reuse_address(true).unwrap();
        if socket.is_ipv6() {
            listener.set_only_v6(true).unwrap();
        }
        listener.bind(&socket.into()).unwrap();
        listener.listen(128).unwrap();
        let listener: TcpListener = listener.into();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    if port == GREETING_PORT {
                        stream.write_all(GREETING)?;
                    }
                    answer(stream)
                });
            }
        });
    }
    for address in ["0.0.0.0", "::"] {
        datagrams(address);
    }
}

/// Sends datagrams back.
fn datagrams(address: &str) {
    let address = SocketAddr::new(address.parse().unwrap(), PORT);
    let udp = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::DGRAM, None).unwrap();
    if address.is_ipv6() {
        udp.set_only_v6(true).unwrap();
    }
    udp.bind(&address.into()).unwrap();
    let udp: UdpSocket = udp.into();
    thread::spawn(move || {
        let mut buf = [0; 10_000];
        while let Ok((n, from)) = udp.recv_from(&mut buf) {
            let _ = udp.send_to(&buf[..n], from);
        }
    });
}

fn pattern(from: u64, buf: &mut [u8]) {
    for (i, byte) in buf.iter_mut().enumerate() {
        let at = from + i as u64;
        *byte = (at ^ (at >> 8) ^ (at >> 16).wrapping_mul(31)) as u8;
    }
}

fn sum_of(sum: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(sum, |s, &b| s.wrapping_mul(31).wrapping_add(b.into()))
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let length = u64::from_be_bytes(head[1..].try_into().unwrap());
    let mut buf = vec![0; 65536];
    match head[0] {
        b'U' => {
            let (mut left, mut sum) = (length, 0u64);
            while left > 0 {
                let n = stream.read(&mut buf[..left.min(65536) as usize])?;
                if n == 0 {
                    return Ok(());
                }
                sum = sum_of(sum, &buf[..n]);
                left -= n as u64;
            }
            stream.write_all(&sum.to_be_bytes())
        }
        b'D' => {
            let mut done = 0;
            while done < length {
                let n = (length - done).min(buf.len() as u64) as usize;
                pattern(done, &mut buf[..n]);
                stream.write_all(&buf[..n])?;
                done += n as u64;
            }
            Ok(())
        }
        b'F' => {
            // Guests that are copies of each other choose the same port.
            let source = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            source.set_reuse_address(true)?;
            let own = 40_000 + (length / 1000 % 1000) as u16;
            source.bind(&SocketAddr::from(([10, 0, 0, 2], own)).into())?;
            source.connect(&SocketAddr::from(([10, 0, 0, 1], PORT)).into())?;
            let mut source: TcpStream = source.into();
            ask(&mut source, b'D', length);
            let mut data = Vec::new();
            source.read_to_end(&mut data)?;
            stream.write_all(&sum_of(0, &data).to_be_bytes())
        }
        _ => loop {
            match stream.read(&mut buf)? {
                0 => return Ok(()),
                n => stream.write_all(&buf[..n])?,
            }
        },
    }
}

pub(super) fn connect(v6: bool) -> TcpStream {
    connect_to(if v6 { "fd00::2" } else { "10.0.0.2" }, PORT)
}

/// A connection to the service that greets.
pub(super) fn be_greeted() -> TcpStream {
    let mut stream = connect_to("10.0.0.2", GREETING_PORT);
    let mut greeting = [0; GREETING.len()];
    stream.read_exact(&mut greeting).expect("no greeting");
    assert_eq!(greeting, GREETING);
    stream
}

fn connect_to(host: &str, port: u16) -> TcpStream {
    let address = SocketAddr::new(host.parse().unwrap(), port);
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(15)).expect("no connection");
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

pub(super) fn ask(stream: &mut TcpStream, what: u8, length: u64) {
    let mut head = vec![what];
    head.extend(length.to_be_bytes());
    stream.write_all(&head).unwrap();
}

pub(super) fn upload(v6: bool, length: u64) {
    let mut stream = connect(v6);
    ask(&mut stream, b'U', length);
    let mut data = vec![0; length as usize];
    pattern(7, &mut data);
    stream.write_all(&data).unwrap();
    let mut got = [0; 8];
    stream.read_exact(&mut got).expect("no answer to an upload");
    assert_eq!(u64::from_be_bytes(got), sum_of(0, &data));
}

pub(super) fn download(v6: bool, length: u64) {
    let mut stream = connect(v6);
    ask(&mut stream, b'D', length);
    let mut got = Vec::new();
    stream.read_to_end(&mut got).expect("a broken download");
    let mut want = vec![0; length as usize];
    pattern(0, &mut want);
    assert!(got == want, "a wrong byte in {} of {length}", got.len());
}

pub(super) fn echo(v6: bool, times: u8) {
    let mut stream = connect(v6);
    ask(&mut stream, b'E', 0);
    for i in 0..times {
        let text = vec![i; 1 + 40 * usize::from(i)];
        stream.write_all(&text).unwrap();
        let mut got = vec![0; text.len()];
        stream.read_exact(&mut got).expect("no echo");
        assert_eq!(got, text);
    }
}

/// Which frames a card loses.
pub(super) type Loses = Box<dyn FnMut(&[u8]) -> bool + Send>;

/// So many of a hundred frames begin a time in which all are lost.
fn now_and_then(percent: u32) -> Loses {
    let (mut rng, mut until) = (Rng(3), Instant::now());
    Box::new(move |_| {
        let now = Instant::now();
        if rng.percent(percent) {
            until = now + DEAF;
        }
        now < until
    })
}

/// A card whose guest is a namespace.
struct StackCard {
    tap: OwnedFd,
    vlan: bool,
    loses: Mutex<Loses>,
}

impl NicReceiver for StackCard {
    fn can_receive(&self) -> bool {
        true
    }
    fn receive(&self, frame: &[u8]) -> bool {
        if (self.loses.lock())(frame) {
            return true;
        }
        let frame = if self.vlan { untag(frame) } else { frame.to_vec() };
        let _ = rustix::io::write(&self.tap, &frame);
        true
    }
    fn set_link(&self, _: bool) {}
}

fn tag(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &TAG, &frame[12..]].concat()
}

fn untag(frame: &[u8]) -> Vec<u8> {
    assert!(frame.len() < 16 || frame[12..16] == TAG);
    [&frame[..12], &frame[16..]].concat()
}

/// Connects a machine's card to a guest's tap device.
fn plug(machine: &Machine, tap: OwnedFd, vlan: bool, loses: Loses) -> Arc<StackCard> {
    let input = tap.try_clone().unwrap();
    let card = Arc::new(StackCard { tap, vlan, loses: Mutex::new(loses) });
    machine.peer.connect(Arc::downgrade(&(card.clone() as Arc<dyn NicReceiver>)) as _);
    let peer = machine.peer.clone();
    // As a vCPU does: from a thread of its own.
    thread::spawn(move || {
        each_frame(input, |frame| {
            let frame = if vlan { tag(frame) } else { frame.to_vec() };
            peer.send(frame);
        });
    });
    card
}

fn each_frame(tap: OwnedFd, mut take: impl FnMut(&[u8])) {
    rustix::io::ioctl_fionbio(&tap, false).unwrap();
    let mut buf = [0; 2000];
    while let Ok(n) = rustix::io::read(&tap, &mut buf) {
        take(&buf[..n]);
    }
}

struct Rng(u64);

impl Rng {
    fn percent(&mut self, n: u32) -> bool {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % 100 < n.into()
    }
}

/// Moves packets over the client's cable: what the cable does with them is drawn by a seeded generator.
fn carry(mut rng: Rng, cable: Cable, send: impl Fn(&[u8])) -> impl FnMut(&[u8]) {
    let mut late: Option<Vec<u8>> = None;
    move |frame| {
        if rng.percent(cable.loss) {
            return;
        }
        if late.is_none() && rng.percent(cable.reorder) {
            late = Some(frame.to_vec());
            return;
        }
        send(frame);
        if rng.percent(cable.duplicate) {
            send(frame);
        }
        if let Some(frame) = late.take() {
            send(&frame);
        }
    }
}

/// Runs `client` against a pair of stacks; the statistics of the comparison are the result.
fn with_pair(cable: Cable, client: impl FnOnce() + Send + 'static) -> Option<crate::compare::CompareStats> {
    with_losses(cable, now_and_then(cable.deaf), client)
}

/// The same, with a secondary whose card loses frames that the primary's gets.
pub(super) fn with_losses(
    cable: Cable,
    loses: Loses,
    client: impl FnOnce() + Send + 'static,
) -> Option<crate::compare::CompareStats> {
    // SAFETY: geteuid takes nothing and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if !root
        || !std::path::Path::new("/dev/net/tun").exists()
        || !Command::new("ip").arg("-V").output().is_ok_and(|o| o.status.success())
    {
        assert!(std::env::var_os("LOCKSTEP_COMPAT_REQUIRED").is_none(), "needs root, /dev/net/tun and ip(8)");
        eprintln!("skipped: needs root, /dev/net/tun and ip(8)");
        return None;
    }
    let (go, wait) = mpsc::channel::<()>();
    let (client_tap, client) = host(1, MAC_CLIENT, MAC_GUEST, move || {
        wait.recv().unwrap();
        client();
    })?;
    let guests = [(); 2].map(|()| {
        host(2, MAC_GUEST, MAC_CLIENT, || {
            serve();
            thread::sleep(Duration::from_millis(1));
        })
        .expect("a guest")
    });
    let mut stats = None;
    let context = Context::new("test").unwrap();
    context.run(async {
        let pair = Pair::new().await;
        let mut cards = Vec::new();
        let losses: [Loses; 2] = [Box::new(|_| false), loses];
        for ((machine, loses), (tap, ready)) in [&pair.p, &pair.s].into_iter().zip(losses).zip(guests) {
            ready.join().unwrap();
            cards.push(plug(machine, tap, cable.vlan, loses));
        }
        // The cable between the client and the primary's backend.
        let (out, back) = (pair.p.wire.try_clone().unwrap(), pair.p.wire.try_clone().unwrap());
        back.set_read_timeout(None).unwrap();
        let (from_client, to_client) = (client_tap.try_clone().unwrap(), client_tap);
        thread::spawn(move || {
            let send = |frame: &[u8]| drop(out.send(&if cable.vlan { tag(frame) } else { frame.to_vec() }));
            let mut carry = carry(Rng(1), cable, send);
            each_frame(from_client, |frame| carry(frame));
        });
        thread::spawn(move || {
            let write = |frame: &[u8]| {
                let frame = if cable.vlan { untag(frame) } else { frame.to_vec() };
                let _ = rustix::io::write(to_client.as_fd(), &frame);
            };
            let mut carry = carry(Rng(2), cable, write);
            let mut buf = [0; 2000];
            while let Ok(n) = back.recv(&mut buf) {
                carry(&buf[..n]);
            }
        });
        go.send(()).unwrap();
        let limit = Instant::now() + Duration::from_secs(60);
        while !client.is_finished() && Instant::now() < limit {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let all = pair.p.net.compare_stats().await;
        assert!(client.is_finished() && client.join().is_ok(), "the client failed: {:#?}", all["comp0"]);
        assert_eq!(pair.checkpoints.load(Ordering::SeqCst), 0, "{:#?}", all["comp0"]);
        stats = Some(all["comp0"].clone());
        // The threads of guests and cable end with the process.
        std::mem::forget((pair, cards));
    });
    stats
}

#[test]
fn connections_uploads_and_downloads_over_ipv4() {
    with_pair(Cable::default(), || {
        for _ in 0..30 {
            echo(false, 5);
        }
        upload(false, 3_000_000);
        download(false, 3_000_000);
    });
}

#[test]
fn connections_uploads_and_downloads_over_ipv6_in_a_vlan() {
    with_pair(Cable { vlan: true, ..Cable::default() }, || {
        for _ in 0..10 {
            echo(true, 5);
        }
        upload(true, 1_000_000);
        download(true, 1_000_000);
    });
}

#[test]
fn a_cable_that_loses_reorders_and_repeats() {
    with_pair(Cable { loss: 2, reorder: 3, duplicate: 2, ..Cable::default() }, || {
        for _ in 0..5 {
            echo(false, 5);
        }
        upload(false, 500_000);
        download(false, 500_000);
    });
}

#[test]
fn a_cable_that_does_all_that_to_ipv6_in_a_vlan() {
    with_pair(Cable { loss: 1, reorder: 4, duplicate: 3, vlan: true, ..Cable::default() }, || {
        for _ in 0..5 {
            echo(true, 5);
        }
        upload(true, 300_000);
        download(true, 300_000);
    });
}

#[test]
fn a_secondary_whose_card_loses_what_the_primarys_gets() {
    with_pair(Cable { deaf: 1, ..Cable::default() }, || {
        for _ in 0..20 {
            download(false, 200_000);
        }
    });
}

#[test]
fn connections_that_the_guests_open() {
    with_pair(Cable::default(), || {
        // The guests are told to fetch something from the client, each by its own word; the client sees one of them.
        let listener = TcpListener::bind(("10.0.0.1", PORT)).unwrap();
        let server = thread::spawn(move || {
            for _ in 0..10 {
                drop(answer(listener.accept().unwrap().0));
            }
        });
        for length in 1..=10u64 {
            let mut stream = connect(false);
            ask(&mut stream, b'F', length * 20_000);
            let mut got = [0; 8];
            stream.read_exact(&mut got).expect("no answer");
            let mut want = vec![0; length as usize * 20_000];
            pattern(0, &mut want);
            assert_eq!(u64::from_be_bytes(got), sum_of(0, &want));
        }
        server.join().unwrap();
    });
}

#[test]
fn many_connections_at_once() {
    with_pair(Cable::default(), || {
        let workers: Vec<_> = (0..8)
            .map(|i| {
                thread::spawn(move || {
                    for _ in 0..5 {
                        echo(false, 3);
                        if i % 2 == 0 { upload(false, 100_000) } else { download(false, 100_000) }
                    }
                })
            })
            .collect();
        workers.into_iter().for_each(|w| w.join().unwrap());
    });
}

#[test]
fn fragmented_datagrams_are_compared() {
    let stats = with_pair(Cable { reorder: 20, ..Cable::default() }, || {
        for (own, guest) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let socket = UdpSocket::bind((own, 4000)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            socket.connect((guest, PORT)).unwrap();
            for i in 1..20u8 {
                let text = vec![i; 250 * usize::from(i)];
                let mut buf = [0; 10_000];
                // The last packet that the cable keeps back comes with the next one.
                let answered = (0..20).any(|_| {
                    socket.send(&text).unwrap();
                    matches!(socket.recv(&mut buf), Ok(n) if buf[..n] == text)
                });
                assert!(answered, "no answer of {} bytes", text.len());
            }
        }
    });
    if let Some(stats) = stats {
        assert!(stats.released > 19);
    }
}
