//! Networks.

use lockstep_net::AnnounceParameters as Announce;
use lockstep_qapi::{Registry, cmd, event, schema::*};

use super::Ctx;
use crate::objects;

/// The kinds of network backends that there are, in the order of QEMU's help.
pub const NETDEVS: [NetClientDriver; 5] = [
    NetClientDriver::Socket,
    NetClientDriver::Stream,
    NetClientDriver::Dgram,
    NetClientDriver::Tap,
    NetClientDriver::Bridge,
];

pub fn register(registry: &mut Registry<Ctx>) {
    registry.register::<cmd::NetdevAdd>(async |vm: Ctx, options: Netdev| vm.net.add_netdev(&options).await);
    registry.register::<cmd::NetdevDel>(async |vm: Ctx, a: cmd::NetdevDel| vm.net.remove_netdev(&a.id).await);
    registry.register::<cmd::SetLink>(async |vm: Ctx, a: cmd::SetLink| vm.net.set_link(&a.name, a.up));
    registry.register::<cmd::QueryRxFilter>(async |vm: Ctx, a: cmd::QueryRxFilter| {
        vm.net.query_rx_filter(a.name.as_deref())
    });
    registry.register::<cmd::AnnounceSelf>(async |vm: Ctx, a: AnnounceParameters| {
        vm.net.self_announce(Announce {
            initial_ms: a.initial as u64,
            max_ms: a.max as u64,
            rounds: a.rounds as u64,
            step_ms: a.step as u64,
            interfaces: a.interfaces.unwrap_or_default(),
        });
        Ok(())
    });
    registry.offer_only(&objects::TYPES);
    registry.offer_only(&NETDEVS);
    registry.announce::<event::NicRxFilterChanged>();
}
