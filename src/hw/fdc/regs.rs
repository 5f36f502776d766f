//! Registers and commands of the 82078 (Intel 290475-003) with drives that have no medium: nothing is ever transferred.

use lockstep_util::log::{Log, item};

use super::vmstate::{
    DriveState, FdcPart, FdcState, MediaRateState, PerpendicularState, ResetSenseState, ResultTimerState,
};

const FIFO: usize = 512;
const DRIVES: usize = 2;

const SRA_INTERRUPT: u8 = 0x80;
const SRA_NO_SECOND_DRIVE: u8 = 0x40;
const SRB_ONES: u8 = 0xc0;
const SRB_DRIVE_0: u8 = 0x20;
const SRB_MOTORS: u8 = 0x03;

const DOR_DRIVE: u8 = 0x01;
const DOR_RUN: u8 = 0x04;
const DOR_DMA: u8 = 0x08;
const DOR_MOTORS: u8 = 0x30;

const TDR_BOOT: u8 = 0x04;

const DSR_RESET: u8 = 0x80;
const DSR_POWER_DOWN: u8 = 0x40;

const MSR_BUSY: u8 = 0x10;
const MSR_TO_HOST: u8 = 0x40;
const MSR_READY: u8 = 0x80;

const DIR_CHANGED: u8 = 0x80;

const ST0_HEAD: u8 = 0x04;
const ST0_SEEK_END: u8 = 0x20;
const ST0_ABNORMAL: u8 = 0x40;
const ST0_INVALID: u8 = 0x80;
const ST0_READY_CHANGED: u8 = 0xc0;
const ST1_NO_ADDRESS_MARK: u8 = 0x01;
const ST3_TRACK_0: u8 = 0x10;
/// Two sides, ready, write protected: there is no medium to write to.
const ST3_ALWAYS: u8 = 0x68;

const CONFIG_THRESHOLD: u8 = 0x0f;
const CONFIG_POLL: u8 = 0x10;
const CONFIG_FIFO: u8 = 0x20;
const CONFIG_IMPLIED_SEEK: u8 = 0x40;

/// Interrupts that a reset owes: one a drive.
const RESET_SENSES: i32 = 4;
/// 512 bytes of a sector, in result bytes.
const SECTOR_SIZE_CODE: u8 = 2;
/// The rate of 2.88 MB media.
const MEDIA_RATE: u8 = 3;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Command,
    /// A drive looks for a header.
    Searching,
    Result,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Drive {
    head: u8,
    track: u8,
    sector: u8,
    perpendicular: u8,
}

/// The registers.
#[derive(Clone, Debug, PartialEq)]
pub struct FdcRegs {
    sra: u8,
    srb: u8,
    dor: u8,
    tdr: u8,
    dsr: u8,
    msr: u8,
    status0: u8,
    fifo: Box<[u8; FIFO]>,
    position: usize,
    length: usize,
    phase: Phase,
    eot: u8,
    timers: [u8; 2],
    precompensation_track: u8,
    config: u8,
    lock: u8,
    power_down: u8,
    reset_senses: i32,
    drives: [Drive; DRIVES],
}

impl Default for FdcRegs {
    /// As after power on.
    fn default() -> Self {
        let mut regs = Self {
            sra: 0,
            srb: 0,
            dor: DOR_RUN | DOR_DMA,
            tdr: 0,
            dsr: 0,
            msr: MSR_READY,
            status0: 0,
            fifo: Box::new([0; FIFO]),
            position: 0,
            length: 1,
            phase: Phase::Command,
            eot: 0,
            timers: [0; 2],
            precompensation_track: 0,
            config: CONFIG_IMPLIED_SEEK | CONFIG_FIFO,
            lock: 0,
            power_down: 0,
            reset_senses: 0,
            drives: [Drive { sector: 1, ..Drive::default() }; DRIVES],
        };
        regs.reset(false);
        regs
    }
}

/// A command: how it is recognized (mask, value), how many bytes follow, and what it does.
type Command = (u8, u8, usize, fn(&mut FdcRegs));

