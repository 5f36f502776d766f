//! Receiving: which frames are taken, and where they go.

use parking_lot::MutexGuard;

use super::{
    Rtl8139,
    descriptor::{Descriptor, END_OF_RING, FIRST, LAST, OWN, rx},
    regs::{Regs, cplus, interrupt, rx_config},
};

/// The shortest frame on the wire, without its checksum.
const SHORTEST: usize = 60;
const VLAN_HEADER: usize = 4;
const VLAN_ETHERTYPE: [u8; 2] = [0x81, 0x00];

/// Why a frame was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    Promiscuous,
    Broadcast,
    Multicast,
    Mine,
}

impl Match {
    /// Bits of the header before a frame in the ring.
    fn ring_bits(self) -> u32 {
        match self {
            Self::Promiscuous => 0,
            Self::Broadcast => 0x2000,
            Self::Multicast => 0x8000,
            Self::Mine => 0x4000,
        }
    }

    fn descriptor_bits(self) -> u32 {
        match self {
            Self::Promiscuous => 0,
            Self::Broadcast => rx::BROADCAST,
            Self::Multicast => rx::MULTICAST,
            Self::Mine => rx::MINE,
        }
    }
}

/// The bit of the multicast filter that an address falls on: the top six bits of its Ethernet checksum.
fn multicast_bit(address: &[u8]) -> usize {
    let mut crc = u32::MAX;
    for byte in address {
        for bit in 0..8 {
            let carry = crc >> 31 ^ u32::from(byte >> bit & 1);
            crc <<= 1;
            if carry != 0 {
                crc ^= 0x04c1_1db7;
            }
        }
    }
    (crc >> 26) as usize
}

/// Whether the filter takes a frame; counts it either way.
pub fn filter(regs: &mut Regs, frame: &[u8]) -> Option<Match> {
    let accepts = |bit: u32| regs.rx_config & bit != 0;
    let matched = if accepts(rx_config::ALL) {
        return Some(Match::Promiscuous);
    } else if frame[..6] == [0xff; 6] {
        accepts(rx_config::BROADCAST).then_some(Match::Broadcast)
    } else if frame[0] & 1 != 0 {
        let bit = multicast_bit(&frame[..6]);
        let listed = regs.mult[bit >> 3] >> (bit & 7) & 1 != 0;
        (listed && accepts(rx_config::MULTICAST)).then_some(Match::Multicast)
    } else {
        (frame[..6] == regs.phys && accepts(rx_config::MINE)).then_some(Match::Mine)
    };
    let tally = &mut regs.tally;
    match matched {
        Some(Match::Broadcast) => tally.rx_broadcast += 1,
        Some(Match::Multicast) => tally.rx_multicast = tally.rx_multicast.wrapping_add(1),
        Some(_) => tally.rx_mine += 1,
        None => tally.rx_error = tally.rx_error.wrapping_add(1),
    }
    matched
}

/// Where the next frame goes in the receive ring.
struct RingSlot {
    base: u32,
    start: u32,
    size: u32,
    wraps: bool,
    epoch: u64,
}

fn crc32(frame: &[u8]) -> [u8; 4] {
    crc32fast::hash(frame).to_le_bytes()
}

impl Rtl8139 {
    /// Takes a frame from the wire, or its own when it loops back. False when it has to wait until the guest made room.
    pub(super) fn receive_frame(&self, frame: &[u8], interrupts: bool) -> bool {
        if frame.len() < 12 {
            // Not even addresses.
            return true;
        }
        // Frames come one at a time; memory is written without the registers' lock.
        let mut ring_buffer = self.rx_buffer.lock();
        let mut regs = self.regs.lock();
        if !regs.clock_enabled || !regs.receiver_on() {
            return true;
        }
        let Some(matched) = filter(&mut regs, frame) else { return true };
        let size = frame.len();
        if regs.cplus_command & cplus::RX != 0 {
            if regs.receives_into_descriptors() {
                self.receive_into_descriptor(regs, matched, frame);
            }
            return true;
        }
        let space = regs.ring_space();
        let needed = size as u32 + 8;
        let too_large = needed > regs.rx_size;
        if too_large || space != 0 && needed.next_multiple_of(4) >= space {
            regs.status |= interrupt::RX_OVERFLOW;
            regs.rx_missed = regs.rx_missed.wrapping_add(1);
            // A frame that is larger than the whole ring is lost, others wait.
            self.stalled.fetch_or(!too_large, std::sync::atomic::Ordering::SeqCst);
            self.update_irq(&regs);
            return too_large;
        }
        let wraps = regs.rx_size >= 65536 || regs.rx_config & rx_config::NO_WRAP == 0;
        let slot =
            RingSlot { base: regs.rx_buffer, start: regs.rx_write, size: regs.rx_size, wraps, epoch: regs.rx_epoch };
        drop(regs);

        const STATUS_OK: u32 = 1;
        let header = matched.ring_bits() | STATUS_OK | (size as u32 + 4) << 16;
        ring_buffer.clear();
        ring_buffer.extend(header.to_le_bytes());
        ring_buffer.extend(frame);
        ring_buffer.extend(crc32(frame));
        self.write_ring(&slot, &ring_buffer);

        let mut regs = self.regs.lock();
        if regs.rx_epoch == slot.epoch {
            regs.rx_write = (slot.start + needed).next_multiple_of(4) & (slot.size - 1);
            regs.status |= interrupt::RX_OK;
            if interrupts {
                self.update_irq(&regs);
            }
        }
        true
    }

