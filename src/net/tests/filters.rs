use super::*;

#[test]
fn frames_go_both_ways_and_wait_while_the_machine_stands_or_the_card_is_busy() {
    run(|| async {
        let m = Machine::new().await;
        m.peer.send(plain("out"));
        assert_eq!(m.next_on_wire().await, plain("out"));
        m.wire.send(&plain("in")).unwrap();
        m.wait_for_frames(1).await;
        m.card.busy.store(true, Ordering::SeqCst);
        m.wire.send(&plain("busy")).unwrap();
        m.wire.send(b"short").unwrap();
        m.wire.send(&plain("third")).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(m.card.got.lock().len(), 1);
        m.card.busy.store(false, Ordering::SeqCst);
        m.peer.flush_queued();
        m.wait_for_frames(4).await;
        assert_eq!(m.card.got.lock()[2].len(), 60);
        m.net.set_running(false);
        m.wire.send(&plain("later")).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(m.card.got.lock().len(), 4);
        m.net.set_running(true);
        m.wait_for_frames(5).await;
        assert_eq!(m.card.got.lock()[3..], [plain("third"), plain("later")]);
    });
}

#[test]
fn the_order_of_filters_follows_position_and_insert_and_turns_with_the_direction() {
    run(|| async {
        let m = Machine::new().await;
        for (n, place) in [
            ("a", json!({})),
            ("b", json!({})),
            ("c", json!({"position": "head"})),
            ("d", json!({"position": "id=b", "insert": "before"})),
            ("e", json!({"position": "id=a"})),
        ] {
            let mut object = json!({"qom-type": "filter-rewriter", "id": n, "netdev": "hn0"});
            object.as_object_mut().unwrap().extend(place.as_object().unwrap().clone());
            m.object(object).unwrap();
        }
        let chain = m.net.inner.netdevs.borrow()["hn0"].shared.chain();
        assert_eq!(chain.iter().map(|n| n.id.as_str()).collect::<Vec<_>>(), ["c", "a", "e", "d", "b"]);
    });
}

#[test]
fn a_redirector_takes_what_it_shows_and_a_mirror_copies() {
    run(|| async {
        let m = Machine::new().await;
        for id in ["mirror0", "out", "back"] {
            m.chardev(&format!("socket,id={id},host=127.0.0.1,port=0,server=on,wait=off")).await;
            let port = m.port_of(id);
            m.chardev(&format!("socket,id={id}-peer,host=127.0.0.1,port={port}")).await;
        }
        m.object(json!({"qom-type": "filter-mirror", "id": "m0", "netdev": "hn0", "queue": "tx", "outdev": "mirror0"}))
            .unwrap();
        m.object(json!({"qom-type": "filter-redirector", "id": "r0", "netdev": "hn0", "queue": "rx", "indev": "back"}))
            .unwrap();
        m.object(json!({"qom-type": "filter-redirector", "id": "r1", "netdev": "hn0", "queue": "rx", "outdev": "out"}))
            .unwrap();
        let mut mirrored = m.chardevs.attach("mirror0-peer").unwrap().into_stream();
        let mut redirected = m.chardevs.attach("out-peer").unwrap().into_stream();
        let back = m.chardevs.attach("back-peer").unwrap();
        m.wire.send(&plain("in")).unwrap();
        m.wait_for_frames(1).await;
        let framed = |frame: &[u8]| [&(frame.len() as u32).to_be_bytes()[..], frame].concat();
        assert_eq!(read(&mut mirrored, 64).await, framed(&plain("in")));
        m.peer.send(plain("guest"));
        assert_eq!(read(&mut redirected, 64).await, framed(&plain("guest")));
        assert!(m.wire_is_quiet());
        assert!(back.write(&framed(&plain("checked"))));
        assert_eq!(m.next_on_wire().await, plain("checked"));
        // The other side goes away: packets are lost, never passed.
        drop(redirected);
        m.chardevs.remove("out-peer").unwrap();
        m.peer.send(plain("lost"));
        m.peer.send(plain("lost"));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(m.wire_is_quiet());
        // And after removal everything passes again.
        for id in ["r1", "r0", "m0"] {
            m.net.remove_object(id).await.unwrap();
        }
        m.peer.send(plain("direct"));
        assert_eq!(m.next_on_wire().await, plain("direct"));
        assert_eq!(m.net.remove_object("r1").await.unwrap_err().message(), "object 'r1' not found");
        m.chardevs.remove("out").unwrap();
    });
}

