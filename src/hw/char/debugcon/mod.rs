//! A port that a firmware writes text to (`isa-debugcon`, `-debugcon`).

use std::sync::Arc;

use lockstep_memory::{AccessRules, Region};
use lockstep_util::{Result, bail};

use super::{CharSink, connect::Line};
use crate::core::{Board, Category, CreateContext, Device, DeviceType, Property, PropertyKind, ResetKind, io_handler};

const PROPERTIES: &[Property] = &[
    Property::new("iobase", PropertyKind::U32, "233"),
    Property::unset("chardev", PropertyKind::Chardev),
    Property::new("readback", PropertyKind::U32, "233"),
];

/// A debug console on the ISA bus.
pub static ISA_DEBUGCON: DeviceType = DeviceType {
    name: "isa-debugcon",
    alias: None,
    parents: &["isa-device", "device", "object"],
    bus: "ISA",
    category: Category::Misc,
    description: "",
    properties: &[PROPERTIES],
    create: Some(create),
};

struct Debugcon;

impl Device for Debugcon {
    fn reset(&self, _: ResetKind) {}
}

fn create(context: &mut CreateContext<'_>) -> Result<Arc<dyn Device>> {
    let Some(id) = context.properties.str("chardev") else {
        bail!("Can't create debugcon device, empty char device");
    };
    let handle = context.board.backends.chardev(id, "isa-debugcon.chardev")?;
    let port = context.properties.u32("iobase");
    let Ok(port) = u16::try_from(port) else {
        bail!("Property 'isa-debugcon.iobase' doesn't take value '{port}'");
    };
    let line = Arc::new(Line::default());
    line.connect(handle, || usize::MAX, |_| (), || ());
    add_debugcon(context.board, port, context.properties.u32("readback"), line);
    Ok(Arc::new(Debugcon))
}

/// A debug console at a port. Reads give `readback`, by which firmware finds it.
pub fn add_debugcon(board: &Board, port: u16, readback: u32, sink: Arc<dyn CharSink>) {
    let handler =
        io_handler(AccessRules::bytes(1), move |_, _| readback.into(), move |_, _, value| sink.send(&[value as u8]));
    board.ports.add(port.into(), &Region::io("isa-debugcon", 1, handler));
}

#[cfg(test)]
mod tests {
    use lockstep_event::Clocks;
    use parking_lot::Mutex;

    use super::*;

    struct Collect(Mutex<Vec<u8>>);

    impl CharSink for Collect {
        fn send(&self, bytes: &[u8]) {
            self.0.lock().extend(bytes);
        }
    }

    #[test]
    fn text_goes_out_and_the_port_is_found() {
        let board = Board::new(Clocks::manual());
        let out = Arc::new(Collect(Mutex::default()));
        add_debugcon(&board, 0x402, 0xe9, out.clone());
        b"hi".iter().for_each(|&b| board.port_space.write_u8(0x402, b));
        assert_eq!((board.port_space.read_u8(0x402), &*out.0.lock()), (0xe9, &b"hi".to_vec()));
    }
}
