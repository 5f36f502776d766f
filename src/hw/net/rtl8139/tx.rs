//! Transmitting: the four descriptors of the older chips, and the ring of C+ mode.

use super::{
    Rtl8139,
    descriptor::{Descriptor, END_OF_RING, FIRST, LAST, OWN, tx},
    offload::{self, Offload},
    regs::{cplus, interrupt},
};

/// The most that a frame is put together of.
const LARGEST_ASSEMBLY: usize = 65536;
/// Descriptors of the C+ ring, and the most that are looked at for one poll.
const RING: u32 = 64;

/// What is put together of several C+ descriptors. It does not migrate: drivers poll once all of a frame is there.
#[derive(Default)]
pub struct Assembly {
    frame: Vec<u8>,
}

impl Rtl8139 {
    /// Sends what is in the four descriptors. One thread at a time does; what others ask for meanwhile it does too.
    pub(super) fn transmit(&self) {
        if !self.transmitting.begin() {
            return;
        }
        loop {
            while let Some((address, len)) = { self.regs.lock().next_frame() } {
                let mut frame = vec![0; len];
                let _ = self.dma.read(address.into(), &mut frame);
                // The interrupt follows the frame, so that a frame that loops back is there when the guest looks.
                if self.loops_back(&frame) {
                    self.receive_frame(&frame, false);
                } else if let Some(cable) = self.cable().filter(|_| !frame.is_empty()) {
                    cable.send(frame);
                }
                let mut regs = self.regs.lock();
                regs.transmitted();
                self.update_irq(&regs);
            }
            if self.transmitting.end() {
                break;
            }
        }
    }

    /// Sends what is in the C+ ring, all at once: each frame by itself would be a system call more behind it.
    pub(super) fn transmit_ring(&self) {
        let mut assembly = self.assembly.lock();
        let (mut count, mut ready) = (0, Vec::new());
        while count < RING && self.transmit_descriptor(&mut assembly, &mut ready) {
            count += 1;
        }
        if let Some(cable) = self.cable().filter(|_| !ready.is_empty()) {
            cable.send_all(ready);
        }
        drop(assembly);
        if count > 0 {
            let mut regs = self.regs.lock();
            regs.status |= interrupt::TX_OK;
            self.update_irq(&regs);
        }
    }

    /// Takes one descriptor; frames that are complete are put with the others for the wire. False if there is none.
    fn transmit_descriptor(&self, assembly: &mut Assembly, ready: &mut Vec<Vec<u8>>) -> bool {
        let (ring, n) = {
            let regs = self.regs.lock();
            if !regs.transmitter_on() || regs.cplus_command & cplus::TX == 0 {
                return false;
            }
            ([regs.tx_address[0], regs.tx_address[1]], regs.tx_descriptor)
        };
        let descriptor = Descriptor::read(&self.dma, ring, n);
        let control = descriptor.control;
        if control & OWN == 0 {
            return false;
        }
        let frame = &mut assembly.frame;
        if control & FIRST != 0 {
            frame.clear();
        }
        let start = frame.len();
        let len = ((control & 0xffff) as usize).min(LARGEST_ASSEMBLY - start);
        frame.resize(start + len, 0);
        let _ = self.dma.read(descriptor.buffer, &mut frame[start..]);
        self.dma.write_u32(descriptor.at, control & !(OWN | tx::ERRORS));
        {
            let mut regs = self.regs.lock();
            if regs.tx_descriptor == n {
                regs.tx_descriptor = if control & END_OF_RING != 0 { 0 } else { (n + 1) % RING };
            }
            if control & LAST != 0 {
                regs.tally.tx_ok += 1;
            }
        }
        if control & LAST != 0 {
            let offload = Offload {
                ip_checksum: control & tx::IP_CHECKSUM != 0,
                tcp_checksum: control & tx::TCP_CHECKSUM != 0,
                udp_checksum: control & tx::UDP_CHECKSUM != 0,
                segment: (control & tx::LARGE_SEND != 0).then(|| tx::segment(control)),
                // The tag is in network order in a little-endian word.
                tag: (descriptor.tag & tx::ADD_TAG != 0).then(|| (descriptor.tag as u16).to_le_bytes()),
            };
            offload::send(std::mem::take(frame), &offload, |frame| {
                if self.loops_back(&frame) {
                    self.receive_frame(&frame, true);
                } else if !frame.is_empty() {
                    ready.push(frame);
                }
            });
        }
        true
    }

    /// Whether a frame comes back in instead of going out.
    fn loops_back(&self, frame: &[u8]) -> bool {
        !frame.is_empty() && self.regs.lock().loops_back()
    }
}
