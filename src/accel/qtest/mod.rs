//! QEMU's qtest protocol: a test drives ports, memory, interrupts and the clock of a machine without CPUs.
//!
//! Lines of words in, lines of words out (QEMU documents it at the top of `system/qtest.c`'s public description,
//! `docs/devel/testing/qtest.rst`). This module does no I/O: it takes lines and gives answers.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_STANDARD};
use lockstep_event::{Clock, Clocks};
use lockstep_memory::AddressSpace;

/// Interrupt lines by the path of their device, as a test names them.
pub trait IrqAccess: Send + Sync {
    /// Has `tell(n, level)` called for each change of the device's inputs (`outputs` false) or outputs, instead of their
    /// going where they go. False if there is no such device.
    fn intercept(&self, path: &str, outputs: bool, tell: Arc<dyn Fn(u32, bool) + Send + Sync>) -> bool;
    /// Sets input `n` of the named group (`unnamed-gpio-in`) of a device. False if there is none.
    fn set_input(&self, path: &str, name: &str, n: u32, level: bool) -> bool;
}

/// A test's session.
pub struct Qtest {
    memory: AddressSpace,
    ports: AddressSpace,
    clocks: Clocks,
    irqs: Arc<dyn IrqAccess>,
    intercepted: Option<(String, bool)>,
    /// Where changes of intercepted lines are written, as whole lines.
    tell: Arc<dyn Fn(String) + Send + Sync>,
}

/// The longest line that is taken, in bytes: a write of 16 MiB in hexadecimal, and then some.
pub const LONGEST_LINE: usize = 40 << 20;

/// The largest block of one command, in bytes.
const LARGEST_BLOCK: u64 = 16 << 20;

type Answer = Result<String, String>;

impl Qtest {
    /// A session on a machine. `tell` takes lines that are not answers.
    pub fn new(
        memory: AddressSpace,
        ports: AddressSpace,
        clocks: Clocks,
        irqs: Arc<dyn IrqAccess>,
        tell: Arc<dyn Fn(String) + Send + Sync>,
    ) -> Self {
        Self { memory, ports, clocks, irqs, intercepted: None, tell }
    }

    /// Carries out one line (without its end) and returns the answer (with it). Empty lines have none.
    pub fn line(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words.split_first() {
            None => String::new(),
            Some((command, arguments)) => match self.command(command, arguments) {
                Ok(answer) if answer.is_empty() => "OK\n".into(),
                Ok(answer) => format!("OK {answer}\n"),
                Err(why) => format!("FAIL {why}\n"),
            },
        }
    }

