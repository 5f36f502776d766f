//! Registers of the PC16550D (National Semiconductor, June 1995). Bytes leave at once; the line's speed only times the receive timeout.

use std::collections::VecDeque;

use lockstep_vmstate::{Buffer, Timer};

use super::vmstate::{
    Fifo8State, ReceiveFifoState, SerialPart, SerialState, ThrPendingState, TimeoutPendingState, TimeoutTimerState,
};

/// Bytes in a FIFO.
pub(super) const FIFO: usize = 16;

const IER_DATA: u8 = 0x01;
const IER_THR: u8 = 0x02;
const IER_LINE: u8 = 0x04;
const IER_MODEM: u8 = 0x08;

const IIR_NONE: u8 = 0x01;
const IIR_THR: u8 = 0x02;
const IIR_DATA: u8 = 0x04;
const IIR_LINE: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_FIFOS: u8 = 0xc0;

const FCR_ENABLE: u8 = 0x01;
const FCR_CLEAR_RECEIVE: u8 = 0x02;
const FCR_CLEAR_SEND: u8 = 0x04;

const LCR_DIVISOR: u8 = 0x80;

const MCR_LOOP: u8 = 0x10;

const LSR_DATA: u8 = 0x01;
const LSR_OVERRUN: u8 = 0x02;
const LSR_BREAK: u8 = 0x10;
const LSR_ERRORS: u8 = 0x1e;
const LSR_THR_EMPTY: u8 = 0x20;
const LSR_EMPTY: u8 = 0x40;

const MSR_CTS: u8 = 0x10;
const MSR_DSR: u8 = 0x20;
const MSR_CARRIER: u8 = 0x80;
const MSR_CHANGES: u8 = 0x0f;

/// A port.
#[derive(Clone, Debug, PartialEq)]
pub struct UartRegs {
    divisor: u16,
    received: u8,
    ier: u8,
    iir: u8,
    lcr: u8,
    mcr: u8,
    lsr: u8,
    msr: u8,
    scratch: u8,
    fcr: u8,
    thr_pending: bool,
    timeout_pending: bool,
    fifo: VecDeque<u8>,
    timeout: Option<i64>,
    sent: Vec<u8>,
}

impl Default for UartRegs {
    /// As after a reset: 9600 baud, the other side ready.
    fn default() -> Self {
        Self {
            divisor: 0x0c,
            received: 0,
            ier: 0,
            iir: IIR_NONE,
            lcr: 0,
            mcr: 0x08,
            lsr: LSR_THR_EMPTY | LSR_EMPTY,
            msr: MSR_CARRIER | MSR_DSR | MSR_CTS,
            scratch: 0,
            fcr: 0,
            thr_pending: false,
            timeout_pending: false,
            fifo: VecDeque::new(),
            timeout: None,
            sent: vec![],
        }
    }
}

impl UartRegs {
    pub(super) fn irq(&self) -> bool {
        self.iir & IIR_NONE == 0
    }

