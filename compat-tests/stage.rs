//! A small world of its own for each test: namespaces in which the paths, addresses and the bridge of the documented procedure are real.
//!
//! A test calls [`on_stage`]; its body runs in a second process of the same test binary, in fresh network, mount and process namespaces (and a
//! user namespace where the caller is not root). Whatever the body starts dies with it.
use crate::emulator::{Emulator, Missing};
use crate::procedure::Place;
use rustix::mount::{MountFlags, MountPropagationFlags};
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

const INSIDE: &str = "LOCKSTEP_STAGE";
/// Set to anything, makes tests that would be skipped fail instead.
const REQUIRED: &str = "LOCKSTEP_COMPAT_REQUIRED";

/// Where tap devices come from. Usually open to everybody: who has no network of his own gets nowhere with it.
const TUN: &str = "/dev/net/tun";

/// Address of the clients' end of the guest's network.
pub const CLIENT_ADDRESS: &str = "192.168.77.1";

/// Which hosts there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One machine with both VMs on it, as in the documented trial: 127.0.0.1 and 127.0.0.2.
    OneHost,
    /// Two machines with a bridge each, a link between them, and a switch to which both and the clients are connected. A host
    /// that dies is cut off first, so that nothing its kernel has buffered still gets out.
    TwoHosts,
}

/// Runs `body` on a stage, or reports why it cannot and returns. `limit` bounds the whole of it.
///
/// # Panics
/// If the body panics or exceeds the limit.
pub fn on_stage<F: FnOnce(&Stage)>(layout: Layout, limit: Duration, body: F) {
    if is_inside() {
        watch_over(limit);
        let stage = Stage::set_up(layout).unwrap_or_else(|error| panic!("The stage cannot be set up: {error}"));
        return body(&stage);
    }
    let test = test_name::<F>();
    let outcome = Emulator::find().map_err(Skip::Missing).and_then(|_| run_inside(&test).map_err(Skip::Namespaces));
    match outcome {
        Ok(status) => assert!(status.success(), "{test} failed inside its stage: {status}"),
        Err(reason) => {
            assert!(std::env::var_os(REQUIRED).is_none(), "{test} cannot run: {reason}");
            // Straight to the terminal: libtest would swallow it.
            let _ = writeln!(io::stderr().lock(), "skipped {test}: {reason}");
        }
    }
}

enum Skip {
    Missing(Missing),
    Namespaces(io::Error),
}

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Skip::Missing(missing) => missing.fmt(f),
            Skip::Namespaces(error) => write!(f, "no networks of its own here ({error})"),
        }
    }
}

/// `module::test` from the type name `crate::module::test::{{closure}}`.
fn test_name<F>() -> String {
    let name = std::any::type_name::<F>();
    let name = name.split("::{{closure}}").next().unwrap_or(name);
    name.split_once("::").map_or(name, |(_, rest)| rest).to_string()
}

/// Is this the process in the new namespaces?
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

fn run_inside(test: &str) -> io::Result<ExitStatus> {
    run_again_inside(&[test, "--exact", "--nocapture", "--include-ignored", "--test-threads=1"])
}

/// Runs this program once more, in new namespaces, with other arguments. The guest is built here: inside there is no network to fetch
/// crates from.
///
/// # Errors
/// If the guest cannot be built or namespaces are not allowed.
pub fn run_again_inside(arguments: &[&str]) -> io::Result<ExitStatus> {
    command_inside(arguments)?.status()
}

/// The command by which [`run_again_inside`] runs this program once more.
///
/// # Errors
/// If the guest cannot be built or tap devices cannot be opened.
pub fn command_inside(arguments: &[&str]) -> io::Result<Command> {
    let tun = fs::File::options().read(true).write(true).open(TUN);
    tun.map_err(|error| {
        io::Error::new(error.kind(), format!("{TUN}: {error}; 'chmod 666 {TUN}' lets everybody use it"))
    })?;
    let kernel = crate::guest_image::build_kernel()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments).env(INSIDE, "1").env(crate::guest_image::KERNEL, kernel).stdin(Stdio::null());
    in_new_namespaces(&mut command);
    Ok(command)
}

