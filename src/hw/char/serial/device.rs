//! `isa-serial`.

use std::sync::Arc;

use lockstep_util::{Result, bail};

use super::Serial;
use crate::{
    char::connect::Line,
    core::{Category, CreateContext, Device, DeviceType, Property, PropertyKind, ResetKind},
    pc::IsaBus,
};

const PROPERTIES: &[Property] = &[
    Property::new("index", PropertyKind::U32, "4294967295"),
    Property::new("iobase", PropertyKind::U32, "4294967295"),
    Property::new("irq", PropertyKind::U32, "4294967295"),
    Property::unset("chardev", PropertyKind::Chardev).hidden(),
];

/// Ports and ISA interrupts of COM1 to COM4.
const COM_PORTS: [(u16, u8); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];

/// A serial port on the ISA bus.
pub static ISA_SERIAL: DeviceType = DeviceType {
    name: "isa-serial",
    alias: None,
    parents: &["isa-device", "device", "object"],
    bus: "ISA",
    category: Category::Input,
    description: "",
    properties: &[PROPERTIES],
    create: Some(create),
};

struct IsaSerial(Arc<Serial>);

impl Device for IsaSerial {
    fn reset(&self, _: ResetKind) {
        self.0.reset();
    }
}

fn create(context: &mut CreateContext<'_>) -> Result<Arc<dyn Device>> {
    let bus = context.bus_object::<IsaBus>()?;
    let index = match context.properties.u32("index") {
        u32::MAX => bus.next_serial(),
        given => given,
    };
    let Some(&(port, irq)) = COM_PORTS.get(index as usize) else {
        bail!("Max. supported number of ISA serial ports is 4.");
    };
    let or = |given: u32, usual: u32| if given == u32::MAX { usual } else { given };
    let port = or(context.properties.u32("iobase"), port.into());
    let irq = or(context.properties.u32("irq"), irq.into());
    let Some(line_of_irq) = bus.irqs.get(irq as usize) else {
        bail!("Property 'isa-serial.irq' doesn't take value '{irq}'");
    };
    if port > 0xfff8 {
        bail!("Property 'isa-serial.iobase' doesn't take value '{port}'");
    }
    let handle = match context.properties.str("chardev") {
        Some(id) => Some(context.board.backends.chardev(id, "serial.chardev")?),
        None => None,
    };
    for (name, value) in [("index", index), ("iobase", port), ("irq", irq)] {
        context.properties.set(name, value);
    }
    let line = Arc::new(Line::default());
    let serial = Serial::new(context.board, port as u16, line_of_irq.clone(), line.clone());
    if let Some(handle) = handle {
        let (room, data, broken) = (serial.clone(), serial.clone(), serial.clone());
        line.connect(
            handle,
            move || room.can_receive(),
            move |bytes| data.receive(bytes),
            move || broken.receive_break(),
        );
    }
    context.board.states.register("serial", serial.clone());
    Ok(Arc::new(IsaSerial(serial)))
}
