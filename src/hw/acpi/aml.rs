//! Building ACPI Machine Language (ACPI 6.5, section 20.2): functions that give the bytes of a term.

/// Bytes of AML.
pub type Aml = Vec<u8>;

/// Bytes one after the other.
pub fn join(parts: impl IntoIterator<Item = Aml>) -> Aml {
    parts.into_iter().flatten().collect()
}

/// A name segment: up to four characters, filled up with underscores.
fn segment(name: &str) -> Aml {
    debug_assert!((1..=4).contains(&name.len()), "{name}");
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(4, b'_');
    bytes
}

/// A name string: segments with dots between, after an optional backslash.
pub fn name(path: &str) -> Aml {
    let (root, rest) = match path.strip_prefix('\\') {
        Some(rest) => (true, rest),
        None => (false, path),
    };
    let segments: Vec<_> = rest.split('.').filter(|s| !s.is_empty()).collect();
    let mut bytes = if root { vec![b'\\'] } else { vec![] };
    match segments.len() {
        0 => bytes.push(0),
        1 => {}
        2 => bytes.push(0x2e),
        n => bytes.extend([0x2f, n as u8]),
    }
    bytes.extend(segments.into_iter().flat_map(segment));
    bytes
}

/// A length that counts itself, before `body`.
fn with_length(body: Aml) -> Aml {
    let len = body.len();
    let mut bytes = match len {
        0..=0x3e => vec![len as u8 + 1],
        0x3f..=0xffd => {
            let n = len + 2;
            vec![0x40 | (n & 15) as u8, (n >> 4) as u8]
        }
        0xffe..=0xf_fffc => {
            let n = len + 3;
            vec![0x80 | (n & 15) as u8, (n >> 4) as u8, (n >> 12) as u8]
        }
        _ => {
            let n = len + 4;
            vec![0xc0 | (n & 15) as u8, (n >> 4) as u8, (n >> 12) as u8, (n >> 20) as u8]
        }
    };
    bytes.extend(body);
    bytes
}

/// An opcode with a package after it.
fn package_op(op: &[u8], body: Aml) -> Aml {
    let mut bytes = op.to_vec();
    bytes.extend(with_length(body));
    bytes
}

/// An integer, as short as it goes.
pub fn int(value: u64) -> Aml {
    match value {
        0 => vec![0x00],
        1 => vec![0x01],
        2..=0xff => vec![0x0a, value as u8],
        0x100..=0xffff => join([vec![0x0b], (value as u16).to_le_bytes().to_vec()]),
        0x1_0000..=0xffff_ffff => join([vec![0x0c], (value as u32).to_le_bytes().to_vec()]),
        _ => join([vec![0x0e], value.to_le_bytes().to_vec()]),
    }
}

/// A string.
pub fn string(text: &str) -> Aml {
    join([vec![0x0d], text.as_bytes().to_vec(), vec![0]])
}

/// A buffer.
pub fn buffer(bytes: Aml) -> Aml {
    package_op(&[0x11], join([int(bytes.len() as u64), bytes]))
}

/// A package of elements.
pub fn package(elements: Vec<Aml>) -> Aml {
    package_op(&[0x12], join([vec![elements.len() as u8], join(elements)]))
}

/// `Name (path, value)`.
pub fn named(path: &str, value: Aml) -> Aml {
    join([vec![0x08], name(path), value])
}

/// `Scope (path) { ... }`.
pub fn scope(path: &str, body: Vec<Aml>) -> Aml {
    package_op(&[0x10], join([name(path), join(body)]))
}

/// `Device (path) { ... }`.
pub fn device(path: &str, body: Vec<Aml>) -> Aml {
    package_op(&[0x5b, 0x82], join([name(path), join(body)]))
}

/// `Method (path, arguments, Serialized?) { ... }`.
pub fn method(path: &str, arguments: u8, serialized: bool, body: Vec<Aml>) -> Aml {
    let flags = arguments & 7 | u8::from(serialized) << 3;
    package_op(&[0x14], join([name(path), vec![flags], join(body)]))
}

/// `Return (value)`.
pub fn ret(value: Aml) -> Aml {
    join([vec![0xa4], value])
}

/// `If (condition) { ... }`.
pub fn if_then(condition: Aml, body: Vec<Aml>) -> Aml {
    package_op(&[0xa0], join([condition, join(body)]))
}

/// `LLess (a, b)`.
pub fn less(a: Aml, b: Aml) -> Aml {
    join([vec![0x95], a, b])
}

/// `And (a, b)` without a target.
pub fn and(a: Aml, b: Aml) -> Aml {
    join([vec![0x7b], a, b, vec![0]])
}

/// `Or (a, b, target)`.
pub fn or_into(a: Aml, b: Aml, target: Aml) -> Aml {
    join([vec![0x7d], a, b, target])
}

/// `Store (value, target)`.
pub fn store(value: Aml, target: Aml) -> Aml {
    join([vec![0x70], value, target])
}

/// `CreateDWordField (buffer, index, field)`.
pub fn dword_field(buffer: Aml, index: u64, field: &str) -> Aml {
    join([vec![0x8a], buffer, int(index), name(field)])
}

/// Argument `n` of the method.
pub fn arg(n: u8) -> Aml {
    vec![0x68 + n]
}

/// Calls a method.
pub fn call(path: &str, arguments: Vec<Aml>) -> Aml {
    join([name(path), join(arguments)])
}

/// `OperationRegion (path, PCI_Config, offset, length)`.
pub fn pci_config_region(path: &str, offset: u64, length: u64) -> Aml {
    join([vec![0x5b, 0x80], name(path), vec![0x02], int(offset), int(length)])
}

