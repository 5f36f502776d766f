//! Registers of the RTL8139C+ (Realtek data sheets RTL8139D rev. 1.3 and RTL8139C+ rev. 1.6), without any I/O.

use super::eeprom::Eeprom;

/// Register offsets.
#[allow(missing_docs)]
pub mod reg {
    pub const MAC: u8 = 0x00;
    pub const MULTICAST: u8 = 0x08;
    pub const TX_STATUS: u8 = 0x10;
    pub const TX_ADDRESS: u8 = 0x20;
    pub const RX_BUFFER: u8 = 0x30;
    pub const COMMAND: u8 = 0x37;
    pub const RX_READ: u8 = 0x38;
    pub const RX_WRITE: u8 = 0x3a;
    pub const INTERRUPT_MASK: u8 = 0x3c;
    pub const INTERRUPT_STATUS: u8 = 0x3e;
    pub const TX_CONFIG: u8 = 0x40;
    pub const RX_CONFIG: u8 = 0x44;
    pub const TIMER: u8 = 0x48;
    pub const RX_MISSED: u8 = 0x4c;
    pub const COMMAND_9346: u8 = 0x50;
    pub const CONFIG0: u8 = 0x51;
    pub const CONFIG1: u8 = 0x52;
    pub const TIMER_INTERRUPT: u8 = 0x54;
    pub const MEDIA_STATUS: u8 = 0x58;
    pub const CONFIG3: u8 = 0x59;
    pub const CONFIG4: u8 = 0x5a;
    pub const HALT_CLOCK: u8 = 0x5b;
    pub const MULTIPLE_INTERRUPT: u8 = 0x5c;
    pub const REVISION: u8 = 0x5e;
    pub const TX_SUMMARY: u8 = 0x60;
    pub const BASIC_MODE_CONTROL: u8 = 0x62;
    pub const BASIC_MODE_STATUS: u8 = 0x64;
    pub const NWAY_ADVERTISEMENT: u8 = 0x66;
    pub const NWAY_PARTNER: u8 = 0x68;
    pub const NWAY_EXPANSION: u8 = 0x6a;
    pub const CSCR: u8 = 0x74;
    pub const CONFIG5: u8 = 0xd8;
    pub const TX_POLL: u8 = 0xd9;
    pub const CPLUS_COMMAND: u8 = 0xe0;
    pub const RX_RING_LOW: u8 = 0xe4;
    pub const RX_RING_HIGH: u8 = 0xe8;
    pub const TX_THRESHOLD: u8 = 0xec;
}

/// Interrupt status bits.
pub mod interrupt {
    pub const RX_OK: u16 = 0x0001;
    pub const TX_OK: u16 = 0x0004;
    pub const RX_OVERFLOW: u16 = 0x0010;
    pub const LINK_CHANGE: u16 = 0x0020;
    pub const TIMEOUT: u16 = 0x4000;
}

/// Command register bits.
pub mod command {
    pub const TX: u8 = 0x04;
    pub const RX: u8 = 0x08;
    pub const RESET: u8 = 0x10;
}

/// Transmit status bits.
pub mod tx_status {
    pub const HOST_OWNS: u32 = 1 << 13;
    pub const UNDERRUN: u32 = 1 << 14;
    pub const OK: u32 = 1 << 15;
    pub const ABORTED: u32 = 1 << 30;
}

/// Receive configuration bits.
pub mod rx_config {
    pub const ALL: u32 = 0x01;
    pub const MINE: u32 = 0x02;
    pub const MULTICAST: u32 = 0x04;
    pub const BROADCAST: u32 = 0x08;
    /// A frame may run past the end of the ring instead of going on at its start.
    pub const NO_WRAP: u32 = 0x80;
}

/// C+ command bits.
pub mod cplus {
    pub const TX: u16 = 0x01;
    pub const RX: u16 = 0x02;
    pub const RX_VLAN: u16 = 0x40;
}

/// Both loopback bits of the transmit configuration.
const LOOPBACK: u32 = 0x0006_0000;
/// Version bits of the transmit configuration: an RTL8139C+.
const HARDWARE_VERSION: u32 = 0x7480_0000;
const VERSION_MASK: u32 = 0x7cc0_0000;
const LINK_UP: u16 = 0x0004;
/// One tick of the timer: the PCI clock of 33 MHz, in nanoseconds.
const TICK_NS: i64 = 30;
/// The PCI revision.
pub const PCI_REVISION: u8 = 0x20;