async fn read(stream: &mut lockstep_chardev::CharStream, want: usize) -> Vec<u8> {
    let mut got: Vec<u8> = Vec::new();
    let mut buf = [0; 4096];
    while got.len() < want {
        if stream.event(true).await == lockstep_chardev::StreamEvent::Readable
            && let Ok(n) = stream.try_read(&mut buf)
        {
            got.extend(&buf[..n]);
        }
    }
    got
}

#[test]
fn what_was_sent_to_a_redirector_before_its_removal_goes_on() {
    run(|| async {
        let m = Machine::new().await;
        m.chardev("socket,id=back,host=127.0.0.1,port=0,server=on,wait=off").await;
        let port = m.port_of("back");
        m.chardev(&format!("socket,id=peer,host=127.0.0.1,port={port}")).await;
        m.object(json!({"qom-type": "filter-redirector", "id": "r0", "netdev": "hn0", "queue": "rx", "indev": "back"}))
            .unwrap();
        until(|| m.chardevs.query()[0].filename.contains("<->")).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        let peer = m.chardevs.attach("peer").unwrap();
        for i in 0..50 {
            let frame = plain(&format!("n{i}"));
            assert!(peer.write(&[&60u32.to_be_bytes()[..], &frame].concat()));
        }
        m.net.remove_object("r0").await.unwrap();
        for i in 0..50 {
            assert_eq!(m.next_on_wire().await, plain(&format!("n{i}")));
        }
    });
}

#[test]
fn a_card_that_takes_nothing_does_not_hold_up_what_goes_out() {
    run(|| async {
        let m = Machine::new().await;
        m.chardev("socket,id=back,host=127.0.0.1,port=0,server=on,wait=off").await;
        m.chardev(&format!("socket,id=peer,host=127.0.0.1,port={}", m.port_of("back"))).await;
        m.object(json!({"qom-type": "filter-redirector", "id": "r0", "netdev": "hn0", "queue": "rx", "indev": "back"}))
            .unwrap();
        m.card.busy.store(true, Ordering::SeqCst);
        let shared = m.net.inner.netdevs.borrow()["hn0"].shared.clone();
        for _ in 0..300 {
            shared.enter(packet::Frame::new(plain("for the card")), netdev::Direction::Tx);
        }
        assert!(!shared.has_room());
        let peer = m.chardevs.attach("peer").unwrap();
        assert!(peer.write(&[&60u32.to_be_bytes()[..], &plain("out")].concat()));
        assert_eq!(m.next_on_wire().await, plain("out"));
    });
}

#[test]
fn a_buffer_keeps_packets_for_its_interval_and_lets_them_go_when_switched_off() {
    run(|| async {
        let m = Machine::new().await;
        let object = |interval: u32| json!({"qom-type": "filter-buffer", "id": "b", "netdev": "hn0", "queue": "rx", "interval": interval});
        assert_eq!(
            m.object(object(0)).unwrap_err().message(),
            "Property 'filter-buffer.interval' requires a positive value"
        );
        m.object(object(1_000_000_000)).unwrap();
        m.peer.send(plain("kept"));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(m.wire_is_quiet());
        m.net.filter("b").unwrap().set("status", &json!("off")).unwrap();
        assert_eq!(m.next_on_wire().await, plain("kept"));
        m.peer.send(plain("direct"));
        assert_eq!(m.next_on_wire().await, plain("direct"));
        assert_eq!(m.net.filter("b").unwrap().get("status"), Some(json!("off")));
    });
}

#[test]
fn a_dump_is_a_pcap_file() {
    run(|| async {
        let m = Machine::new().await;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dump");
        m.object(json!({"qom-type": "filter-dump", "id": "d", "netdev": "hn0", "file": path.to_str().unwrap(), "maxlen": 20}))
            .unwrap();
        m.peer.send(plain("x"));
        m.next_on_wire().await;
        let file = std::fs::read(&path).unwrap();
        assert_eq!(file.len(), 24 + 16 + 20);
        assert_eq!(file[..4], 0xa1b2_c3d4u32.to_ne_bytes());
        assert_eq!(file[32..36], 20u32.to_ne_bytes());
        assert_eq!(file[36..40], 60u32.to_ne_bytes());
    });
}

