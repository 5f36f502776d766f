//! Several frontends on one device: all write, one reads, and `C-a c` changes which (`-serial mon:stdio`).

use std::cell::{Cell, RefCell};
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use lockstep_util::{Result, bail};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::frontend::{CharFrontend, CharStream, CharWriter, StreamEvent};
use crate::link::Link;
use crate::poll::register;
use crate::shared::Shared;

/// As many frontends as QEMU takes.
const MAX_FRONTENDS: usize = 32;
/// Control-A.
const ESCAPE: u8 = 0x01;

const HELP: &str = "\r\nC-a h    print this help\r\nC-a x    exit emulator\r\nC-a s    save disk data back to file (if -snapshot)\r\n\
C-a t    toggle console timestamps\r\nC-a b    send break (magic sysrq)\r\nC-a c    switch between console and monitor\r\n\
C-a C-a  sends C-a\r\n";

/// A multiplexer.
pub(crate) struct Mux {
    id: String,
    state: Rc<State>,
}

struct State {
    base: CharWriter,
    members: RefCell<Vec<Member>>,
    focus: Cell<usize>,
    timestamps: Cell<bool>,
    started: std::time::Instant,
    quit: Rc<dyn Fn()>,
}

struct Member {
    shared: Arc<Shared>,
    /// Our end of what the frontend reads.
    input: Rc<AsyncFd<OwnedFd>>,
}

impl Mux {
    pub fn new(id: &str, base: CharFrontend, quit: Rc<dyn Fn()>) -> Self {
        let stream = base.into_stream();
        let state = Rc::new(State {
            base: stream.writer(),
            members: RefCell::default(),
            focus: Cell::new(0),
            timestamps: Cell::new(false),
            started: std::time::Instant::now(),
            quit,
        });
        tokio::task::spawn_local(read_base(stream, Rc::downgrade(&state)));
        Self { id: id.to_owned(), state }
    }

    pub fn is_busy(&self) -> bool {
        self.state.members.borrow().iter().any(|m| m.shared.is_attached())
    }

    /// A place for one more frontend; it gets the input from now on.
    pub fn attach(&self) -> Result<CharFrontend> {
        let mut members = self.state.members.borrow_mut();
        if members.len() >= MAX_FRONTENDS {
            bail!("too many uses of multiplexed chardev '{}' (maximum is {MAX_FRONTENDS})", self.id);
        }
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(std::io::Error::from)?;
        let shared = Shared::new(&self.id, "mux".to_owned(), 0);
        shared.open(Link::Socket(theirs), "mux".to_owned());
        let Some(attachment) = shared.attach() else { bail!("chardev '{}' is already in use", self.id) };
        let input = Rc::new(register(ours, Interest::READABLE | Interest::WRITABLE)?);
        self.state.focus.set(members.len());
        members.push(Member { shared: shared.clone(), input: input.clone() });
        tokio::task::spawn_local(read_member(input, self.state.clone()));
        Ok(CharFrontend::new(shared, attachment))
    }
}

/// Moves a frontend's output to the base.
async fn read_member(output: Rc<AsyncFd<OwnedFd>>, state: Rc<State>) {
    let mut buf = vec![0; 4096];
    let mut at_line_start = true;
    loop {
        let Ok(mut guard) = output.readable().await else { return };
        let n = match guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut buf[..])?)) {
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(n)) => n,
            Err(_) => continue,
        };
        let mut text = Vec::new();
        for &byte in &buf[..n] {
            if at_line_start && state.timestamps.get() {
                let ms = state.started.elapsed().as_millis();
                let (s, ms) = (ms / 1000, ms % 1000);
                text.extend(format!("[{:02}:{:02}:{:02}.{ms:03}] ", s / 3600, s / 60 % 60, s % 60).bytes());
            }
            at_line_start = byte == b'\n';
            text.push(byte);
        }
        while state.base.queued() > 1 << 16 && state.base.is_open() {
            state.base.progress().await;
        }
        let _ = state.base.send(&[IoSlice::new(&text)]);
    }
}

/// Moves the base's input to the frontend in focus.
async fn read_base(mut stream: CharStream, state: std::rc::Weak<State>) {
    let mut escaped = false;
    let mut buf = [0; 256];
    loop {
        match stream.event(true).await {
            StreamEvent::Detached => return,
            StreamEvent::Readable => {}
            StreamEvent::Break => {
                let Some(state) = state.upgrade() else { return };
                state.send_break();
                continue;
            }
            StreamEvent::Opened | StreamEvent::Closed => continue,
        }
        let Ok(n) = stream.try_read(&mut buf) else { continue };
        let Some(state) = state.upgrade() else { return };
        let mut plain = Vec::with_capacity(n);
        for &byte in &buf[..n] {
            if !std::mem::take(&mut escaped) {
                if byte == ESCAPE {
                    escaped = true;
                } else {
                    plain.push(byte);
                }
                continue;
            }
            if byte == ESCAPE {
                plain.push(byte);
                continue;
            }
            state.give(&std::mem::take(&mut plain)).await;
            state.command(byte);
        }
        state.give(&plain).await;
    }
}

impl State {
    async fn give(&self, mut data: &[u8]) {
        let target = self.members.borrow().get(self.focus.get()).map(|m| m.input.clone());
        let Some(target) = target else { return };
        while !data.is_empty() {
            let Ok(mut guard) = target.writable().await else { return };
            let flags = rustix::net::SendFlags::NOSIGNAL;
            match guard.try_io(|fd| Ok(rustix::net::send(fd.get_ref().as_fd(), data, flags)?)) {
                Ok(Ok(n)) => data = &data[n..],
                Ok(Err(_)) => return,
                Err(_) => {}
            }
        }
    }

    fn command(&self, key: u8) {
        match key {
            b'h' | b'?' => {
                let _ = self.base.send(&[IoSlice::new(HELP.as_bytes())]);
            }
            b'x' => {
                let _ = self.base.send(&[IoSlice::new(b"QEMU: Terminated\n\r")]);
                (self.quit)();
            }
            b'b' => self.send_break(),
            b'c' => {
                let count = self.members.borrow().len();
                if count > 0 {
                    self.focus.set((self.focus.get() + 1) % count);
                }
            }
            b't' => self.timestamps.set(!self.timestamps.get()),
            _ => {}
        }
    }

    fn send_break(&self) {
        if let Some(member) = self.members.borrow().get(self.focus.get()) {
            member.shared.send_break();
        }
    }
}