/// Statistics (DTCCR).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Tally {
    pub tx_ok: u64,
    pub rx_ok: u64,
    pub tx_error: u64,
    pub rx_error: u32,
    pub missed: u16,
    pub alignment: u16,
    pub one_collision: u32,
    pub collisions: u32,
    pub rx_mine: u64,
    pub rx_broadcast: u64,
    pub rx_multicast: u32,
    pub tx_aborted: u16,
    pub tx_underrun: u16,
}

impl Tally {
    /// The 64 bytes that the dump command writes to memory.
    pub fn dump(&self) -> [u8; 64] {
        let mut out = Vec::with_capacity(64);
        out.extend(self.tx_ok.to_le_bytes());
        out.extend(self.rx_ok.to_le_bytes());
        out.extend(self.tx_error.to_le_bytes());
        out.extend(self.rx_error.to_le_bytes());
        out.extend(self.missed.to_le_bytes());
        out.extend(self.alignment.to_le_bytes());
        out.extend(self.one_collision.to_le_bytes());
        out.extend(self.collisions.to_le_bytes());
        out.extend(self.rx_mine.to_le_bytes());
        out.extend(self.rx_broadcast.to_le_bytes());
        out.extend(self.rx_multicast.to_le_bytes());
        out.extend(self.tx_aborted.to_le_bytes());
        out.extend(self.tx_underrun.to_le_bytes());
        let mut dump = [0; 64];
        dump.copy_from_slice(&out);
        dump
    }
}

/// What a register write asks of the wiring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Look for frames in the four transmit descriptors.
    Transmit,
    /// Look for frames in the C+ transmit ring.
    TransmitRing,
    /// Write the statistics to memory, then call [`Regs::tally_dumped`].
    DumpTally(u64),
    /// The timer's deadline changed.
    Timer,
    /// There may be room for frames that wait.
    Room,
}

/// All registers.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Regs {
    /// The address that a reset restores.
    pub mac: [u8; 6],
    pub phys: [u8; 6],
    pub mult: [u8; 8],
    pub tx_status: [u32; 4],
    pub tx_address: [u32; 4],
    pub rx_buffer: u32,
    pub rx_size: u32,
    pub rx_read: u32,
    pub rx_write: u32,
    pub status: u16,
    pub mask: u16,
    pub tx_config: u32,
    pub rx_config: u32,
    pub rx_missed: u32,
    pub cscr: u16,
    pub cfg9346: u8,
    pub config: [u8; 6],
    pub clock_enabled: bool,
    pub command: u8,
    pub multiple_interrupt: u16,
    pub bmcr: u16,
    pub bmsr: u16,
    pub nway: [u16; 3],
    pub cplus_command: u16,
    pub tx_threshold: u8,
    pub tx_next: u32,
    pub rx_descriptor: u32,
    pub tx_descriptor: u32,
    pub rx_ring: [u32; 2],
    pub eeprom: Eeprom,
    pub timer_interrupt: u32,
    pub timer_base: i64,
    pub tally: Tally,
    pub cplus: bool,
    /// Changes when what a frame was received into is no longer valid.
    pub rx_epoch: u64,
}

/// Takes the bits of `mask` from what is there and the others from what is written.
fn keep<T>(written: T, mask: T, old: T) -> T
where
    T: Copy + std::ops::BitAnd<Output = T> + std::ops::BitOr<Output = T> + std::ops::Not<Output = T>,
{
    (written & !mask) | (old & mask)
}

impl Regs {
    /// After power on.
    pub fn new(mac: [u8; 6]) -> Self {
        let mut regs = Self {
            mac,
            phys: mac,
            mult: [0; 8],
            tx_status: [0; 4],
            tx_address: [0; 4],
            rx_buffer: 0,
            rx_size: 8192,
            rx_read: 0,
            rx_write: 0,
            status: 0,
            mask: 0,
            tx_config: 0,
            rx_config: 0,
            rx_missed: 0,
            cscr: 0,
            cfg9346: 0,
            config: [0; 6],
            clock_enabled: true,
            command: 0,
            multiple_interrupt: 0,
            bmcr: 0,
            bmsr: LINK_UP,
            nway: [0; 3],
            cplus_command: 0,
            tx_threshold: 0,
            tx_next: 0,
            rx_descriptor: 0,
            tx_descriptor: 0,
            rx_ring: [0; 2],
            eeprom: Eeprom::new(0x10ec, 0x8139, &mac),
            timer_interrupt: 0,
            timer_base: 0,
            tally: Tally::default(),
            cplus: false,
            rx_epoch: 0,
        };
        regs.reset();
        regs
    }

