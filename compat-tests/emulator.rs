//! Which binaries the tests run: Lockstep's, or a real QEMU that proves the tests themselves.
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Folder of Lockstep's binaries; default: where cargo puts them.
const BIN_DIR: &str = "LOCKSTEP_BIN_DIR";
/// Root of an unpacked QEMU whose COLO works (7.2): the tests then run that instead.
pub const QEMU_ROOT: &str = "LOCKSTEP_COMPAT_QEMU";
/// `tcg` runs the VMs on the software CPU instead of KVM, `kvm` insists on KVM; unset, KVM is taken where it can be opened.
pub const ACCELERATOR: &str = "LOCKSTEP_COMPAT_ACCEL";

/// The emulator under test.
#[derive(Clone, Debug)]
pub struct Emulator {
    kind: Kind,
    /// Run VMs on the software CPU, whatever the command line says.
    pub software_cpu: bool,
    /// Which engine runs the guest, and why, in words for a person.
    pub engine: String,
}

#[derive(Clone, Debug)]
enum Kind {
    Lockstep { bin: PathBuf },
    Qemu { root: PathBuf },
}

/// Why there is nothing to test.
#[derive(Debug)]
pub struct Missing(String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Emulator {
    /// Looks for the binaries.
    ///
    /// # Errors
    /// Which one is missing, in words for a person.
    pub fn find() -> Result<Self, Missing> {
        let wanted = std::env::var(ACCELERATOR).unwrap_or_default();
        if let Some(root) = std::env::var_os(QEMU_ROOT) {
            let root = PathBuf::from(root);
            check(&root.join("usr/bin"), &["qemu-system-x86_64", "qemu-img"])?;
            // QEMU does not save what a guest native under kvm-pvm needs, so its pairs run on its software CPU.
            let engine = format!("QEMU from {}", root.display());
            return Ok(Self { kind: Kind::Qemu { root }, software_cpu: wanted != "kvm", engine });
        }
        let bin = std::env::var_os(BIN_DIR).map(PathBuf::from).or_else(default_bin_dir);
        let bin = bin.ok_or_else(|| Missing("the folder of the binaries is unknown".into()))?;
        check(&bin, &["qemu-system-x86_64", "qemu-img", "qemu-bridge-helper"])?;
        let (software_cpu, engine) = choose_engine(&wanted, kvm_usable())?;
        Ok(Self { kind: Kind::Lockstep { bin }, software_cpu, engine })
    }

    /// Is this a real QEMU?
    pub fn is_qemu(&self) -> bool {
        matches!(self.kind, Kind::Qemu { .. })
    }

    /// Another program of Lockstep's, if this is Lockstep and it has been built.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        match &self.kind {
            Kind::Lockstep { bin } => Some(bin.join(name)).filter(|path| path.exists()),
            Kind::Qemu { .. } => None,
        }
    }

    /// The bridge helper to put in QEMU's place; `None` leaves the installed one.
    pub fn bridge_helper(&self) -> Option<PathBuf> {
        match &self.kind {
            Kind::Lockstep { bin } => Some(bin.join("qemu-bridge-helper")),
            Kind::Qemu { .. } => None,
        }
    }

    /// Puts `qemu-system-x86_64` and `qemu-img` into a folder of `PATH`.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn install(&self, folder: &Path) -> io::Result<()> {
        for program in ["qemu-system-x86_64", "qemu-img"] {
            let target = folder.join(program);
            match &self.kind {
                Kind::Lockstep { bin } if !self.software_cpu || program == "qemu-img" => {
                    std::os::unix::fs::symlink(bin.join(program), target)?;
                }
                Kind::Lockstep { bin } => script(&target, &translating(&bin.join(program), "", &[KVM_TO_TCG]))?,
                Kind::Qemu { root } => script(&target, &self.qemu_script(root, program))?,
            }
        }
        Ok(())
    }

    fn qemu_script(&self, root: &Path, program: &str) -> String {
        let libraries = root.join("usr/lib/x86_64-linux-gnu");
        let binary = root.join("usr/bin").join(program);
        let environment = format!("export LD_LIBRARY_PATH={}\n", libraries.display());
        if program == "qemu-img" {
            return format!("#!/bin/sh\n{environment}exec {} \"$@\"\n", binary.display());
        }
        // 7.2 counts seconds where later versions count milliseconds, and opens a window when there is a display to open it on.
        let mut changes = vec![("reconnect-ms=1000", "reconnect=1")];
        if self.software_cpu {
            changes.push(KVM_TO_TCG);
        }
        let folders = "set -- \"$@\" -display none -L /usr/share/qemu -L /usr/share/seabios -L /usr/lib/ipxe/qemu\n";
        translating(&binary, &format!("{environment}{folders}"), &changes)
    }
}

