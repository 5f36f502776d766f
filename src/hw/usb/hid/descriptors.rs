//! What the devices say of themselves (USB 2.0, section 9.6; HID 1.11, section 6.2).

use super::Kind;
use crate::usb::control::ATTRIBUTES;

/// Descriptor types.
const DEVICE: u8 = 1;
const CONFIGURATION: u8 = 2;
const STRING: u8 = 3;
const QUALIFIER: u8 = 6;
const OTHER_SPEED: u8 = 7;
const BOS: u8 = 15;

/// The tablet: three buttons, an absolute position, a wheel.
const TABLET_REPORT: &[u8] = &[
    0x05, 0x01, // Usage page: generic desktop
    0x09, 0x02, // Usage: mouse
    0xa1, 0x01, // Collection: application
    0x09, 0x01, //   Usage: pointer
    0xa1, 0x00, //   Collection: physical
    0x05, 0x09, //     Usage page: button
    0x19, 0x01, 0x29, 0x03, // Usages 1 to 3
    0x15, 0x00, 0x25, 0x01, // Values 0 to 1
    0x95, 0x03, 0x75, 0x01, // 3 of 1 bit
    0x81, 0x02, //     Input: data, variable, absolute
    0x95, 0x01, 0x75, 0x05, // 1 of 5 bits
    0x81, 0x01, //     Input: constant
    0x05, 0x01, //     Usage page: generic desktop
    0x09, 0x30, 0x09, 0x31, // Usages: X, Y
    0x15, 0x00, 0x26, 0xff, 0x7f, // Values 0 to 32767
    0x35, 0x00, 0x46, 0xff, 0x7f, // Physical 0 to 32767
    0x75, 0x10, 0x95, 0x02, // 2 of 16 bits
    0x81, 0x02, //     Input: data, variable, absolute
    0x05, 0x01, //     Usage page: generic desktop
    0x09, 0x38, //     Usage: wheel
    0x15, 0x81, 0x25, 0x7f, // Values -127 to 127
    0x35, 0x00, 0x45, 0x00, // Physical as logical
    0x75, 0x08, 0x95, 0x01, // 1 of 8 bits
    0x81, 0x06, //     Input: data, variable, relative
    0xc0, 0xc0,
];

/// The mouse: five buttons, movement, a wheel.
const MOUSE_REPORT: &[u8] = &[
    0x05, 0x01, 0x09, 0x02, 0xa1, 0x01, 0x09, 0x01, 0xa1, 0x00, // Mouse, pointer
    0x05, 0x09, 0x19, 0x01, 0x29, 0x05, 0x15, 0x00, 0x25, 0x01, 0x95, 0x05, 0x75, 0x01, 0x81, 0x02, // Buttons
    0x95, 0x01, 0x75, 0x03, 0x81, 0x01, // 3 bits of nothing
    0x05, 0x01, 0x09, 0x30, 0x09, 0x31, 0x09, 0x38, // X, Y, wheel
    0x15, 0x81, 0x25, 0x7f, 0x75, 0x08, 0x95, 0x03, 0x81, 0x06, // 3 of 8 bits, relative
    0xc0, 0xc0,
];

/// The keyboard: modifiers, six keys, five lamps: as the boot protocol has it (HID 1.11, appendix B.1).
const KEYBOARD_REPORT: &[u8] = &[
    0x05, 0x01, 0x09, 0x06, 0xa1, 0x01, // Keyboard
    0x75, 0x01, 0x95, 0x08, 0x05, 0x07, 0x19, 0xe0, 0x29, 0xe7, 0x15, 0x00, 0x25, 0x01, 0x81, 0x02, // Modifiers
    0x95, 0x01, 0x75, 0x08, 0x81, 0x01, // Reserved
    0x95, 0x05, 0x75, 0x01, 0x05, 0x08, 0x19, 0x01, 0x29, 0x05, 0x91, 0x02, // Lamps
    0x95, 0x01, 0x75, 0x03, 0x91, 0x01, // 3 bits of nothing
    0x95, 0x06, 0x75, 0x08, 0x15, 0x00, 0x25, 0xff, 0x05, 0x07, 0x19, 0x00, 0x29, 0xff, 0x81, 0x00, // Keys
    0xc0,
];

/// The report descriptor.
pub fn report(kind: Kind) -> &'static [u8] {
    match kind {
        Kind::Tablet => TABLET_REPORT,
        Kind::Mouse => MOUSE_REPORT,
        Kind::Keyboard => KEYBOARD_REPORT,
    }
}

/// Strings by number; those of a kind follow each other in the order mouse, tablet, keyboard.
const STRINGS: [&str; 11] = [
    "QEMU",
    "QEMU USB Mouse",
    "QEMU USB Tablet",
    "QEMU USB Keyboard",
    "42",
    "HID Mouse",
    "HID Tablet",
    "HID Keyboard",
    "89126",
    "28754",
    "68284",
];
const PRODUCT: u8 = 2;
const CONFIGURATION_TEXT: u8 = 6;
const SERIAL: u8 = 9;

/// Number of a device's text in a group of three.
fn text_number(first: u8, kind: Kind) -> u8 {
    first
        + match kind {
            Kind::Mouse => 0,
            Kind::Tablet => 1,
            Kind::Keyboard => 2,
        }
}

