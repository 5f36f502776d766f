//! Debian from its disk, by GRUB.
use crate::Options;
use crate::console::Console;
use crate::network::{self, Log, PORT};
use lockstep_compat_tests::image::{check_image, make_overlay};
use lockstep_compat_tests::stage::CLIENT_ADDRESS;
use lockstep_compat_tests::traffic::{Echo, Http, KeyValues, Pace};
use std::path::Path;
use std::time::{Duration, Instant};

const PATIENT: Duration = Duration::from_secs(400);
const KEY_DOWN: &str = "\u{1b}[B";

/// Drivers that must have found their devices, by what the kernel says of them.
const DRIVERS: [&str; 7] = [
    "8139cp.*RTL-8139C+",
    "ata_piix",
    "uhci_hcd.*USB Universal Host|uhci_hcd.*UHCI Host Controller",
    "QEMU USB Tablet",
    "rtc_cmos",
    "hpet0:",
    "FDC 0 is a S82078B",
];

/// Times of one boot, in seconds.
struct Times(Vec<(&'static str, f64)>);

/// Boots it with each number of CPUs on each program, and prints the times side by side.
///
/// # Panics
/// If anything does not work.
pub fn boot(options: &Options) {
    network::serve_http(&options.folder.join("repository"), &Log::default()).expect("an HTTP server");
    for &smp in &options.smp {
        let times: Vec<Times> = options.programs.iter().map(|program| session(options, program, smp)).collect();
        println!("\nDebian, -smp {smp}, seconds on: {}", options.programs.join(", "));
        for (row, (name, _)) in times[0].0.iter().enumerate() {
            let figures: String = times.iter().map(|column| format!("{:>9.1}", column.0[row].1)).collect();
            println!("  {name:<42}{figures}");
        }
    }
}

fn session(options: &Options, program: &str, smp: u32) -> Times {
    let disk = Path::new("/mnt/debian.qcow2");
    let base = options.folder.join("debian.qcow2").canonicalize().expect("the image of scripts/debian-image");
    make_overlay(&base, disk);
    let machine = format!(
        "-nodefaults -vga std -display none -m 512 -smp {smp} -accel tcg -device piix3-usb-uhci -device usb-tablet \
         -drive if=ide,file={},format=qcow2 -netdev tap,id=hn0,vhost=off,helper=/usr/lib/qemu/qemu-bridge-helper \
         -device rtl8139,netdev=hn0",
        disk.display()
    );
    let mut times = Times(Vec::new());
    let mut console = Console::start(program, &machine, &[]);
    let mut note = |name, seconds: Duration| times.0.push((name, seconds.as_secs_f64()));

    console.expect("executed automatically", PATIENT);
    note("firmware and GRUB to its menu", console.elapsed());
    console.press(&format!("{}\r", KEY_DOWN.repeat(options.menu)));
    console.expect("Linux version", PATIENT);
    note("kernel speaks", console.elapsed());
    console.expect("Welcome to", PATIENT);
    console.expect("login: ", PATIENT);
    note("login prompt", console.elapsed());
    let start = Instant::now();
    console.press("root\n");
    console.expect("Password: ", PATIENT);
    console.press("lockstep\n");
    console.expect("# ", PATIENT);
    note("logging in", start.elapsed());

    let (said, _) = console.run("nproc", PATIENT);
    assert!(said.trim_end().ends_with(&smp.to_string()), "CPUs: {said}");
    for driver in DRIVERS {
        console.run(&format!("dmesg | grep -qE '{driver}'"), PATIENT);
    }
    console.run("[ -z \"$(dmesg --level=emerg,alert,crit)\" ]", PATIENT);
    console
        .run("systemctl is-system-running --wait || systemctl --failed --no-legend --plain | { ! grep . ; }", PATIENT);

    let sources = format!("echo 'deb [trusted=yes] http://{CLIENT_ADDRESS}:{PORT} ./' >/etc/apt/sources.list");
    let install =
        "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq vim >/root/apt.log 2>&1 && sync";
    note("apt-get update, install (9 MB, 2,000 files)", console.run(&format!("{sources}; {install}"), PATIENT).1);
    console.run("dpkg --verify vim vim-runtime | { ! grep -v /usr/share/ ; }", PATIENT);
    let disk_work = "dd if=/dev/urandom of=/root/z bs=1M count=64 conv=fsync status=none && sha256sum /root/z >/root/sum && \
                     echo 3 >/proc/sys/vm/drop_caches && sha256sum -c --quiet /root/sum";
    note("64 MB to the disk, and back with SHA-256", console.run(disk_work, PATIENT).1);

    let start = Instant::now();
    serve_clients();
    note("clients: echo, 50 writes on the disk", start.elapsed());

    let start = Instant::now();
    console.press("poweroff\n");
    let status = console.end(PATIENT);
    note("poweroff to the emulator's end", start.elapsed());
    assert!(status.success(), "{program} ended with {status}");
    check_image(disk);
    times
}

fn serve_clients() {
    let echo = Echo::start(1, Pace::Flood).expect("a connection");
    let mut http = Http::open().expect("a connection");
    let mut pairs = KeyValues::default();
    (0..50).for_each(|_| pairs.put_next(&mut http, 2000).expect("PUT"));
    pairs.verify(&mut http).expect("acknowledged pairs");
    echo.finish().expect("no byte lost, doubled or wrong");
}
