//! The display adapter: VGA (IBM VGA Technical Reference) and Bochs' VBE registers.

use crate::qtest::Qtest;

const FUNCTION: u8 = 2 << 3;
const FRAME_BUFFER: u32 = 0xe000_0000;

fn rig() -> Qtest {
    let mut q = Qtest::start(&["-vga", "std"]);
    q.set_config(FUNCTION, 0x10, FRAME_BUFFER);
    let command = q.config(FUNCTION, 4);
    q.set_config(FUNCTION, 4, command & 0xffff_0000 | 3);
    // Colour addresses, memory on.
    q.outb(0x3c2, 0x67);
    q
}

fn set(q: &mut Qtest, port: u16, index: u8, value: u8) {
    q.outb(port, index);
    q.outb(port + 1, value);
}

fn get(q: &mut Qtest, port: u16, index: u8) -> u8 {
    q.outb(port, index);
    q.inb(port + 1)
}

fn vbe(q: &mut Qtest, index: u16, value: Option<u16>) -> u16 {
    q.outw(0x1ce, index);
    value.into_iter().for_each(|v| q.outw(0x1cf, v));
    q.inw(0x1cf)
}

#[test]
fn indexed_registers_keep_their_bits() {
    let mut q = rig();
    assert_eq!((q.config(FUNCTION, 0), q.config(FUNCTION, 8) >> 8), (0x1111_1234, 0x03_0000));
    assert_eq!(q.inb(0x3cc), 0x67, "miscellaneous output");
    // Sequencer map mask, CRTC start address, graphics bit mask.
    for (port, index, written, read) in [(0x3c4, 2, 0xff, 0x0f), (0x3d4, 0x0c, 0x12, 0x12), (0x3ce, 8, 0xa5, 0xa5)] {
        set(&mut q, port, index, written);
        assert_eq!(get(&mut q, port, index), read, "{port:#x} {index}");
    }
    // Registers 0 to 7 of the CRTC are protected by bit 7 of register 11h.
    set(&mut q, 0x3d4, 0x11, 0x00);
    set(&mut q, 0x3d4, 0x00, 0x5f);
    set(&mut q, 0x3d4, 0x11, 0x80);
    set(&mut q, 0x3d4, 0x00, 0x11);
    assert_eq!(get(&mut q, 0x3d4, 0x00), 0x5f);
}

#[test]
fn the_attribute_controller_has_one_port_for_index_and_data() {
    let mut q = rig();
    // Reading input status 1 makes the next write an index.
    q.inb(0x3da);
    q.outb(0x3c0, 0x05);
    q.outb(0x3c0, 0x2a);
    q.inb(0x3da);
    q.outb(0x3c0, 0x05);
    assert_eq!(q.inb(0x3c1), 0x2a);
    q.inb(0x3da);
    q.outb(0x3c0, 0x20);
    q.inb(0x3da);
    assert_eq!(q.inb(0x3c0), 0x20, "the palette's address source");
}

#[test]
fn the_palette_moves_on_after_three_bytes() {
    let mut q = rig();
    q.outb(0x3c8, 10);
    [1, 2, 3, 63, 62, 61].into_iter().for_each(|byte| q.outb(0x3c9, byte));
    assert_eq!(q.inb(0x3c8), 12);
    q.outb(0x3c7, 10);
    let read: Vec<u8> = (0..6).map(|_| q.inb(0x3c9)).collect();
    assert_eq!(read, [1, 2, 3, 63, 62, 61]);
    assert_eq!(q.inb(0x3c7) & 3, 3, "reading");
}

#[test]
fn planes_are_written_through_mask_and_latches() {
    let mut q = rig();
    // Planar: no chaining, no odd/even, the window of 64 KiB at A0000h.
    set(&mut q, 0x3c4, 4, 0x06);
    set(&mut q, 0x3ce, 6, 0x05);
    set(&mut q, 0x3ce, 5, 0x00);
    set(&mut q, 0x3ce, 8, 0xff);
    for plane in 0..4u8 {
        set(&mut q, 0x3c4, 2, 1 << plane);
        q.writeb(0xa_0000, 0x10 + plane);
    }
    for plane in 0..4u8 {
        set(&mut q, 0x3ce, 4, plane);
        assert_eq!(q.readb(0xa_0000), 0x10 + plane);
    }
    // Write mode 1 copies the latches, all planes at once.
    set(&mut q, 0x3c4, 2, 0x0f);
    set(&mut q, 0x3ce, 5, 0x01);
    q.readb(0xa_0000);
    q.writeb(0xa_0100, 0);
    set(&mut q, 0x3ce, 5, 0x00);
    for plane in 0..4u8 {
        set(&mut q, 0x3ce, 4, plane);
        assert_eq!(q.readb(0xa_0100), 0x10 + plane);
    }
    // The bit mask lets other bits come from the latches.
    set(&mut q, 0x3ce, 4, 0);
    q.readb(0xa_0000);
    set(&mut q, 0x3ce, 8, 0x0f);
    q.writeb(0xa_0000, 0xff);
    assert_eq!(q.readb(0xa_0000), 0x1f);
}

#[test]
fn vbe_modes_have_a_linear_frame_buffer() {
    let mut q = rig();
    assert_eq!(vbe(&mut q, 0, None), 0xb0c5, "its version");
    assert_eq!(vbe(&mut q, 10, None), 256, "16 MiB, in units of 64 KiB");
    vbe(&mut q, 4, Some(0));
    for (index, value) in [(1, 1024), (2, 768), (3, 32)] {
        assert_eq!(vbe(&mut q, index, Some(value)), value);
    }
    vbe(&mut q, 4, Some(0x41));
    q.writel(u64::from(FRAME_BUFFER) + 0x10_0000, 0x00ff_8040);
    assert_eq!(q.readl(u64::from(FRAME_BUFFER) + 0x10_0000), 0x00ff_8040);
    // The bank register moves the window at A0000h.
    vbe(&mut q, 5, Some(16));
    assert_eq!(q.readb(0xa_0000), 0x40);
}