/// Makes a command's process the first one of new namespaces. Its parent, which waits for it, stays outside.
pub fn in_new_namespaces(command: &mut Command) {
    let root = rustix::process::geteuid().is_root();
    let user_map = format!("0 {} 1", rustix::process::geteuid().as_raw());
    let group_map = format!("0 {} 1", rustix::process::getegid().as_raw());
    let enter = move || {
        let own = libc::CLONE_NEWNET | libc::CLONE_NEWNS | libc::CLONE_NEWPID;
        // SAFETY: a system call on flags; the process has one thread.
        let mut result = if root { unsafe { libc::unshare(own) } } else { -1 };
        if result != 0 {
            // SAFETY: as above.
            result = unsafe { libc::unshare(own | libc::CLONE_NEWUSER) };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
            for (file, text) in [("setgroups", "deny"), ("uid_map", user_map.as_str()), ("gid_map", group_map.as_str())]
            {
                fs::write(Path::new("/proc/self").join(file), text)?;
            }
        }
        // SAFETY: only system calls; the parent only waits and exits.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            match libc::fork() {
                -1 => Err(io::Error::last_os_error()),
                0 => {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    Ok(())
                }
                child => {
                    // The other end of the pipe over which std learns of a failed exec must be the child's alone, or the caller
                    // would wait for it until the end.
                    libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0);
                    let mut status = 0;
                    while libc::waitpid(child, &mut status, 0) == -1 && *libc::__errno_location() == libc::EINTR {}
                    libc::_exit(if libc::WIFEXITED(status) {
                        libc::WEXITSTATUS(status)
                    } else {
                        128 + libc::WTERMSIG(status)
                    })
                }
            }
        }
    };
    // SAFETY: the closure makes system calls and short allocations in a process that is about to exec; no lock of another thread is
    // taken but the allocator's, which glibc makes usable after fork.
    unsafe { command.pre_exec(enter) };
}

/// Ends this process when `limit` is over.
pub fn watch_over(limit: Duration) {
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        eprintln!("The test took longer than {limit:?}");
        std::process::exit(124);
    });
}

/// A host: the network namespace in which a VM and its ports live.
#[derive(Clone)]
pub struct Host {
    /// `None` is the stage's own namespace.
    network: Option<Arc<OwnedFd>>,
    /// What a person writes into the documented lines for it.
    pub place: Place,
}

impl Host {
    /// A host with a network namespace of its own, in which only the loopback is up. `name` is the file by which `ip` finds it.
    fn apart(name: &str, place: Place) -> io::Result<Self> {
        let file = name.to_string();
        let made = std::thread::spawn(move || -> io::Result<OwnedFd> {
            // SAFETY: the flag concerns this thread alone, which ends here.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET)? };
            fs::write(&file, "")?;
            rustix::mount::mount_bind("/proc/thread-self/ns/net", &file)?;
            Ok(fs::File::open(&file)?.into())
        });
        let network = made.join().expect("no panic")?;
        let host = Self { network: Some(Arc::new(network)), place };
        host.ip("link set lo up")?;
        host.ip("link add br0 type bridge")?;
        host.ip("link set br0 up")?;
        Ok(host)
    }

    /// A command that runs on this host.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        if let Some(network) = self.network.clone() {
            // SAFETY: one system call on a descriptor that the closure keeps open.
            unsafe {
                command.pre_exec(move || {
                    let kind = rustix::thread::LinkNameSpaceType::Network;
                    rustix::thread::move_into_link_name_space(network.as_fd(), Some(kind)).map_err(io::Error::from)
                });
            }
        }
        command
    }

    /// Runs `ip` with blank-separated arguments.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn ip(&self, arguments: &str) -> io::Result<()> {
        run(self.command("ip").args(arguments.split(' ')))
    }
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| io::Error::other(format!("{:?}: {error}", command.get_program())))?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))))
}

/// The world of one test.
pub struct Stage {
    /// The emulator under test.
    pub emulator: Emulator,
    /// The stage's own namespace: the clients are here.
    outside: Host,
    /// The primary's host and the secondary's, at the start.
    pub hosts: [Host; 2],
    layout: Layout,
}

/// File by which `ip` finds the namespace of a host, and the switch's port for it.
const APART: [(&str, &str, &str); 2] = [("/mnt/host1", "port1", "10.77.0.1"), ("/mnt/host2", "port2", "10.77.0.2")];