    fn write_ring(&self, slot: &RingSlot, bytes: &[u8]) {
        let room = (slot.size - slot.start) as usize;
        let at = |offset: u32| u64::from(slot.base) + u64::from(offset);
        let (first, rest) = bytes.split_at(if slot.wraps { room.min(bytes.len()) } else { bytes.len() });
        let _ = self.dma.write(at(slot.start), first);
        if !rest.is_empty() {
            let _ = self.dma.write(at(0), rest);
        }
    }

    fn receive_into_descriptor(&self, regs: MutexGuard<'_, Regs>, matched: Match, frame: &[u8]) {
        let (ring, n, epoch) = (regs.rx_ring, regs.rx_descriptor, regs.rx_epoch);
        let takes_tag =
            regs.cplus_command & cplus::RX_VLAN != 0 && frame.len() >= 16 && frame[12..14] == VLAN_ETHERTYPE;
        drop(regs);

        let mut descriptor = Descriptor::read(&self.dma, ring, n);
        // What is shorter than the shortest frame once its tag is out is padded.
        let size = if takes_tag { (frame.len() - VLAN_HEADER).max(SHORTEST) } else { frame.len() };
        let room = (descriptor.control & rx::SIZE) as usize;
        if descriptor.control & OWN == 0 || size + 4 > room {
            let mut regs = self.regs.lock();
            regs.status |= interrupt::RX_OVERFLOW;
            regs.rx_missed = regs.rx_missed.wrapping_add(1);
            regs.tally.rx_error = regs.tally.rx_error.wrapping_add(1);
            regs.tally.missed = regs.tally.missed.wrapping_add(1);
            self.update_irq(&regs);
            return;
        }
        let to = descriptor.buffer;
        if takes_tag {
            descriptor.tag &= !0xffff;
            descriptor.tag |= rx::HAS_TAG | u32::from(u16::from_le_bytes([frame[14], frame[15]]));
            let _ = self.dma.write(to, &frame[..12]);
            let _ = self.dma.write(to.wrapping_add(12), &frame[12 + VLAN_HEADER..]);
            let end = frame.len() - VLAN_HEADER;
            let _ = self.dma.write(to.wrapping_add(end as u64), &[0; SHORTEST][..size - end]);
        } else {
            descriptor.tag &= !rx::HAS_TAG;
            let _ = self.dma.write(to, frame);
        }
        let _ = self.dma.write(to.wrapping_add(size as u64), &crc32(frame));
        let control = descriptor.control & !(OWN | rx::SIZE)
            | FIRST
            | LAST
            | matched.descriptor_bits()
            | (size as u32 + 4) & rx::SIZE;
        // The guest looks at the first word: the second is there before it.
        self.dma.write_u32(descriptor.at.wrapping_add(4), descriptor.tag);
        self.dma.write_u32(descriptor.at, control);

        let mut regs = self.regs.lock();
        regs.tally.rx_ok += 1;
        if regs.rx_epoch == epoch && regs.rx_descriptor == n {
            regs.rx_descriptor = if control & END_OF_RING != 0 { 0 } else { n.wrapping_add(1) };
        }
        regs.status |= interrupt::RX_OK;
        self.update_irq(&regs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multicast_addresses_fall_on_the_bits_that_drivers_compute() {
        // 33:33:00:00:00:01 (all IPv6 nodes) and 01:00:5e:00:00:01 (all IPv4 hosts)
        assert_eq!(multicast_bit(&[0x33, 0x33, 0, 0, 0, 1]), 62);
        assert_eq!(multicast_bit(&[0x01, 0x00, 0x5e, 0, 0, 1]), 31);
    }
}