/// Section 5.1. The first that matches.
const COMMANDS: [Command; 26] = [
    (0x1f, 0x06, 8, FdcRegs::no_medium),
    (0x3f, 0x05, 8, FdcRegs::no_medium),
    (0xff, 0x0f, 2, FdcRegs::seek),
    (0xff, 0x08, 0, FdcRegs::sense_interrupt),
    (0xff, 0x07, 1, FdcRegs::recalibrate),
    (0xbf, 0x0d, 5, FdcRegs::format),
    (0xbf, 0x02, 8, FdcRegs::no_medium),
    (0xff, 0x17, 1, FdcRegs::power_down_mode),
    (0xff, 0x13, 3, FdcRegs::configure),
    (0xff, 0x12, 1, FdcRegs::perpendicular_mode),
    (0xbf, 0x0a, 1, FdcRegs::read_id),
    (0x1f, 0x11, 8, FdcRegs::no_medium),
    (0x1f, 0x19, 8, FdcRegs::no_medium),
    (0x1f, 0x1d, 8, FdcRegs::no_medium),
    (0xbf, 0x09, 8, FdcRegs::no_medium),
    (0x1f, 0x16, 8, FdcRegs::no_medium),
    (0xff, 0x0e, 0, FdcRegs::dump_registers),
    (0xff, 0x04, 1, FdcRegs::sense_drive),
    (0xff, 0x03, 2, FdcRegs::specify),
    (0xff, 0x10, 0, FdcRegs::version),
    (0xff, 0x18, 0, FdcRegs::part_id),
    (0x7f, 0x14, 0, FdcRegs::set_lock),
    (0xff, 0x33, 1, FdcRegs::begin_command),
    (0xff, 0x8f, 2, FdcRegs::relative_seek_out),
    (0xff, 0xcf, 2, FdcRegs::relative_seek_in),
    (0x00, 0x00, 0, FdcRegs::invalid),
];

fn command_of(byte: u8) -> &'static Command {
    COMMANDS.iter().find(|(mask, value, ..)| byte & mask == *value).unwrap_or(&COMMANDS[COMMANDS.len() - 1])
}

impl FdcRegs {
    pub(super) fn irq(&self) -> bool {
        self.sra & SRA_INTERRUPT != 0
    }

    pub(super) fn is_searching(&self) -> bool {
        self.phase == Phase::Searching
    }

    fn selected(&self) -> usize {
        usize::from(self.dor & DOR_DRIVE)
    }

    fn drive(&mut self) -> &mut Drive {
        let n = self.selected();
        &mut self.drives[n]
    }

    fn raise(&mut self) {
        self.sra |= SRA_INTERRUPT;
        self.reset_senses = 0;
    }

    fn lower(&mut self) {
        self.status0 = 0;
        self.sra &= !SRA_INTERRUPT;
    }

    fn reset(&mut self, interrupt: bool) {
        self.lower();
        self.sra = SRA_NO_SECOND_DRIVE;
        self.srb = SRB_ONES;
        self.dor = DOR_RUN | DOR_DMA;
        self.msr = MSR_READY;
        self.reset_senses = 0;
        self.begin_command();
        if interrupt {
            self.status0 |= ST0_READY_CHANGED;
            self.raise();
            self.reset_senses = RESET_SENSES;
        }
    }

    pub(super) fn read(&mut self, register: u64) -> u8 {
        match register {
            0 => self.sra,
            1 => self.srb,
            2 => self.dor,
            3 => self.tdr,
            4 => {
                self.dsr &= !DSR_POWER_DOWN;
                self.dor |= DOR_RUN;
                self.msr
            }
            5 => self.read_fifo(),
            7 => DIR_CHANGED,
            _ => 0xff,
        }
    }

    pub(super) fn write(&mut self, register: u64, value: u8) {
        let running = self.dor & DOR_RUN != 0;
        match register {
            2 => self.write_dor(value),
            3 if running => self.tdr = value & TDR_BOOT,
            4 if running => {
                if value & DSR_RESET != 0 {
                    self.reset(true);
                }
                if value & DSR_POWER_DOWN != 0 {
                    self.reset(true);
                }
                self.dsr = value & !DSR_RESET;
            }
            5 if running => self.write_fifo(value),
            7 if running => self.dsr = self.dsr & !3 | value & 3,
            _ => {}
        }
    }

    fn write_dor(&mut self, value: u8) {
        self.srb = self.srb & !(SRB_MOTORS | SRB_DRIVE_0)
            | (value & DOR_MOTORS) >> 4
            | if value & DOR_DRIVE != 0 { SRB_DRIVE_0 } else { 0 };
        if value & DOR_RUN != 0 && self.dor & DOR_RUN == 0 {
            self.reset(true);
            self.dsr &= !DSR_RESET;
        }
        self.dor = value;
    }

    fn read_fifo(&mut self) -> u8 {
        self.dsr &= !DSR_POWER_DOWN;
        if self.phase != Phase::Result {
            return 0;
        }
        let value = self.fifo[self.position];
        self.position += 1;
        if self.position >= self.length {
            self.begin_command();
            self.lower();
        }
        value
    }

