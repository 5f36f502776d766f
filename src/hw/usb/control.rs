//! Endpoint 0 of a device: control transfers in their three stages, and the requests that all devices answer (USB 2.0, sections 8.5.3
//! and 9.4).

use lockstep_vmstate::{LoadError, VmState};

use super::{Refusal, Token};

/// The most that a control transfer carries.
const LARGEST: usize = 4096;

/// A control request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Request type and request, as `0x8006` for GET_DESCRIPTOR.
    pub code: u16,
    pub value: u16,
    pub index: u16,
    pub length: usize,
}

impl Request {
    fn parse(bytes: &[u8; 8]) -> Self {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self { code: u16::from_be_bytes([bytes[0], bytes[1]]), value: word(2), index: word(4), length: word(6).into() }
    }

    fn is_in(&self) -> bool {
        self.code & 0x8000 != 0
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Idle = 0,
    Data = 2,
    Acknowledge = 3,
}

/// What a device of some kind adds.
pub trait Function {
    /// A descriptor by its type and index; a configuration comes with all its parts.
    fn descriptor(&self, kind: u8, index: u8) -> Option<Vec<u8>>;
    /// A request that is not for all devices: what it answers, or `None` for a stall.
    fn request(&mut self, request: &Request, data: &[u8]) -> Option<Vec<u8>>;
}

/// `bmAttributes`: can wake the host.
pub const ATTRIBUTES: u8 = 0xa0;
const DEFAULT: i32 = 3;
const ATTACHED: i32 = 1;

/// The state of endpoint 0.
#[derive(Clone, Debug)]
pub struct ControlPipe {
    pub address: u8,
    /// QEMU's number: 0 not attached, 1 attached, 3 default.
    state: i32,
    pub configuration: u8,
    pub remote_wakeup: bool,
    stage: Stage,
    length: usize,
    index: usize,
    setup: [u8; 8],
    data: Vec<u8>,
}

impl Default for ControlPipe {
    fn default() -> Self {
        Self {
            address: 0,
            state: ATTACHED,
            configuration: 0,
            remote_wakeup: false,
            stage: Stage::Idle,
            length: 0,
            index: 0,
            setup: [0; 8],
            data: vec![],
        }
    }
}

impl ControlPipe {
    /// The port drives a reset.
    pub fn reset(&mut self) {
        *self = Self { state: DEFAULT, ..Self::default() };
    }

    /// A packet to endpoint 0.
    pub fn put(&mut self, token: Token, bytes: &[u8], function: &mut impl Function) -> Result<(), Refusal> {
        match token {
            Token::Setup => self.start(bytes, function),
            Token::Out => self.take(bytes),
        }
    }

    fn start(&mut self, bytes: &[u8], function: &mut impl Function) -> Result<(), Refusal> {
        let Ok(setup) = <[u8; 8]>::try_from(bytes) else { return Err(Refusal::Stall) };
        self.setup = setup;
        self.index = 0;
        self.stage = Stage::Idle;
        let request = Request::parse(&setup);
        self.length = request.length;
        if self.length > LARGEST {
            return Err(Refusal::Stall);
        }
        if request.is_in() {
            self.data = self.execute(&request, function)?;
            self.length = self.length.min(self.data.len());
            self.stage = Stage::Data;
        } else {
            self.data = vec![0; self.length];
            self.stage = if self.length == 0 { Stage::Acknowledge } else { Stage::Data };
        }
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let is_in = Request::parse(&self.setup).is_in();
        match self.stage {
            Stage::Acknowledge => {
                if is_in {
                    self.stage = Stage::Idle;
                }
                Ok(())
            }
            Stage::Data if !is_in => {
                let n = bytes.len().min(self.length - self.index);
                self.data[self.index..self.index + n].copy_from_slice(&bytes[..n]);
                self.index += n;
                if self.index >= self.length {
                    self.stage = Stage::Acknowledge;
                }
                Ok(())
            }
            _ => {
                self.stage = Stage::Idle;
                Err(Refusal::Stall)
            }
        }
    }

