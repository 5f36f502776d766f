//! Frames on a byte stream, as mirror, redirector, colo-compare and the socket backends send them: a big-endian length,
//! with `vnet_hdr_support` the length of the virtio-net header, then header and frame.

use crate::packet::Frame;

/// The longest frame that is believed: 64 KiB and room for headers.
pub const MAX_FRAME: usize = 4096 + 65536;

/// A stream that announced a frame longer than [`MAX_FRAME`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oversized;

/// The bytes before a frame. Returns them and how many count.
pub fn header(frame: &Frame, vnet_support: bool) -> ([u8; 8], usize) {
    let mut head = [0; 8];
    head[..4].copy_from_slice(&(frame.data.len() as u32).to_be_bytes());
    if vnet_support {
        head[4..].copy_from_slice(&(frame.vnet_len as u32).to_be_bytes());
    }
    (head, if vnet_support { 8 } else { 4 })
}

/// Cuts a byte stream into frames, however the bytes come.
#[derive(Debug)]
pub struct FrameReader {
    vnet_support: bool,
    head: [u8; 8],
    head_have: usize,
    body: Vec<u8>,
    body_want: usize,
    discard: bool,
}

impl FrameReader {
    /// For a sender with or without `vnet_hdr_support`.
    pub fn new(vnet_support: bool) -> Self {
        Self { vnet_support, head: [0; 8], head_have: 0, body: Vec::new(), body_want: 0, discard: false }
    }

    /// Takes bytes and gives every frame that they complete to `take`.
    ///
    /// # Errors
    /// [`Oversized`]; the stream makes no sense from there on.
    pub fn push(&mut self, mut bytes: &[u8], mut take: impl FnMut(Frame)) -> Result<(), Oversized> {
        let head_len = if self.vnet_support { 8 } else { 4 };
        while !bytes.is_empty() {
            if self.head_have < head_len {
                let n = (head_len - self.head_have).min(bytes.len());
                self.head[self.head_have..self.head_have + n].copy_from_slice(&bytes[..n]);
                self.head_have += n;
                bytes = &bytes[n..];
                if self.head_have < head_len {
                    return Ok(());
                }
                self.body_want = u32::from_be_bytes([self.head[0], self.head[1], self.head[2], self.head[3]]) as usize;
                if self.body_want > MAX_FRAME {
                    return Err(Oversized);
                }
                self.body = Vec::with_capacity(self.body_want);
            }
            let n = (self.body_want - self.body.len()).min(bytes.len());
            self.body.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            if self.body.len() < self.body_want {
                return Ok(());
            }
            self.head_have = 0;
            let data = std::mem::take(&mut self.body);
            let discard = std::mem::take(&mut self.discard);
            if !data.is_empty() && !discard {
                let vnet = u32::from_be_bytes([self.head[4], self.head[5], self.head[6], self.head[7]]) as usize;
                take(Frame::with_vnet(data, if self.vnet_support { vnet } else { 0 }));
            }
        }
        Ok(())
    }

    /// Whether no frame has begun.
    pub fn is_between_frames(&self) -> bool {
        self.head_have == 0
    }

    /// A frame that has begun is not given out when it is complete.
    pub fn discard_partial(&mut self) {
        self.discard = self.head_have > 0;
    }

    /// Begins anew, for a new connection.
    pub fn reset(&mut self) {
        *self = Self::new(self.vnet_support);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_however_the_bytes_are_cut() {
        for vnet in [false, true] {
            let frames = [
                Frame::with_vnet(b"0123456789frame one".to_vec(), if vnet { 10 } else { 0 }),
                Frame::new(b"two".to_vec()),
            ];
            let mut bytes = Vec::new();
            for frame in &frames {
                let (head, n) = header(frame, vnet);
                bytes.extend(&head[..n]);
                bytes.extend(&frame.data);
            }
            for cut in 1..bytes.len() {
                let mut reader = FrameReader::new(vnet);
                let mut got = Vec::new();
                for part in bytes.chunks(cut) {
                    reader.push(part, |f| got.push(f)).unwrap();
                }
                assert_eq!(got, frames, "cut {cut}");
            }
        }
    }

    #[test]
    fn a_partial_frame_can_be_discarded_and_an_oversized_one_is_refused() {
        let mut reader = FrameReader::new(false);
        let mut got = Vec::new();
        reader.push(&[0, 0, 0, 3, b'a'], |f| got.push(f)).unwrap();
        reader.discard_partial();
        reader.push(&[b'b', b'c', 0, 0, 0, 1, b'x'], |f| got.push(f)).unwrap();
        assert_eq!(got, [Frame::new(b"x".to_vec())]);
        assert_eq!(reader.push(&0x0001_1001u32.to_be_bytes(), |_| ()), Err(Oversized));
    }
}