    fn write_fifo(&mut self, value: u8) {
        self.dsr &= !DSR_POWER_DOWN;
        if self.phase != Phase::Command {
            return;
        }
        if self.position == 0 {
            let parameters = command_of(value).2;
            self.length = parameters + 1;
            if parameters > 0 {
                self.msr |= MSR_BUSY;
            }
        }
        self.fifo[self.position] = value;
        self.position += 1;
        if self.position == self.length {
            (command_of(self.fifo[0]).3)(self);
        }
    }

    fn begin_command(&mut self) {
        self.phase = Phase::Command;
        (self.position, self.length) = (0, 1);
        self.msr &= !(MSR_BUSY | MSR_TO_HOST);
        self.msr |= MSR_READY;
    }

    fn begin_result(&mut self, bytes: &[u8]) {
        self.phase = Phase::Result;
        self.fifo[..bytes.len()].copy_from_slice(bytes);
        (self.position, self.length) = (0, bytes.len());
        self.msr |= MSR_BUSY | MSR_READY | MSR_TO_HOST;
    }

    fn select(&mut self, byte: u8) {
        self.dor = self.dor & !DOR_DRIVE | byte & DOR_DRIVE;
    }

    /// Ends a transfer, with an interrupt.
    fn end(&mut self, status0: u8, status1: u8) {
        let n = self.selected() as u8;
        let d = *self.drive();
        self.status0 = self.status0 & !(3 | ST0_HEAD) | n | if d.head != 0 { ST0_HEAD } else { 0 } | status0;
        let result = [self.status0, status1, 0, d.track, d.head, d.sector, SECTOR_SIZE_CODE];
        self.begin_result(&result);
        self.raise();
    }

    fn no_medium(&mut self) {
        self.select(self.fifo[1]);
        let (track, head, sector) = (self.fifo[2], self.fifo[3], self.fifo[4]);
        self.end(ST0_ABNORMAL, 0);
        self.fifo[3..6].copy_from_slice(&[track, head, sector]);
    }

    fn format(&mut self) {
        self.select(self.fifo[1]);
        self.end(ST0_ABNORMAL, 0);
    }

    fn read_id(&mut self) {
        self.select(self.fifo[1]);
        self.drive().head = self.fifo[1] >> 2 & 1;
        self.phase = Phase::Searching;
        self.msr = self.msr & !MSR_READY | MSR_BUSY;
    }

    /// The drive has turned and found nothing.
    pub(super) fn id_searched(&mut self) {
        if self.phase == Phase::Searching {
            self.end(ST0_ABNORMAL, ST1_NO_ADDRESS_MARK);
        }
    }

    fn seek(&mut self) {
        self.select(self.fifo[1]);
        // Without a medium there is nothing to count tracks by: the head stays.
        self.begin_command();
        self.status0 |= ST0_SEEK_END;
        self.raise();
    }

    fn relative_seek_out(&mut self) {
        self.seek();
    }

    fn relative_seek_in(&mut self) {
        self.seek();
    }

    fn recalibrate(&mut self) {
        self.select(self.fifo[1]);
        let d = self.drive();
        (d.head, d.track, d.sector) = (0, 0, 1);
        self.begin_command();
        self.status0 |= ST0_SEEK_END;
        self.raise();
    }

    fn sense_interrupt(&mut self) {
        let status = if self.reset_senses > 0 {
            let n = (RESET_SENSES - self.reset_senses) as u8;
            self.reset_senses -= 1;
            ST0_READY_CHANGED + n
        } else if self.sra & SRA_INTERRUPT == 0 {
            self.begin_result(&[ST0_INVALID]);
            return;
        } else {
            self.status0 & !(3 | ST0_HEAD) | self.selected() as u8
        };
        let track = self.drive().track;
        self.begin_result(&[status, track]);
        let left = self.reset_senses;
        self.lower();
        self.reset_senses = left;
        self.status0 = ST0_READY_CHANGED;
    }

    fn sense_drive(&mut self) {
        self.select(self.fifo[1]);
        let (n, head) = (self.selected() as u8, self.fifo[1] >> 2 & 1);
        let d = self.drive();
        d.head = head;
        let track_0 = if d.track == 0 { ST3_TRACK_0 } else { 0 };
        self.begin_result(&[track_0 | head << 2 | n | ST3_ALWAYS]);
    }

    fn specify(&mut self) {
        self.timers = [self.fifo[1] >> 4, self.fifo[2] >> 1];
        self.dor = if self.fifo[2] & 1 != 0 { self.dor & !DOR_DMA } else { self.dor | DOR_DMA };
        self.begin_command();
    }

    fn version(&mut self) {
        // An 82077 or better.
        self.begin_result(&[0x90]);
    }

    fn part_id(&mut self) {
        // An 82078.
        self.begin_result(&[0x41]);
    }