/// The serial number that a device at some place has when its user gave none.
pub fn default_serial(kind: Kind, place: &str) -> String {
    format!("{}-{place}", STRINGS[usize::from(text_number(SERIAL, kind)) - 1])
}

/// The product's name.
pub fn product(kind: Kind) -> &'static str {
    STRINGS[usize::from(text_number(PRODUCT, kind)) - 1]
}

fn utf16(text: &str) -> impl Iterator<Item = u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes)
}

/// Microsoft OS descriptors 1.0: the vendor code by which they are asked for.
const MICROSOFT_CODE: u8 = b'Q';

fn string(kind: Kind, index: u8, serial: &str, microsoft: bool) -> Option<Vec<u8>> {
    let mut bytes = vec![0, STRING];
    match index {
        // Languages: English
        0 => bytes.extend([0x09, 0x04]),
        0xee if microsoft => {
            bytes.extend(utf16("MSFT100"));
            bytes.extend([MICROSOFT_CODE, 0]);
        }
        n if n == text_number(SERIAL, kind) => bytes.extend(utf16(serial).take(252)),
        n => bytes.extend(utf16(STRINGS.get(usize::from(n) - 1)?)),
    }
    bytes[0] = bytes.len() as u8;
    Some(bytes)
}

fn configuration(kind: Kind, of: u8, interval: u8) -> Vec<u8> {
    // Subclass and protocol: none, boot mouse, boot keyboard.
    let (boot, packet) = match kind {
        Kind::Tablet => ([0, 0], 8),
        Kind::Mouse => ([1, 2], 4),
        Kind::Keyboard => ([1, 1], 8),
    };
    let hid_version = match kind {
        Kind::Tablet | Kind::Mouse => [0x01, 0x00],
        Kind::Keyboard => [0x11, 0x01],
    };
    let report = report(kind).len() as u8;
    let mut bytes = vec![9, of, 34, 0, 1, 1, text_number(CONFIGURATION_TEXT, kind), ATTRIBUTES, 50];
    bytes.extend([9, 4, 0, 0, 1, 3, boot[0], boot[1], 0]);
    bytes.extend([9, 0x21, hid_version[0], hid_version[1], 0, 1, 0x22, report, 0]);
    // Endpoint 1, in, interrupt.
    bytes.extend([7, 5, 0x81, 3, packet, 0, interval]);
    bytes
}

/// A descriptor by type and index.
pub fn descriptor(kind: Kind, of: u8, index: u8, serial: &str, microsoft: bool, version: u16) -> Option<Vec<u8>> {
    match of {
        DEVICE => {
            let mut bytes = vec![18, DEVICE];
            bytes.extend(version.to_le_bytes());
            bytes.extend([0, 0, 0, 8, 0x27, 0x06, 0x01, 0x00, 0, 0, 1]);
            bytes.extend([text_number(PRODUCT, kind), text_number(SERIAL, kind), 1]);
            Some(bytes)
        }
        CONFIGURATION if index == 0 => Some(configuration(kind, CONFIGURATION, 10)),
        STRING => string(kind, index, serial, microsoft),
        // At high speed: packets of 64 bytes, asked for each 2^3 microframes.
        QUALIFIER if version >= 0x0200 => Some(vec![10, QUALIFIER, 0, 2, 0, 0, 0, 64, 1, 0]),
        OTHER_SPEED if version >= 0x0200 && index == 0 => Some(configuration(kind, OTHER_SPEED, 4)),
        // USB 2.0 extension without link power management.
        BOS if version >= 0x0200 => Some(vec![5, BOS, 12, 0, 1, 7, 16, 2, 2, 0, 0, 0]),
        _ => None,
    }
}

/// Microsoft's extended compatible ids (4) and properties (5).
pub fn microsoft(code: u16, index: u16) -> Option<Vec<u8>> {
    const VENDOR_DEVICE: u16 = 0xc000 | MICROSOFT_CODE as u16;
    const VENDOR_INTERFACE: u16 = 0xc100 | MICROSOFT_CODE as u16;
    match (code, index) {
        (VENDOR_DEVICE, 4) => {
            let mut bytes = vec![0; 40];
            bytes[..9].copy_from_slice(&[40, 0, 0, 0, 0, 1, 4, 0, 1]);
            bytes[17] = 1;
            Some(bytes)
        }
        (VENDOR_DEVICE | VENDOR_INTERFACE, 5) => {
            // A double word named SelectiveSuspendEnabled, 1.
            let name: Vec<_> = utf16("SelectiveSuspendEnabled\0").collect();
            let mut bytes = vec![0, 0, 0, 0, 0, 1, 5, 0, 1, 0];
            bytes.extend(72_u32.to_le_bytes());
            bytes.extend(4_u32.to_le_bytes());
            bytes.extend((name.len() as u16).to_le_bytes());
            bytes.extend(name);
            bytes.extend(4_u32.to_le_bytes());
            bytes.extend(1_u32.to_le_bytes());
            bytes.resize(82, 0);
            bytes[0] = 82;
            Some(bytes)
        }
        _ => None,
    }
}