const KVM_TO_TCG: (&str, &str) = ("-enable-kvm", "-accel tcg");

fn kvm_usable() -> io::Result<()> {
    fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").map(drop)
}

/// The software CPU or KVM, and why.
fn choose_engine(wanted: &str, kvm: io::Result<()>) -> Result<(bool, String), Missing> {
    match (wanted, kvm) {
        ("tcg", _) => Ok((true, format!("Lockstep's own software CPU, because {ACCELERATOR}=tcg says so"))),
        ("kvm", Err(error)) => Err(Missing(format!("{ACCELERATOR}=kvm, but /dev/kvm cannot be opened: {error}"))),
        ("" | "kvm", Ok(())) => Ok((false, "KVM, because /dev/kvm can be opened".into())),
        ("", Err(error)) => {
            Ok((true, format!("Lockstep's own software CPU, because /dev/kvm cannot be opened ({error})")))
        }
        (other, _) => Err(Missing(format!("{ACCELERATOR}={other} is neither kvm nor tcg"))),
    }
}

fn default_bin_dir() -> Option<PathBuf> {
    let test = std::env::current_exe().ok()?;
    let folder = test.parent()?;
    if folder.ends_with("deps") { folder.parent().map(Path::to_path_buf) } else { Some(folder.to_path_buf()) }
}

fn check(folder: &Path, programs: &[&str]) -> Result<(), Missing> {
    match programs.iter().find(|program| !folder.join(program).exists()) {
        None => Ok(()),
        Some(program) => Err(Missing(format!("{program} is not in {} (cargo build --workspace)", folder.display()))),
    }
}

/// A script that runs `binary` with some words of its arguments exchanged.
fn translating(binary: &Path, before: &str, changes: &[(&str, &str)]) -> String {
    let mut text = format!(
        "#!/bin/sh\n{before}count=$#\nwhile [ $count -gt 0 ]; do\n    word=$1; shift; count=$((count - 1))\n    case $word in\n"
    );
    for (from, to) in changes {
        let (to, whole) = (to.split_whitespace().collect::<Vec<_>>(), from.starts_with('-'));
        if whole {
            text += &format!("    {from}) set -- \"$@\" {} ;;\n", to.join(" "));
        } else {
            text += &format!("    *{from}*) set -- \"$@\" \"${{word%%{from}*}}{}${{word#*{from}}}\" ;;\n", to[0]);
        }
    }
    text + &format!("    *) set -- \"$@\" \"$word\" ;;\n    esac\ndone\nexec {} \"$@\"\n", binary.display())
}

fn script(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_kvm_the_software_cpu_runs_the_guest_unless_kvm_was_insisted_on() {
        let gone = || Err(io::Error::from(io::ErrorKind::NotFound));
        assert!(choose_engine("", gone()).unwrap().0);
        assert!(!choose_engine("", Ok(())).unwrap().0);
        assert!(choose_engine("tcg", Ok(())).unwrap().0);
        assert!(choose_engine("kvm", gone()).is_err());
        assert!(choose_engine("xen", Ok(())).is_err());
    }
}
