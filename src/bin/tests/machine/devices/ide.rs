//! The IDE controller (PIIX3, 290550-002, section 2.7) with a disk and a CD-ROM drive (ATA/ATAPI-4, T13/1153D).

use tempfile::TempDir;

use crate::qtest::Qtest;

/// The controller's function.
const FUNCTION: u8 = 1 << 3 | 1;
/// Where its bus master registers are put.
const MASTER: u16 = 0xc040;
const DATA: u16 = 0x1f0;
const ERROR: u16 = 0x1f1;
const COUNT: u16 = 0x1f2;
const SELECT: u16 = 0x1f6;
const COMMAND: u16 = 0x1f7;
const CONTROL: u16 = 0x3f6;
/// The second channel's ports are lower by this.
const SECOND: u16 = 0x80;

const BUSY: u8 = 0x80;
const READY: u8 = 0x40;
const REQUEST: u8 = 0x08;
const FAILED: u8 = 0x01;

const SECTORS: u64 = 2048;

struct Rig {
    q: Qtest,
    dir: TempDir,
}

/// A disk whose sectors begin with their numbers, as master of the first channel; an empty CD-ROM drive on the second.
fn rig() -> Rig {
    let dir = TempDir::new().expect("a folder");
    let mut image = vec![0; SECTORS as usize * 512];
    for (n, sector) in image.chunks_mut(512).enumerate() {
        sector[..8].copy_from_slice(&(n as u64).to_le_bytes());
    }
    let disk = dir.path().join("disk.raw");
    std::fs::write(&disk, image).expect("a disk");
    let drive = format!("if=ide,format=raw,file={}", disk.display());
    let mut q = Qtest::start(&["-drive", &drive, "-drive", "if=ide,index=2,media=cdrom"]);
    q.enable_ports(FUNCTION, 0x20, MASTER);
    q.intercept_interrupts();
    Rig { q, dir }
}

