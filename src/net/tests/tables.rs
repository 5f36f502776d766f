//! The way of a connection's numbers from a survivor to its new secondary.

use super::colo::Pair;
use super::*;
use crate::checkpoint::NetTables;
use crate::packet::Frame;
use crate::packet::flags::ACK;
use crate::packet::testing::{seg, tcp_of};
use crate::rewriter::{MAX_CONNECTIONS, RewriterTable};

/// What a survivor knows of the connection whose guest began at 9000 and which the network knows by 5000, as it travels.
async fn survivors_tables() -> serde_json::Value {
    let pair = Pair::new().await;
    pair.accept().await;
    pair.client(&seg(ACK, 101, 5001, b"").inbound().frame()).await;
    pair.s.net.filters_failover();
    serde_json::to_value(pair.s.net.export_tables()).unwrap()
}

#[test]
fn a_new_secondary_translates_the_connections_that_the_survivor_translated() {
    run(|| async {
        let travelling = survivors_tables().await;
        let new = Machine::new().await;
        new.object(json!({"qom-type": "filter-rewriter", "id": "rew0", "netdev": "hn0", "queue": "all"})).unwrap();
        let tables: NetTables = serde_json::from_value(travelling).unwrap();
        new.net.check_tables(&tables).unwrap();
        new.net.filters_checkpoint(&tables);
        new.net.filters_failover();
        // Its guest is a copy of the survivor's.
        new.peer.send(seg(ACK, 9001, 101, b"hello").frame().data);
        let said = tcp_of(&Frame::new(new.next_on_wire().await));
        assert_eq!((said.seq, said.ack), (5001, 101), "the network goes on hearing what it knows");
        let before = new.card.got.lock().len();
        new.wire.send(&seg(ACK, 101, 5006, b"").inbound().frame().data).unwrap();
        new.wait_for_frames(before + 1).await;
        let heard = tcp_of(&Frame::new(new.card.got.lock().last().unwrap().clone()));
        assert_eq!(heard.ack, 9006, "and the guest what it said");
    });
}

#[test]
fn connections_that_nobody_would_translate_are_refused_before_the_checkpoint_is() {
    run(|| async {
        let mut tables: NetTables = serde_json::from_value(survivors_tables().await).unwrap();
        let new = Machine::new().await;
        let refused = |tables: &NetTables| new.net.check_tables(tables).unwrap_err().message().to_owned();
        assert_eq!(refused(&tables), "There is no filter-rewriter for the primary's connections of 'hn0'");
        new.object(json!({"qom-type": "filter-rewriter", "id": "rew0", "netdev": "hn0", "queue": "all"})).unwrap();
        new.net.check_tables(&tables).unwrap();
        let table = tables.0.get_mut("hn0").unwrap();
        table.connections = vec![table.connections[0]; MAX_CONNECTIONS];
        new.net.check_tables(&tables).unwrap();
        let table = tables.0.get_mut("hn0").unwrap();
        table.connections.push(table.connections[0]);
        assert_eq!(refused(&tables), "The primary has more connections of 'hn0' than a filter-rewriter keeps");
        let none = NetTables([("other".to_owned(), RewriterTable::default())].into());
        new.net.check_tables(&none).unwrap();
    });
}