    fn set_lock(&mut self) {
        self.lock = u8::from(self.fifo[0] & 0x80 != 0);
        self.begin_result(&[self.lock << 4]);
    }

    fn configure(&mut self) {
        self.config = self.fifo[2];
        self.precompensation_track = self.fifo[3];
        self.begin_command();
    }

    fn perpendicular_mode(&mut self) {
        let value = self.fifo[1];
        if value & 0x80 != 0 {
            self.drive().perpendicular = value & 7;
        }
        self.begin_command();
    }

    fn power_down_mode(&mut self) {
        self.power_down = self.fifo[1];
        self.begin_result(&[self.fifo[1]]);
    }

    fn dump_registers(&mut self) {
        let [d0, d1] = self.drives;
        let d = *self.drive();
        // QEMU's polarity: set while DMA is on.
        let dma = u8::from(self.dor & DOR_DMA != 0);
        self.begin_result(&[
            d0.track,
            d1.track,
            0,
            0,
            self.timers[0],
            self.timers[1] << 1 | dma,
            self.eot,
            self.lock << 7 | d.perpendicular << 2,
            self.config & (CONFIG_THRESHOLD | CONFIG_POLL | CONFIG_FIFO | CONFIG_IMPLIED_SEEK),
            self.precompensation_track,
        ]);
    }

    fn invalid(&mut self) {
        if Log::global().has(item::UNIMP) {
            Log::global().write(&format!("fdc: unimplemented command {:#04x}\n", self.fifo[0]));
        }
        self.begin_result(&[ST0_INVALID]);
    }

    pub(super) fn save(&self, timer: Option<i64>) -> FdcState {
        let drive = |d: &Drive| DriveState {
            head: d.head,
            track: d.track,
            sect: d.sector,
            media_changed: None,
            media_rate: Some(MediaRateState { media_rate: MEDIA_RATE }),
            perpendicular: (d.perpendicular != 0).then_some(PerpendicularState { perpendicular: d.perpendicular }),
        };
        FdcState {
            state: FdcPart {
                sra: self.sra,
                srb: self.srb,
                dor_vmstate: self.dor,
                tdr: self.tdr,
                dsr: self.dsr,
                msr: self.msr,
                status0: self.status0,
                status1: 0,
                status2: 0,
                fifo: *self.fifo,
                data_pos: self.position as u32,
                data_len: self.length as u32,
                data_state: 0,
                data_dir: u8::from(self.phase == Phase::Command),
                eot: self.eot,
                timer0: self.timers[0],
                timer1: self.timers[1],
                precomp_trk: self.precompensation_track,
                config: self.config,
                lock: self.lock,
                pwrd: self.power_down,
                num_floppies: DRIVES as u8,
                drives: [drive(&self.drives[0]), drive(&self.drives[1])],
                reset_sensei: (self.reset_senses != 0).then_some(ResetSenseState { reset_sensei: self.reset_senses }),
                result_timer: timer.map(|at| ResultTimerState { result_timer: lockstep_vmstate::Timer(Some(at)) }),
                phase: None,
            },
        }
    }

    /// Takes a validated state over. Returns when a search ends, if one goes on.
    pub(super) fn load(&mut self, wire: &FdcState) -> Option<i64> {
        let s = &wire.state;
        let timer = s.result_timer.as_ref().and_then(|t| t.result_timer.0);
        let drive = |d: &DriveState| Drive {
            head: d.head,
            track: d.track,
            sector: d.sect,
            perpendicular: d.perpendicular.as_ref().map_or(0, |p| p.perpendicular & 7),
        };
        *self = Self {
            sra: s.sra,
            srb: s.srb,
            dor: s.dor_vmstate,
            tdr: s.tdr,
            dsr: s.dsr,
            msr: s.msr,
            status0: s.status0,
            fifo: Box::new(s.fifo),
            position: s.data_pos as usize,
            length: s.data_len as usize,
            phase: match (timer, s.msr & MSR_READY != 0, s.msr & MSR_TO_HOST != 0) {
                (Some(_), ..) => Phase::Searching,
                (None, true, true) => Phase::Result,
                _ => Phase::Command,
            },
            eot: s.eot,
            timers: [s.timer0, s.timer1],
            precompensation_track: s.precomp_trk,
            config: s.config,
            lock: s.lock & 1,
            power_down: s.pwrd,
            reset_senses: s.reset_sensei.as_ref().map_or(0, |r| r.reset_sensei),
            drives: [drive(&s.drives[0]), drive(&s.drives[1])],
        };
        if self.phase != Phase::Searching && self.position >= self.length {
            // Nothing is left of what went on.
            self.begin_command();
        }
        timer
    }
}
