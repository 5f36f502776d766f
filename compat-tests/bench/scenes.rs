//! The scenes of the benchmark: which VMs run, and what is measured on them.
use crate::costs::{Cost, Meter};
use crate::failover::{self, Failover};
use crate::load;
use crate::pauses::{self, Pauses};
use crate::samples::Samples;
use lockstep_compat_tests::colo::{LONG, Pair, Paste};
use lockstep_compat_tests::guest_image::GuestImage;
use lockstep_compat_tests::machine::{self, Machine};
use lockstep_compat_tests::memory;
use lockstep_compat_tests::stage::{self, Layout, Stage};
use lockstep_compat_tests::traffic::{self, Http};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(900);
/// Between checkpoints while clients are served: the period of step 5.
const SERVING: Duration = Duration::from_secs(2);
/// SeaBIOS, its option ROMs and the boot sector are through by then.
const BIOS: Duration = Duration::from_secs(12);
/// sti; hlt; jmp to hlt: a 16-bit guest that waits for the BIOS's timer, 18.2 times a second.
const IDLE_BOOT_SECTOR: &[u8] = &[0xfb, 0xf4, 0xeb, 0xfd];

/// An unprotected VM with the devices of the guide.
const ALONE: &str = r#"imagefolder="/mnt/vms/colo-test-primary"
qemu-system-x86_64 -enable-kvm -cpu qemu64,kvmclock=on -m 512 -smp 1 -qmp stdio \
   -device piix3-usb-uhci -device usb-tablet -name alone \
   -netdev tap,id=hn0,vhost=off,helper=/usr/lib/qemu/qemu-bridge-helper \
   -device rtl8139,id=e0,netdev=hn0 \
   -drive if=ide,id=disk0,driver=qcow2,file.filename=$imagefolder/primary.qcow2
"#;

/// Takes what has been measured so far.
pub type Save<'a> = dyn Fn(&SceneResult) -> io::Result<()> + 'a;

/// One part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    /// One VM without COLO.
    Alone,
    /// A pair that serves clients.
    Pair,
    /// Pairs whose sides die.
    Failover,
    /// A pair with a 16-bit guest that does nothing.
    Bios,
    /// The same on QEMU 7.2.
    BiosQemu,
    /// A pair of QEMU 7.2 that serves clients.
    PairQemu,
    /// Pairs of QEMU 7.2 whose sides die.
    FailoverQemu,
}

/// Names the disk image of another guest than our own to a scene's process.
pub const GUEST: &str = "LOCKSTEP_BENCH_GUEST";

/// What a scene measured.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct SceneResult {
    /// Values of each measure: milliseconds, or what its name says.
    pub samples: BTreeMap<String, Samples>,
    /// Single values.
    pub values: BTreeMap<String, f64>,
    /// What workloads cost.
    pub costs: BTreeMap<String, Cost>,
    /// Failovers, one after another.
    pub failovers: Vec<Failover>,
}

impl Scene {
    /// All.
    pub const ALL: [Self; 7] =
        [Self::Alone, Self::Pair, Self::Failover, Self::Bios, Self::BiosQemu, Self::PairQemu, Self::FailoverQemu];
    /// What is played with our own guest, in this order.
    pub const OWN_GUEST: [Self; 5] = [Self::Alone, Self::Pair, Self::Failover, Self::Bios, Self::BiosQemu];
    /// What is played with another guest.
    pub const OTHER_GUEST: [Self; 5] = [Self::Alone, Self::Pair, Self::Failover, Self::PairQemu, Self::FailoverQemu];