/// `Field (region, ByteAcc, NoLock, Preserve) { ... }` of fields one byte wide each.
pub fn byte_fields(region: &str, fields: &[&str]) -> Aml {
    let list = fields.iter().map(|f| join([segment(f), vec![8]]));
    package_op(&[0x5b, 0x81], join([name(region), vec![0x01], join(list)]))
}

/// `EISAID (text)`: three letters and four hexadecimal digits.
pub fn eisa_id(text: &str) -> Aml {
    let letters = text.bytes().take(3).fold(0u32, |id, c| id << 5 | u32::from(c.wrapping_sub(0x40) & 0x1f));
    let number = u32::from_str_radix(&text[3..], 16).unwrap_or(0);
    let id = letters << 16 | number & 0xffff;
    join([vec![0x0c], id.swap_bytes().to_le_bytes().to_vec()])
}

/// Resource descriptors (ACPI 6.5, section 6.4).
pub mod resource {
    use super::{Aml, buffer, join};

    /// `ResourceTemplate () { ... }`.
    pub fn template(descriptors: Vec<Aml>) -> Aml {
        // The end tag's checksum may be 0: not computed.
        buffer(join([join(descriptors), vec![0x79, 0]]))
    }

    /// `IO (Decode16, base, base, 1, length)`.
    pub fn io(base: u16, length: u8) -> Aml {
        let [low, high] = base.to_le_bytes();
        vec![0x47, 0x01, low, high, low, high, 0x01, length]
    }

    /// `IRQNoFlags () {irq}`.
    pub fn irq(irq: u8) -> Aml {
        let [low, high] = (1u16 << irq).to_le_bytes();
        vec![0x22, low, high]
    }

    /// `DMA (Compatibility, NotBusMaster, Transfer8) {channel}`.
    pub fn dma(channel: u8) -> Aml {
        vec![0x2a, 1 << channel, 0x00]
    }

    /// `Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) {...}`.
    pub fn interrupt(numbers: &[u32]) -> Aml {
        let length = (2 + 4 * numbers.len()) as u16;
        let list = numbers.iter().flat_map(|n| n.to_le_bytes());
        join([vec![0x89], length.to_le_bytes().to_vec(), vec![0x09, numbers.len() as u8], list.collect()])
    }

    /// `Memory32Fixed (ReadOnly, base, length)`.
    pub fn memory_fixed(base: u32, length: u32) -> Aml {
        join([vec![0x86, 9, 0, 0], base.to_le_bytes().to_vec(), length.to_le_bytes().to_vec()])
    }

    /// What a window passes on.
    #[derive(Clone, Copy)]
    enum Window {
        Memory = 0,
        Io = 1,
        Bus = 2,
    }

    fn word(kind: Window, flags: u8, first: u16, last: u16) -> Aml {
        let length = (u32::from(last) - u32::from(first) + 1).min(0xffff) as u16;
        let numbers = [0, first, last, 0, length];
        // Minimum and maximum fixed, positive decode, producer.
        join([vec![0x88, 13, 0, kind as u8, 0x0c, flags], numbers.into_iter().flat_map(u16::to_le_bytes).collect()])
    }

    /// `WordBusNumber` of a host bridge: the buses behind it.
    pub fn buses(first: u16, last: u16) -> Aml {
        word(Window::Bus, 0, first, last)
    }

    /// `WordIO` of a host bridge: ports that it passes on.
    pub fn port_window(first: u16, last: u16) -> Aml {
        word(Window::Io, 0x03, first, last)
    }

    /// `DWordMemory` of a host bridge: memory that it passes on, cacheable or not.
    pub fn memory_window(first: u32, last: u32, cacheable: bool) -> Aml {
        let numbers = [0, first, last, 0, last - first + 1];
        let flags = 0x01 | if cacheable { 0x02 } else { 0 };
        let head = vec![0x87, 23, 0, Window::Memory as u8, 0x0c, flags];
        join([head, numbers.into_iter().flat_map(u32::to_le_bytes).collect()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_prefixes_by_their_number_of_segments() {
        assert_eq!(name("PCI0"), b"PCI0");
        assert_eq!(name("\\_SB"), b"\\_SB_");
        assert_eq!(name("_SB.PCI0"), b"\x2e_SB_PCI0");
        assert_eq!(name("\\_SB.PCI0.ISA"), b"\\\x2f\x03_SB_PCI0ISA_");
    }

    #[test]
    fn lengths_count_themselves() {
        assert_eq!(with_length(vec![0; 0x3e])[..1], [0x3f]);
        assert_eq!(with_length(vec![0; 0x3f])[..2], [0x41, 0x04]);
        assert_eq!(with_length(vec![0; 0xffd])[..2], [0x4f, 0xff]);
        assert_eq!(with_length(vec![0; 0xffe])[..3], [0x81, 0x00, 0x01]);
    }

    #[test]
    fn values_as_the_specification_encodes_them() {
        assert_eq!(int(0x1234), [0x0b, 0x34, 0x12]);
        assert_eq!(int(u64::MAX)[0], 0x0e);
        assert_eq!(eisa_id("PNP0A03"), [0x0c, 0x41, 0xd0, 0x0a, 0x03]);
        assert_eq!(package(vec![int(0), int(5)]), [0x12, 5, 2, 0, 0x0a, 5]);
        assert_eq!(resource::io(0x70, 8), [0x47, 1, 0x70, 0, 0x70, 0, 1, 8]);
    }
}