impl Rig {
    /// Waits for the end of what the disk does. Requests go to a file, so that this takes real time.
    fn wait(&mut self, base: u16) -> u8 {
        for _ in 0..2000 {
            let status = self.q.inb(base + 0x206);
            if status & BUSY == 0 {
                return status;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        panic!("the drive is busy for ever");
    }

    /// Waits for the bus master's interrupt.
    fn wait_for_master(&mut self) {
        for _ in 0..2000 {
            if self.q.inb(MASTER + 2) & 0x04 != 0 {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        panic!("no interrupt of the bus master");
    }

    fn lba28(&mut self, lba: u64, count: u8) {
        self.q.outb(SELECT, 0xe0 | (lba >> 24) as u8 & 0x0f);
        for (n, byte) in [count, lba as u8, (lba >> 8) as u8, (lba >> 16) as u8].into_iter().enumerate() {
            self.q.outb(COUNT + n as u16, byte);
        }
    }

    fn sector_in(&mut self, port: u16) -> Vec<u8> {
        (0..256).flat_map(|_| self.q.inw(port).to_le_bytes()).collect()
    }

    fn sector_out(&mut self, bytes: &[u8]) {
        bytes.chunks(2).for_each(|pair| self.q.outw(DATA, u16::from_le_bytes([pair[0], pair[1]])));
    }
}

fn text(identity: &[u8], words: std::ops::Range<usize>) -> String {
    let swapped = identity[words.start * 2..words.end * 2].chunks(2).flat_map(|w| [w[1], w[0]]);
    String::from_utf8(swapped.collect()).expect("text").trim_end().to_owned()
}

#[test]
fn a_disk_identifies_itself() {
    let mut r = rig();
    r.q.outb(SELECT, 0xa0);
    r.q.outb(COMMAND, 0xec);
    assert_eq!(r.wait(DATA) & (READY | REQUEST | FAILED), READY | REQUEST);
    assert_eq!(r.q.interrupts(), [(14, true)]);
    // Reading the status acknowledges; the alternate status does not.
    r.q.inb(CONTROL);
    assert_eq!(r.q.interrupts(), []);
    r.q.inb(COMMAND);
    assert_eq!(r.q.interrupts(), [(14, false)]);
    let identity = r.sector_in(DATA);
    let word = |n: usize| u16::from_le_bytes([identity[2 * n], identity[2 * n + 1]]);
    assert_eq!(text(&identity, 27..47), "QEMU HARDDISK");
    assert_eq!(u32::from(word(60)) | u32::from(word(61)) << 16, SECTORS as u32);
    assert_eq!(word(49) & 0x300, 0x300, "LBA and DMA");
    assert_eq!(word(83) & 0x3400, 0x3400, "48 bits, FLUSH CACHE, FLUSH CACHE EXT");
    assert_eq!(r.q.inb(CONTROL) & REQUEST, 0, "all was read");
}

#[test]
fn sectors_are_written_and_read_by_the_processor() {
    let mut r = rig();
    r.lba28(100, 2);
    r.q.outb(COMMAND, 0x20);
    for n in 100..102u64 {
        assert_eq!(r.wait(DATA) & (REQUEST | FAILED), REQUEST);
        assert_eq!(r.sector_in(DATA)[..8], n.to_le_bytes());
    }
    let pattern: Vec<u8> = (0..512).map(|n| (n * 7) as u8).collect();
    r.lba28(200, 1);
    r.q.outb(COMMAND, 0x30);
    assert_eq!(r.wait(DATA) & REQUEST, REQUEST);
    r.sector_out(&pattern);
    assert_eq!(r.wait(DATA) & (REQUEST | FAILED), 0);
    r.q.outb(COMMAND, 0xe7);
    assert_eq!(r.wait(DATA) & FAILED, 0, "flushed");
    let image = std::fs::read(r.dir.path().join("disk.raw")).expect("the disk");
    assert_eq!(image[200 * 512..201 * 512], pattern);
    // Several sectors an interrupt.
    r.q.outb(COUNT, 4);
    r.q.outb(COMMAND, 0xc6);
    assert_eq!(r.wait(DATA) & FAILED, 0);
    r.lba28(8, 4);
    r.q.outb(COMMAND, 0xc4);
    r.wait(DATA);
    for n in 8..12u64 {
        assert_eq!(r.sector_in(DATA)[..8], n.to_le_bytes());
    }
    assert_eq!(r.q.inb(CONTROL) & REQUEST, 0);
}

#[test]
fn the_bus_master_moves_scattered_pieces() {
    let mut r = rig();
    // Two pieces of memory for four sectors; bit 31 of the second ends the table.
    r.q.write(0x8000, &[0x0010_0000u32.to_le_bytes(), 0x0000_0400u32.to_le_bytes()].concat());
    r.q.write(0x8008, &[0x0020_0000u32.to_le_bytes(), 0x8000_0400u32.to_le_bytes()].concat());
    r.q.outl(MASTER + 4, 0x8000);
    r.q.outb(MASTER + 2, 0x06);
    r.lba28(40, 4);
    r.q.outb(MASTER, 0x08);
    r.q.outb(COMMAND, 0xc8);
    r.q.outb(MASTER, 0x09);
    r.wait_for_master();
    assert_eq!(r.wait(DATA) & FAILED, 0);
    assert_eq!(r.q.inb(MASTER + 2) & 0x07, 0x04, "ended, with an interrupt");
    for (address, lba) in [(0x10_0000, 40u64), (0x10_0200, 41), (0x20_0000, 42), (0x20_0200, 43)] {
        assert_eq!(r.q.read(address, 8), lba.to_le_bytes());
    }
    assert!(r.q.interrupts().contains(&(14, true)));
    r.q.outb(MASTER, 0);
    r.q.outb(MASTER + 2, 0x04);
    assert_eq!(r.q.inb(MASTER + 2) & 0x04, 0, "writing the bit clears it");
    // And back: memory to disk, by a command of 48 bits.
    r.q.memset(0x10_0000, 0x400, 0x3c);
    r.q.memset(0x20_0000, 0x400, 0xc3);
    for (high, low) in [(0, 4), (0, 60), (0, 0), (0, 0)].into_iter().enumerate().map(|(n, v)| (n as u16, v)) {
        r.q.outb(COUNT + high, low.0);
        r.q.outb(COUNT + high, low.1);
    }
    r.q.outb(SELECT, 0xe0);
    r.q.outb(MASTER, 0x00);
    r.q.outb(COMMAND, 0x35);
    r.q.outb(MASTER, 0x01);
    r.wait_for_master();
    assert_eq!(r.wait(DATA) & FAILED, 0);
    r.q.outb(MASTER, 0);
    r.q.outb(COMMAND, 0xea);
    r.wait(DATA);
    let image = std::fs::read(r.dir.path().join("disk.raw")).expect("the disk");
    assert_eq!((image[60 * 512], image[62 * 512], image[64 * 512]), (0x3c, 0xc3, 64));
}

#[test]
fn what_cannot_be_done_is_an_error() {
    let mut r = rig();
    r.q.outb(SELECT, 0xe0);
    r.q.outb(COMMAND, 0x00);
    assert_eq!((r.wait(DATA) & FAILED, r.q.inb(ERROR)), (FAILED, 0x04), "no such command: aborted");
    r.lba28(SECTORS, 1);
    r.q.outb(COMMAND, 0x20);
    assert_eq!(r.wait(DATA) & (FAILED | REQUEST), FAILED, "behind the end");
    r.lba28(SECTORS - 1, 2);
    r.q.outb(COMMAND, 0x20);
    assert_eq!(r.wait(DATA) & (FAILED | REQUEST), REQUEST, "the last one");
    r.sector_in(DATA);
    assert_eq!(r.wait(DATA) & (FAILED | REQUEST), FAILED, "over the end");
    // The disk goes on.
    r.lba28(3, 1);
    r.q.outb(COMMAND, 0x20);
    assert_eq!(r.wait(DATA) & (FAILED | REQUEST), REQUEST);
    assert_eq!(r.sector_in(DATA)[..8], 3u64.to_le_bytes());
    // A slave that is not there shows nothing.
    r.q.outb(SELECT, 0xb0);
    assert_eq!(r.q.inb(COMMAND), 0);
    r.q.outb(COMMAND, 0xec);
    assert_eq!(r.q.inb(COMMAND), 0);
}

#[test]
fn a_software_reset_puts_the_signatures_back() {
    let mut r = rig();
    r.lba28(7, 1);
    r.q.outb(COMMAND, 0x20);
    r.wait(DATA);
    for base in [DATA, DATA - SECOND] {
        r.q.outb(base + 0x206, 0x04);
        r.q.outb(base + 0x206, 0x00);
        r.wait(base);
    }
    let signature = |q: &mut Qtest, base: u16| [2, 3, 4, 5].map(|n| q.inb(base + n));
    assert_eq!(signature(&mut r.q, DATA), [1, 1, 0, 0], "a disk (section 9.12)");
    assert_eq!(r.q.inb(ERROR), 1, "diagnostics passed");
    assert_eq!(signature(&mut r.q, DATA - SECOND), [1, 1, 0x14, 0xeb], "a packet device");
    assert_eq!(r.q.inb(CONTROL) & REQUEST, 0);
}

#[test]
fn an_empty_cd_rom_drive_says_so_by_packets() {
    let mut r = rig();
    let base = DATA - SECOND;
    let mut packet = |command: &[u8], limit: u8| {
        let q = &mut r.q;
        q.outb(base + 6, 0xa0);
        q.outb(base + 1, 0);
        q.outb(base + 4, limit);
        q.outb(base + 5, 0);
        q.outb(base + 7, 0xa0);
        assert_eq!(q.inb(base + 0x206) & (BUSY | REQUEST), REQUEST);
        let mut bytes = command.to_vec();
        bytes.resize(12, 0);
        bytes.chunks(2).for_each(|pair| q.outw(base, u16::from_le_bytes([pair[0], pair[1]])));
        let status = r.wait(base);
        let len = usize::from(r.q.inb(base + 4)) | usize::from(r.q.inb(base + 5)) << 8;
        let data: Vec<u8> = match status & REQUEST {
            0 => vec![],
            _ => (0..len / 2).flat_map(|_| r.q.inw(base).to_le_bytes()).collect(),
        };
        (status & FAILED, data)
    };
    // After power-on there is no medium (SPC-2: NOT READY, MEDIUM NOT PRESENT).
    assert_eq!(packet(&[0x00], 0), (FAILED, vec![]));
    let (status, sense) = packet(&[0x03, 0, 0, 0, 18], 18);
    assert_eq!((status, sense[2] & 0x0f, sense[12]), (0, 2, 0x3a));
    let (status, inquiry) = packet(&[0x12, 0, 0, 0, 36], 36);
    assert_eq!((status, inquiry[0], &inquiry[8..15]), (0, 5, &b"QEMU   "[..]));
}
