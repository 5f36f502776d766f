//! The device at its ports and its window: against recorded accesses of another implementation, and picture by picture.

use lockstep_vmstate::{Encoder, SaveState, check_roundtrip};

use super::*;
use crate::testing::{Random, Rig, replay};

struct Setup {
    rig: Rig,
    vga: Arc<Vga>,
}

fn setup() -> Setup {
    let rig = Rig::new();
    let place = PciPlace { bus: rig.bus.clone(), devfn: Some(0x10), multifunction: false };
    // The window lies over RAM, as the chipset shows it.
    let window = Region::alias("smram-region", rig.bus.memory(), WINDOW, WINDOW_SIZE);
    rig.board.memory.add_overlap(WINDOW, &window, 1);
    let vga = Vga::new(&rig.board, &place, 16 << 20).unwrap();
    vga.add_mmio(Some(edid::blocks(&Monitor { preferred: (1280, 800), largest: (0, 0), refresh: 0 })), true);
    rig.bus.plug(vga.clone(), None);
    rig.enable(vga.function(), &[(0, 0xfd00_0000), (2, 0xfebd_0000)]);
    Setup { rig, vga }
}

impl Setup {
    fn sequencer(&self, n: u8, value: u8) {
        self.rig.outw(0x3c4, u16::from_le_bytes([n, value]));
    }

    fn graphics(&self, n: u8, value: u8) {
        self.rig.outw(0x3ce, u16::from_le_bytes([n, value]));
    }

    fn crtc(&self, n: u8, value: u8) {
        self.rig.outw(0x3d4, u16::from_le_bytes([n, value]));
    }

    fn vbe(&self, n: u16, value: u16) {
        self.rig.outw(0x1ce, n);
        self.rig.outw(0x1cf, value);
    }

    /// Palette entries 0 to 15 as themselves; entry `n` is `(n, 2n, 3n)`.
    fn palette(&self) {
        self.rig.outb(0x3c8, 0);
        (0..=255_u8).for_each(|n| (1..=3).for_each(|k| self.rig.outb(0x3c9, n.wrapping_mul(k) & 0x3f)));
        self.rig.inb(0x3da);
        for n in 0..16 {
            self.rig.outb(0x3c0, n);
            self.rig.outb(0x3c0, n);
        }
        self.rig.outb(0x3c0, 0x12);
        self.rig.outb(0x3c0, 0x0f);
        self.rig.outb(0x3c0, 0x20);
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.rig.board.memory_space.write(at, bytes).unwrap();
    }
}

fn rgb(n: u8) -> [u8; 3] {
    [1, 2, 3].map(|k| {
        let v = n.wrapping_mul(k) & 0x3f;
        v << 2 | (v & 1) << 1 | v & 1
    })
}

fn pixel(image: &Image, x: usize, y: usize) -> [u8; 3] {
    let at = (y * image.width + x) * 3;
    [image.rgb[at], image.rgb[at + 1], image.rgb[at + 2]]
}

#[test]
fn every_access_of_a_recorded_session_has_the_same_answer() {
    replay(&setup().rig, include_str!("session.txt"));
}

#[test]
fn text_is_drawn_with_the_guests_font() {
    let s = setup();
    s.rig.outb(0x3c2, 0x01);
    s.palette();
    // 2 columns, 2 rows of characters of 8 by 4.
    s.sequencer(1, 0x01);
    for (n, value) in [(1, 1), (0x12, 7), (9, 3), (0x13, 2), (0x0a, 0x20)] {
        s.crtc(n, value);
    }
    // The font, into plane 2; then characters, odd and even.
    s.sequencer(2, 0x04);
    s.sequencer(4, 0x06);
    s.graphics(6, 0x05);
    s.graphics(8, 0xff);
    s.write(0xa_0000 + 32 * u64::from(b'A'), &[0x80, 0x01, 0xff, 0x00]);
    s.sequencer(2, 0x03);
    s.sequencer(4, 0x02);
    s.graphics(5, 0x10);
    s.graphics(6, 0x0e);
    s.write(0xb_8000, b"A\x1eB\x07");
    let image = s.vga.screen();
    assert_eq!((image.width, image.height), (16, 8));
    assert_eq!([pixel(&image, 0, 0), pixel(&image, 1, 0)], [rgb(0x0e), rgb(0x01)]);
    assert_eq!([pixel(&image, 0, 1), pixel(&image, 7, 1)], [rgb(0x01), rgb(0x0e)]);
    assert_eq!(pixel(&image, 3, 2), rgb(0x0e));
    assert_eq!(s.vga.text(), Some(vec![b"AB".to_vec(), b"\0\0".to_vec()]));
    // A cursor on the first character's last two lines.
    s.crtc(0x0a, 2);
    s.crtc(0x0b, 3);
    assert_eq!(pixel(&s.vga.screen(), 5, 3), rgb(0x0e));
}

