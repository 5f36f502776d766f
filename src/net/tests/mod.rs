//! Whole networks in one process: cards that only write down what they get, backends over sockets, filters, compare.

mod colo;
mod epochs;
mod filters;
mod losses;
mod stacks;
mod tables;
mod tap;

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockstep_chardev::ChardevRegistry;
use lockstep_chardev::options::describe;
use lockstep_event::{Clocks, Context, IoThread};
use lockstep_qapi::opts;
use lockstep_qapi::schema::{Netdev as NetdevOptions, ObjectOptions};
use lockstep_qapi::visit::from_json;
use lockstep_util::{Result, YankInstance, YankRegistry};
use parking_lot::Mutex;
use serde_json::json;

use crate::*;

/// A card that takes everything while it is ready.
#[derive(Default)]
struct Card {
    got: Mutex<Vec<Vec<u8>>>,
    busy: AtomicBool,
    link: AtomicBool,
}

impl NicReceiver for Card {
    fn can_receive(&self) -> bool {
        !self.busy.load(Ordering::SeqCst)
    }
    fn receive(&self, frame: &[u8]) -> bool {
        self.got.lock().push(frame.to_vec());
        true
    }
    fn set_link(&self, up: bool) {
        self.link.store(up, Ordering::SeqCst);
    }
}

/// A machine with one card behind `hn0`, whose wire is a pair of UDP sockets.
struct Machine {
    net: NetRegistry,
    chardevs: ChardevRegistry,
    peer: NetPeer,
    card: Arc<Card>,
    wire: UdpSocket,
    iothread: Arc<IoThread>,
    yank: YankRegistry,
}

impl Machine {
    async fn new() -> Self {
        let yank = YankRegistry::new();
        let chardevs = ChardevRegistry::new(yank.clone());
        let net = NetRegistry::new(chardevs.clone(), Clocks::new());
        let wire = UdpSocket::bind("127.0.0.1:0").unwrap();
        wire.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let ours = {
            let free = UdpSocket::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap()
        };
        wire.connect(ours).unwrap();
        let inet = |a: std::net::SocketAddr| json!({"type": "inet", "host": "127.0.0.1", "port": a.port().to_string()});
        let options: NetdevOptions = from_json(json!({
            "type": "dgram", "id": "hn0", "local": inet(ours), "remote": inet(wire.local_addr().unwrap())
        }))
        .unwrap();
        net.add_netdev(&options).await.unwrap();
        let mac = net.free_mac();
        let info = NicInfo { name: "e0".into(), model: "rtl8139".into(), mac };
        let peer = net.add_nic(info, Some("hn0")).unwrap();
        let card = Arc::new(Card::default());
        let weak: std::sync::Weak<dyn NicReceiver> = Arc::downgrade(&(card.clone() as Arc<dyn NicReceiver>));
        peer.connect(weak);
        net.set_running(true);
        let iothread = Arc::new(IoThread::spawn("iothread1").unwrap());
        Self { net, chardevs, peer, card, wire, iothread, yank }
    }

    async fn chardev(&self, text: &str) {
        let opts = opts::parse(text, Some("backend")).unwrap();
        let described = describe(&opts).unwrap();
        self.chardevs.create(&described.id, described.backend).await.unwrap();
    }

    fn object(&self, value: serde_json::Value) -> Result<()> {
        let options: ObjectOptions = from_json(value)?;
        let (context, keep) = (self.iothread.handle(), self.iothread.clone());
        self.net.add_object(&options, &|name| {
            (name == "iothread1").then(|| IoThreadRef {
                context: context.clone(),
                path: "/objects/iothread1".into(),
                keep: std::rc::Rc::new(keep.clone()),
            })
        })
    }

    fn port_of(&self, id: &str) -> u16 {
        let name = self.chardevs.query().into_iter().find(|c| c.label == id).unwrap().filename;
        let name = name.split(" <-> ").next().unwrap().trim_end_matches(",server=on").to_owned();
        name.rsplit(':').next().unwrap().parse().unwrap()
    }

    /// What leaves to the network next.
    async fn next_on_wire(&self) -> Vec<u8> {
        let wire = self.wire.try_clone().unwrap();
        tokio::task::spawn_blocking(move || {
            let mut buf = [0; 2000];
            let n = wire.recv(&mut buf).expect("nothing on the wire");
            buf[..n].to_vec()
        })
        .await
        .unwrap()
    }

    fn wire_is_quiet(&self) -> bool {
        self.wire.set_nonblocking(true).unwrap();
        let quiet = self.wire.recv(&mut [0; 2000]).is_err();
        self.wire.set_nonblocking(false).unwrap();
        quiet
    }

    async fn wait_for_frames(&self, count: usize) {
        until(|| self.card.got.lock().len() >= count).await;
    }
}

/// Waits for something that other tasks do.
async fn until(mut done: impl FnMut() -> bool) {
    for _ in 0..5000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it never happens");
}

fn run<F: Future<Output = ()>>(f: impl FnOnce() -> F) {
    let context = Context::new("test").unwrap();
    context.run(async { f().await });
}

/// A frame that is long enough not to be padded.
fn plain(text: &str) -> Vec<u8> {
    let mut data = vec![0xff; 6];
    data.extend([0x52, 0x54, 0, 0, 0, 1, 0x88, 0xb5]);
    data.extend(text.as_bytes());
    data.resize(60, 0);
    data
}
