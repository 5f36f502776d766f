//! Descriptors of C+ mode (RTL8139C+ data sheet, section 6.3): four words of 32 bits, little-endian.

use crate::pci::DmaSpace;

/// The chip owns it.
pub const OWN: u32 = 1 << 31;
/// The last one of the ring.
pub const END_OF_RING: u32 = 1 << 30;
/// It holds a frame's first bytes.
pub const FIRST: u32 = 1 << 29;
/// It holds a frame's last bytes.
pub const LAST: u32 = 1 << 28;

/// Bits of a transmit descriptor.
pub mod tx {
    /// Cut the frame into segments.
    pub const LARGE_SEND: u32 = 1 << 27;
    /// Compute the IP header's checksum.
    pub const IP_CHECKSUM: u32 = 1 << 18;
    /// Compute UDP's checksum.
    pub const UDP_CHECKSUM: u32 = 1 << 17;
    /// Compute TCP's checksum.
    pub const TCP_CHECKSUM: u32 = 1 << 16;
    /// What the chip reports: underrun, error summary, collisions, link failure.
    pub const ERRORS: u32 = 1 << 25 | 1 << 23 | 1 << 22 | 1 << 21 | 1 << 20;
    /// Second word: add a VLAN tag.
    pub const ADD_TAG: u32 = 1 << 17;

    /// The segment size of a large send.
    pub fn segment(word: u32) -> u16 {
        (word >> 16 & 0x7ff) as u16
    }
}

/// Bits of a receive descriptor.
pub mod rx {
    /// Multicast, for this station, broadcast.
    pub const MULTICAST: u32 = 1 << 26;
    pub const MINE: u32 = 1 << 25;
    pub const BROADCAST: u32 = 1 << 24;
    /// Size of the buffer, and of the frame.
    pub const SIZE: u32 = 0x1fff;
    /// Second word: a VLAN tag was taken out.
    pub const HAS_TAG: u32 = 1 << 16;
}

/// A descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    pub at: u64,
    pub control: u32,
    pub tag: u32,
    pub buffer: u64,
}

impl Descriptor {
    /// Reads number `n` of the ring at `ring`.
    pub fn read(dma: &DmaSpace, ring: [u32; 2], n: u32) -> Self {
        let at = (u64::from(ring[1]) << 32 | u64::from(ring[0])).wrapping_add(u64::from(n) * 16);
        let mut bytes = [0; 16];
        let _ = dma.read(at, &mut bytes);
        let [control, tag, low, high] = std::array::from_fn(|i| {
            u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
        });
        Self { at, control, tag, buffer: u64::from(high) << 32 | u64::from(low) }
    }
}
