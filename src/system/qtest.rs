//! `-qtest`: the qtest protocol on a character device.

use std::{rc::Rc, sync::Arc};

use lockstep_accel::qtest::{IrqAccess, LONGEST_LINE, Qtest};
use lockstep_chardev::{CharFrontend, StreamEvent};
use lockstep_hw::irqchip::{GsiRouter, pic::PicPair};
use lockstep_util::{Result, err};

use crate::vm::Vm;

/// Where the protocol is logged.
pub enum Log {
    /// Nowhere.
    None,
    /// Standard error.
    Stderr,
    /// A file.
    File(std::fs::File),
}

impl Log {
    /// The log that `-qtest-log` names.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn open(name: Option<&str>) -> Result<Self> {
        match name {
            None => Ok(Self::Stderr),
            Some("none" | "/dev/null") => Ok(Self::None),
            Some(path) => std::fs::File::create(path).map(Self::File).map_err(|e| err!("cannot open '{path}': {e}")),
        }
    }

    fn line(&mut self, direction: &str, text: &str) {
        use std::io::Write;
        match self {
            Self::None => {}
            Self::Stderr => eprintln!("[{direction}] {}", text.trim_end()),
            Self::File(file) => drop(writeln!(file, "[{direction}] {}", text.trim_end())),
        }
    }
}

/// The lines of the machine's interrupt controllers, by name or path: the I/O APIC's inputs, the master 8259's output.
struct Lines {
    router: Option<Arc<GsiRouter>>,
    pic: Option<Arc<PicPair>>,
    /// Where the master 8259 is in the tree of objects.
    pic_path: Option<String>,
}

/// Where the I/O APIC is in the tree of objects.
const IOAPIC: &str = "/machine/i440fx/ioapic";
const INPUTS: &str = "unnamed-gpio-in";

impl Lines {
    fn of(vm: &Vm) -> Self {
        let machine = vm.pc().map(|pc| &pc.machine);
        let mut pics: Vec<_> = vm.board.tree.devices().into_iter().filter(|d| d.kind.name == "isa-i8259").collect();
        pics.sort_by_key(|d| (d.path.len(), d.path.clone()));
        Self {
            router: machine.and_then(|m| m.gsi_router().cloned()),
            pic: machine.and_then(|m| m.pic().cloned()),
            pic_path: pics.first().map(|d| d.path.clone()),
        }
    }

    fn router(&self, path: &str) -> Option<&GsiRouter> {
        self.router.as_deref().filter(|_| names(path, IOAPIC))
    }
}

/// Whether a test means the object of a path: by the path, or by how it ends.
fn names(given: &str, path: &str) -> bool {
    given == path || !given.starts_with('/') && path.ends_with(&format!("/{given}"))
}

impl IrqAccess for Lines {
    fn intercept(&self, path: &str, outputs: bool, tell: Arc<dyn Fn(u32, bool) + Send + Sync>) -> bool {
        if !outputs {
            return self.router(path).is_some_and(|router| router.intercept_ioapic(tell));
        }
        let is_pic = self.pic_path.as_deref().is_some_and(|pic| names(path, pic));
        self.pic.as_ref().filter(|_| is_pic).is_some_and(|pic| pic.intercept_output(tell))
    }

    fn set_input(&self, path: &str, name: &str, n: u32, level: bool) -> bool {
        name == INPUTS && self.router(path).is_some_and(|router| router.set_ioapic_input(n, level))
    }
}

/// Serves the protocol on a device for as long as the machine.
pub fn start(vm: &Rc<Vm>, frontend: CharFrontend, mut log: Log) {
    let (memory, ports, clocks) = (vm.board.memory_space.clone(), vm.board.port_space.clone(), vm.clocks.clone());
    let lines: Arc<dyn IrqAccess> = Arc::new(Lines::of(vm));
    tokio::task::spawn_local(async move {
        let mut stream = frontend.into_stream();
        let writer = stream.writer();
        let told = writer.clone();
        let tell = Arc::new(move |line: String| drop(told.send(&[std::io::IoSlice::new(line.as_bytes())])));
        let mut session = Qtest::new(memory, ports, clocks, lines, tell);
        let mut pending = Vec::new();
        loop {
            match stream.event(true).await {
                StreamEvent::Detached => return,
                StreamEvent::Readable => {
                    let mut buf = [0; 4096];
                    let Ok(n) = stream.try_read(&mut buf) else { continue };
                    pending.extend_from_slice(&buf[..n]);
                    while let Some(end) = pending.iter().position(|b| *b == b'\n') {
                        let line = String::from_utf8_lossy(&pending[..end]).into_owned();
                        pending.drain(..=end);
                        log.line("R", &line);
                        let answer = session.line(&line);
                        log.line("S", &answer);
                        let _ = writer.send(&[std::io::IoSlice::new(answer.as_bytes())]);
                    }
                    if pending.len() > LONGEST_LINE {
                        pending.clear();
                    }
                }
                StreamEvent::Closed => pending.clear(),
                StreamEvent::Opened | StreamEvent::Break => {}
            }
        }
    });
}
