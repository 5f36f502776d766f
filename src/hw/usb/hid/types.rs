//! The types `usb-tablet`, `usb-mouse` and `usb-kbd`.

use std::sync::Arc;

use lockstep_util::{Result, bail};

use super::{HidDevice, KeyboardSection, Kind, PointerSection, descriptors};
use crate::{
    core::{Category, CreateContext, Device, DeviceType, Property, PropertyKind},
    usb::UsbBus,
};

const PARENTS: &[&str] = &["usb-hid", "usb-device", "device", "object"];

const VERSION: Property = Property::new("usb_version", PropertyKind::U32, "2");
const DISPLAY: Property = Property::new("display", PropertyKind::Str, "");
const HEAD: Property = Property::new("head", PropertyKind::U32, "0");

const USB: &[Property] = &[
    Property::new("port", PropertyKind::Str, ""),
    Property::new("serial", PropertyKind::Str, ""),
    Property::new("msos-desc", PropertyKind::Bool, "on"),
    Property::new("pcap", PropertyKind::Str, ""),
];

const TABLET: &[Property] = &[VERSION, DISPLAY, HEAD];
const KBD: &[Property] = &[VERSION, DISPLAY];
const MOUSE: &[Property] = &[VERSION];

/// A tablet.
pub static USB_TABLET: DeviceType = DeviceType {
    name: "usb-tablet",
    alias: None,
    parents: PARENTS,
    bus: "usb-bus",
    category: Category::Input,
    description: "",
    properties: &[TABLET, USB],
    create: Some(|context| create(context, Kind::Tablet)),
};

/// A mouse.
pub static USB_MOUSE: DeviceType = DeviceType {
    name: "usb-mouse",
    alias: None,
    parents: PARENTS,
    bus: "usb-bus",
    category: Category::Input,
    description: "",
    properties: &[MOUSE, USB],
    create: Some(|context| create(context, Kind::Mouse)),
};

/// A keyboard.
pub static USB_KBD: DeviceType = DeviceType {
    name: "usb-kbd",
    alias: None,
    parents: PARENTS,
    bus: "usb-bus",
    category: Category::Input,
    description: "",
    properties: &[KBD, USB],
    create: Some(|context| create(context, Kind::Keyboard)),
};

fn create(context: &mut CreateContext<'_>, kind: Kind) -> Result<Arc<dyn Device>> {
    let bus = context.bus_object::<UsbBus>()?;
    let properties = &*context.properties;
    let version = match properties.u32("usb_version") {
        1 => 0x0100,
        2 => 0x0200,
        n => bail!("Unsupported usb version {n} for usb hid device"),
    };
    if properties.str("pcap").is_some_and(|p| !p.is_empty()) {
        bail!("Property 'pcap' is not supported");
    }
    let port = bus.free_port(properties.str("port"), descriptors::product(kind))?;
    let place = format!("{}-{}", bus.path, port.number + 1);
    let serial = match properties.str("serial").filter(|s| !s.is_empty()) {
        Some(given) => given.to_owned(),
        None => descriptors::default_serial(kind, &place),
    };
    let device = HidDevice::new(context.board, kind, port.clone(), serial, properties.bool("msos-desc"), version);
    let path = format!("{}/{}", bus.path, port.number + 1);
    let states = &context.board.states;
    let section = match kind {
        Kind::Keyboard => states.register(&format!("{path}/usb-kbd"), Arc::new(KeyboardSection(device.clone()))),
        _ => states.register(&format!("{path}/usb-ptr"), Arc::new(PointerSection(device.clone()))),
    };
    let _ = device.section.set(section);
    bus.plug(&port, device.clone());
    Ok(device)
}