    /// Hardware or software reset. The link stays as it is.
    pub fn reset(&mut self) {
        self.phys = self.mac;
        self.status = 0;
        self.mask = 0;
        self.tx_status = [tx_status::HOST_OWNS; 4];
        self.tx_next = 0;
        self.rx_descriptor = 0;
        self.tx_descriptor = 0;
        self.rx_ring = [0; 2];
        self.rx_buffer = 0;
        self.reset_ring(8192);
        self.tx_config = HARDWARE_VERSION;
        self.clock_enabled = true;
        self.command = command::RESET;
        self.config[0] = 0;
        // Registers are reachable through I/O and memory.
        self.config[1] = 0x0c;
        self.config[3] = 0x01;
        self.config[5] = 0;
        self.cplus_command = 0;
        self.cplus = false;
        self.bmcr = 0x1000;
        self.reset_phy();
        self.timer_interrupt = 0;
        self.timer_base = 0;
        self.tally = Tally::default();
    }

    fn reset_phy(&mut self) {
        // All modes, autonegotiation done.
        self.bmsr = 0x7829 | self.bmsr & LINK_UP;
        self.nway = [0x05e1, 0x05e1, 0x0001];
        self.cscr = 0x0340;
    }

    fn reset_ring(&mut self, size: u32) {
        self.rx_size = size;
        self.rx_read = 0;
        self.rx_write = 0;
        self.rx_epoch += 1;
    }

    /// The interrupt pin's level.
    pub fn irq(&self) -> bool {
        self.status & self.mask != 0
    }

    /// The cable was plugged in or pulled out.
    pub fn set_link(&mut self, up: bool) {
        self.bmsr = self.bmsr & !LINK_UP | if up { LINK_UP } else { 0 };
        self.status |= interrupt::LINK_CHANGE;
    }

    /// At power on the cable was out.
    pub fn start_without_link(&mut self) {
        self.bmsr &= !LINK_UP;
    }

    pub fn receiver_on(&self) -> bool {
        self.command & command::RX != 0
    }

    pub fn transmitter_on(&self) -> bool {
        self.command & command::TX != 0
    }

    pub fn loops_back(&self) -> bool {
        self.tx_config & LOOPBACK == LOOPBACK
    }

    /// Whether frames go to C+ descriptors, and there are some.
    pub fn receives_into_descriptors(&self) -> bool {
        self.cplus_command & cplus::RX != 0 && self.rx_ring != [0, 0]
    }

    /// Bytes of the receive ring that are free; 0 when all are.
    pub fn ring_space(&self) -> u32 {
        self.rx_size.wrapping_add(self.rx_read).wrapping_sub(self.rx_write) & (self.rx_size - 1)
    }

    /// Whether a frame would be taken now (or dropped by a chip that is off).
    pub fn can_receive(&self) -> bool {
        const LARGEST_FRAME: u32 = 1514;
        if !self.clock_enabled || !self.receiver_on() || self.receives_into_descriptors() {
            return true;
        }
        let space = self.ring_space();
        space == 0 || space >= LARGEST_FRAME || self.mask & interrupt::RX_OVERFLOW != 0
    }

    fn config_writable(&self) -> bool {
        self.cfg9346 & 0xc0 == 0xc0
    }

    /// When the timer interrupt is due, in nanoseconds of the clock that `now` is of.
    pub fn timer_deadline(&self, now: i64) -> Option<i64> {
        if self.timer_interrupt == 0 {
            return None;
        }
        // The counter wraps at 32 bits.
        let period = TICK_NS << 32;
        let turns = now.saturating_sub(self.timer_base).max(0) / period;
        let start = self.timer_base.saturating_add(turns * period);
        let next = start.saturating_add(i64::from(self.timer_interrupt) * TICK_NS);
        Some(if next < now { next.saturating_add(period) } else { next })
    }