    fn command(&mut self, command: &str, a: &[&str]) -> Answer {
        let size_of = |suffix: &str| match suffix {
            "b" => Some(1),
            "w" => Some(2),
            "l" => Some(4),
            "q" => Some(8),
            _ => None,
        };
        if let Some(size) = command.strip_prefix("out").and_then(size_of).filter(|&s| s < 8) {
            let (address, value) = (number(a, 0)?, number(a, 1)?);
            let _ = self.ports.store(address & 0xffff, size, value);
            return Ok(String::new());
        }
        if let Some(size) = command.strip_prefix("in").and_then(size_of).filter(|&s| s < 8) {
            let address = number(a, 0)? & 0xffff;
            let value = self.ports.load(address, size).unwrap_or_else(|_| self.ports.unassigned_value(size));
            return Ok(format!("0x{value:04x}"));
        }
        if let Some(size) = command.strip_prefix("write").and_then(size_of) {
            let (address, value) = (number(a, 0)?, number(a, 1)?);
            let _ = self.memory.store(address, size, value);
            return Ok(String::new());
        }
        if let Some(size) = command.strip_prefix("read").and_then(size_of) {
            let address = number(a, 0)?;
            let value = self.memory.load(address, size).unwrap_or_else(|_| self.memory.unassigned_value(size));
            return Ok(format!("0x{value:016x}"));
        }
        match command {
            "read" => {
                let data = self.read_block(a)?;
                Ok(format!("0x{}", data.iter().map(|b| format!("{b:02x}")).collect::<String>()))
            }
            "b64read" => Ok(BASE64_STANDARD.encode(self.read_block(a)?)),
            "write" => {
                let (address, len, text) = (number(a, 0)?, block_len(a, 1)?, word(a, 2)?);
                let text = text.strip_prefix("0x").ok_or("Invalid data")?.as_bytes();
                let nibble = |c: u8| (c as char).to_digit(16).map(|d| d as u8);
                // What the text lacks is zero.
                let mut data = vec![0; len];
                for (byte, pair) in data.iter_mut().zip(text.chunks_exact(2)) {
                    *byte = nibble(pair[0]).zip(nibble(pair[1])).map(|(h, l)| h << 4 | l).ok_or("Invalid data")?;
                }
                let _ = self.memory.write(address, &data);
                Ok(String::new())
            }
            "b64write" => {
                let (address, len, text) = (number(a, 0)?, block_len(a, 1)?, word(a, 2)?);
                let data = BASE64_STANDARD.decode(text).map_err(|_| "Invalid data")?;
                if data.len() != len {
                    return Err("Invalid data length".into());
                }
                let _ = self.memory.write(address, &data);
                Ok(String::new())
            }
            "memset" => {
                let (address, len, value) = (number(a, 0)?, block_len(a, 1)?, number(a, 2)?);
                let _ = self.memory.write(address, &vec![value as u8; len]);
                Ok(String::new())
            }
            "clock_step" => {
                let now = self.clocks.now_ns(Clock::Virtual);
                let to = match a.first() {
                    Some(_) => now.saturating_add(i64::try_from(number(a, 0)?).unwrap_or(i64::MAX)),
                    None => self.clocks.next_virtual_deadline().unwrap_or(now),
                };
                self.clocks.advance_virtual_to(to);
                Ok(self.clocks.now_ns(Clock::Virtual).to_string())
            }
            "clock_set" => {
                let to = i64::try_from(number(a, 0)?).unwrap_or(i64::MAX);
                self.clocks.advance_virtual_to(to);
                Ok(self.clocks.now_ns(Clock::Virtual).to_string())
            }
            "irq_intercept_in" => self.intercept(word(a, 0)?, false),
            "irq_intercept_out" => self.intercept(word(a, 0)?, true),
            "set_irq_in" => {
                let (path, name) = (word(a, 0)?, word(a, 1)?);
                let (n, level) = (number(a, 2)? as u32, number(a, 3)? != 0);
                if self.irqs.set_input(path, name, n, level) { Ok(String::new()) } else { Err("Unknown device".into()) }
            }
            "endianness" => Ok("little".into()),
            _ => Err(format!("Unknown command '{command}'")),
        }
    }

    fn intercept(&mut self, path: &str, outputs: bool) -> Answer {
        if let Some((device, direction)) = &self.intercepted {
            // Asking again for the same is fine; two devices at once would mix up their numbers.
            return if device == path && *direction == outputs {
                Ok(String::new())
            } else {
                Err("IRQ intercept already enabled".into())
            };
        }
        let tell = self.tell.clone();
        let told = Arc::new(move |n: u32, level: bool| {
            tell(format!("IRQ {} {n}\n", if level { "raise" } else { "lower" }));
        });
        if !self.irqs.intercept(path, outputs, told) {
            return Err("Unknown device".into());
        }
        self.intercepted = Some((path.to_owned(), outputs));
        Ok(String::new())
    }

    fn read_block(&self, a: &[&str]) -> Result<Vec<u8>, String> {
        let (address, len) = (number(a, 0)?, block_len(a, 1)?);
        let mut data = vec![0; len];
        let _ = self.memory.read(address, &mut data);
        Ok(data)
    }
}

fn word<'a>(a: &[&'a str], n: usize) -> Result<&'a str, String> {
    a.get(n).copied().ok_or_else(|| "Missing argument".to_owned())
}

/// A number in C's notation.
fn number(a: &[&str], n: usize) -> Result<u64, String> {
    let text = word(a, n)?;
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |t| (true, t));
    let value = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16),
        None if digits.len() > 1 && digits.starts_with('0') => u64::from_str_radix(&digits[1..], 8),
        None => digits.parse(),
    }
    .map_err(|_| format!("Invalid number '{text}'"))?;
    Ok(if negative { value.wrapping_neg() } else { value })
}