    /// Its name on the command line and in the JSON file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Pair => "pair",
            Self::Failover => "failover",
            Self::Bios => "bios",
            Self::BiosQemu => "bios-qemu",
            Self::PairQemu => "pair-qemu",
            Self::FailoverQemu => "failover-qemu",
        }
    }

    /// The scene of a name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scene| scene.name() == name)
    }

    /// What happens, for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Alone => "An unprotected VM",
            Self::Pair => "A pair that serves",
            Self::Failover => "Pairs whose sides die",
            Self::Bios => "A pair with an idle 16-bit guest",
            Self::BiosQemu => "The same on QEMU 7.2",
            Self::PairQemu => "A pair of QEMU 7.2 that serves",
            Self::FailoverQemu => "Pairs of QEMU 7.2 whose sides die",
        }
    }

    /// Runs on QEMU 7.2.
    pub fn is_qemu(self) -> bool {
        matches!(self, Self::BiosQemu | Self::PairQemu | Self::FailoverQemu)
    }

    /// Plays it on a stage of its own, in namespaces that the caller made. `save` gets what has been measured so far, again and again.
    ///
    /// # Errors
    /// If a client fails or sees a wrong byte.
    ///
    /// # Panics
    /// If a step of the procedure fails.
    pub fn play(self, quick: bool, save: &Save) -> io::Result<()> {
        stage::watch_over(LIMIT);
        if std::env::var_os("LOCKSTEP_TRACE").is_none() {
            machine::keep_errors();
        }
        let stage = Stage::set_up(Layout::TwoHosts)?;
        plenty_of_ports();
        let size = Size { quick };
        match self {
            Self::Alone => alone(&stage, size, save),
            Self::Pair | Self::PairQemu => pair(&stage, size, save),
            Self::Failover | Self::FailoverQemu => {
                let mut result = SceneResult::default();
                failover::measure(&stage, size.of(6), |failover| {
                    result.failovers.push(failover);
                    save(&result)
                })
            }
            Self::Bios | Self::BiosQemu => bios(&stage, size, save),
        }
    }
}

/// Thousands of connections a second would use up the client's ports, each of which rests for a minute after its use. Where these settings
/// cannot be changed the rates of new connections say little.
fn plenty_of_ports() {
    for (name, value) in [("ip_local_port_range", "1024 65535"), ("tcp_tw_reuse", "1")] {
        if let Err(error) = std::fs::write(Path::new("/proc/sys/net/ipv4").join(name), value) {
            println!("    {name} stays as it is: {error}");
        }
    }
}

/// How many samples are taken.
#[derive(Clone, Copy)]
struct Size {
    quick: bool,
}

impl Size {
    fn of(self, count: usize) -> usize {
        if self.quick { count.div_ceil(10) } else { count }
    }

    fn time(self, seconds: f64) -> Duration {
        Duration::from_secs_f64(if self.quick { seconds / 5.0 } else { seconds })
    }
}

/// Makes the guest's image: our own guest's, or a copy of the one that was given.
pub fn make_image(path: &Path) -> io::Result<()> {
    match std::env::var_os(GUEST) {
        Some(image) => std::fs::copy(image, path).map(drop),
        None => GuestImage::default().create(path),
    }
}

/// The longest that the guest may take to boot.
pub fn boot_time() -> Duration {
    if std::env::var_os(GUEST).is_some() { LONG * 6 } else { LONG }
}