#[test]
fn planar_and_packed_modes_are_drawn() {
    let s = setup();
    s.rig.outb(0x3c2, 0x01);
    s.palette();
    for (n, value) in [(1, 0), (0x12, 1), (9, 0), (0x13, 1), (0x17, 3)] {
        s.crtc(n, value);
    }
    s.graphics(6, 0x05);
    s.graphics(8, 0xff);
    s.sequencer(4, 0x06);
    for (plane, bits) in [(1_u8, 0xf0_u8), (2, 0xcc), (4, 0xaa), (8, 0x01)] {
        s.sequencer(2, plane);
        s.write(0xa_0000, &[bits]);
    }
    let image = s.vga.screen();
    let row: Vec<_> = (0..8).map(|x| pixel(&image, x, 0)).collect();
    assert_eq!(row, [7, 3, 5, 1, 6, 2, 4, 8].map(rgb));
    // The same bytes as 256 colours: four pixels, each twice.
    s.graphics(5, 0x40);
    let image = s.vga.screen();
    let row: Vec<_> = (0..8).step_by(2).map(|x| pixel(&image, x, 0)).collect();
    assert_eq!(row, [0xf0, 0xcc, 0xaa, 0x01].map(rgb));
}

#[test]
fn vbe_modes_show_the_frame_buffer() {
    for (bits, bytes, expected) in [
        (32_u16, &[1_u8, 2, 3, 0][..], [3, 2, 1]),
        (24, &[1, 2, 3], [3, 2, 1]),
        (16, &[0x1f, 0xf8], [0xff, 0, 0xff]),
        (15, &[0xe0, 0x03], [0, 0xff, 0]),
        (8, &[9], rgb(9)),
    ] {
        let s = setup();
        s.rig.outb(0x3c2, 0x01);
        s.palette();
        s.vbe(4, 0);
        for (n, value) in [(1, 64), (2, 16), (3, bits), (4, 0x41), (9, 1)] {
            s.vbe(n, value);
        }
        let line = 64 * usize::from(bits).next_multiple_of(8) / 8;
        s.write(0xfd00_0000 + line as u64 + bytes.len() as u64, bytes);
        let image = s.vga.screen();
        assert_eq!((image.width, image.height), (64, 16));
        assert_eq!(pixel(&image, 1, 0), expected, "{bits}");
    }
}

#[test]
fn entering_a_vbe_mode_clears_memory_unless_told_not_to() {
    let s = setup();
    s.write(0xfd00_0000, &[1; 16]);
    for (n, value) in [(1, 64), (2, 16), (3, 32), (4, 0x81)] {
        s.vbe(n, value);
    }
    assert_eq!(s.rig.read(0xfd00_0000), [1; 16]);
    s.vbe(4, 0);
    s.vbe(4, 1);
    assert_eq!(s.rig.read(0xfd00_0000), [0; 16]);
}

#[test]
fn state_survives_a_migration() {
    let s = setup();
    s.palette();
    for (n, value) in [(1, 640), (2, 480), (3, 32), (4, 0x41), (8, 8)] {
        s.vbe(n, value);
    }
    let fresh = setup();
    check_roundtrip(&s.vga, &fresh.vga).unwrap();
    let mut out = Encoder::new();
    s.vga.save(&mut out).unwrap();
    assert_eq!(out.len(), 1407);
    assert_eq!(fresh.vga.screen().width, 640);
    let mut wire = s.vga.snapshot();
    wire.vga.vbe_bank_mask = 1;
    assert!(s.vga.validate(&wire).is_err());
    wire = s.vga.snapshot();
    wire.vga.vbe_start_addr = u32::MAX;
    assert!(s.vga.validate(&wire).is_err());
}

#[test]
fn random_accesses_are_survived() {
    let s = setup();
    let mut random = Random(9);
    for round in 0..60_000 {
        let value = random.next();
        match random.below(6) {
            0 => s.rig.outb(0x3b0 + random.below(0x30), value as u8),
            1 => s.rig.outw([0x3c4, 0x3ce, 0x3d4][random.below(3) as usize], value as u16),
            2 => s.vbe(
                random.below(12) as u16,
                if value & 1 == 0 { random.below(100) as u16 } else { (value >> 16) as u16 },
            ),
            3 => _ = s.rig.inb(0x3b0 + random.below(0x30)),
            4 => s.rig.board.memory_space.write_u8(0xa_0000 + random.below(0x2_0000), value as u8),
            _ => _ = s.rig.board.memory_space.read_u32(0xa_0000 + random.below(0x2_0000)),
        }
        if round % 3000 == 0 {
            s.vga.screen();
            s.vga.text();
        }
    }
}
