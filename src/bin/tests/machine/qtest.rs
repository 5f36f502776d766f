//! A client of the qtest protocol: it drives the program's ports, memory and clock in the guest's place.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
};

/// Address and data port of the configuration mechanism (PCI Local Bus 2.1, section 3.7.4.1).
const PCI_ADDRESS: u16 = 0xcf8;
const PCI_DATA: u16 = 0xcfc;

/// A machine without CPUs; it is killed when dropped.
pub struct Qtest {
    child: Option<Child>,
    input: Box<dyn Write>,
    output: Box<dyn BufRead>,
    /// Changes of intercepted lines since they were taken last.
    told: Vec<(u32, bool)>,
}

impl Qtest {
    /// Starts a pc without default devices.
    pub fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_qemu-system-x86_64"))
            .args(["-M", "pc", "-accel", "qtest", "-display", "none", "-nodefaults", "-m", "64"])
            .args(["-qtest", "stdio", "-qtest-log", "none"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program runs");
        let (input, output) = (child.stdin.take().expect("an input"), child.stdout.take().expect("an output"));
        Self { child: Some(child), input: Box::new(input), output: Box::new(BufReader::new(output)), told: vec![] }
    }

    /// Drives a machine that somebody else started, through its `-qtest` socket.
    pub fn connect(path: &Path) -> Self {
        let socket = UnixStream::connect(path).expect("the machine's socket");
        let output = BufReader::new(socket.try_clone().expect("a second handle"));
        Self { child: None, input: Box::new(socket), output: Box::new(output), told: vec![] }
    }

    /// Sends a line and returns what follows `OK`.
    pub fn ask(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").expect("it reads");
        loop {
            let mut answer = String::new();
            assert!(self.output.read_line(&mut answer).expect("an answer") > 0, "it ended at {line}");
            let words: Vec<&str> = answer.split_whitespace().collect();
            match words[..] {
                ["IRQ", direction, n] => self.told.push((n.parse().expect("a number"), direction == "raise")),
                ["OK"] => return String::new(),
                ["OK", value] => return value.to_owned(),
                _ => panic!("{line}: {answer}"),
            }
        }
    }

    fn number(&mut self, line: &str) -> u64 {
        let answer = self.ask(line);
        let (digits, radix) = answer.strip_prefix("0x").map_or((&*answer, 10), |hex| (hex, 16));
        u64::from_str_radix(digits, radix).expect("a number")
    }

    /// Has changes of the I/O APIC's inputs told.
    pub fn intercept_interrupts(&mut self) {
        self.ask("irq_intercept_in ioapic");
    }

    /// The changes of intercepted lines since this was asked last.
    pub fn interrupts(&mut self) -> Vec<(u32, bool)> {
        std::mem::take(&mut self.told)
    }

    /// The same, without the 8254's ticks.
    pub fn device_interrupts(&mut self) -> Vec<(u32, bool)> {
        self.interrupts().into_iter().filter(|(n, _)| *n != 0).collect()
    }

    pub fn outb(&mut self, port: u16, value: u8) {
        self.ask(&format!("outb {port:#x} {value:#x}"));
    }

    pub fn outw(&mut self, port: u16, value: u16) {
        self.ask(&format!("outw {port:#x} {value:#x}"));
    }

    pub fn outl(&mut self, port: u16, value: u32) {
        self.ask(&format!("outl {port:#x} {value:#x}"));
    }

    pub fn inb(&mut self, port: u16) -> u8 {
        self.number(&format!("inb {port:#x}")) as u8
    }

    pub fn inw(&mut self, port: u16) -> u16 {
        self.number(&format!("inw {port:#x}")) as u16
    }

    pub fn inl(&mut self, port: u16) -> u32 {
        self.number(&format!("inl {port:#x}")) as u32
    }

    pub fn readb(&mut self, address: u64) -> u8 {
        self.number(&format!("readb {address:#x}")) as u8
    }

    pub fn readl(&mut self, address: u64) -> u32 {
        self.number(&format!("readl {address:#x}")) as u32
    }

    pub fn writeb(&mut self, address: u64, value: u8) {
        self.ask(&format!("writeb {address:#x} {value:#x}"));
    }

    pub fn writel(&mut self, address: u64, value: u32) {
        self.ask(&format!("writel {address:#x} {value:#x}"));
    }

    /// Reads memory.
    pub fn read(&mut self, address: u64, len: usize) -> Vec<u8> {
        let hex = self.ask(&format!("read {address:#x} {len}"));
        let digits = hex.strip_prefix("0x").expect("hexadecimal");
        (0..len).map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).expect("hexadecimal")).collect()
    }

    /// Writes memory.
    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        self.ask(&format!("write {address:#x} {} 0x{hex}", bytes.len()));
    }

    /// Fills memory.
    pub fn memset(&mut self, address: u64, len: usize, value: u8) {
        self.ask(&format!("memset {address:#x} {len} {value:#x}"));
    }

    /// Moves the clock, and returns it. In nanoseconds.
    pub fn step(&mut self, ns: u64) -> u64 {
        self.number(&format!("clock_step {ns}"))
    }

    /// Reads a doubleword of a PCI function's configuration.
    pub fn config(&mut self, devfn: u8, at: u8) -> u32 {
        self.outl(PCI_ADDRESS, 0x8000_0000 | u32::from(devfn) << 8 | u32::from(at & 0xfc));
        self.inl(PCI_DATA)
    }

    /// Writes a byte of a PCI function's configuration.
    pub fn set_config_byte(&mut self, devfn: u8, at: u8, value: u8) {
        self.outl(PCI_ADDRESS, 0x8000_0000 | u32::from(devfn) << 8 | u32::from(at & 0xfc));
        self.outb(PCI_DATA + u16::from(at & 3), value);
    }

    /// Writes a doubleword of a PCI function's configuration.
    pub fn set_config(&mut self, devfn: u8, at: u8, value: u32) {
        self.outl(PCI_ADDRESS, 0x8000_0000 | u32::from(devfn) << 8 | u32::from(at & 0xfc));
        self.outl(PCI_DATA, value);
    }

    /// Gives a function its ports at a base address register, and has it decode them and be a bus master.
    pub fn enable_ports(&mut self, devfn: u8, bar: u8, base: u16) {
        self.set_config(devfn, bar, u32::from(base));
        let command = self.config(devfn, 4);
        self.set_config(devfn, 4, command & 0xffff_0000 | 0x07);
    }
}

impl Drop for Qtest {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