    pub(super) fn take_sent(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.sent)
    }

    pub(super) fn timeout_deadline(&self) -> Option<i64> {
        self.timeout
    }

    fn fifos(&self) -> bool {
        self.fcr & FCR_ENABLE != 0
    }

    /// How many bytes in the FIFO raise the interrupt.
    fn trigger(&self) -> usize {
        [1, 4, 8, 14][usize::from(self.fcr >> 6)]
    }

    /// How many bytes can be received.
    pub(super) fn room(&self) -> usize {
        match self.fifos() {
            _ if self.mcr & MCR_LOOP != 0 => 0,
            true => FIFO - self.fifo.len(),
            false => usize::from(self.lsr & LSR_DATA == 0),
        }
    }

    /// Time of four characters, in nanoseconds.
    fn timeout_ns(&self) -> i64 {
        let bits = 1 + 5 + i64::from(self.lcr & 3) + 1 + i64::from(self.lcr >> 2 & 1) + i64::from(self.lcr >> 3 & 1);
        4 * bits * 1_000_000_000 * i64::from(self.divisor.max(1)) / 115_200
    }

    pub(super) fn receive(&mut self, byte: u8, now: i64) {
        if self.fifos() {
            if self.fifo.len() < FIFO {
                self.fifo.push_back(byte);
            } else {
                self.lsr |= LSR_OVERRUN;
            }
            self.timeout = Some(now.saturating_add(self.timeout_ns()));
        } else {
            if self.lsr & LSR_DATA != 0 {
                self.lsr |= LSR_OVERRUN;
            }
            self.received = byte;
        }
        self.lsr |= LSR_DATA;
        self.update();
    }

    pub(super) fn receive_break(&mut self, now: i64) {
        self.receive(0, now);
        self.lsr |= LSR_BREAK;
        self.update();
    }

    pub(super) fn timeout_expired(&mut self) {
        if self.timeout.take().is_some() && !self.fifo.is_empty() {
            self.timeout_pending = true;
            self.update();
        }
    }

    /// Finds the interrupt with the highest priority (table IV).
    fn update(&mut self) {
        let on = |bit: u8| self.ier & bit != 0;
        let id = if on(IER_LINE) && self.lsr & LSR_ERRORS != 0 {
            IIR_LINE
        } else if on(IER_DATA) && self.timeout_pending {
            IIR_TIMEOUT
        } else if on(IER_DATA) && self.lsr & LSR_DATA != 0 && (!self.fifos() || self.fifo.len() >= self.trigger()) {
            IIR_DATA
        } else if on(IER_THR) && self.thr_pending {
            IIR_THR
        } else if on(IER_MODEM) && self.msr & MSR_CHANGES != 0 {
            0
        } else {
            IIR_NONE
        };
        self.iir = self.iir & 0xf0 | id;
    }

    pub(super) fn read(&mut self, offset: u8, now: i64) -> u8 {
        let divisor = self.lcr & LCR_DIVISOR != 0;
        match offset & 7 {
            0 if divisor => self.divisor as u8,
            0 => self.read_data(now),
            1 if divisor => (self.divisor >> 8) as u8,
            1 => self.ier,
            2 => {
                let value = self.iir;
                if value & 0x0f == IIR_THR {
                    self.thr_pending = false;
                    self.update();
                }
                value
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                let value = self.lsr;
                self.lsr &= !LSR_ERRORS;
                self.update();
                value
            }
            6 if self.mcr & MCR_LOOP != 0 => self.looped_modem_status(),
            6 => {
                let value = self.msr;
                self.msr &= !MSR_CHANGES;
                self.update();
                value
            }
            _ => self.scratch,
        }
    }

    fn read_data(&mut self, now: i64) -> u8 {
        if !self.fifos() {
            self.lsr &= !(LSR_DATA | LSR_BREAK);
            self.update();
            return self.received;
        }
        let byte = self.fifo.pop_front().unwrap_or(0);
        self.timeout_pending = false;
        if self.fifo.is_empty() {
            self.lsr &= !(LSR_DATA | LSR_BREAK);
            self.timeout = None;
        } else {
            self.timeout = Some(now.saturating_add(self.timeout_ns()));
        }
        self.update();
        byte
    }

    /// The outputs show at the inputs: RTS at CTS, DTR at DSR, OUT1 at RI, OUT2 at DCD.
    fn looped_modem_status(&self) -> u8 {
        (self.mcr & 0x0c) << 4 | (self.mcr & 0x02) << 3 | (self.mcr & 0x01) << 5
    }

    pub(super) fn write(&mut self, offset: u8, value: u8, now: i64) {
        let divisor = self.lcr & LCR_DIVISOR != 0;
        match offset & 7 {
            0 if divisor => self.divisor = self.divisor & 0xff00 | u16::from(value),
            0 => self.write_data(value, now),
            1 if divisor => self.divisor = self.divisor & 0x00ff | u16::from(value) << 8,
            1 => {
                let enables_thr = value & !self.ier & IER_THR != 0;
                self.ier = value & 0x0f;
                if enables_thr {
                    self.thr_pending = self.lsr & LSR_THR_EMPTY != 0;
                }
            }
            2 => self.write_fifo_control(value),
            3 => self.lcr = value,
            4 => self.mcr = value & 0x1f,
            7 => self.scratch = value,
            _ => {}
        }
        self.update();
    }

    fn write_data(&mut self, value: u8, now: i64) {
        if self.mcr & MCR_LOOP != 0 {
            self.receive(value, now);
        } else {
            self.sent.push(value);
        }
        // It is sent already.
        self.thr_pending = true;
    }

    fn write_fifo_control(&mut self, value: u8) {
        let toggles = (value ^ self.fcr) & FCR_ENABLE != 0;
        if toggles || value & FCR_CLEAR_RECEIVE != 0 {
            self.fifo.clear();
            self.timeout = None;
            self.timeout_pending = false;
            self.lsr &= !(LSR_DATA | LSR_BREAK);
        }
        if toggles || value & FCR_CLEAR_SEND != 0 {
            self.lsr |= LSR_THR_EMPTY;
            self.thr_pending = true;
        }
        self.fcr = value & 0xc9;
        self.iir = if self.fifos() { self.iir | IIR_FIFOS } else { self.iir & !IIR_FIFOS };
    }

    pub(super) fn save(&self) -> SerialState {
        let thr_expected = self.iir & 0x0f == IIR_THR;
        let fifo = |bytes: &VecDeque<u8>| {
            let mut data = [0; FIFO];
            data.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            Fifo8State { data: Buffer(data), head: 0, num: bytes.len() as u32 }
        };
        SerialState {
            state: SerialPart {
                divider: self.divisor,
                rbr: self.received,
                ier: self.ier,
                iir: self.iir,
                lcr: self.lcr,
                mcr: self.mcr,
                lsr: self.lsr,
                msr: self.msr,
                scr: self.scratch,
                fcr_vmstate: self.fcr,
                thr_ipending: (self.ier & IER_THR != 0 && self.thr_pending != thr_expected)
                    .then(|| ThrPendingState { thr_ipending: self.thr_pending.into() }),
                tsr: None,
                recv_fifo: (!self.fifo.is_empty()).then(|| ReceiveFifoState { recv_fifo: fifo(&self.fifo) }),
                xmit_fifo: None,
                fifo_timeout_timer: self.timeout.map(|at| TimeoutTimerState { fifo_timeout_timer: Timer(Some(at)) }),
                timeout_ipending: self.timeout_pending.then_some(TimeoutPendingState { timeout_ipending: 1 }),
                poll: None,
            },
        }
    }

    pub(super) fn load(&mut self, wire: &SerialState) {
        let s = &wire.state;
        let fifo = s.recv_fifo.as_ref().map(|f| &f.recv_fifo);
        let bytes = fifo.map(|f| (0..f.num).map(|n| f.data[(f.head + n) as usize % FIFO]).collect());
        *self = Self {
            divisor: s.divider,
            received: s.rbr,
            ier: s.ier & 0x0f,
            iir: s.iir,
            lcr: s.lcr,
            mcr: s.mcr & 0x1f,
            lsr: s.lsr,
            msr: s.msr,
            scratch: s.scr,
            fcr: s.fcr_vmstate & 0xc9,
            thr_pending: match &s.thr_ipending {
                Some(t) => t.thr_ipending != 0,
                None => s.iir & 0x0f == IIR_THR,
            },
            timeout_pending: s.timeout_ipending.as_ref().is_some_and(|t| t.timeout_ipending != 0),
            fifo: bytes.unwrap_or_default(),
            timeout: s.fifo_timeout_timer.as_ref().and_then(|t| t.fifo_timeout_timer.0),
            // A transmitter of QEMU's that was waiting for its other side.
            sent: s.tsr.iter().map(|t| t.tsr).chain(s.xmit_fifo.iter().flat_map(|x| x.bytes())).collect(),
        };
        if s.tsr.is_some() {
            self.lsr |= LSR_THR_EMPTY | LSR_EMPTY;
        }
    }
}
