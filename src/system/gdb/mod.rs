//! gdb's remote protocol on a character device: `-gdb`, `-s`, `gdbserver`.
//!
//! The guest stands when gdb connects. While it runs, anything that gdb says stops it. A connection that ends leaves the guest as it
//! is; its breakpoints are taken out.

mod memory;
mod packet;
mod registers;
mod session;

use std::{
    cell::{Cell, RefCell},
    io::IoSlice,
    rc::Rc,
};

use lockstep_accel::DebugStop;
use lockstep_chardev::{
    CharStream, CharWriter, StreamEvent,
    options::{describe, parse_short},
};
use lockstep_qapi::schema::{RunState, ShutdownCause};
use lockstep_util::{Result, bail, err, report};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::vm::{Accelerator, Vm};
use packet::{Decoder, Incoming};
use session::{Reply, Session};

/// Where gdb is waited for when nobody says otherwise.
pub const DEFAULT_DEVICE: &str = "tcp::1234";
/// The id of its character device.
const ID: &str = "gdb";

/// The machine's debugger.
#[derive(Default)]
pub struct Debugger {
    server: RefCell<Option<Server>>,
    listening: Cell<bool>,
    /// Which vCPU stopped last, and why.
    cause: Cell<Option<(usize, DebugStop)>>,
}

struct Server {
    task: tokio::task::JoinHandle<()>,
    news: UnboundedSender<News>,
    /// Its device was made for it.
    owns_device: bool,
}

/// What a session is told of the machine.
enum News {
    Stopped(RunState, Option<(usize, DebugStop)>),
}

impl Debugger {
    /// A vCPU has met a stop: the guest is going to stand for it.
    pub fn note_stop(&self, index: usize, stop: DebugStop) {
        self.cause.set(Some((index, stop)));
    }
}

/// Starts a server on a device, in place of the one before; `none` only ends that one.
///
/// # Errors
/// With QEMU's texts.
pub async fn start(vm: &Rc<Vm>, device: &str) -> Result<()> {
    end(vm);
    if device == "none" {
        return Ok(());
    }
    match vm.accelerator {
        Accelerator::None => bail!("gdbstub: meaningless to attach gdb to a machine without any CPU."),
        Accelerator::Qtest => bail!("gdbstub: current accelerator doesn't support guest debugging"),
        Accelerator::Kvm(_) | Accelerator::Tcg(_) => {}
    }
    let failed = || err!("gdbstub: couldn't create chardev");
    let (id, owns_device) = match device.strip_prefix("chardev:") {
        Some(id) => (id.to_owned(), false),
        None => {
            // Nobody waits for gdb.
            let more = if device.starts_with("tcp:") { ",wait=off,nodelay=on,server=on" } else { "" };
            let made = match parse_short(ID, &format!("{device}{more}")).and_then(|opts| describe(&opts)) {
                Ok(described) => vm.add_chardev(described).await,
                Err(e) => Err(e),
            };
            if let Err(e) = made {
                if !device.starts_with("tcp:") || e.message().contains(' ') {
                    report::error(e.message());
                }
                return Err(failed());
            }
            (ID.to_owned(), true)
        }
    };
    if !vm.chardevs.contains(&id) {
        return Err(failed());
    }
    let stream = vm.chardevs.attach(&id)?.into_stream();
    let (news, stops) = unbounded_channel();
    listen(vm);
    let task = tokio::task::spawn_local(serve(vm.clone(), stream, stops));
    *vm.debugger.server.borrow_mut() = Some(Server { task, news, owns_device });
    Ok(())
}

fn end(vm: &Rc<Vm>) {
    let Some(server) = vm.debugger.server.borrow_mut().take() else { return };
    server.task.abort();
    if server.owns_device
        && let Err(e) = vm.chardevs.remove(ID)
    {
        tracing::debug!("{e}");
    }
}

/// Has stops of the guest told to the session, from now on.
fn listen(vm: &Rc<Vm>) {
    if vm.debugger.listening.replace(true) {
        return;
    }
    let weak = Rc::downgrade(vm);
    vm.add_state_listener(move |running, state| {
        let Some(vm) = weak.upgrade() else { return };
        let cause = vm.debugger.cause.take();
        if let (false, Some(server)) = (running, vm.debugger.server.borrow().as_ref()) {
            let _ = server.news.send(News::Stopped(state, cause));
        }
    });
}

