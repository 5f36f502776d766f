//! COM1: progress messages for whoever watches the serial port.
use crate::cpu::{inb, outb};
use core::fmt::{Result, Write};

const PORT: u16 = 0x3f8;

/// The first serial port (16550).
pub struct Serial;

impl Serial {
    /// 115200 baud, 8N1, FIFO on.
    pub fn start() {
        for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3)] {
            outb(PORT + register, value);
        }
    }
}

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> Result {
        for part in text.as_bytes().chunks(16) {
            // The FIFO takes 16 bytes once it is empty. A port that never gets there (or is not there) must not stop the guest.
            for _ in 0..100_000 {
                if inb(PORT + 5) & 0x20 != 0 {
                    break;
                }
            }
            part.iter().for_each(|&byte| outb(PORT, byte));
        }
        Ok(())
    }
}

/// Prints a line on COM1.
macro_rules! say {
    ($($part:tt)*) => {{
        use core::fmt::Write;
        let _ = writeln!($crate::serial::Serial, $($part)*);
    }};
}
pub(crate) use say;
