//! Character devices.

use lockstep_qapi::{Registry, cmd, schema::*};

use super::Ctx;

/// The kinds of character devices that there are, in the order of QEMU's help.
pub const CHARDEVS: [ChardevBackendKind; 10] = [
    ChardevBackendKind::Stdio,
    ChardevBackendKind::Ringbuf,
    ChardevBackendKind::Mux,
    ChardevBackendKind::Pipe,
    ChardevBackendKind::Pty,
    ChardevBackendKind::Null,
    ChardevBackendKind::Socket,
    ChardevBackendKind::Memory,
    ChardevBackendKind::Udp,
    ChardevBackendKind::File,
];

pub fn register(registry: &mut Registry<Ctx>) {
    registry.register::<cmd::QueryChardev>(async |vm: Ctx, _| Ok(vm.chardevs.query()));
    registry.register::<cmd::QueryChardevBackends>(async |vm: Ctx, _| Ok(vm.chardevs.backends()));
    registry.register::<cmd::ChardevAdd>(async |vm: Ctx, a: cmd::ChardevAdd| {
        // An id of another form than the command line's is taken.
        vm.chardevs.add(&a.id, a.backend).await
    });
    registry.register::<cmd::ChardevChange>(async |vm: Ctx, a: cmd::ChardevChange| {
        vm.chardevs.change(&a.id, a.backend).await
    });
    registry.register::<cmd::ChardevRemove>(async |vm: Ctx, a: cmd::ChardevRemove| vm.chardevs.remove(&a.id));
    registry.register::<cmd::ChardevSendBreak>(async |vm: Ctx, a: cmd::ChardevSendBreak| vm.chardevs.send_break(&a.id));
    registry.register::<cmd::RingbufWrite>(async |vm: Ctx, a: cmd::RingbufWrite| {
        vm.chardevs.ringbuf_write(&a.device, &a.data, a.format)
    });
    registry.register::<cmd::RingbufRead>(async |vm: Ctx, a: cmd::RingbufRead| {
        vm.chardevs.ringbuf_read(&a.device, a.size, a.format)
    });
    registry.offer_only(&CHARDEVS);
}