#[test]
fn errors_are_worded_as_qemus() {
    run(|| async {
        let m = Machine::new().await;
        m.chardev("socket,id=cs,host=127.0.0.1,port=0,server=on,wait=off").await;
        m.chardev("null,id=cn").await;
        let error = |value: serde_json::Value| {
            let e = m.object(value).unwrap_err();
            (e.class().as_str(), e.message().to_owned())
        };
        let mirror = |extra: serde_json::Value| {
            let mut object =
                json!({"qom-type": "filter-mirror", "id": "m0", "netdev": "hn0", "queue": "tx", "outdev": "cs"});
            object.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            object
        };
        for (extra, class, text) in [
            (json!({"netdev": "nope"}), "GenericError", "Parameter 'netdev' expects a network backend id"),
            (json!({"outdev": "nope"}), "DeviceNotFound", "Device 'nope' not found"),
            (json!({"queue": "zz"}), "GenericError", "Parameter 'queue' does not accept value 'zz'"),
            (json!({"position": "bad"}), "GenericError", "Parameter 'position' expects 'head', 'tail' or 'id=<id>'"),
            (json!({"position": "id=rew0", "insert": "before"}), "GenericError", "filter 'rew0' not found"),
            (json!({"insert": "zz"}), "GenericError", "Parameter 'insert' does not accept value 'zz'"),
            (json!({"status": "zz"}), "GenericError", "Invalid value for netfilter status, should be 'on' or 'off'"),
        ] {
            assert_eq!(error(mirror(extra)), (class, text.to_owned()));
        }
        m.object(mirror(json!({}))).unwrap();
        assert_eq!(
            error(mirror(json!({"outdev": "cn"}))).1,
            "attempt to add duplicate property 'm0' to object (type 'container')"
        );
        assert_eq!(error(mirror(json!({"id": "m1"}))).1, "chardev 'cs' is already in use");
        let redirector = |extra: serde_json::Value| {
            let mut object = json!({"qom-type": "filter-redirector", "id": "r0", "netdev": "hn0", "queue": "rx"});
            object.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            object
        };
        for (extra, class, text) in [
            (json!({}), "GenericError", "filter redirector needs 'indev' or 'outdev' at least one property set"),
            (
                json!({"indev": "cn", "outdev": "cn"}),
                "GenericError",
                "'indev' and 'outdev' could not be same for filter redirector",
            ),
            (json!({"indev": "nope"}), "DeviceNotFound", "IN Device 'nope' not found"),
            (json!({"outdev": "nope"}), "DeviceNotFound", "OUT Device 'nope' not found"),
        ] {
            assert_eq!(error(redirector(extra)), (class, text.to_owned()));
        }
        let compare = |extra: serde_json::Value| {
            let mut object = json!({"qom-type": "colo-compare", "id": "c0", "primary_in": "cs", "secondary_in": "cn",
                "outdev": "x", "iothread": "iothread1"});
            object.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            object
        };
        for (extra, text) in [
            (json!({"outdev": "cs"}), "'indev' and 'outdev' could not be same for compare module"),
            (json!({}), "chardev \"cn\" is not reconnectable"),
            (json!({"primary_in": "nope"}), "Device 'nope' not found"),
        ] {
            assert_eq!(error(compare(extra)).1, text);
        }
        assert_eq!(m.net.set_link("nope", true).unwrap_err().message(), "Device 'nope' not found");
        let rx = |name| m.net.query_rx_filter(Some(name)).unwrap_err().message().to_owned();
        assert_eq!(rx("hn0"), "net client(hn0) isn't a NIC");
        assert_eq!(rx("e0"), "net client(e0) doesn't support rx-filter querying");
        assert_eq!(rx("zz"), "invalid net client name: zz");
    });
}

#[test]
fn info_network_shows_cards_backends_and_filters() {
    run(|| async {
        let m = Machine::new().await;
        m.object(json!({"qom-type": "filter-rewriter", "id": "rew0", "netdev": "hn0"})).unwrap();
        let text = m.net.info_network();
        let lines: Vec<&str> = text.split("\r\n").collect();
        assert_eq!(lines[0], "e0: index=0,type=nic,model=rtl8139,macaddr=52:54:00:12:34:56");
        assert!(lines[1].starts_with(" \\ hn0: index=0,type=dgram,udp=127.0.0.1:"), "{text}");
        assert_eq!(lines[2], "filters:");
        assert_eq!(
            lines[3],
            "  - rew0: type=filter-rewriter,vnet_hdr_support=false,position=tail,status=on,insert=behind,netdev=hn0,queue=all"
        );
    });
}

#[test]
fn a_pulled_cable_carries_nothing() {
    run(|| async {
        let m = Machine::new().await;
        m.net.set_link("e0", false).unwrap();
        assert!(!m.peer.is_link_up());
        m.peer.send(plain("lost"));
        m.net.set_link("e0", true).unwrap();
        assert!(m.card.link.load(Ordering::SeqCst));
        m.net.set_link("hn0", false).unwrap();
        m.peer.send(plain("lost"));
        m.net.set_link("hn0", true).unwrap();
        m.peer.send(plain("kept"));
        assert_eq!(m.next_on_wire().await, plain("kept"));
    });
}

