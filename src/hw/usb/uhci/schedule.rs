//! One frame: the walk through queue heads and transfer descriptors in memory (UHCI design guide 1.1, chapter 3).

use std::sync::Arc;

use super::regs::{ON_COMPLETE, ON_SHORT};
use crate::{
    pci::DmaSpace,
    usb::{Refusal, Token, UsbDevice},
};

/// Descriptors that are looked at in one frame; a guest's list may go in circles.
const MOST_STEPS: u32 = 256;
/// Queue heads that are remembered, to notice circles.
const MOST_QUEUES: usize = 128;

mod link {
    pub const END: u32 = 1;
    pub const QUEUE: u32 = 2;
    pub const DEPTH_FIRST: u32 = 4;
    pub const ADDRESS: u32 = !0xf;
}

mod td {
    pub const SHORT_PACKET: u32 = 1 << 29;
    pub const ERRORS_LEFT: u32 = 3 << 27;
    pub const ISOCHRONOUS: u32 = 1 << 25;
    pub const INTERRUPT: u32 = 1 << 24;
    pub const ACTIVE: u32 = 1 << 23;
    pub const STALLED: u32 = 1 << 22;
    pub const NAK: u32 = 1 << 19;
    pub const TIMEOUT: u32 = 1 << 18;
    pub const LENGTH: u32 = 0x7ff;
}

/// What a frame needs to know.
pub struct Frame<'a> {
    pub dma: &'a DmaSpace,
    /// Address of the frame's entry in the list.
    pub entry: u32,
    /// Devices at enabled ports.
    pub devices: Vec<Arc<dyn UsbDevice>>,
    /// Bytes that fit in it.
    pub bandwidth: u32,
}

/// How a frame went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Interrupts to raise at its end.
    pub interrupts: u8,
    /// A transfer failed.
    pub error: bool,
    /// A descriptor made no sense: the controller halts.
    pub halt: bool,
}

struct Descriptor {
    link: u32,
    control: u32,
    token: u32,
    buffer: u32,
}

enum Step {
    /// The transfer is done.
    Done,
    /// Nothing more in this queue.
    NextQueue,
    /// Nothing more in this frame.
    Stop,
}

impl Frame<'_> {
    /// Goes through the frame.
    pub fn run(&self) -> Outcome {
        let mut outcome = Outcome::default();
        let mut at = self.dma.read_u32(self.entry.into());
        // The queue that is worked on: its address and where it goes on.
        let mut queue: Option<(u32, u32)> = None;
        let (mut seen, mut progress, mut bytes) = (Vec::new(), false, 0);
        for _ in 0..MOST_STEPS {
            if at & link::END != 0 || bytes >= self.bandwidth {
                break;
            }
            let address = u64::from(at & link::ADDRESS);
            if at & link::QUEUE != 0 {
                // A circle is a way to share out the frame; it ends when a turn has moved nothing.
                if seen.contains(&at) || seen.len() >= MOST_QUEUES {
                    if !progress {
                        break;
                    }
                    progress = false;
                    seen.clear();
                }
                seen.push(at);
                let (next, element) = (self.dma.read_u32(address), self.dma.read_u32(address + 4));
                (queue, at) = match element & link::END {
                    0 => (Some((at & link::ADDRESS, next)), element),
                    _ => (None, next),
                };
                continue;
            }
            let descriptor = self.read(address);
            let (control, next) = self.transfer(&descriptor, &mut outcome);
            if control != descriptor.control {
                self.dma.write_u32(address + 4, control);
            }
            match next {
                Step::Stop => break,
                Step::NextQueue => at = queue.take().map_or(descriptor.link, |(_, next)| next),
                Step::Done => {
                    at = descriptor.link;
                    progress = true;
                    bytes += (control & td::LENGTH) + 1;
                    if let Some((queue_at, next)) = queue {
                        self.dma.write_u32(u64::from(queue_at) + 4, at);
                        if at & link::DEPTH_FIRST == 0 {
                            queue = None;
                            at = next;
                        }
                    }
                }
            }
        }
        outcome
    }

    fn read(&self, address: u64) -> Descriptor {
        let mut bytes = [0; 16];
        let _ = self.dma.read(address, &mut bytes);
        let [link, control, token, buffer] = std::array::from_fn(|i| {
            u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
        });
        Descriptor { link, control, token, buffer }
    }

    /// Does a transfer. Gives its new control word.
    fn transfer(&self, d: &Descriptor, outcome: &mut Outcome) -> (u32, Step) {
        const IN: u8 = 0x69;
        const OUT: u8 = 0xe1;
        const SETUP: u8 = 0x2d;
        let mut control = d.control;
        if control & td::ACTIVE == 0 {
            if control & td::INTERRUPT != 0 {
                outcome.interrupts |= ON_COMPLETE;
            }
            return (control, Step::NextQueue);
        }
        let pid = d.token as u8;
        let most = ((d.token >> 21) + 1 & td::LENGTH) as usize;
        let (address, endpoint) = ((d.token >> 8 & 0x7f) as u8, (d.token >> 15 & 0x0f) as u8);
        let device = self.devices.iter().find(|dev| dev.address() == address);
        let result = match (pid, device) {
            (IN | OUT | SETUP, None) => None,
            (IN, Some(device)) => Some(device.get(endpoint, most)),
            (OUT | SETUP, Some(device)) => {
                let mut data = vec![0; most];
                let _ = self.dma.read(d.buffer.into(), &mut data);
                let token = if pid == SETUP { Token::Setup } else { Token::Out };
                Some(device.put(token, endpoint, &data).map(|()| data))
            }
            _ => {
                outcome.halt = true;
                return (control, Step::Stop);
            }
        };
        if control & td::ISOCHRONOUS != 0 {
            control &= !td::ACTIVE;
        }
        let data = match result {
            Some(Ok(data)) => data,
            Some(Err(Refusal::Nak)) => return (control | td::NAK, Step::NextQueue),
            failed => {
                control &= !td::ACTIVE;
                control = match failed {
                    Some(_) => control | td::STALLED,
                    // Nobody answers: the tries are used up.
                    None => (control | td::TIMEOUT) & !td::ERRORS_LEFT,
                };
                outcome.error = true;
                if control & td::INTERRUPT != 0 {
                    outcome.interrupts |= ON_COMPLETE;
                }
                return (control, Step::NextQueue);
            }
        };
        // Zero bytes are all ones.
        control = control & !(td::LENGTH | td::ACTIVE | td::NAK) | (data.len() as u32).wrapping_sub(1) & td::LENGTH;
        if control & td::INTERRUPT != 0 {
            outcome.interrupts |= ON_COMPLETE;
        }
        if pid == IN {
            let _ = self.dma.write(d.buffer.into(), &data);
            if control & td::SHORT_PACKET != 0 && data.len() < most {
                outcome.interrupts |= ON_SHORT;
                return (control, Step::NextQueue);
            }
        }
        (control, Step::Done)
    }
}