    /// The host asks endpoint 0 for data.
    pub fn get(&mut self, most: usize, function: &mut impl Function) -> Result<Vec<u8>, Refusal> {
        let request = Request::parse(&self.setup);
        match self.stage {
            Stage::Acknowledge => {
                if !request.is_in() {
                    let data = std::mem::take(&mut self.data);
                    self.stage = Stage::Idle;
                    self.request(&request, &data, function).ok_or(Refusal::Stall)?;
                }
                Ok(vec![])
            }
            Stage::Data if request.is_in() => {
                let n = most.min(self.length - self.index);
                let part = self.data[self.index..self.index + n].to_vec();
                self.index += n;
                if self.index >= self.length {
                    self.stage = Stage::Acknowledge;
                }
                Ok(part)
            }
            _ => {
                self.stage = Stage::Idle;
                Err(Refusal::Stall)
            }
        }
    }

    fn execute(&mut self, request: &Request, function: &mut impl Function) -> Result<Vec<u8>, Refusal> {
        let mut data = self.request(request, &[], function).ok_or(Refusal::Stall)?;
        data.truncate(request.length);
        Ok(data)
    }

    fn request(&mut self, request: &Request, data: &[u8], function: &mut impl Function) -> Option<Vec<u8>> {
        const REMOTE_WAKEUP: u16 = 1;
        match request.code {
            // SET_ADDRESS, GET_DESCRIPTOR, GET_CONFIGURATION, SET_CONFIGURATION
            0x0005 => {
                self.address = request.value as u8 & 0x7f;
                Some(vec![])
            }
            0x8006 => {
                let [index, kind] = request.value.to_le_bytes();
                function.descriptor(kind, index)
            }
            0x8008 => Some(vec![self.configuration]),
            0x0009 => {
                (request.value <= 1).then(|| self.configuration = request.value as u8)?;
                Some(vec![])
            }
            // GET_STATUS, CLEAR_FEATURE, SET_FEATURE
            0x8000 => Some(vec![u8::from(self.remote_wakeup) << 1, 0]),
            0x0001 | 0x0003 if request.value == REMOTE_WAKEUP => {
                self.remote_wakeup = request.code == 0x0003;
                Some(vec![])
            }
            // GET_INTERFACE, SET_INTERFACE: only one, without alternatives
            0x810a if request.index == 0 => Some(vec![0]),
            0x010b if request.index == 0 && request.value == 0 => Some(vec![]),
            _ => function.request(request, data),
        }
    }

    /// On the wire.
    pub fn save(&self) -> UsbDeviceState {
        UsbDeviceState {
            addr: self.address,
            state: self.state,
            remote_wakeup: self.remote_wakeup.into(),
            setup_state: self.stage as i32,
            setup_len: self.length as i32,
            setup_index: self.index as i32,
            setup_buf: self.setup,
        }
    }

    /// Takes validated state over. An answer that was under way is made again: it is what the device is, and not on the wire.
    pub fn load(&mut self, wire: &UsbDeviceState, function: &mut impl Function) {
        let request = Request::parse(&wire.setup_buf);
        self.address = wire.addr;
        self.state = wire.state;
        self.remote_wakeup = wire.remote_wakeup != 0;
        // A host that talks to an address has configured it, or is about to.
        self.configuration = u8::from(wire.addr != 0);
        self.setup = wire.setup_buf;
        self.length = wire.setup_len as usize;
        self.index = wire.setup_index as usize;
        self.stage = match wire.setup_state {
            2 => Stage::Data,
            3 => Stage::Acknowledge,
            _ => Stage::Idle,
        };
        self.data = match self.stage {
            Stage::Data if request.is_in() => self.execute(&request, function).unwrap_or_default(),
            _ => vec![],
        };
        self.data.resize(self.length, 0);
    }
}

/// `USBDevice`, the first field of every USB device's state.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "USBDevice", version = 1)]
#[allow(missing_docs)]
pub struct UsbDeviceState {
    pub addr: u8,
    pub state: i32,
    pub remote_wakeup: i32,
    pub setup_state: i32,
    pub setup_len: i32,
    pub setup_index: i32,
    pub setup_buf: [u8; 8],
}

impl UsbDeviceState {
    /// Refuses what no device can be in.
    pub fn check(&self) -> Result<(), LoadError> {
        let lengths = 0..=LARGEST as i32;
        if !lengths.contains(&self.setup_len) || !(0..=self.setup_len).contains(&self.setup_index) {
            return Err(LoadError::invalid("USBDevice: a control transfer leaves its buffer"));
        }
        if self.addr > 127 || !(0..=4).contains(&self.setup_state) {
            return Err(LoadError::invalid("USBDevice: no such address or state"));
        }
        Ok(())
    }
}
