//! The firmware configuration device (QEMU's `docs/specs/fw_cfg.rst`).

use crate::qtest::Qtest;

const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;
const DMA: u16 = 0x514;

fn item(q: &mut Qtest, key: u16, len: usize) -> Vec<u8> {
    q.outw(SELECTOR, key);
    (0..len).map(|_| q.inb(DATA)).collect()
}

/// Key and size of each file, by name.
fn directory(q: &mut Qtest) -> Vec<(String, u16, u32)> {
    let count = item(q, 0x19, 4);
    let count = u32::from_be_bytes(count.try_into().expect("4 bytes"));
    (0..count)
        .map(|_| {
            let entry: Vec<u8> = (0..64).map(|_| q.inb(DATA)).collect();
            let name = entry[8..].iter().take_while(|b| **b != 0).map(|b| *b as char).collect();
            let size = u32::from_be_bytes(entry[..4].try_into().expect("4 bytes"));
            (name, u16::from_be_bytes([entry[4], entry[5]]), size)
        })
        .collect()
}

/// The content of a file.
pub fn file(q: &mut Qtest, name: &str) -> Option<Vec<u8>> {
    let (_, key, size) = directory(q).into_iter().find(|f| f.0 == name)?;
    Some(item(q, key, size as usize))
}

/// One transfer: control, length and address in memory, all big-endian. Returns control as it is left.
fn transfer(q: &mut Qtest, control: u32, length: u32, address: u64) -> u32 {
    const DESCRIPTOR: u64 = 0x9000;
    let bytes = [&control.to_be_bytes()[..], &length.to_be_bytes(), &address.to_be_bytes()].concat();
    q.write(DESCRIPTOR, &bytes);
    q.outl(DMA, 0);
    q.outl(DMA + 4, (DESCRIPTOR as u32).swap_bytes());
    u32::from_be_bytes(q.read(DESCRIPTOR, 4).try_into().expect("4 bytes"))
}

#[test]
fn items_are_read_byte_by_byte() {
    let mut q = Qtest::start(&["-smp", "2", "-uuid", "00112233-4455-6677-8899-aabbccddeeff"]);
    assert_eq!(item(&mut q, 0, 6), b"QEMU\0\0", "the signature, then zeroes");
    assert_eq!(item(&mut q, 1, 4), [3, 0, 0, 0], "selector and DMA");
    assert_eq!(item(&mut q, 2, 16)[..4], [0x00, 0x11, 0x22, 0x33]);
    assert_eq!(item(&mut q, 3, 8), (64u64 << 20).to_le_bytes());
    assert_eq!(item(&mut q, 5, 2), [2, 0], "CPUs");
    assert_eq!(item(&mut q, 0x3fff, 2), [0, 0], "what is not there");
}

#[test]
fn files_are_found_by_name_and_the_users_are_among_them() {
    let mut q = Qtest::start(&["-fw_cfg", "name=opt/org.example/text,string=hello"]);
    let files = directory(&mut q);
    assert!(files.is_sorted_by(|a, b| a.0 <= b.0), "{files:?}");
    for wanted in ["etc/acpi/tables", "etc/e820", "etc/smbios/smbios-tables", "etc/table-loader", "bootorder"] {
        assert!(files.iter().any(|f| f.0 == wanted), "{wanted}");
    }
    let (_, key, size) = files.iter().find(|f| f.0 == "opt/org.example/text").expect("the user's");
    assert_eq!((item(&mut q, *key, 6), *size), (b"hello\0".to_vec(), 5));
}

#[test]
fn transfers_select_skip_and_read() {
    const SELECT: u32 = 8;
    const SKIP: u32 = 4;
    const READ: u32 = 2;
    let mut q = Qtest::start(&["-fw_cfg", "name=opt/org.example/text,string=hello"]);
    assert_eq!((q.inl(DMA), q.inl(DMA + 4)), (0x554d_4551, 0x4746_4320), "its signature, big-endian: QEMU CFG");
    let key = directory(&mut q).iter().find(|f| f.0 == "opt/org.example/text").expect("the user's").1;
    q.memset(0xa000, 16, 0xee);
    assert_eq!(transfer(&mut q, u32::from(key) << 16 | SELECT | READ, 2, 0xa000), 0);
    assert_eq!(q.read(0xa000, 4), b"he\xee\xee");
    assert_eq!(transfer(&mut q, SKIP, 2, 0), 0);
    assert_eq!(transfer(&mut q, READ, 4, 0xa000), 0);
    assert_eq!(q.read(0xa000, 5), b"o\0\0\0\xee", "zeroes behind the end");
    // Ports are no memory.
    assert_eq!(transfer(&mut q, u32::from(key) << 16 | SELECT | READ, 4, 0xffff_ffff_0000_0000) & 1, 1, "an error");
}
