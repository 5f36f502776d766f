//! iPXE from the card's ROM.
use crate::Options;
use crate::console::Console;
use crate::network::{self, Log, PORT};
use lockstep_compat_tests::stage::CLIENT_ADDRESS;
use std::time::Duration;

const PATIENT: Duration = Duration::from_secs(150);

/// Boots memtest86+ over the network.
///
/// # Panics
/// If it does not start.
pub fn boot(options: &Options) {
    let log = Log::default();
    let script =
        format!("#!ipxe\nkernel http://{CLIENT_ADDRESS}:{PORT}/memtest86+x64.bin console=ttyS0,115200 nosmp\nboot\n");
    let folder = std::path::Path::new("/mnt/pxe");
    std::fs::create_dir_all(folder).expect("a folder");
    std::fs::write(folder.join("boot.ipxe"), script).expect("the script");
    std::fs::copy(options.folder.join("memtest86+x64.bin"), folder.join("memtest86+x64.bin")).expect("memtest86+");
    network::serve_http(folder, &log).expect("an HTTP server");
    network::serve_tftp(folder, &log).expect("a TFTP server");
    network::serve_dhcp("boot.ipxe", &log).expect("a DHCP server");
    for program in &options.programs {
        let seen = log.all().len();
        let machine = "-nodefaults -vga std -display none -m 128 -accel tcg -boot n \
                       -netdev tap,id=hn0,vhost=off,helper=/usr/lib/qemu/qemu-bridge-helper -device rtl8139,netdev=hn0";
        let mut console = Console::start(program, machine, &[]);
        console.expect("Status: Testing", PATIENT);
        let asked = log.all()[seen..].to_vec();
        println!(
            "iPXE on {program}: memtest86+ runs after {:.1} s; asked for {asked:?}",
            console.elapsed().as_secs_f64()
        );
        for wanted in ["DHCP discover", "DHCP request", "TFTP boot.ipxe", "HTTP memtest86+x64.bin"] {
            assert!(asked.iter().any(|request| request == wanted), "{wanted} is missing");
        }
    }
}
