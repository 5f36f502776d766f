//! The little of telnet (RFC 854) that a console needs: options are announced, and commands taken out of the input.

/// What is sent first: we echo, no go-ahead, binary both ways (RFC 857, 858, 856).
pub(crate) const GREETING: [u8; 12] = [0xff, 0xfb, 0x01, 0xff, 0xfb, 0x03, 0xff, 0xfb, 0x00, 0xff, 0xfd, 0x00];

/// "Interpret as command".
const IAC: u8 = 0xff;
const SB: u8 = 250;
const SE: u8 = 240;

/// Where in a command the input is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Telnet {
    #[default]
    Data,
    Command,
    Option,
    Subnegotiation,
    SubnegotiationCommand,
}

impl Telnet {
    /// Takes commands out of `buf`, moving the data to its front; how many bytes of data there are.
    pub fn strip(&mut self, buf: &mut [u8]) -> usize {
        let mut kept = 0;
        for i in 0..buf.len() {
            let byte = buf[i];
            *self = match (*self, byte) {
                (Self::Data, IAC) => Self::Command,
                (Self::Data, _) | (Self::Command, IAC) => {
                    buf[kept] = byte;
                    kept += 1;
                    Self::Data
                }
                (Self::Command, SB) => Self::Subnegotiation,
                (Self::Command, 251..=254) => Self::Option,
                (Self::Subnegotiation, IAC) => Self::SubnegotiationCommand,
                (Self::SubnegotiationCommand, SE) | (Self::Command | Self::Option, _) => Self::Data,
                (Self::Subnegotiation | Self::SubnegotiationCommand, _) => Self::Subnegotiation,
            };
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_taken_out_however_the_input_is_cut() {
        let input = [b'a', 255, 253, 1, b'b', 255, 255, 255, 250, 24, 1, 255, 240, b'c', 255, 241, b'd'];
        for cut in 0..input.len() {
            let mut telnet = Telnet::default();
            let mut got: Vec<u8> = Vec::new();
            for part in [&input[..cut], &input[cut..]] {
                let mut part = part.to_vec();
                let n = telnet.strip(&mut part);
                got.extend(&part[..n]);
            }
            assert_eq!(got, [b'a', b'b', 255, b'c', b'd'], "{cut}");
        }
    }
}
