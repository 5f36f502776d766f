use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use flate2::{Decompress, FlushDecompress};
use lockstep_event::Context;
use lockstep_qapi::schema::{SocketAddress, UnixSocketAddress};
use parking_lot::Mutex;
use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::encode::{Zrle, encoding, raw};
use crate::handshake::respond;
use crate::pixel::PixelFormat;
use crate::screen::Rect;
use crate::wire::{self, Message};
use crate::*;

/// A machine whose screen a test draws.
#[derive(Default)]
struct Drawn {
    picture: Mutex<Option<Picture>>,
    input: Mutex<Vec<Input>>,
    events: Mutex<Vec<&'static str>>,
    absolute: bool,
}

impl Machine for Drawn {
    fn screen(&self) -> Option<Picture> {
        self.picture.lock().clone()
    }

    fn input(&self, events: Vec<Input>) {
        self.input.lock().extend(events);
    }

    fn pointer_is_absolute(&self) -> bool {
        self.absolute
    }

    fn event(&self, event: Event) {
        self.events.lock().push(match event {
            Event::Connected(_) => "connected",
            Event::Initialized(_) => "initialized",
            Event::Disconnected(_) => "disconnected",
        });
    }
}

impl Drawn {
    fn wait_for_input(&self, count: usize) -> Vec<Input> {
        for _ in 0..10_000 {
            if self.input.lock().len() >= count {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        std::mem::take(&mut *self.input.lock())
    }
}

fn coloured(width: usize, height: usize, colours: u8) -> Picture {
    let pixel = |i: usize| {
        let c = (i * i / 7 % usize::from(colours)) as u8;
        [c.wrapping_mul(37), c, 255 - c]
    };
    Picture { width, height, rgb: (0..width * height).flat_map(pixel).collect() }
}

/// A server in a folder of its own; it lives as long as this.
struct Served {
    display: Display,
    machine: Arc<Drawn>,
    path: String,
    _folder: tempfile::TempDir,
    _context: Context,
}

impl Served {
    fn new(machine: Drawn, change: impl FnOnce(&mut Options)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vnc").to_str().unwrap().to_owned();
        let mut options = Options {
            id: "default".into(),
            title: "QEMU".into(),
            share: Share::AllowExclusive,
            password: false,
            connections: 4,
        };
        change(&mut options);
        let machine = Arc::new(machine);
        let address = UnixSocketAddress { path: path.clone(), abstract_: None, tight: None };
        let context = Context::new("test").unwrap();
        let start = Display::start(options, vec![SocketAddress::Unix(address)], machine.clone());
        let display = context.run(start).unwrap();
        Self { display, machine, path, _folder: folder, _context: context }
    }

    fn connect(&self) -> Viewer {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Viewer { stream, inflate: Decompress::new(true), picture: Picture::default() }
    }

    /// A viewer that is through.
    fn viewer(&self) -> Viewer {
        let mut viewer = self.connect();
        assert_eq!(viewer.take(12), b"RFB 003.008\n");
        viewer.send(b"RFB 003.008\n");
        assert_eq!(viewer.take(2), [1, 1]);
        viewer.send(&[1]);
        assert_eq!(viewer.take(4), [0; 4]);
        viewer.send(&[1]);
        viewer.begin();
        viewer
    }
}

/// The other side, as plain as can be: pixels as the server has them.
struct Viewer {
    stream: UnixStream,
    inflate: Decompress,
    picture: Picture,
}

impl Viewer {
    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn number(&mut self) -> usize {
        let b = self.take(2);
        u16::from_be_bytes([b[0], b[1]]).into()
    }

    fn begin(&mut self) {
        let (width, height) = (self.number(), self.number());
        assert_eq!(self.take(16), PixelFormat::NATIVE.to_bytes());
        assert_eq!(self.take(8), b"\0\0\0\x04QEMU");
        self.picture = Picture { width, height, rgb: vec![0; width * height * 3] };
    }

    fn encodings(&mut self, list: &[i32]) {
        let mut message = vec![2, 0, 0, list.len() as u8];
        list.iter().for_each(|e| message.extend(e.to_be_bytes()));
        self.send(&message);
    }

    fn ask(&mut self, incremental: bool) {
        let (w, h) = ((self.picture.width as u16).to_be_bytes(), (self.picture.height as u16).to_be_bytes());
        self.send(&[3, incremental.into(), 0, 0, 0, 0, w[0], w[1], h[0], h[1]]);
    }

    /// Takes an update in. Returns its rectangles.
    fn update(&mut self) -> Vec<(Rect, i32)> {
        assert_eq!(self.take(2), [0, 0]);
        let count = self.number();
        let mut rects = vec![];
        for _ in 0..count {
            let mut part = || self.number() as u16;
            let rect = Rect { x: part(), y: part(), width: part(), height: part() };
            let kind = i32::from_be_bytes(self.take(4).try_into().unwrap());
            let pixels = usize::from(rect.width) * usize::from(rect.height);
            match kind {
                encoding::RAW => {
                    let bytes = self.take(pixels * 4);
                    self.draw(rect, bytes.chunks_exact(4).map(|p| [p[2], p[1], p[0]]));
                }
                encoding::ZRLE => {
                    let length = u32::from_be_bytes(self.take(4).try_into().unwrap());
                    let packed = self.take(length as usize);
                    let plain = inflate(&mut self.inflate, &packed);
                    let colours = unpack(&plain, rect, 3);
                    self.draw(rect, colours.iter().map(|p| [p[2], p[1], p[0]]));
                }
                encoding::DESKTOP_SIZE => {
                    let (width, height) = (rect.width.into(), rect.height.into());
                    self.picture = Picture { width, height, rgb: vec![0; width * height * 3] };
                }
                _ => {}
            }
            rects.push((rect, kind));
        }
        rects
    }

    fn draw(&mut self, rect: Rect, colours: impl Iterator<Item = [u8; 3]>) {
        for (i, colour) in colours.enumerate() {
            let (x, y) = (i % usize::from(rect.width), i / usize::from(rect.width));
            let at = ((usize::from(rect.y) + y) * self.picture.width + usize::from(rect.x) + x) * 3;
            self.picture.rgb[at..at + 3].copy_from_slice(&colour);
        }
    }

    fn is_sent_away(&mut self) -> bool {
        self.stream.read(&mut [0; 64]).is_ok_and(|n| n == 0)
    }
}

fn inflate(stream: &mut Decompress, packed: &[u8]) -> Vec<u8> {
    let mut plain = vec![];
    let begin = stream.total_in();
    loop {
        plain.reserve(1 << 16);
        let done = (stream.total_in() - begin) as usize;
        stream.decompress_vec(&packed[done..], &mut plain, FlushDecompress::Sync).unwrap();
        if plain.len() < plain.capacity() {
            return plain;
        }
    }
}

/// The pixels of ZRLE's tiles (RFC 6143, 7.7.6), written from the document's side.
fn unpack(plain: &[u8], rect: Rect, size: usize) -> Vec<Vec<u8>> {
    let (width, height) = (usize::from(rect.width), usize::from(rect.height));
    let mut out = vec![vec![]; width * height];
    let mut at = 0;
    let mut next = |count: usize| {
        at += count;
        &plain[at - count..at]
    };
    for top in (0..height).step_by(64) {
        for left in (0..width).step_by(64) {
            let (w, h) = (64.min(width - left), 64.min(height - top));
            let kind = usize::from(next(1)[0]);
            let palette: Vec<Vec<u8>> =
                if kind == 0 { vec![] } else { (0..kind).map(|_| next(size).to_vec()).collect() };
            let bits = match kind {
                0 | 1 => 0,
                2 => 1,
                3 | 4 => 2,
                _ => 4,
            };
            for y in 0..h {
                let row = next((w * bits).div_ceil(8)).to_vec();
                for x in 0..w {
                    out[(top + y) * width + left + x] = match kind {
                        0 => next(size).to_vec(),
                        1 => palette[0].clone(),
                        _ => {
                            let byte = row[x * bits / 8] as usize;
                            palette[byte >> (8 - bits - x * bits % 8) & ((1 << bits) - 1)].clone()
                        }
                    };
                }
            }
        }
    }
    assert_eq!(at, plain.len(), "nothing is left over");
    out
}

proptest! {
    #[test]
    fn what_is_sent_is_what_is_shown(
        (width, height) in (1usize..150, 1usize..150),
        colours in prop::sample::select(vec![1u8, 2, 3, 4, 5, 16, 17, 200]),
        corner in (0.0..1.0f64, 0.0..1.0f64),
        short in any::<bool>(),
    ) {
        let picture = coloured(width, height, colours);
        let (x, y) = ((width as f64 * corner.0) as u16, (height as f64 * corner.1) as u16);
        let rect = Rect { x, y, width: width as u16 - x, height: height as u16 - y };
        let format = if short {
            PixelFormat::parse(&[16, 16, 1, 1, 0, 31, 0, 63, 0, 31, 11, 5, 0, 0, 0, 0]).unwrap()
        } else {
            PixelFormat::NATIVE
        };
        let size = if short { 2 } else { 4 };
        let mut plain = vec![];
        raw(&picture, rect, &format, &mut plain);
        let wanted: Vec<Vec<u8>> = plain[12..].chunks(size).map(|p| p[..size.min(3)].to_vec()).collect();
        prop_assert_eq!(wanted.len(), usize::from(rect.width) * usize::from(rect.height));
        let (mut zrle, mut stream) = (Zrle::default(), Decompress::new(true));
        // Twice, since the stream goes on.
        for _ in 0..2 {
            let mut packed = vec![];
            zrle.rectangle(&picture, rect, &format, &mut packed);
            prop_assert_eq!(u32::from_be_bytes(packed[12..16].try_into().unwrap()) as usize, packed.len() - 16);
            let tiles = inflate(&mut stream, &packed[16..]);
            prop_assert_eq!(&unpack(&tiles, rect, size.min(3)), &wanted);
        }
    }

    #[test]
    fn whatever_a_viewer_sends_is_taken_in_bounds(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let context = Context::new("test").unwrap();
        context.run(async {
            let mut from = bytes.as_slice();
            while let Ok(message) = wire::read(&mut from).await {
                if let Message::Format(format) = message {
                    format.put_compressed(format.value([1, 2, 3]), &mut vec![]);
                }
            }
        });
    }
}

#[test]
fn a_viewer_sees_the_screen_and_then_what_changes() {
    let picture = coloured(200, 100, 200);
    for encodings in [vec![0], vec![encoding::ZRLE, 0]] {
        let machine = Drawn { picture: Mutex::new(Some(picture.clone())), ..Drawn::default() };
        let served = Served::new(machine, |_| {});
        let mut viewer = served.viewer();
        viewer.encodings(&encodings);
        viewer.ask(false);
        viewer.update();
        assert!(viewer.picture == picture);
        viewer.ask(true);
        let mut next = picture.clone();
        next.rgb[(20 * 200 + 130) * 3] ^= 0xff;
        *served.machine.picture.lock() = Some(next.clone());
        let rects = viewer.update();
        assert_eq!(rects, [(Rect { x: 128, y: 16, width: 64, height: 16 }, encodings[0])]);
        assert!(viewer.picture == next);
    }
}

#[test]
fn a_screen_of_another_size_is_followed_where_the_viewer_can() {
    let (small, large) = (coloured(100, 50, 3), coloured(120, 70, 5));
    let machine = Drawn { picture: Mutex::new(Some(small.clone())), ..Drawn::default() };
    let served = Served::new(machine, |_| {});
    let (mut follows, mut stays) = (served.viewer(), served.viewer());
    follows.encodings(&[encoding::DESKTOP_SIZE]);
    for viewer in [&mut follows, &mut stays] {
        viewer.ask(false);
        viewer.update();
        assert!(viewer.picture == small);
        viewer.ask(true);
    }
    *served.machine.picture.lock() = Some(large.clone());
    assert_eq!(follows.update()[0], (Rect { x: 0, y: 0, width: 120, height: 70 }, encoding::DESKTOP_SIZE));
    assert!(follows.picture == large);
    stays.update();
    assert_eq!(stays.picture.at(99, 49), large.at(99, 49));
}

#[test]
fn keys_and_pointers_reach_the_machine_and_do_not_stay_down() {
    let machine = Drawn { picture: Mutex::new(Some(coloured(101, 51, 2))), absolute: true, ..Drawn::default() };
    let served = Served::new(machine, |_| {});
    let mut viewer = served.viewer();
    viewer.encodings(&[encoding::EXTENDED_KEYS, encoding::POINTER_CHANGE]);
    viewer.ask(false);
    let kinds: Vec<_> = viewer.update().iter().map(|(rect, kind)| (rect.x, *kind)).collect();
    assert_eq!(kinds, [(0, encoding::EXTENDED_KEYS), (1, encoding::POINTER_CHANGE), (0, encoding::RAW)]);
    viewer.send(&[4, 1, 0, 0, 0, 0, 0, b'a']);
    viewer.send(&[255, 0, 0, 1, 0, 0, 0xff, 0xe4, 0, 0, 0, 0x9d]);
    viewer.send(&[5, 0b101, 0, 100, 0, 25]);
    let wanted = [
        Input::Key(Key::Code(30), true),
        Input::Key(Key::Scancode(0x9d), true),
        Input::At([0x7fff, 25 * 0x7fff / 50]),
        Input::Button(0, true),
        Input::Button(2, true),
    ];
    assert_eq!(served.machine.wait_for_input(5), wanted);
    viewer.send(&[4, 0, 0, 0, 0, 0, 0, b'a']);
    assert_eq!(served.machine.wait_for_input(1), [Input::Key(Key::Code(30), false)]);
    drop(viewer);
    let wanted = [Input::Key(Key::Scancode(0x9d), false), Input::Button(0, false), Input::Button(2, false)];
    assert_eq!(served.machine.wait_for_input(3), wanted);
}

#[test]
fn movements_are_told_where_no_positions_are_wanted() {
    let machine = Drawn { picture: Mutex::new(Some(coloured(100, 50, 2))), ..Drawn::default() };
    let served = Served::new(machine, |_| {});
    let (mut plain, mut knows) = (served.viewer(), served.viewer());
    plain.send(&[5, 0, 0, 10, 0, 10, 5, 0, 0, 12, 0, 7]);
    assert_eq!(served.machine.wait_for_input(1), [Input::Moved([2, -3])]);
    knows.encodings(&[encoding::POINTER_CHANGE]);
    knows.ask(false);
    assert_eq!(knows.update()[0].0.x, 0);
    knows.send(&[5, 0, 0x80, 0, 0x7f, 0xfd]);
    assert_eq!(served.machine.wait_for_input(1), [Input::Moved([1, -2])]);
}

#[test]
fn only_who_has_the_password_gets_in() {
    // By OpenSSL's des-ecb, with the key's bits reversed byte by byte.
    let known = [0xad, 0xcd, 0x99, 0x7f, 0x8e, 0x16, 0xfe, 0xe5, 0x75, 0xe9, 0x73, 0xf9, 0x3c, 0x2b, 0x62, 0xb4];
    assert_eq!(respond("secret12", std::array::from_fn(|i| i as u8)), known);
    let served = Served::new(Drawn::default(), |options| options.password = true);
    let attempt = |password: &str, version: &[u8; 12]| {
        let mut viewer = served.connect();
        viewer.take(12);
        viewer.send(version);
        if version == b"RFB 003.003\n" {
            assert_eq!(viewer.take(4), [0, 0, 0, 2]);
        } else {
            assert_eq!(viewer.take(2), [1, 2]);
            viewer.send(&[2]);
        }
        let challenge: [u8; 16] = viewer.take(16).try_into().unwrap();
        viewer.send(&respond(password, challenge));
        let accepted = viewer.take(4) == [0; 4];
        if !accepted && version == b"RFB 003.008\n" {
            assert_eq!(viewer.take(25), b"\0\0\0\x15Authentication failed");
        }
        if accepted {
            viewer.send(&[1]);
            viewer.begin();
        } else {
            assert!(viewer.is_sent_away());
        }
        accepted
    };
    const NEW: &[u8; 12] = b"RFB 003.008\n";
    assert!(!attempt("", NEW), "there is none yet");
    served.display.set_password(Some("right".into()));
    assert!(!attempt("wrong", NEW));
    for version in [NEW, b"RFB 003.007\n", b"RFB 003.003\n"] {
        assert!(attempt("right", version));
    }
    served.display.expire_password(Some(SystemTime::now() - Duration::from_secs(1)));
    assert!(!attempt("right", NEW));
    served.display.expire_password(None);
    assert!(attempt("right", NEW));
}

#[test]
fn a_viewer_that_does_not_share_is_alone_or_not_at_all() {
    let alone = |served: &Served| {
        let mut viewer = served.connect();
        viewer.take(12);
        viewer.send(b"RFB 003.008\n");
        viewer.take(2);
        viewer.send(&[1]);
        viewer.take(4);
        viewer.send(&[0]);
        viewer
    };
    let served = Served::new(Drawn::default(), |_| {});
    let mut first = served.viewer();
    alone(&served).begin();
    assert!(first.is_sent_away());
    let served = Served::new(Drawn::default(), |options| options.share = Share::ForceShared);
    assert!(alone(&served).is_sent_away());
}

#[test]
fn more_viewers_than_are_allowed_are_sent_away_and_monitors_are_told_of_the_others() {
    let served = Served::new(Drawn::default(), |options| options.connections = 1);
    let viewer = served.viewer();
    assert_eq!(
        served.display.clients(),
        [Endpoint { host: String::new(), service: String::new(), family: Family::Unix }]
    );
    assert!(served.connect().is_sent_away());
    drop(viewer);
    for _ in 0..10_000 {
        if served.machine.events.lock().len() == 3 {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(*served.machine.events.lock(), ["connected", "initialized", "disconnected"]);
    assert_eq!(served.display.clients(), []);
}

#[test]
fn all_addresses_of_a_host_are_listened_at_with_one_port() {
    let context = Context::new("test").unwrap();
    let address = |host: &str| {
        let mut inet = lockstep_qapi::schema::InetSocketAddress::default();
        (inet.host, inet.port) = (host.into(), "0".into());
        SocketAddress::Inet(inet)
    };
    let options =
        Options { id: "a".into(), title: "QEMU".into(), share: Share::Ignore, password: false, connections: 1 };
    let both = vec![address("127.0.0.1"), address("127.0.0.2")];
    let display = context.run(Display::start(options, both, Arc::new(Drawn::default()))).unwrap();
    let servers = display.servers();
    assert_eq!(servers.len(), 2);
    assert_eq!(servers[0].service, servers[1].service);
    for server in servers {
        let mut stream = TcpStream::connect((server.host.as_str(), server.service.parse().unwrap())).unwrap();
        let mut version = [0; 12];
        stream.read_exact(&mut version).unwrap();
        // The next one finds a free place.
        drop(stream);
        for _ in 0..10_000 {
            if display.clients().is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Runs something with a clock that goes on only when nothing else does.
fn timed<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

/// Comes in without a password.
async fn come_in(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<()> {
    let mut bytes = [0; 28];
    stream.read_exact(&mut bytes[..12]).await?;
    stream.write_all(b"RFB 003.008\n").await?;
    stream.read_exact(&mut bytes[..2]).await?;
    stream.write_all(&[1]).await?;
    stream.read_exact(&mut bytes[..4]).await?;
    stream.write_all(&[1]).await?;
    stream.read_exact(&mut bytes[..28]).await?;
    Ok(())
}

const WHOLE_SCREEN: [u8; 10] = [3, 0, 0, 0, 0, 0, 1, 0, 1, 0];

#[test]
fn a_viewer_that_takes_nothing_for_a_minute_goes_and_a_slow_one_stays() {
    timed(async {
        let machine = Arc::new(Drawn::default());
        *machine.picture.lock() = Some(coloured(256, 256, 7));
        let (mut viewer, stream) = tokio::io::duplex(1024);
        let served = tokio::task::spawn_local(serve_one(stream, None, machine));
        come_in(&mut viewer).await.unwrap();
        viewer.write_all(&WHOLE_SCREEN).await.unwrap();
        let begun = tokio::time::Instant::now();
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(50)).await;
            viewer.read_exact(&mut [0; 100]).await.unwrap();
        }
        let ended = served.await.unwrap();
        assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed().as_secs(), 500 + 60);
    });
}

#[test]
fn a_new_viewer_takes_the_place_of_the_one_that_is_silent_for_longest() {
    timed(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vnc").to_str().unwrap().to_owned();
        let options = Options {
            id: "default".into(),
            title: "QEMU".into(),
            share: Share::AllowExclusive,
            password: false,
            connections: 2,
        };
        let address = UnixSocketAddress { path: path.clone(), abstract_: None, tight: None };
        let machine = Arc::new(Drawn::default());
        crate::server::serve_here(options, vec![SocketAddress::Unix(address)], machine).await.unwrap();
        let connect = async || {
            let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
            come_in(&mut stream).await.map(|()| stream)
        };
        let _frozen = connect().await.unwrap();
        let mut living = connect().await.unwrap();
        assert!(connect().await.is_err(), "there is no place, and nobody has been silent for long");
        tokio::time::sleep(Duration::from_secs(61)).await;
        living.write_all(&WHOLE_SCREEN).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let _new = connect().await.unwrap();
        assert!(connect().await.is_err(), "the other one is alive");
    });
}