impl Stage {
    /// Sets up mounts, `PATH` and the network of a process that already has its namespaces.
    ///
    /// # Errors
    /// If a mount or a network command fails, or a binary is missing.
    pub fn set_up(layout: Layout) -> io::Result<Self> {
        let emulator = Emulator::find().map_err(|missing| io::Error::other(missing.to_string()))?;
        mount_everything(&emulator)?;
        let path = std::env::var("PATH").unwrap_or_default();
        // SAFETY: the stage is set up before the test starts threads that read the environment; the watching thread does not.
        unsafe { std::env::set_var("PATH", format!("/mnt/bin:{path}:/usr/sbin:/sbin")) };
        let outside = Host { network: None, place: Place::first() };
        outside.ip("link set lo up")?;
        // On one host the bridge is the host's own; with two it is the switch.
        // Its address is fixed, as that of a bridge with a network card in it: a bridge of taps alone changes its own when
        // a tap goes, and the client's with it.
        outside.ip("link add br0 address 02:00:00:77:00:01 type bridge")?;
        outside.ip(&format!("addr add {CLIENT_ADDRESS}/24 dev br0"))?;
        outside.ip("link set br0 up")?;
        let hosts = match layout {
            Layout::OneHost => [Place::first(), Place::second()].map(|place| Host { network: None, place }),
            Layout::TwoHosts => two_hosts(&outside)?,
        };
        Ok(Self { emulator, outside, hosts, layout })
    }

    /// Before a host dies: takes away its links, where it has any of its own.
    ///
    /// # Panics
    /// If `ip` fails.
    pub fn cut(&self, host: &Host) {
        self.set_links(host, "down");
    }

    /// Connects a host again.
    ///
    /// # Panics
    /// If `ip` fails.
    pub fn mend(&self, host: &Host) {
        self.set_links(host, "up");
    }

    fn set_links(&self, host: &Host, state: &str) {
        if self.layout == Layout::TwoHosts {
            let (_, port, _) =
                APART.iter().find(|(_, _, address)| *address == host.place.address).expect("one of the two hosts");
            let done = self
                .outside
                .ip(&format!("link set {port} {state}"))
                .and_then(|()| host.ip(&format!("link set peer0 {state}")));
            done.unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

fn two_hosts(outside: &Host) -> io::Result<[Host; 2]> {
    let places = [Place::first(), Place::second()];
    let mut hosts = Vec::new();
    for ((file, port, address), place) in APART.into_iter().zip(places) {
        let host = Host::apart(file, Place { address: address.into(), ..place })?;
        outside.ip(&format!("link add {port} type veth peer name eth0 netns {file}"))?;
        outside.ip(&format!("link set {port} master br0 up"))?;
        host.ip("link set eth0 master br0 up")?;
        hosts.push(host);
    }
    let [first, second]: [Host; 2] = hosts.try_into().map_err(|_| io::Error::other("two hosts"))?;
    first.ip(&format!("link add peer0 type veth peer name peer0 netns {}", APART[1].0))?;
    for (host, (_, _, address)) in [&first, &second].into_iter().zip(APART) {
        host.ip(&format!("addr add {address}/24 dev peer0"))?;
        host.ip("link set peer0 up")?;
    }
    Ok([first, second])
}

fn mount_everything(emulator: &Emulator) -> io::Result<()> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    tmpfs("/mnt")?;
    for folder in ["/mnt/vms/colo-test-primary", "/mnt/vms/colo-test-secondary", "/mnt/bin"] {
        fs::create_dir_all(folder)?;
    }
    graft("/etc", "qemu")?;
    tmpfs("/etc/qemu")?;
    fs::write("/etc/qemu/bridge.conf", "allow br0\n")?;
    if let Some(helper) = emulator.bridge_helper() {
        graft("/usr/lib", "qemu")?;
        tmpfs("/usr/lib/qemu")?;
        std::os::unix::fs::symlink(helper, "/usr/lib/qemu/qemu-bridge-helper")?;
    }
    emulator.install(Path::new("/mnt/bin"))
}

fn tmpfs(at: &str) -> io::Result<()> {
    Ok(rustix::mount::mount("tmpfs", at, "tmpfs", MountFlags::empty(), Some(c"mode=755"))?)
}

/// Makes sure that the folder `parent`/`child` exists, without writing to the real file system: where it is missing, `parent` becomes a
/// folder of links into the original.
fn graft(parent: &str, child: &str) -> io::Result<()> {
    let wanted = Path::new(parent).join(child);
    if wanted.exists() {
        return Ok(());
    }
    let original = format!("/mnt/original{}", parent.replace('/', "-"));
    fs::create_dir_all(&original)?;
    rustix::mount::mount_bind_recursive(parent, &original)?;
    tmpfs(parent)?;
    for entry in fs::read_dir(&original)? {
        let entry = entry?;
        std::os::unix::fs::symlink(entry.path(), Path::new(parent).join(entry.file_name()))?;
    }
    fs::create_dir(wanted)
}