/// What belongs to one connection.
struct Link {
    session: Session,
    decoder: Decoder,
    writer: CharWriter,
    /// The last answer, until gdb has said that it came.
    unacknowledged: Vec<u8>,
    /// gdb waits for the guest to stop.
    waits: bool,
}

impl Link {
    fn new(vm: &Rc<Vm>, writer: CharWriter) -> Self {
        Self { session: Session::new(vm), decoder: Decoder::default(), writer, unacknowledged: vec![], waits: false }
    }

    fn send(&self, bytes: &[u8]) {
        // A gdb that does not read loses its connection.
        let _ = self.writer.send(&[IoSlice::new(bytes)]);
    }

    fn say(&mut self, data: &[u8]) {
        self.unacknowledged = packet::packet(data);
        self.send(&self.unacknowledged);
    }

    fn stopped(&mut self, state: RunState, cause: Option<(usize, DebugStop)>) {
        self.session.stand();
        if self.waits
            && let Some(text) = self.session.stopped(state, cause)
        {
            self.waits = false;
            self.say(&text);
        }
    }

    /// False: gdb has gone.
    async fn take(&mut self, vm: &Rc<Vm>, byte: u8) -> bool {
        let incoming = self.decoder.feed(byte);
        // Whatever comes while the guest runs stops it, but not the word that its stop has been heard.
        if vm.is_running() && !matches!(incoming, Some(Incoming::Ack)) {
            vm.stop(RunState::Paused).await;
        }
        let data = match incoming {
            None | Some(Incoming::Interrupt) => return true,
            Some(Incoming::Ack) => {
                self.unacknowledged.clear();
                return true;
            }
            Some(Incoming::Nack) => {
                self.send(&self.unacknowledged);
                return true;
            }
            Some(Incoming::Damaged) => {
                self.send(b"-");
                return true;
            }
            Some(Incoming::Packet(data)) => data,
        };
        self.send(b"+");
        match self.session.answer(&data).await {
            Reply::Say(text) => self.say_after_output(&text),
            Reply::Later => self.waits = true,
            Reply::Gone(text) => {
                self.say(&text);
                vm.start().await;
                return false;
            }
            Reply::Kill(text) => {
                if !text.is_empty() {
                    self.say(&text);
                }
                report::error("QEMU: Terminated via GDBstub");
                vm.quit(ShutdownCause::GuestShutdown);
            }
        }
        true
    }

    /// Sends an answer, and before it whole packets of output.
    fn say_after_output(&mut self, text: &[u8]) {
        match text.iter().rposition(|&b| b == b'#').filter(|_| text.starts_with(b"$O")) {
            Some(at) => {
                let (output, answer) = text.split_at(at + 3);
                self.send(output);
                self.say(answer);
            }
            None => self.say(text),
        }
    }
}

async fn serve(vm: Rc<Vm>, mut stream: CharStream, mut stops: UnboundedReceiver<News>) {
    let mut link: Option<Link> = None;
    loop {
        let event = tokio::select! {
            biased;
            Some(News::Stopped(state, cause)) = stops.recv() => {
                if let Some(link) = &mut link {
                    link.stopped(state, cause);
                }
                continue;
            }
            exit = vm.wait_for_exit(), if link.as_ref().is_some_and(|l| l.waits) => {
                if let Some(link) = &mut link {
                    link.waits = false;
                    link.say(format!("W{:02x}", exit.status).as_bytes());
                }
                continue;
            }
            event = stream.event(true) => event,
        };
        match event {
            StreamEvent::Opened => {
                link = Some(Link::new(&vm, stream.writer()));
                vm.stop(RunState::Paused).await;
            }
            StreamEvent::Closed | StreamEvent::Detached => {
                if let Some(mut link) = link.take() {
                    let running = vm.is_running();
                    vm.while_paused(|| link.session.remove_all_points());
                    debug_assert_eq!(vm.is_running(), running);
                }
                if event == StreamEvent::Detached {
                    return;
                }
            }
            StreamEvent::Break => {}
            StreamEvent::Readable => {
                let mut buffer = [0; 1024];
                let Ok(n) = stream.try_read(&mut buffer) else { continue };
                for &byte in &buffer[..n] {
                    while let Ok(News::Stopped(state, cause)) = stops.try_recv() {
                        link.iter_mut().for_each(|l| l.stopped(state, cause));
                    }
                    let Some(open) = &mut link else { break };
                    if !open.take(&vm, byte).await {
                        // It may come again on the same connection.
                        link = Some(Link::new(&vm, stream.writer()));
                    }
                }
            }
        }
    }
}
