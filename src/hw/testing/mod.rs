//! What the devices' tests share: a board with some RAM and a PCI bus, and a replay of recorded bus accesses.

use std::sync::Arc;

use lockstep_event::Clocks;
use lockstep_memory::{RamBlock, Region};
use parking_lot::Mutex;

use crate::{
    core::{Board, IrqLine},
    pci::{PciBus, command, offset},
};

/// A board with 4 MiB of RAM, a PCI bus and a manual clock.
pub struct Rig {
    pub board: Board,
    pub bus: Arc<PciBus>,
    pub irqs: Arc<Mutex<Vec<(u32, bool)>>>,
}

impl Rig {
    pub fn new() -> Self {
        let board = Board::new(Clocks::manual());
        board.memory.add(0, &Region::ram("ram", RamBlock::new("ram", 4 << 20).unwrap()));
        let pci = Region::whole_space("pci");
        board.memory.add_overlap(0, &pci, -1);
        let bus = PciBus::new(&pci, &board.ports);
        Self { board, bus, irqs: Arc::default() }
    }

    /// A line that is written down in `irqs`.
    pub fn line(&self, n: u32) -> IrqLine {
        let log = self.irqs.clone();
        IrqLine::new(Arc::new(move |n, level| log.lock().push((n, level))), n)
    }

    /// Has a function decode its BARs, at the given addresses, and be a bus master.
    pub fn enable(&self, function: &crate::pci::PciFunction, bars: &[(usize, u32)]) {
        for &(number, address) in bars {
            function.config_write(offset::BAR0 + number * 4, address, 4);
        }
        let bits = command::IO | command::MEMORY | command::MASTER;
        function.config_write(offset::COMMAND, bits.into(), 2);
    }

    pub fn inb(&self, port: u64) -> u8 {
        self.board.port_space.read_u8(port)
    }

    pub fn inw(&self, port: u64) -> u16 {
        self.board.port_space.read_u16(port)
    }

    pub fn inl(&self, port: u64) -> u32 {
        self.board.port_space.read_u32(port)
    }

    pub fn outb(&self, port: u64, value: u8) {
        self.board.port_space.write_u8(port, value);
    }

    pub fn outw(&self, port: u64, value: u16) {
        self.board.port_space.write_u16(port, value);
    }

    pub fn outl(&self, port: u64, value: u32) {
        self.board.port_space.write_u32(port, value);
    }

    pub fn read<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let _ = self.board.memory_space.read(address, &mut bytes);
        bytes
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.board.memory_space.write(address, bytes).unwrap();
    }
}

/// A generator of numbers for tests: the same every time.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }
}

/// Replays accesses, one a line, and compares what is read: `inb PORT = V`, `outw PORT V`, `read ADDRESS LEN = HEX`,
/// `write ADDRESS LEN HEX`, `ins PORT LEN = HEX` (in 4-byte steps; `HEX/SUM` gives the first bytes and the sum of all), `outs PORT HEX`.
/// A line that begins with `#` names what follows. Panics with all differences.
pub fn replay(rig: &Rig, trace: &str) {
    replay_with(rig, trace, |_| None);
}

/// The same, with lines that `special` knows: it gives what was found.
pub fn replay_with(rig: &Rig, trace: &str, mut special: impl FnMut(&[&str]) -> Option<String>) {
    let mut heading = "";
    let mut wrong = vec![];
    for (number, line) in trace.lines().enumerate() {
        if let Some(text) = line.strip_prefix('#') {
            heading = text;
            continue;
        }
        let (call, expected) = line.split_once(" = ").map_or((line, None), |(c, e)| (c, Some(e)));
        let words: Vec<_> = call.split(' ').collect();
        let n = |i: usize| parse(words[i]);
        let known = special(&words);
        let found = match words[0] {
            _ if known.is_some() => known.unwrap_or_default(),
            "inb" => format!("{:#x}", rig.inb(n(1))),
            "inw" => format!("{:#x}", rig.inw(n(1))),
            "inl" => format!("{:#x}", rig.inl(n(1))),
            "outb" => silent(|| rig.outb(n(1), n(2) as u8)),
            "outw" => silent(|| rig.outw(n(1), n(2) as u16)),
            "outl" => silent(|| rig.outl(n(1), n(2) as u32)),
            "read" => {
                let mut bytes = vec![0; n(2) as usize];
                let _ = rig.board.memory_space.read(n(1), &mut bytes);
                format!("0x{}", hex(&bytes))
            }
            "write" => silent(|| rig.write(n(1), &unhex(words[3]))),
            "ins" => {
                let bytes: Vec<_> = (0..n(2) / 4).flat_map(|_| rig.inl(n(1)).to_le_bytes()).collect();
                match expected.and_then(|e| e.split_once('/')) {
                    None => format!("0x{}", hex(&bytes)),
                    Some((head, _)) => {
                        let sum: u64 = bytes.iter().map(|b| u64::from(*b)).sum();
                        format!("0x{}/{sum:#x}", hex(&bytes[..head.len() / 2 - 1]))
                    }
                }
            }
            "outs" => silent(|| {
                for word in unhex(words[2]).as_chunks::<4>().0 {
                    rig.outl(n(1), u32::from_le_bytes(*word));
                }
            }),
            other => panic!("line {}: {other}", number + 1),
        };
        if expected.is_some_and(|e| e != found) {
            wrong.push(format!("{} ({heading}): {line}, but found {found}", number + 1));
        }
    }
    assert!(wrong.is_empty(), "{} differences\n{}", wrong.len(), wrong[..wrong.len().min(40)].join("\n"));
}

fn silent(f: impl FnOnce()) -> String {
    f();
    String::new()
}

fn parse(text: &str) -> u64 {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16).unwrap_or_else(|e| panic!("{text}: {e}"))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub fn unhex(text: &str) -> Vec<u8> {
    let text = text.strip_prefix("0x").unwrap_or(text);
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}