fn block_len(a: &[&str], n: usize) -> Result<usize, String> {
    match number(a, n)? {
        len if len <= LARGEST_BLOCK => Ok(len as usize),
        len => Err(format!("Invalid length {len}")),
    }
}

#[cfg(test)]
mod tests {
    use lockstep_memory::{RamBlock, Region};
    use parking_lot::Mutex;

    use super::*;

    type Tell = Arc<dyn Fn(u32, bool) + Send + Sync>;

    #[derive(Default)]
    struct OneDevice(Mutex<Option<Tell>>);

    impl IrqAccess for OneDevice {
        fn intercept(&self, path: &str, _outputs: bool, tell: Tell) -> bool {
            *self.0.lock() = Some(tell);
            path == "ioapic"
        }
        fn set_input(&self, path: &str, _name: &str, n: u32, level: bool) -> bool {
            if let Some(tell) = &*self.0.lock() {
                tell(n, level);
            }
            path == "ioapic"
        }
    }

    fn session() -> (Qtest, Arc<Mutex<String>>) {
        let (root, ports) = (Region::whole_space("m"), Region::container("p", 0x1_0000));
        root.add(0, &Region::ram("ram", RamBlock::new("ram", 0x10000).unwrap()));
        let told = Arc::new(Mutex::new(String::new()));
        let log = told.clone();
        let qtest = Qtest::new(
            AddressSpace::memory("m", &root),
            AddressSpace::ports("p", &ports),
            Clocks::manual(),
            Arc::new(OneDevice::default()),
            Arc::new(move |line| log.lock().push_str(&line)),
        );
        (qtest, told)
    }

    #[test]
    fn answers_have_qemus_form() {
        let (mut q, _) = session();
        for (line, answer) in [
            ("writel 0x100 0x11223344", "OK\n"),
            ("readb 0x100", "OK 0x0000000000000044\n"),
            ("readq 256", "OK 0x0000000011223344\n"),
            ("read 0x100 4", "OK 0x44332211\n"),
            ("b64read 0x100 4", "OK RDMiEQ==\n"),
            ("b64write 0x200 5 aGVsbG8=", "OK\n"),
            ("read 0x200 5", "OK 0x68656c6c6f\n"),
            ("write 0x300 2 0xabcd", "OK\n"),
            ("readw 0x300", "OK 0x000000000000cdab\n"),
            ("memset 0x300 2 0x7f", "OK\n"),
            ("readw 0x300", "OK 0x0000000000007f7f\n"),
            ("inb 0x70", "OK 0x00ff\n"),
            ("outl 0xcf8 -1", "OK\n"),
            ("clock_step 100", "OK 100\n"),
            ("clock_set 50", "OK 100\n"),
            ("endianness", "OK little\n"),
            ("", ""),
        ] {
            assert_eq!(q.line(line), answer, "{line}");
        }
    }

    #[test]
    fn wrong_lines_fail_and_change_nothing() {
        let (mut q, _) = session();
        for line in [
            "nosuch",
            "readb",
            "readb zz",
            "read 0 99999999999",
            "write 0 1 zz",
            "b64write 0 5 aGVsbG8",
            "b64write 0 4 aGVsbG8=",
            "outq 0 0",
            "irq_intercept_in nosuch",
        ] {
            assert!(q.line(line).starts_with("FAIL "), "{line}");
        }
        assert_eq!(q.line("readq 0"), "OK 0x0000000000000000\n");
    }

    #[test]
    fn intercepted_lines_are_told() {
        let (mut q, told) = session();
        assert_eq!(q.line("irq_intercept_in ioapic"), "OK\n");
        assert_eq!(q.line("irq_intercept_in ioapic"), "OK\n");
        assert_eq!(q.line("irq_intercept_out ioapic"), "FAIL IRQ intercept already enabled\n");
        assert_eq!(q.line("set_irq_in ioapic unnamed-gpio-in 4 1"), "OK\n");
        assert_eq!(q.line("set_irq_in ioapic unnamed-gpio-in 4 0"), "OK\n");
        assert_eq!(*told.lock(), "IRQ raise 4\nIRQ lower 4\n");
    }
}
