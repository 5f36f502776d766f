//! The host bridge (Intel 290549-001: i440FX) and the bridge to ISA (290550-002: PIIX3).

use crate::qtest::Qtest;

const HOST: u8 = 0;
const PIIX3: u8 = 1 << 3;
/// Programmable attribute map and system management RAM control.
const PAM0: u8 = 0x59;
const SMRAM: u8 = 0x72;

#[test]
fn the_bridges_are_what_they_say() {
    let mut q = Qtest::start(&[]);
    assert_eq!((q.config(HOST, 0), q.config(HOST, 8) >> 8), (0x1237_8086, 0x06_0000));
    assert_eq!((q.config(PIIX3, 0), q.config(PIIX3, 8) >> 8), (0x7000_8086, 0x06_0100));
    assert_eq!(q.config(PIIX3, 0x0c) >> 16 & 0xff, 0x80, "several functions");
    // The identity cannot be written.
    q.set_config(HOST, 0, 0);
    assert_eq!(q.config(HOST, 0), 0x1237_8086);
    assert_eq!(q.config(31 << 3, 0), 0xffff_ffff, "nothing is there");
}

#[test]
fn attribute_maps_say_where_reads_and_writes_go() {
    let mut q = Qtest::start(&[]);
    // (register, shift, first address): C0000h to EFFFFh in pieces of 16 KiB, then F0000h.
    let mut pieces: Vec<(u8, u8, u64)> =
        (0..12).map(|n| (PAM0 + 1 + n / 2, n % 2 * 4, 0xc_0000 + u64::from(n) * 0x4000)).collect();
    pieces.push((PAM0, 4, 0xf_0000));
    for (register, shift, address) in pieces {
        let set = |q: &mut Qtest, bits: u8| q.set_config_byte(HOST, register, bits << shift);
        // RAM both ways.
        set(&mut q, 3);
        q.writeb(address, 0x5a);
        assert_eq!(q.readb(address), 0x5a, "{address:#x}");
        // Read only: writes go to the bus.
        set(&mut q, 1);
        q.writeb(address, 0xa5);
        assert_eq!(q.readb(address), 0x5a, "{address:#x}");
        // Neither, and write only, show the bus.
        for bits in [0, 2] {
            set(&mut q, bits);
            assert_ne!(q.readb(address), 0x5a, "{address:#x}");
        }
        set(&mut q, 3);
        assert_eq!(q.readb(address), 0x5a, "{address:#x}: RAM keeps what it had");
    }
}

#[test]
fn system_management_ram_is_opened_closed_and_locked() {
    let mut q = Qtest::start(&["-vga", "std"]);
    let control = |q: &mut Qtest, bits: u8| q.set_config_byte(HOST, SMRAM, bits);
    assert_eq!(q.config(HOST, SMRAM & 0xfc) >> 16 & 0xff, 0x02, "after reset");
    // Open (D_OPEN) and enabled (G_SMRAME), at A0000h.
    control(&mut q, 0x4a);
    q.writeb(0xa_0000, 0x77);
    assert_eq!(q.readb(0xa_0000), 0x77);
    control(&mut q, 0x0a);
    assert_ne!(q.readb(0xa_0000), 0x77, "hidden from what is not in system management mode");
    control(&mut q, 0x4a);
    assert_eq!(q.readb(0xa_0000), 0x77, "and still there");
    // D_LCK clears D_OPEN and makes the register read only.
    control(&mut q, 0x5a);
    control(&mut q, 0x4a);
    assert_ne!(q.readb(0xa_0000), 0x77);
    assert_eq!(q.config(HOST, SMRAM & 0xfc) >> 16 & 0x50, 0x10);
}

#[test]
fn pci_interrupts_are_routed_by_the_bridge() {
    let mut q = Qtest::start(&["-device", "piix3-usb-uhci,addr=3"]);
    assert_eq!(q.config(PIIX3, 0x60), 0x8080_8080, "no routes after reset");
    q.set_config(PIIX3, 0x60, 0x0b0a_0b0a);
    assert_eq!(q.config(PIIX3, 0x60), 0x0b0a_0b0a);
    q.set_config_byte(PIIX3, 0x60, 0x85);
    assert_eq!(q.config(PIIX3, 0x60) & 0xff, 0x85);
}
