//! The scenes of the benchmark: which VMs run, and what is measured on them.
use crate::failover::{self, Failover};
use crate::load;
use crate::memory;
use crate::pauses::{self, Pauses};
use crate::samples::Samples;
use lockstep_compat_tests::colo::{LONG, Pair, Paste};
use lockstep_compat_tests::guest_image::GuestImage;
use lockstep_compat_tests::machine::{self, Machine};
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
}

/// What a scene measured.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct SceneResult {
    /// Values of each measure: milliseconds, or what its name says.
    pub samples: BTreeMap<String, Samples>,
    /// Single values.
    pub values: BTreeMap<String, f64>,
    /// Failovers, one after another.
    pub failovers: Vec<Failover>,
}

impl Scene {
    /// All, in the order in which they are played.
    pub const ALL: [Self; 5] = [Self::Alone, Self::Pair, Self::Failover, Self::Bios, Self::BiosQemu];

    /// Its name on the command line and in the JSON file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Pair => "pair",
            Self::Failover => "failover",
            Self::Bios => "bios",
            Self::BiosQemu => "bios-qemu",
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
        }
    }

    /// Plays it on a stage of its own, in namespaces that the caller made.
    ///
    /// # Errors
    /// If a client fails or sees a wrong byte.
    ///
    /// # Panics
    /// If a step of the procedure fails.
    pub fn play(self, quick: bool) -> io::Result<SceneResult> {
        stage::watch_over(LIMIT);
        if std::env::var_os("LOCKSTEP_TRACE").is_none() {
            machine::keep_errors();
        }
        let stage = Stage::set_up(Layout::TwoHosts)?;
        plenty_of_ports();
        let size = Size { quick };
        match self {
            Self::Alone => alone(&stage, size),
            Self::Pair => pair(&stage, size),
            Self::Failover => {
                let failovers = failover::measure(&stage, size.of(6))?;
                Ok(SceneResult { failovers, ..SceneResult::default() })
            }
            Self::Bios | Self::BiosQemu => bios(&stage, size),
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

fn alone(stage: &Stage, size: Size) -> io::Result<SceneResult> {
    let host = &stage.hosts[0];
    GuestImage::default().create(&Path::new(&host.place.folder).join("primary.qcow2"))?;
    let mut machine = Machine::start(host, "alone", ALONE);
    machine.monitor.greeting(LONG).map_err(io::Error::other)?;
    machine.monitor.command(r#"{"execute": "qmp_capabilities"}"#);
    traffic::wait_for_guest(LONG)?;
    let mut result = SceneResult::default();
    serve(&mut result, size)?;
    // The pair's guest has touched as many pages for its pauses.
    Http::open()?.request("POST", "/dirty?once=10000", &[])?;
    remember(&mut result, "memory", memory::resident(&machine));
    Ok(result)
}

fn pair(stage: &Stage, size: Size) -> io::Result<SceneResult> {
    let mut pair = Pair::start(stage, Paste::Lines);
    traffic::wait_for_guest(LONG)?;
    let mut result = SceneResult::default();
    for (name, seen) in [
        ("pause.idle", pauses::idle(&mut pair, size.of(200))?),
        ("pause.1000", pauses::dirtied(&mut pair, 1000, size.of(100) + 1)?),
        ("pause.10000", pauses::dirtied(&mut pair, 10_000, size.of(50) + 1)?),
    ] {
        keep(&mut result, name, seen);
    }
    pair.set_checkpoint_period(SERVING);
    let mark = pair.primary.monitor.mark();
    let start = std::time::Instant::now();
    serve(&mut result, size)?;
    let checkpoints = pair.primary.monitor.checkpoints_since(mark) as f64;
    remember(&mut result, "checkpoints.per.second", Some(checkpoints / start.elapsed().as_secs_f64()));
    // Once more, with thousands of connections behind it.
    keep(&mut result, "pause.again", pauses::idle(&mut pair, size.of(100))?);
    remember(&mut result, "memory", memory::resident(&pair.primary));
    remember(&mut result, "memory.secondary", memory::resident(pair.secondary()));
    pair.end();
    Ok(result)
}

fn bios(stage: &Stage, size: Size) -> io::Result<SceneResult> {
    let image = |path: &Path| GuestImage::default().create_boot_sector(IDLE_BOOT_SECTOR, path);
    let mut pair = Pair::start_with(stage, Paste::Lines, image);
    std::thread::sleep(BIOS);
    let mut result = SceneResult::default();
    keep(&mut result, "pause.bios", pauses::idle(&mut pair, size.of(100))?);
    remember(&mut result, "memory", memory::resident(&pair.primary));
    remember(&mut result, "memory.secondary", memory::resident(pair.secondary()));
    Ok(result)
}

fn serve(result: &mut SceneResult, size: Size) -> io::Result<()> {
    let bulk = size.time(1.5);
    result.samples.insert("echo".into(), load::echo(size.of(4000))?);
    result.samples.insert("upload".into(), load::rate(traffic::upload, bulk)?);
    result.samples.insert("download".into(), load::rate(traffic::download, bulk)?);
    result.samples.insert("connections".into(), load::connections(1, size.time(1.5))?);
    result.samples.insert("connections.8".into(), load::connections(8, size.time(1.5))?);
    result.samples.insert("put".into(), load::puts(size.time(4.0))?);
    result.samples.insert("diverging".into(), load::diverging(size.of(100))?);
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