#[test]
fn two_stream_backends_talk() {
    run(|| async {
        let net = NetRegistry::new(ChardevRegistry::new(YankRegistry::new()), Clocks::new());
        let add = async |text: serde_json::Value| net.add_netdev(&from_json(text).unwrap()).await;
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        add(json!({"type": "socket", "id": "a", "listen": format!("127.0.0.1:{port}")})).await.unwrap();
        let addr = json!({"type": "inet", "host": "127.0.0.1", "port": port});
        add(json!({"type": "stream", "id": "b", "addr": addr})).await.unwrap();
        let e = add(json!({"type": "stream", "id": "b", "addr": addr})).await.unwrap_err();
        assert_eq!(e.message(), "Duplicate ID 'b'");
        let e = add(json!({"type": "dgram", "id": "d"})).await.unwrap_err();
        assert_eq!(e.message(), "dgram requires local= parameter");
        let e = add(json!({"type": "socket", "id": "d", "listen": format!("127.0.0.1:{port}")})).await.unwrap_err();
        assert_eq!(e.message(), "can't bind ip=127.0.0.1 to socket: Address already in use");
        let nowhere = json!({"type": "inet", "host": "127.0.0.1", "port": "1"});
        add(json!({"type": "stream", "id": "n", "addr": nowhere})).await.unwrap();
        until(|| net.info_network().contains("a: index=0,type=socket,socket: connection from 127.0.0.1:")).await;
        let text = net.info_network();
        assert!(text.contains(&format!("b: index=0,type=stream,tcp:127.0.0.1:{port}\r\n")), "{text}");
        let error = "n: index=0,type=stream,error: Failed to connect to '127.0.0.1:1': Connection refused\r\n";
        assert!(text.contains(error), "{text}");
        net.set_running(true);
        let card = |name: &str, netdev| {
            let info = NicInfo { name: name.into(), model: "rtl8139".into(), mac: net.free_mac() };
            let peer = net.add_nic(info, Some(netdev)).unwrap();
            let card = Arc::new(Card::default());
            peer.connect(Arc::downgrade(&(card.clone() as Arc<dyn NicReceiver>)) as _);
            (peer, card)
        };
        let ((pa, ca), (pb, cb)) = (card("x", "a"), card("y", "b"));
        assert_eq!(net.check_peer("a"), Err(PeerError::InUse));
        assert_eq!(net.check_peer("z"), Err(PeerError::NotFound));
        pb.send(plain("to a"));
        until(|| ca.got.lock().len() == 1).await;
        pa.send(plain("to b"));
        until(|| cb.got.lock().len() == 1).await;
        net.self_announce(AnnounceParameters::default());
        until(|| cb.got.lock().len() >= 2).await;
        net.remove_netdev("a").await.unwrap();
        assert_eq!(net.remove_netdev("a").await.unwrap_err().message(), "Device 'a' not found");
    });
}

#[test]
fn frames_that_come_at_once_are_mirrored_and_delivered_in_their_order() {
    run(|| async {
        let m = Machine::new().await;
        m.chardev("socket,id=mirror0,host=127.0.0.1,port=0,server=on,wait=off").await;
        m.chardev(&format!("socket,id=peer,host=127.0.0.1,port={}", m.port_of("mirror0"))).await;
        m.object(json!({"qom-type": "filter-rewriter", "id": "rew0", "netdev": "hn0", "queue": "all"})).unwrap();
        m.object(json!({"qom-type": "filter-mirror", "id": "m0", "netdev": "hn0", "queue": "tx", "outdev": "mirror0"}))
            .unwrap();
        let mut mirrored = m.chardevs.attach("peer").unwrap().into_stream();
        until(|| m.chardevs.query()[0].filename.contains("<->")).await;
        let shared = m.net.inner.netdevs.borrow()["hn0"].shared.clone();
        // More than goes in one piece, a short one that is padded, and one alone.
        let frame = |n: usize| [plain(&format!("n{n}")), vec![n as u8; 3000]].concat();
        let frames: Vec<_> = (0..50).map(frame).collect();
        let mut batch = [frames.clone(), vec![b"short".to_vec()]].concat();
        shared.all_from_host(&mut batch);
        assert!(batch.is_empty());
        shared.all_from_host(&mut vec![plain("alone")]);
        let short = [&b"short"[..], &[0; 55]].concat();
        let all = [frames, vec![short, plain("alone")]].concat();
        assert_eq!(*m.card.got.lock(), all);
        let bytes: Vec<u8> = all.iter().flat_map(|f| [&(f.len() as u32).to_be_bytes()[..], f].concat()).collect();
        assert_eq!(read(&mut mirrored, bytes.len()).await, bytes);
    });
}

