//! The 93C46 serial EEPROM: 64 words of 16 bits behind three wires (Microchip 93C46B data sheet).

/// What the next clock does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub enum Mode {
    /// Waits for the start bit.
    #[default]
    Idle = 0,
    /// Takes in the operation and the address.
    Command = 1,
    /// Gives out a word.
    Read = 2,
}

impl Mode {
    /// The mode of a number on the wire.
    pub fn from_number(n: i32) -> Option<Self> {
        [Self::Idle, Self::Command, Self::Read].into_iter().find(|m| *m as i32 == n)
    }
}

/// The chip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eeprom {
    pub contents: [u16; 64],
    pub mode: Mode,
    /// Bits shifted in this mode.
    pub tick: u32,
    pub address: u8,
    pub input: u16,
    pub output: u16,
    pub select: bool,
    pub clock: bool,
    pub data_in: bool,
    pub data_out: bool,
}

impl Eeprom {
    /// What Realtek's drivers expect of a board with this address: signature, PCI ids, MAC.
    pub fn new(vendor: u16, device: u16, mac: &[u8; 6]) -> Self {
        let mut contents = [0; 64];
        contents[0] = 0x8129;
        contents[1] = vendor;
        contents[2] = device;
        for i in 0..3 {
            contents[7 + i] = u16::from_le_bytes([mac[2 * i], mac[2 * i + 1]]);
        }
        Self {
            contents,
            mode: Mode::Idle,
            tick: 0,
            address: 0,
            input: 0,
            output: 0,
            select: false,
            clock: false,
            data_in: false,
            data_out: false,
        }
    }

    /// Sets the wires: chip select, clock, data in.
    pub fn set_wires(&mut self, select: bool, clock: bool, data_in: bool) {
        let (old_select, old_clock) = (self.select, self.clock);
        (self.select, self.clock, self.data_in) = (select, clock, data_in);
        if !old_select && select {
            self.tick = 0;
            self.input = 0;
            self.output = 0;
            self.mode = Mode::Idle;
        }
        if select && !old_clock && clock {
            self.rising_edge();
        }
    }

    fn rising_edge(&mut self) {
        self.tick = self.tick.wrapping_add(1);
        match self.mode {
            Mode::Idle => {
                if self.data_in {
                    self.mode = Mode::Command;
                    self.tick = 0;
                }
            }
            Mode::Command => {
                self.input = self.input << 1 | u16::from(self.data_in);
                if self.tick >= 8 {
                    self.command();
                }
            }
            Mode::Read => {
                self.data_out = self.output & 0x8000 != 0;
                self.output <<= 1;
                if self.tick >= 16 {
                    // Reading goes on with the next word.
                    self.address = (self.address + 1) & 63;
                    self.output = self.contents[usize::from(self.address)];
                    self.tick = 0;
                }
            }
        }
    }

    /// Two bits of operation and six of address are in. The chip is write-protected: only reading is done.
    fn command(&mut self) {
        const READ: u16 = 2;
        self.address = (self.input & 0x3f) as u8;
        self.tick = 0;
        if self.input >> 6 & 3 == READ {
            self.output = self.contents[usize::from(self.address)];
            self.data_out = false;
            self.mode = Mode::Read;
        } else {
            self.input = 0;
            self.mode = Mode::Idle;
        }
    }
}