    /// The timer's counter.
    pub fn timer_count(&self, now: i64) -> u32 {
        (now.wrapping_sub(self.timer_base) / TICK_NS) as u32
    }

    /// The timer interrupt is due.
    pub fn timer_expired(&mut self) {
        if self.clock_enabled {
            self.status |= interrupt::TIMEOUT;
        }
    }

    /// The statistics are in memory.
    pub fn tally_dumped(&mut self) {
        const DUMP: u32 = 1 << 3;
        self.tx_status[0] &= !DUMP;
    }

    fn tx_summary(&self) -> u16 {
        let bits = |flag: u32, at: u16| {
            (0..4).map(|i| u16::from(self.tx_status[i] & flag != 0) << (at + i as u16)).sum::<u16>()
        };
        bits(tx_status::OK, 12)
            | bits(tx_status::UNDERRUN, 8)
            | bits(tx_status::ABORTED, 4)
            | bits(tx_status::HOST_OWNS, 0)
    }

    /// Reads a register of 1, 2 or 4 bytes. Registers read with less than their width give their low bytes, except where noted.
    pub fn read(&self, at: u8, size: u32, now: i64) -> u32 {
        match size {
            1 => self.read_byte(at).into(),
            2 => self
                .read_word(at)
                .unwrap_or_else(|| u16::from_le_bytes([self.read_byte(at), self.read_byte(at.wrapping_add(1))]))
                .into(),
            _ => self
                .read_long(at, now)
                .unwrap_or_else(|| u32::from_le_bytes([0, 1, 2, 3].map(|i| self.read_byte(at.wrapping_add(i))))),
        }
    }

    fn read_byte(&self, at: u8) -> u8 {
        match at {
            reg::MAC..0x06 => self.phys[usize::from(at)],
            reg::MULTICAST..reg::TX_STATUS => self.mult[usize::from(at - reg::MULTICAST)],
            reg::TX_STATUS..reg::TX_ADDRESS => part(&self.tx_status, at) as u8,
            reg::COMMAND => self.command | u8::from(self.rx_read == self.rx_write),
            0x43 => (self.tx_config >> 24) as u8,
            reg::COMMAND_9346 => {
                let value = self.cfg9346;
                if value & 0xc0 == 0x80 { value & !1 | u8::from(self.eeprom.data_out) } else { value }
            }
            reg::CONFIG0 => self.config[0],
            reg::CONFIG1 => self.config[1],
            reg::CONFIG3 => self.config[3],
            reg::CONFIG4 => self.config[4],
            reg::CONFIG5 => self.config[5],
            reg::MEDIA_STATUS => 0xd0 | (!self.bmsr & LINK_UP) as u8,
            reg::HALT_CLOCK => self.clock_enabled.into(),
            reg::REVISION => PCI_REVISION,
            reg::TX_THRESHOLD => self.tx_threshold,
            _ => 0,
        }
    }

    fn read_word(&self, at: u8) -> Option<u16> {
        Some(match at {
            reg::TX_ADDRESS..reg::RX_BUFFER if at & 1 == 0 => part(&self.tx_address, at - 0x10) as u16,
            reg::TX_STATUS..reg::TX_ADDRESS if at & 1 == 0 => part(&self.tx_status, at) as u16,
            reg::RX_READ => (self.rx_read as u16).wrapping_sub(0x10),
            reg::RX_WRITE => self.rx_write as u16,
            reg::INTERRUPT_MASK => self.mask,
            reg::INTERRUPT_STATUS => self.status,
            reg::MULTIPLE_INTERRUPT => self.multiple_interrupt,
            reg::TX_SUMMARY => self.tx_summary(),
            reg::BASIC_MODE_CONTROL => self.bmcr,
            reg::BASIC_MODE_STATUS => self.bmsr,
            reg::NWAY_ADVERTISEMENT => self.nway[0],
            reg::NWAY_PARTNER => self.nway[1],
            reg::NWAY_EXPANSION => self.nway[2],
            reg::CSCR => self.cscr,
            reg::CPLUS_COMMAND => self.cplus_command,
            _ => return None,
        })
    }

