//! A real tap device in a network namespace of the test's own. Needs root; says so and passes without.

use std::process::Command;

use super::*;
use crate::packet::{FrameView, Kind};

fn ip(args: &str) -> bool {
    Command::new("ip").args(args.split(' ')).status().is_ok_and(|status| status.success())
}

/// Moves this thread, and those it starts, into a network of their own.
fn enter_namespace() -> bool {
    // SAFETY: unshare takes a number and concerns this thread only.
    let entered = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
    let ready = entered && std::path::Path::new("/dev/net/tun").exists() && ip("link set lo up");
    if !ready {
        eprintln!("skipped: needs root, /dev/net/tun and ip(8)");
    }
    ready
}

async fn machine(options: serde_json::Value) -> lockstep_util::Result<(NetRegistry, NetPeer, Arc<Card>)> {
    let net = NetRegistry::new(ChardevRegistry::new(YankRegistry::new()), Clocks::new());
    net.add_netdev(&from_json(options)?).await?;
    let mac = [0x52, 0x54, 0, 0, 0, 2];
    let peer = net.add_nic(NicInfo { name: "e0".into(), model: "rtl8139".into(), mac }, Some("hn0")).unwrap();
    let card = Arc::new(Card::default());
    peer.connect(Arc::downgrade(&(card.clone() as Arc<dyn NicReceiver>)) as _);
    net.set_running(true);
    Ok((net, peer, card))
}

#[test]
fn packets_reach_the_hosts_stack_and_come_back_with_and_without_the_virtio_header() {
    if !enter_namespace() {
        return;
    }
    run(|| async {
        for vnet in [true, false] {
            let (net, peer, card) = machine(json!({"type": "tap", "id": "hn0", "ifname": "lst0", "script": "no",
                "downscript": "no", "vnet_hdr": vnet, "vhost": false}))
            .await
            .unwrap();
            assert!(net.info_network().contains("hn0: index=0,type=tap,ifname=lst0,script=no,downscript=no\r\n"));
            assert!(ip("link set lst0 address 52:54:00:00:00:01") && ip("addr add 10.0.0.1/24 dev lst0"));
            assert!(ip("link set lst0 up"));
            assert!(ip("neigh add 10.0.0.2 lladdr 52:54:00:00:00:02 dev lst0"));
            let host = UdpSocket::bind("10.0.0.1:4000").unwrap();
            host.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            host.send_to(b"to the guest", "10.0.0.2:53").unwrap();
            let found = || {
                card.got.lock().iter().any(|data| {
                    let frame = packet::Frame::new(data.clone());
                    matches!(FrameView::parse(&frame).kind, Kind::Ip(ip) if !ip.v6
                        && frame.data[ip.l4 + 8..ip.end] == *b"to the guest")
                })
            };
            until(found).await;
            // The answer, with its header checksum computed.
            let mut answer = crate::packet::testing::udp(b"to the host");
            let sum = !(crate::packet::internet_sum(0, &answer.data[14..34]) as u16);
            answer.data[24..26].copy_from_slice(&sum.to_be_bytes());
            peer.send(answer.data);
            let got = tokio::task::spawn_blocking(move || {
                let mut buf = [0; 100];
                let (n, from) = host.recv_from(&mut buf).expect("nothing for the host");
                (buf[..n].to_vec(), from.to_string())
            })
            .await
            .unwrap();
            assert_eq!(got, (b"to the host".to_vec(), "10.0.0.2:53".to_owned()));
            // While the machine stands, the kernel keeps what comes.
            net.remove_netdev("hn0").await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn a_helpers_descriptor_is_probed_and_errors_are_worded_as_qemus() {
    if !enter_namespace() {
        return;
    }
    run(|| async {
        let tap = |extra: serde_json::Value| {
            let mut options = json!({"type": "tap", "id": "hn0"});
            options.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            options
        };
        for (extra, text) in [
            (json!({"helper": "/nonexistent"}), "bridge helper failed"),
            (json!({"helper": "/bin/false"}), "bridge helper failed"),
            (json!({"helper": "/bin/true"}), "Unable to query TUNGETIFF on FD 0: Inappropriate ioctl for device"),
            (json!({"helper": "exit 3 ;"}), "bridge helper failed"),
            (
                json!({"helper": "/bin/true", "ifname": "x"}),
                "ifname=, script=, downscript=, vnet_hdr=, queues=, and vhostfds= are invalid with helper=",
            ),
            (json!({"vhost": true}), "vhost-net requested but could not be initialized"),
            (json!({"ifname": "lo", "script": "no"}), "could not configure /dev/net/tun (lo): Invalid argument"),
            (json!({"ifname": "lst1", "script": "/bin/false"}), "network script /bin/false failed with status 256"),
        ] {
            let e = machine(tap(extra)).await.err().expect("no error");
            assert_eq!(e.message(), text);
        }
        if !Command::new("python3").arg("-V").output().is_ok_and(|o| o.status.success()) {
            eprintln!("skipped the rest: needs python3");
            return;
        }
        // A helper as a shell command.
        let script = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            &script,
            "import sys,os,fcntl,struct,socket,array\n\
             fd=int([a for a in sys.argv if a.startswith('--fd=')][0][5:])\n\
             assert '--use-vnet' in sys.argv and '--br=mybr' in sys.argv, sys.argv\n\
             t=os.open('/dev/net/tun',os.O_RDWR)\n\
             fcntl.ioctl(t,0x400454ca,struct.pack('16sH22x',b'lst2',0x5002))\n\
             s=socket.socket(fileno=fd)\n\
             s.sendmsg([b'\\0'],[(socket.SOL_SOCKET,socket.SCM_RIGHTS,array.array('i',[t]))])\n",
        )
        .unwrap();
        let helper = format!("python3 {}", script.path().display());
        let made = machine(tap(json!({"helper": helper, "br": "mybr"}))).await;
        let (net, ..) = made.unwrap();
        assert!(net.info_network().contains(&format!("type=tap,helper={helper}\r\n")), "{}", net.info_network());
        assert!(ip("link set lst2 up"));
    });
}
