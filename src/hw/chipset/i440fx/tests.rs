//! Memory attributes and configuration ports.

use lockstep_event::Clocks;
use lockstep_vmstate::vmstate_roundtrip;

use super::*;

struct Setup {
    board: Board,
    bridge: Arc<I440fx>,
    host: Arc<PciHost>,
}

fn setup() -> Setup {
    let board = Board::new(Clocks::manual());
    let ram = board.ram.allocate("pc.ram", 32 * MIB).unwrap();
    let pci = Region::whole_space("pci");
    let rom = RamBlock::new("bios", 0x6_0000).unwrap();
    rom.fill(0, 0x6_0000, 0xb1).unwrap();
    pci.add_overlap(0xa_0000, &Region::rom("video and bios", rom), 1);
    let bus = PciBus::new(&pci, &board.ports);
    let bridge = I440fx::new(&board, &bus, &pci, &ram, 32 * MIB).unwrap();
    let host = PciHost::new(&board, &bus);
    Setup { board, bridge, host }
}

impl Setup {
    fn config(&self, at: u64, value: u8) {
        self.board.port_space.write_u32(0xcf8, 0x8000_0000 | at as u32 & !3);
        self.board.port_space.write_u8(0xcfc + (at & 3), value);
    }

    fn read(&self, at: u64) -> u8 {
        self.board.port_space.write_u32(0xcf8, 0x8000_0000 | at as u32 & !3);
        self.board.port_space.read_u8(0xcfc + (at & 3))
    }

    fn try_write(&self, address: u64) -> u8 {
        self.board.memory_space.write_u8(address, 0x5a);
        self.board.memory_space.read_u8(address)
    }
}

#[test]
fn the_bios_is_shadowed_as_a_bios_does_it() {
    let s = setup();
    assert_eq!(s.try_write(0xf_fff0), 0xb1);
    s.config(0x59, 0x30);
    assert_eq!(s.board.memory_space.read_u8(0xf_fff0), 0, "RAM, which the write to ROM has not reached");
    assert_eq!(s.try_write(0xf_fff0), 0x5a);
    s.config(0x59, 0x10);
    s.board.memory_space.write_u8(0xf_fff0, 1);
    assert_eq!(s.board.memory_space.read_u8(0xf_fff0), 0x5a, "read-only RAM");
    s.bridge.reset(ResetKind::Warm);
    assert_eq!((s.board.memory_space.read_u8(0xf_fff0), s.read(0x59)), (0xb1, 0));
}

#[test]
fn each_half_of_an_attribute_register_has_its_16_kib() {
    let s = setup();
    for n in 0..12 {
        let address = 0xc_0000 + n * 0x4000;
        assert_eq!(s.try_write(address), 0xb1);
        s.config(0x5a + n / 2, 0x3 << (n % 2 * 4));
        assert_eq!([s.try_write(address), s.try_write(address + 0x3fff)], [0x5a; 2]);
        s.config(0x5a + n / 2, 0);
    }
}

#[test]
fn system_management_ram_is_for_its_mode_until_it_is_opened() {
    let s = setup();
    let smm = s.bridge.smm_space();
    assert_eq!(s.try_write(0xa_8000), 0xb1);
    s.config(0x72, 0x4a);
    assert_eq!(s.try_write(0xa_8000), 0x5a);
    s.config(0x72, 0x0a);
    assert_eq!((s.board.memory_space.read_u8(0xa_8000), smm.read_u8(0xa_8000)), (0xb1, 0x5a));
    s.config(0x72, 0x1a);
    s.config(0x72, 0x4a);
    assert_eq!((s.read(0x72), s.board.memory_space.read_u8(0xa_8000)), (0x1a, 0xb1), "locked");
}

#[test]
fn configuration_ports_need_the_enable_bit() {
    let s = setup();
    let ports = &s.board.port_space;
    ports.write_u32(0xcf8, 0x8000_0000);
    assert_eq!(
        (ports.read_u32(0xcf8), ports.read_u32(0xcfc), ports.read_u16(0xcfe)),
        (0x8000_0000, 0x1237_8086, 0x1237)
    );
    ports.write_u8(0xcf8, 0);
    ports.write_u32(0xcf8, 0);
    assert_eq!(ports.read_u32(0xcfc), 0xffff_ffff);
    assert_eq!(s.read(0x57), 4);
}

vmstate_roundtrip!(
    state_survives_the_wire,
    || {
        let s = setup();
        s.config(0x59, 0x30);
        s.config(0x72, 0x0a);
        s.bridge
    },
    || setup().bridge
);

vmstate_roundtrip!(
    the_ports_address_survives_the_wire,
    || {
        let s = setup();
        s.read(0x72);
        s.host
    },
    || setup().host
);