    fn read_long(&self, at: u8, now: i64) -> Option<u32> {
        Some(match at {
            reg::TX_STATUS..reg::TX_ADDRESS if at & 3 == 0 => part(&self.tx_status, at),
            reg::TX_ADDRESS..reg::RX_BUFFER if at & 3 == 0 => part(&self.tx_address, at - 0x10),
            reg::RX_BUFFER => self.rx_buffer,
            reg::TX_CONFIG => self.tx_config,
            reg::RX_CONFIG => self.rx_config,
            reg::TIMER => self.timer_count(now),
            reg::RX_MISSED => self.rx_missed,
            reg::TIMER_INTERRUPT => self.timer_interrupt,
            reg::RX_RING_LOW => self.rx_ring[0],
            reg::RX_RING_HIGH => self.rx_ring[1],
            _ => return None,
        })
    }

    /// Writes a register of 1, 2 or 4 bytes.
    pub fn write(&mut self, at: u8, size: u32, value: u32, now: i64) -> Option<Action> {
        match size {
            1 => self.write_byte(at, value as u8),
            2 => self.write_word(at, value as u16),
            _ => self.write_long(at, value, now),
        }
    }

    fn write_byte(&mut self, at: u8, value: u8) -> Option<Action> {
        match at {
            reg::MAC..0x06 => self.phys[usize::from(at)] = value,
            reg::MULTICAST..reg::TX_STATUS => self.mult[usize::from(at - reg::MULTICAST)] = value,
            reg::COMMAND => return self.write_command(value),
            reg::COMMAND_9346 => return self.write_9346(value),
            // Its low byte, which drivers write alone to set the filter.
            reg::RX_CONFIG => return self.write_rx_config(self.rx_config & !0xff | u32::from(value)),
            reg::CONFIG0 if self.config_writable() => self.config[0] = keep(value, 0xf8, self.config[0]),
            reg::CONFIG1 if self.config_writable() => self.config[1] = keep(value, 0x0c, self.config[1]),
            reg::CONFIG3 if self.config_writable() => self.config[3] = keep(value, 0x8f, self.config[3]),
            reg::CONFIG4 if self.config_writable() => self.config[4] = keep(value, 0x0a, self.config[4]),
            reg::CONFIG5 => self.config[5] = keep(value, 0x80, self.config[5]),
            reg::HALT_CLOCK => match value {
                b'R' => self.clock_enabled = true,
                b'H' => self.clock_enabled = false,
                _ => {}
            },
            reg::TX_THRESHOLD => self.tx_threshold = value,
            reg::TX_POLL => {
                const NORMAL_PRIORITY: u8 = 1 << 6;
                return (value & NORMAL_PRIORITY != 0).then_some(Action::TransmitRing);
            }
            _ => {}
        }
        None
    }

    fn write_command(&mut self, value: u8) -> Option<Action> {
        let resets = value & command::RESET != 0;
        if resets {
            self.reset();
        }
        if value & command::RX != 0 {
            self.rx_descriptor = 0;
        }
        if value & command::TX != 0 {
            self.tx_descriptor = 0;
        }
        self.command = keep(value, 0xe3, self.command) & !command::RESET;
        Some(if resets { Action::Timer } else { Action::Room })
    }

    fn write_rx_config(&mut self, value: u32) -> Option<Action> {
        self.rx_config = keep(value, 0xf0fc_0040, self.rx_config);
        self.reset_ring(8192 << (self.rx_config >> 11 & 3));
        Some(Action::Room)
    }

    fn write_9346(&mut self, value: u8) -> Option<Action> {
        self.cfg9346 = keep(value, 0x31, self.cfg9346);
        match value & 0xc0 {
            0x80 => self.eeprom.set_wires(value & 8 != 0, value & 4 != 0, value & 2 != 0),
            0x40 => {
                self.cfg9346 = 0;
                self.reset();
                return Some(Action::Timer);
            }
            _ => {}
        }
        None
    }

