//! The ports and DMA as firmware uses them.

use lockstep_event::Clocks;
use lockstep_vmstate::vmstate_roundtrip;

use super::*;

struct Setup {
    board: Board,
    device: Arc<FwCfg>,
}

fn setup() -> Setup {
    let board = Board::new(Clocks::manual());
    board.memory.add(0, &Region::ram("ram", RamBlock::new("ram", 0x10_0000).unwrap()));
    let device = FwCfg::new(&board);
    device.set_u16(key::CPU_COUNT, 3);
    for (name, data) in [("etc/b", "second"), ("etc/a", "first"), ("bootorder", "")] {
        device.set_file(name, data).unwrap();
    }
    Setup { board, device }
}

impl Setup {
    fn read(&self, key: u16, n: usize) -> Vec<u8> {
        self.board.port_space.write_u16(0x510, key);
        (0..n).map(|_| self.board.port_space.read_u8(0x511)).collect()
    }

    fn dma(&self, control: u32, length: u32, to: u64) -> u32 {
        let memory = &self.board.memory_space;
        let mut descriptor = control.to_be_bytes().to_vec();
        descriptor.extend(length.to_be_bytes());
        descriptor.extend(to.to_be_bytes());
        memory.write(0x1000, &descriptor).unwrap();
        self.board.port_space.write_u32(0x514, 0);
        self.board.port_space.write_u32(0x518, 0x1000u32.swap_bytes());
        memory.read_u32(0x1000).swap_bytes()
    }

    fn memory(&self, at: u64, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        self.board.memory_space.read(at, &mut bytes).unwrap();
        bytes
    }
}

#[test]
fn items_are_read_byte_by_byte_and_end_in_zeroes() {
    let s = setup();
    assert_eq!(s.read(key::SIGNATURE, 6), b"QEMU\0\0");
    assert_eq!(s.read(key::ID, 4), [3, 0, 0, 0]);
    assert_eq!(s.read(key::CPU_COUNT, 3), [3, 0, 0]);
    assert_eq!(s.read(0x1f, 1), [0]);
    assert_eq!(s.read(0x40, 2), [0, 0]);
}

#[test]
fn the_directory_lists_files_by_name() {
    let s = setup();
    let directory = s.read(key::FILE_DIRECTORY, 4 + 3 * 64);
    assert_eq!(directory[..4], [0, 0, 0, 3]);
    let entry = |n: usize| {
        let e = &directory[4 + n * 64..];
        (e[3], u16::from_be_bytes([e[4], e[5]]), e[8..].iter().position(|&b| b == 0).map(|l| e[8..8 + l].to_vec()))
    };
    assert_eq!(entry(0), (0, 0x20, Some(b"bootorder".to_vec())));
    assert_eq!(entry(1), (5, 0x21, Some(b"etc/a".to_vec())));
    assert_eq!(s.read(0x22, 6), b"second");
    assert!(s.device.set_file(&"x".repeat(56), "").is_err());
    (0..29).for_each(|n| s.device.set_file(&format!("f{n}"), "").unwrap());
    assert!(s.device.set_file("one too many", "").is_err());
    s.device.set_file("etc/a", "other").unwrap();
}

#[test]
fn dma_selects_skips_and_reads() {
    let s = setup();
    assert_eq!(s.board.port_space.read_u32(0x514), u32::from_le_bytes(*b"QEMU"));
    assert_eq!(s.board.port_space.read_u32(0x518), u32::from_le_bytes(*b" CFG"));
    s.board.memory_space.write(0x2000, &[0xff; 16]).unwrap();
    assert_eq!(s.dma(0x22 << 16 | 8 | 4, 2, 0), 0);
    assert_eq!(s.dma(2, 6, 0x2000), 0);
    assert_eq!(s.memory(0x2000, 7), b"cond\0\0\xff");
    assert_eq!(s.dma(0x22 << 16 | 8 | 16, 2, 0x2000), 1, "nothing can be written");
    assert_eq!(s.dma(0x22 << 16 | 8 | 2, 2, 0xf000_0000), 1, "no memory there");
    assert_eq!(s.dma(0x22 << 16 | 8 | 4, u32::MAX, 0), 0);
}

#[test]
fn a_file_may_be_memory() {
    let s = setup();
    let block = RamBlock::new("/rom@etc/acpi/rsdp", 0x1000).unwrap();
    block.write(0, b"RSD PTR ").unwrap();
    s.device.add_memory_file("etc/rsdp", &block, 20).unwrap();
    assert_eq!(s.device.file("etc/rsdp").unwrap()[..8], *b"RSD PTR ");
    assert_eq!(s.device.files()[3], ("etc/rsdp".to_owned(), 20));
}

vmstate_roundtrip!(
    state_survives_the_wire,
    || {
        let s = setup();
        s.read(0x22, 3);
        s.board.port_space.write_u32(0x514, 0x1234);
        s.device
    },
    || setup().device
);