fn alone(stage: &Stage, size: Size, save: &Save) -> io::Result<()> {
    let host = &stage.hosts[0];
    make_image(&Path::new(&host.place.folder).join("primary.qcow2"))?;
    let mut machine = Machine::start(host, "alone", ALONE);
    machine.monitor.greeting(LONG).map_err(io::Error::other)?;
    machine.monitor.command(r#"{"execute": "qmp_capabilities"}"#);
    traffic::wait_for_guest(boot_time())?;
    let mut result = SceneResult::default();
    serve(&mut result, &Meter::new(&[("primary", &machine)]), size, save)?;
    // The pair's guest has touched as many pages for its pauses.
    Http::open()?.request("POST", "/dirty?once=10000", &[])?;
    remember(&mut result, "memory", memory::resident(&machine));
    save(&result)
}

fn pair(stage: &Stage, size: Size, save: &Save) -> io::Result<()> {
    let mut pair = Pair::start_with(stage, Paste::Lines, make_image);
    traffic::wait_for_guest(boot_time())?;
    let mut result = SceneResult::default();
    keep(&mut result, "pause.idle", pauses::idle(&mut pair, size.of(200))?);
    save(&result)?;
    for (name, pages, count) in [("pause.1000", 1000, 100), ("pause.10000", 10_000, 50)] {
        keep(&mut result, name, pauses::dirtied(&mut pair, pages, size.of(count) + 1)?);
        save(&result)?;
    }
    pair.set_checkpoint_period(SERVING);
    let mark = pair.primary.monitor.mark();
    let start = std::time::Instant::now();
    let meter = Meter::new(&[("primary", &pair.primary), ("secondary", pair.secondary())]);
    serve(&mut result, &meter, size, save)?;
    let checkpoints = pair.primary.monitor.checkpoints_since(mark) as f64;
    remember(&mut result, "checkpoints.per.second", Some(checkpoints / start.elapsed().as_secs_f64()));
    pair.set_checkpoint_period(LONG);
    for style in ["lockstep", "buffered"] {
        pair.set_checkpoint_style(style);
        for clients in [1, 4] {
            let (times, rate) = load::diverging_all_the_time(clients, size.time(4.0))?;
            result.samples.insert(format!("diverging.{style}.{clients}"), times);
            result.values.insert(format!("diverging.{style}.{clients}"), rate);
        }
    }
    pair.set_checkpoint_style("lockstep");
    // Once more, with thousands of connections behind it.
    keep(&mut result, "pause.again", pauses::idle(&mut pair, size.of(100))?);
    remember(&mut result, "memory", memory::resident(&pair.primary));
    remember(&mut result, "memory.secondary", memory::resident(pair.secondary()));
    pair.end();
    save(&result)
}

fn bios(stage: &Stage, size: Size, save: &Save) -> io::Result<()> {
    let image = |path: &Path| GuestImage::default().create_boot_sector(IDLE_BOOT_SECTOR, path);
    let mut pair = Pair::start_with(stage, Paste::Lines, image);
    std::thread::sleep(BIOS);
    let mut result = SceneResult::default();
    keep(&mut result, "pause.bios", pauses::idle(&mut pair, size.of(100))?);
    remember(&mut result, "memory", memory::resident(&pair.primary));
    remember(&mut result, "memory.secondary", memory::resident(pair.secondary()));
    save(&result)
}

fn serve(result: &mut SceneResult, meter: &Meter, size: Size, save: &Save) -> io::Result<()> {
    let bulk = size.time(1.5);
    let measures: [(&str, &dyn Fn() -> io::Result<(Samples, f64)>); 7] = [
        ("echo", &|| load::echo(size.of(4000))),
        ("upload", &|| load::rate(traffic::upload, bulk)),
        ("download", &|| load::rate(traffic::download, bulk)),
        ("connections", &|| load::connections(1, size.time(1.5))),
        ("connections.8", &|| load::connections(8, size.time(1.5))),
        ("put", &|| load::puts(size.time(4.0))),
        ("diverging", &|| load::diverging(size.of(100))),
    ];
    for (name, measure) in measures {
        let (samples, cost) = meter.measure(measure)?;
        result.samples.insert(name.into(), samples);
        result.costs.insert(name.into(), cost);
        save(result)?;
    }
    Ok(())
}

fn keep(result: &mut SceneResult, name: &str, seen: Pauses) {
    result.samples.insert(name.into(), seen.pauses);
    remember(result, &name.replace("pause", "bytes"), seen.bytes);
}

fn remember(result: &mut SceneResult, name: &str, value: Option<f64>) {
    if let Some(value) = value {
        result.values.insert(name.into(), value);
    }
}
