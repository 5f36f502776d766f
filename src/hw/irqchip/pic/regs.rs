//! One 8259A (Intel 231468-003), with the edge/level control register of the PIIX3 (290550-002, section 2.3.8).

use super::PicState;

/// What the second of two reads or writes at the odd address is, during initialization (ICW2 to ICW4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Init {
    Done,
    Icw2,
    Icw3,
    Icw4,
}

/// An 8259A.
#[derive(Clone, Debug, PartialEq)]
pub struct Chip {
    master: bool,
    /// Levels of the inputs, to see edges.
    last_inputs: u8,
    requests: u8,
    mask: u8,
    in_service: u8,
    /// The input with the highest priority.
    top: u8,
    base: u8,
    read_in_service: bool,
    poll: bool,
    special_mask: bool,
    init: Init,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_fully_nested: bool,
    needs_icw4: bool,
    single: bool,
    elcr: u8,
}

impl Chip {
    pub(super) fn new(master: bool) -> Self {
        Self {
            master,
            last_inputs: 0,
            requests: 0,
            mask: 0,
            in_service: 0,
            top: 0,
            base: 0,
            read_in_service: false,
            poll: false,
            special_mask: false,
            init: Init::Done,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_fully_nested: false,
            needs_icw4: false,
            single: false,
            elcr: 0,
        }
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.master);
    }

    pub(super) fn elcr(&self) -> u8 {
        self.elcr
    }

    pub(super) fn set_elcr(&mut self, value: u8) {
        self.elcr = value;
    }

    pub(super) fn set_input(&mut self, input: u8, level: bool) {
        let bit = 1 << input;
        if self.elcr & bit != 0 {
            if level {
                self.requests |= bit;
            } else {
                self.requests &= !bit;
            }
        } else if level && self.last_inputs & bit == 0 {
            self.requests |= bit;
        }
        if level {
            self.last_inputs |= bit;
        } else {
            self.last_inputs &= !bit;
        }
    }

    /// The rank of the most urgent of some inputs: 0 is the highest, 8 is none.
    fn rank(&self, inputs: u8) -> u32 {
        if inputs == 0 { 8 } else { inputs.rotate_right(self.top.into()).trailing_zeros() }
    }

    /// The input that asks for service now.
    pub(super) fn pending(&self) -> Option<u8> {
        let rank = self.rank(self.requests & !self.mask);
        let mut busy = self.in_service;
        if self.special_mask {
            busy &= !self.mask;
        }
        if self.special_fully_nested && self.master {
            busy &= !(1 << super::CASCADE);
        }
        (rank < self.rank(busy)).then(|| (rank as u8 + self.top) & 7)
    }

    pub(super) fn acknowledge(&mut self, input: u8) {
        let bit = 1 << input;
        if !self.auto_eoi {
            self.in_service |= bit;
        } else if self.rotate_on_auto_eoi {
            self.top = (input + 1) & 7;
        }
        // A level triggered request stays until its input falls.
        if self.elcr & bit == 0 {
            self.requests &= !bit;
        }
    }

    pub(super) fn vector(&self, input: u8) -> u8 {
        self.base | input
    }

    pub(super) fn read(&mut self, odd: bool) -> u8 {
        if std::mem::take(&mut self.poll) {
            return match self.pending() {
                Some(input) => {
                    self.acknowledge(input);
                    0x80 | input
                }
                None => 0,
            };
        }
        match (odd, self.read_in_service) {
            (true, _) => self.mask,
            (false, true) => self.in_service,
            (false, false) => self.requests,
        }
    }

    pub(super) fn write(&mut self, odd: bool, value: u8) {
        match (odd, self.init) {
            (false, _) if value & 0x10 != 0 => self.icw1(value),
            (false, _) if value & 0x08 != 0 => self.ocw3(value),
            (false, _) => self.ocw2(value),
            (true, Init::Done) => self.mask = value,
            (true, Init::Icw2) => {
                self.base = value & 0xf8;
                self.init = match (self.single, self.needs_icw4) {
                    (false, _) => Init::Icw3,
                    (true, true) => Init::Icw4,
                    (true, false) => Init::Done,
                };
            }
            (true, Init::Icw3) => self.init = if self.needs_icw4 { Init::Icw4 } else { Init::Done },
            (true, Init::Icw4) => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 0x02 != 0;
                self.init = Init::Done;
            }
        }
    }

    fn icw1(&mut self, value: u8) {
        let kept = Self { requests: self.requests & self.elcr, elcr: self.elcr, ..Self::new(self.master) };
        *self = Self { init: Init::Icw2, needs_icw4: value & 1 != 0, single: value & 2 != 0, ..kept };
    }

    fn ocw2(&mut self, value: u8) {
        let named = value & 7;
        match value >> 5 {
            command @ (0 | 4) => self.rotate_on_auto_eoi = command == 4,
            command @ (1 | 5) => {
                let rank = self.rank(self.in_service);
                if rank < 8 {
                    let input = (rank as u8 + self.top) & 7;
                    self.in_service &= !(1 << input);
                    if command == 5 {
                        self.top = (input + 1) & 7;
                    }
                }
            }
            3 => self.in_service &= !(1 << named),
            6 => self.top = (named + 1) & 7,
            7 => {
                self.in_service &= !(1 << named);
                self.top = (named + 1) & 7;
            }
            _ => {}
        }
    }

    fn ocw3(&mut self, value: u8) {
        if value & 0x04 != 0 {
            self.poll = true;
        }
        if value & 0x02 != 0 {
            self.read_in_service = value & 1 != 0;
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }

    pub(super) fn describe(&self, name: &str) -> String {
        format!(
            "{name}: irr={:02x} imr={:02x} isr={:02x} hprio={} irq_base={:02x} rr_sel={} elcr={:02x} fnm={}\n",
            self.requests,
            self.mask,
            self.in_service,
            self.top,
            self.base,
            u8::from(self.read_in_service),
            self.elcr,
            u8::from(self.special_fully_nested)
        )
    }

    pub(super) fn save(&self) -> PicState {
        PicState {
            last_irr: self.last_inputs,
            irr: self.requests,
            imr: self.mask,
            isr: self.in_service,
            priority_add: self.top,
            irq_base: self.base,
            read_reg_select: self.read_in_service.into(),
            poll: self.poll.into(),
            special_mask: self.special_mask.into(),
            init_state: self.init as u8,
            auto_eoi: self.auto_eoi.into(),
            rotate_on_auto_eoi: self.rotate_on_auto_eoi.into(),
            special_fully_nested_mode: self.special_fully_nested.into(),
            init4: self.needs_icw4.into(),
            single_mode: self.single.into(),
            elcr: self.elcr,
        }
    }

    pub(super) fn load(&mut self, wire: &PicState) {
        *self = Self {
            master: self.master,
            last_inputs: wire.last_irr,
            requests: wire.irr,
            mask: wire.imr,
            in_service: wire.isr,
            top: wire.priority_add & 7,
            base: wire.irq_base & 0xf8,
            read_in_service: wire.read_reg_select != 0,
            poll: wire.poll != 0,
            special_mask: wire.special_mask != 0,
            init: [Init::Done, Init::Icw2, Init::Icw3, Init::Icw4][usize::from(wire.init_state & 3)],
            auto_eoi: wire.auto_eoi != 0,
            rotate_on_auto_eoi: wire.rotate_on_auto_eoi != 0,
            special_fully_nested: wire.special_fully_nested_mode != 0,
            needs_icw4: wire.init4 != 0,
            single: wire.single_mode != 0,
            elcr: wire.elcr,
        };
    }
}
