//! A guest small enough to be a firmware image: it runs from the first instruction on, with any engine.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::vm::{Program, Vm};

/// A guest that counts.
const COUNTER: &str = include_str!("counter.txt");
/// One that executes what firmware seldom does.
pub const RARE: &str = include_str!("rare.txt");
/// One that asks a port whose arguments are in registers.
pub const VMWARE: &str = include_str!("vmware.txt");

/// A folder with the image, and what VMs that run it leave.
pub struct Counters(TempDir);

impl Counters {
    /// A new one.
    pub fn new() -> Self {
        let folder = TempDir::new().expect("a folder");
        write(&folder.path().join("guest.bin"), COUNTER);
        Self(folder)
    }

    /// A place in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Starts a VM with the guest.
    pub fn start(
        &self,
        name: &str,
        (program, accelerator): (Program, &str),
        machine: &str,
        cpus: &str,
        more: &[&str],
    ) -> (Vm, Serial) {
        let (serial, disk) = (self.path(&format!("{name}.txt")), self.path(&format!("{name}.img")));
        std::fs::write(&disk, [0; 1 << 20]).expect("a disk");
        let serial_option = format!("file:{}", serial.display());
        let drive = format!("if=ide,id=colo-disk0,format=raw,file={}", disk.display());
        let cpu = if accelerator == "kvm" { "qemu64,kvmclock=on" } else { "qemu64" };
        let firmware = self.path("guest.bin");
        let mut arguments = vec!["-M", machine, "-accel", accelerator, "-cpu", cpu, "-m", "64", "-smp", cpus];
        arguments.extend(["-bios", firmware.to_str().expect("a path"), "-vga", "none", "-nic", "none"]);
        arguments.extend(["-serial", &serial_option, "-drive", &drive]);
        arguments.extend(["-device", "piix3-usb-uhci", "-device", "usb-tablet"]);
        arguments.extend(more);
        (Vm::start(program, &arguments), Serial(serial))
    }
}

/// What a VM's serial port got.
pub struct Serial(PathBuf);

impl Serial {
    /// The numbers that the guest has written; what is not complete yet is left out.
    pub fn numbers(&self) -> Vec<u64> {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        let whole = text.rsplit_once(' ').map_or("", |(whole, _)| whole);
        let number = |n: &str| u64::from_str_radix(n, 16).expect("a number");
        // The first may be the end of one whose beginning another VM wrote.
        whole.split(' ').filter(|n| n.len() == 4).map(number).collect()
    }
}

/// How many numbers are left out. Numbers must rise.
pub fn gaps(numbers: &[u64]) -> u64 {
    numbers.windows(2).map(|w| w[1].checked_sub(w[0] + 1).unwrap_or_else(|| panic!("{numbers:?}"))).sum()
}

/// Writes the image of a listing.
pub fn write(path: &Path, listing: &str) {
    let digits: String = listing
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(';').next().unwrap_or_default().trim())
        .collect();
    let mut image = vec![0; 0x1_0000];
    for (byte, pair) in image.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).expect("hexadecimal");
    }
    // A CPU begins here: a far jump to F000:0000.
    image[0xfff0..0xfff5].copy_from_slice(&[0xea, 0x00, 0x00, 0x00, 0xf0]);
    std::fs::write(path, image).expect("an image");
}
