//! Packets of gdb's remote protocol (`$DATA#SUM`): pure, bytes in and bytes out.

use std::fmt::Write;

/// The longest packet, in bytes: what `qSupported` promises.
pub const LONGEST: usize = 4096;

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A packet.
    Packet(Vec<u8>),
    /// A packet whose sum is wrong.
    Damaged,
    /// The last answer arrived well.
    Ack,
    /// The last answer did not.
    Nack,
    /// The target is to stop (Control-C).
    Interrupt,
}

#[derive(Default)]
enum State {
    #[default]
    Idle,
    Data,
    Escaped,
    /// A run length comes.
    Run,
    Sum,
    LastSum(u8),
}

/// Finds packets among bytes.
#[derive(Default)]
pub struct Decoder {
    state: State,
    data: Vec<u8>,
    sum: u8,
}

impl Decoder {
    /// Takes a byte. A packet that is too long is dropped, as QEMU does.
    pub fn feed(&mut self, byte: u8) -> Option<Incoming> {
        match std::mem::take(&mut self.state) {
            State::Idle => match byte {
                b'$' => {
                    self.data.clear();
                    self.sum = 0;
                    self.state = State::Data;
                }
                b'+' => return Some(Incoming::Ack),
                b'-' => return Some(Incoming::Nack),
                3 => return Some(Incoming::Interrupt),
                _ => {}
            },
            State::Data => match byte {
                b'#' => self.state = State::Sum,
                b'}' => self.goes_on(byte, State::Escaped),
                b'*' => self.goes_on(byte, State::Run),
                _ => self.push(byte, byte, 1),
            },
            State::Escaped if byte != b'#' => self.push(byte, byte ^ 0x20, 1),
            State::Run => match (byte, self.data.last().copied()) {
                (b' '..=b'~', Some(last)) if byte != b'#' && byte != b'$' => {
                    self.push(byte, last, usize::from(byte - 29));
                }
                // It is no packet any more.
                _ => {}
            },
            State::Escaped => self.state = State::Sum,
            State::Sum => self.state = State::LastSum(byte),
            State::LastSum(high) => {
                let (Some(high), Some(low)) = (nibble(high), nibble(byte)) else { return Some(Incoming::Damaged) };
                let packet = std::mem::take(&mut self.data);
                let right = high << 4 | low == self.sum;
                return Some(if right { Incoming::Packet(packet) } else { Incoming::Damaged });
            }
        }
        None
    }

    fn goes_on(&mut self, byte: u8, state: State) {
        self.sum = self.sum.wrapping_add(byte);
        self.state = state;
    }

    fn push(&mut self, raw: u8, byte: u8, count: usize) {
        if self.data.len() + count < LONGEST {
            self.data.extend(std::iter::repeat_n(byte, count));
            self.goes_on(raw, State::Data);
        }
    }
}

/// A packet with this content.
pub fn packet(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() + 4);
    out.push(b'$');
    out.extend(data);
    let sum = data.iter().fold(0u8, |sum, b| sum.wrapping_add(*b));
    out.extend(format!("#{sum:02x}").bytes());
    out
}

/// Binary data as it may stand in a packet.
pub fn escape(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    for &byte in data {
        if matches!(byte, b'#' | b'$' | b'*' | b'}') {
            out.extend([b'}', byte ^ 0x20]);
        } else {
            out.push(byte);
        }
    }
    out
}

/// Bytes as digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

/// Digits as bytes; nothing if they are no whole bytes.
pub fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[h, l]| Some(nibble(*h)? << 4 | nibble(*l)?)).collect())?
}

fn nibble(digit: u8) -> Option<u8> {
    (digit as char).to_digit(16).map(|d| d as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(bytes: &[u8]) -> Vec<Incoming> {
        let mut decoder = Decoder::default();
        bytes.iter().filter_map(|&b| decoder.feed(b)).collect()
    }

    #[test]
    fn packets_come_out_as_they_went_in() {
        let data = b"vCont;c}#$*";
        assert_eq!(feed(&packet(&escape(data))), [Incoming::Packet(data.to_vec())]);
        assert_eq!(
            feed(b"+-\x03$g#67"),
            [Incoming::Ack, Incoming::Nack, Incoming::Interrupt, Incoming::Packet(b"g".to_vec())]
        );
        assert_eq!(feed(&packet(b"0* ")), [Incoming::Packet(b"0000".to_vec())]);
    }

    #[test]
    fn what_is_damaged_is_told_and_what_is_endless_is_dropped() {
        assert_eq!(feed(b"$g#00$g#zz"), [Incoming::Damaged, Incoming::Damaged]);
        let mut long = vec![b'$'];
        long.extend([b'm'; 3 * LONGEST]);
        long.extend(b"#00");
        long.extend(packet(b"?"));
        assert_eq!(feed(&long), [Incoming::Packet(b"?".to_vec())]);
        let mut runs = b"$0".to_vec();
        runs.extend(b"*~".repeat(LONGEST));
        assert_eq!(feed(&runs), []);
    }

    #[test]
    fn no_bytes_are_too_strange() {
        let mut seed = 0x9e37_79b9u32;
        let mut decoder = Decoder::default();
        for _ in 0..200_000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let bytes = b"$#}*+-\x03ag09 \xff";
            let byte = bytes[(seed >> 24) as usize % bytes.len()];
            if let Some(Incoming::Packet(p)) = decoder.feed(byte) {
                assert!(p.len() < LONGEST);
            }
        }
    }
}