#[test]
fn frames_that_find_no_room_in_the_mirrors_queue_are_counted_one_by_one() {
    run(|| async {
        let m = Machine::new().await;
        m.chardev("socket,id=mirror0,host=127.0.0.1,port=0,server=on,wait=off").await;
        m.object(json!({"qom-type": "filter-mirror", "id": "m0", "netdev": "hn0", "queue": "tx", "outdev": "mirror0"}))
            .unwrap();
        let shared = m.net.inner.netdevs.borrow()["hn0"].shared.clone();
        // Nobody is connected.
        shared.all_from_host(&mut (0..7).map(|n| plain(&n.to_string())).collect());
        assert_eq!(m.card.got.lock().len(), 7);
        assert_eq!(m.net.losses()["hn0/m0"], 7);
    });
}

/// A machine whose mirror is connected to a peer outside.
async fn mirrored() -> (Machine, std::net::TcpStream) {
    let m = Machine::new().await;
    m.chardev("socket,id=mirror0,host=127.0.0.1,port=0,server=on,wait=off").await;
    m.object(json!({"qom-type": "filter-mirror", "id": "m0", "netdev": "hn0", "queue": "tx", "outdev": "mirror0"}))
        .unwrap();
    let peer = std::net::TcpStream::connect(("127.0.0.1", m.port_of("mirror0"))).unwrap();
    until(|| m.chardevs.query()[0].filename.contains("<->")).await;
    (m, peer)
}

fn numbered(number: u32) -> Vec<u8> {
    let mut frame = plain(&number.to_string());
    frame.resize(1500, 0);
    frame
}

/// Lets frames in until the source is to wait, as backends do; the number of the next frame.
fn fill(netdev: &Arc<netdev::Netdev>, mut number: u32) -> u32 {
    while netdev.has_room() {
        netdev.all_from_host(&mut (number..number + 50).map(numbered).collect());
        number += 50;
        assert!(number < 100_000, "the source is never told to wait");
    }
    number
}

#[test]
fn a_full_mirror_socket_makes_the_source_wait_and_loses_nothing() {
    run(|| async {
        let (m, peer) = mirrored().await;
        let shared = m.net.inner.netdevs.borrow()["hn0"].shared.clone();
        let mut number = 0;
        for _ in 0..3 {
            let first = number;
            number = fill(&shared, number);
            assert!(!shared.has_room());
            let mut peer = peer.try_clone().unwrap();
            let read = tokio::task::spawn_blocking(move || {
                let (mut head, mut frame) = ([0; 4], [0; 1500]);
                for number in first..number {
                    std::io::Read::read_exact(&mut peer, &mut head).unwrap();
                    std::io::Read::read_exact(&mut peer, &mut frame).unwrap();
                    assert_eq!((head, &frame[..]), (1500u32.to_be_bytes(), &numbered(number)[..]));
                }
            });
            until(|| shared.has_room()).await;
            read.await.unwrap();
        }
        assert!(m.net.drain_mirrors(Duration::from_secs(10)).await);
        assert_eq!(m.net.losses()["hn0/m0"], 0);
        assert_eq!(m.card.got.lock().len() as u32, number);
    });
}

#[test]
fn a_mirrors_peer_that_takes_nothing_holds_the_network_up_for_a_second_only() {
    run(|| async {
        let (m, peer) = mirrored().await;
        let shared = m.net.inner.netdevs.borrow()["hn0"].shared.clone();
        let mut number = 0;
        // The kernel takes more for a while, as it makes its buffers larger.
        loop {
            number = fill(&shared, number);
            let start = std::time::Instant::now();
            until(|| shared.has_room()).await;
            if start.elapsed() > Duration::from_millis(900) {
                break;
            }
        }
        // From here on the guest hears what its mirror loses, which is counted.
        for n in number..number + 2000 {
            assert!(shared.has_room());
            shared.all_from_host(&mut vec![numbered(n)]);
        }
        assert_eq!(m.card.got.lock().len() as u32, number + 2000);
        assert!(m.net.losses()["hn0/m0"] > 0);
        drop(peer);
        until(|| m.net.filter("m0").is_some() && m.chardevs.query()[0].filename.starts_with("disconnected")).await;
        assert!(shared.has_room());
    });
}