    fn write_word(&mut self, at: u8, value: u16) -> Option<Action> {
        match at {
            reg::INTERRUPT_MASK => self.mask = keep(value, 0x1e00, self.mask),
            reg::INTERRUPT_STATUS => self.status &= !value,
            reg::MULTIPLE_INTERRUPT => self.multiple_interrupt = keep(value, 0xf000, self.multiple_interrupt),
            // The driver writes 16 less than where it reads next.
            reg::RX_READ => {
                self.rx_read = u32::from(value).wrapping_add(0x10) & (self.rx_size - 1);
                return Some(Action::Room);
            }
            reg::BASIC_MODE_CONTROL => {
                if value & 0x8000 != 0 {
                    self.reset_phy();
                }
                // Only restarting autonegotiation is not read-only.
                self.bmcr = keep(value, 0xfdff, self.bmcr);
            }
            reg::BASIC_MODE_STATUS => self.bmsr = keep(value, 0xff3f, self.bmsr),
            reg::NWAY_ADVERTISEMENT => self.nway[0] = value,
            reg::NWAY_EXPANSION => self.nway[2] = value,
            reg::NWAY_PARTNER => {}
            reg::CPLUS_COMMAND => {
                self.cplus = true;
                self.cplus_command = keep(value, 0xff84, self.cplus_command);
            }
            _ => {
                let [low, high] = value.to_le_bytes();
                let first = self.write_byte(at, low);
                return self.write_byte(at.wrapping_add(1), high).or(first);
            }
        }
        None
    }

    fn write_long(&mut self, at: u8, value: u32, now: i64) -> Option<Action> {
        match at {
            reg::RX_MISSED => self.rx_missed = 0,
            reg::TX_CONFIG => {
                if self.transmitter_on() {
                    self.tx_config = keep(value, VERSION_MASK | 0x8070_f80f, self.tx_config);
                }
            }
            reg::RX_CONFIG => return self.write_rx_config(value),
            reg::TX_STATUS..reg::TX_ADDRESS if at & 3 == 0 => {
                return self.write_tx_status(usize::from(at - 0x10) / 4, value);
            }
            reg::TX_ADDRESS..reg::RX_BUFFER if at & 3 == 0 => self.tx_address[usize::from(at - 0x20) / 4] = value,
            reg::RX_BUFFER => {
                self.rx_buffer = value;
                self.rx_epoch += 1;
            }
            reg::RX_RING_LOW => self.rx_ring[0] = value,
            reg::RX_RING_HIGH => self.rx_ring[1] = value,
            reg::TIMER => {
                self.timer_base = now;
                return Some(Action::Timer);
            }
            reg::TIMER_INTERRUPT => {
                self.timer_interrupt = value;
                return Some(Action::Timer);
            }
            _ => {
                let mut action = None;
                for (i, byte) in value.to_le_bytes().into_iter().enumerate() {
                    action = self.write_byte(at.wrapping_add(i as u8), byte).or(action);
                }
                return action;
            }
        }
        None
    }

    fn write_tx_status(&mut self, n: usize, value: u32) -> Option<Action> {
        if self.cplus {
            // In C+ mode these are the registers of the statistics dump.
            const DUMP: u32 = 1 << 3;
            self.tx_status[n] = value;
            let address = u64::from(self.tx_status[1]) << 32 | u64::from(self.tx_status[0] & !0x3f);
            return (n == 0 && value & DUMP != 0).then_some(Action::DumpTally(address));
        }
        self.tx_status[n] = keep(value & !0xff00_c000, 0x00c0_0000, self.tx_status[n]);
        Some(Action::Transmit)
    }

    /// The next of the four transmit descriptors that is the chip's: where the frame is, and its length. [`Regs::transmitted`] follows when
    /// the frame was taken.
    pub fn next_frame(&self) -> Option<(u32, usize)> {
        let n = (self.tx_next & 3) as usize;
        if !self.transmitter_on() || self.tx_status[n] & tx_status::HOST_OWNS != 0 {
            return None;
        }
        Some((self.tx_address[n], (self.tx_status[n] & 0x1fff) as usize))
    }

    /// The frame that [`Regs::next_frame`] gave is out.
    pub fn transmitted(&mut self) {
        let n = (self.tx_next & 3) as usize;
        if self.tx_status[n] & tx_status::HOST_OWNS != 0 {
            // The chip was reset meanwhile.
            return;
        }
        self.tx_status[n] |= tx_status::HOST_OWNS | tx_status::OK;
        self.tx_next = (self.tx_next + 1) & 3;
        self.status |= interrupt::TX_OK;
    }
}

/// The bytes of an array of registers from byte `at` (counted from 0x10) on.
fn part(registers: &[u32; 4], at: u8) -> u32 {
    let at = usize::from(at - reg::TX_STATUS);
    registers[at / 4 & 3] >> (at % 4 * 8)
}
