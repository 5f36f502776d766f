//! One viewer after its authentication: what it wants, and what it is sent.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::encode::{Zrle, encoding, header, raw};
use crate::pixel::PixelFormat;
use crate::screen::{Rect, Seen};
use crate::server::Hub;
use crate::wire::{self, Abilities, Message};
use crate::{Input, Key, keysym};

/// What is shown while there is no picture.
const NO_PICTURE: [u16; 2] = [640, 480];
/// Keys that are down at a time; of more the first are forgotten, as no hand holds them.
const MOST_HELD: usize = 32;

/// How long a viewer may take nothing of what it is sent.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Sends bytes to a viewer that takes some now and then.
async fn give(to: &mut (impl AsyncWrite + Unpin), mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match timeout(PATIENCE, to.write(bytes)).await?? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => bytes = &bytes[n..],
        }
    }
    Ok(())
}

/// A viewer.
pub struct Session {
    hub: Rc<Hub>,
    /// When it said something last.
    heard: Cell<Instant>,
    state: RefCell<State>,
    wake: Notify,
}

struct State {
    /// Of the screen as the viewer knows it.
    size: [u16; 2],
    format: PixelFormat,
    abilities: Abilities,
    palette_due: bool,
    keys_due: bool,
    /// Whether positions are wanted, as it was told.
    pointer_told: Option<bool>,
    /// What it waits for: only what has changed, and where.
    request: Option<(bool, Rect)>,
    seen: Seen,
    zrle: Zrle,
    buttons: u8,
    pointer: Option<[i32; 2]>,
    held: Vec<Key>,
}

impl Session {
    /// A viewer that has not been told anything yet.
    pub fn new(hub: Rc<Hub>) -> Rc<Self> {
        hub.refresh();
        let size = match hub.screen.borrow().size() {
            [0, 0] => NO_PICTURE,
            size => size,
        };
        let state = State {
            size,
            format: PixelFormat::NATIVE,
            abilities: Abilities::default(),
            palette_due: false,
            keys_due: false,
            pointer_told: None,
            request: None,
            seen: Seen::default(),
            zrle: Zrle::default(),
            buttons: 0,
            pointer: None,
            held: vec![],
        };
        let session =
            Rc::new(Self { hub, heard: Cell::new(Instant::now()), state: RefCell::new(state), wake: Notify::new() });
        session.hub.add(&session);
        session
    }

    /// How long it has said nothing.
    pub fn silence(&self) -> Duration {
        self.heard.get().elapsed()
    }

    /// Whether it waits for something to change.
    pub fn waits(&self) -> bool {
        self.state.borrow().request.is_some()
    }

    /// Talks to the viewer until it goes, or has to.
    ///
    /// # Errors
    /// Those of the connection; `InvalidData` where the protocol is broken.
    pub async fn run(
        &self,
        stream: impl AsyncRead + AsyncWrite,
        name: &str,
        leave: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let (mut from, mut to) = tokio::io::split(stream);
        give(&mut to, &self.greeting(name)).await?;
        let reading = async {
            loop {
                let message = wire::read(&mut from).await?;
                self.heard.set(Instant::now());
                self.take(message);
            }
        };
        let writing = async {
            let mut news = self.hub.news();
            loop {
                news.borrow_and_update();
                if let Some(message) = self.prepare() {
                    give(&mut to, &message).await?;
                    continue;
                }
                tokio::select! {
                    () = self.wake.notified() => {}
                    _ = news.changed() => {}
                }
            }
        };
        let ended = tokio::select! {
            ended = reading => ended,
            ended = writing => ended,
            () = leave => Ok(()),
        };
        self.let_go();
        ended
    }

    /// What a viewer is told first (RFC 6143, 7.3.2).
    fn greeting(&self, name: &str) -> Vec<u8> {
        let state = self.state.borrow();
        let mut message = vec![];
        state.size.iter().for_each(|value| message.extend(value.to_be_bytes()));
        message.extend(state.format.to_bytes());
        message.extend((name.len() as u32).to_be_bytes());
        message.extend(name.as_bytes());
        message
    }

    fn take(&self, message: Message) {
        let mut state = self.state.borrow_mut();
        match message {
            Message::Format(format) => (state.format, state.palette_due) = (format, format.palette),
            Message::Encodings(abilities) => {
                state.abilities = abilities;
                (state.keys_due, state.pointer_told) = (abilities.extended_keys, None);
            }
            Message::Update { incremental, area } => {
                // What it wants in whole is not made less by what it asks for afterwards.
                if state.request.is_none_or(|(only_changed, _)| only_changed) {
                    state.request = Some((incremental, area));
                }
                self.hub.wanted.notify_one();
            }
            Message::Key { down, keysym, scancode } => {
                let key = scancode.map(Key::Scancode).or_else(|| keysym::code(keysym).map(Key::Code));
                if let Some(key) = key {
                    state.held.retain(|held| *held != key);
                    if down {
                        if state.held.len() == MOST_HELD {
                            state.held.remove(0);
                        }
                        state.held.push(key);
                    }
                    self.hub.input(vec![Input::Key(key, down)]);
                }
            }
            Message::Pointer { buttons, x, y } => {
                let events = state.pointer(buttons, [x.into(), y.into()], self.hub.machine.pointer_is_absolute());
                self.hub.input(events);
            }
            Message::Nothing => return,
        }
        self.wake.notify_one();
    }

    /// What is to be sent now, if anything is.
    fn prepare(&self) -> Option<Vec<u8>> {
        let mut state = self.state.borrow_mut();
        let mut message = if std::mem::take(&mut state.palette_due) { state.format.palette_message() } else { vec![] };
        if let Some((only_changed, mut area)) = state.request {
            let (mut count, mut rects) = state.announcements(self.hub.machine.pointer_is_absolute());
            let screen = self.hub.screen.borrow();
            let mut all = !only_changed;
            if state.abilities.desktop_size && screen.size() != state.size && screen.size() != [0, 0] {
                state.size = screen.size();
                header(Rect::of_size(state.size), encoding::DESKTOP_SIZE, &mut rects);
                count += 1;
                (all, area) = (true, Rect::of_size(state.size));
            }
            let State { seen, zrle, format, abilities, size, .. } = &mut *state;
            let mut parts = screen.take(seen, area, all);
            parts = parts.into_iter().filter_map(|part| part.intersect(Rect::of_size(*size))).collect();
            for part in parts {
                if abilities.zrle {
                    zrle.rectangle(screen.picture(), part, format, &mut rects);
                } else {
                    raw(screen.picture(), part, format, &mut rects);
                }
                count += 1;
            }
            // A picture has at most 2^16 tiles of 64 by 16 pixels where the protocol can have so many at all.
            if let (Ok(count), true) = (u16::try_from(count), count != 0 || all) {
                state.request = None;
                message.extend([0, 0]);
                message.extend(count.to_be_bytes());
                message.append(&mut rects);
            }
        }
        (!message.is_empty()).then_some(message)
    }

    /// A viewer that has gone holds no key any more.
    fn let_go(&self) {
        let mut state = self.state.borrow_mut();
        let mut events: Vec<_> = state.held.drain(..).rev().map(|key| Input::Key(key, false)).collect();
        let buttons = std::mem::take(&mut state.buttons);
        events.extend((0..8).filter(|bit| buttons >> bit & 1 != 0).map(|bit| Input::Button(bit, false)));
        self.hub.input(events);
    }
}

impl State {
    /// Rectangles without pixels that say what the viewer shall know.
    fn announcements(&mut self, absolute: bool) -> (usize, Vec<u8>) {
        let (mut count, mut rects) = (0, vec![]);
        if std::mem::take(&mut self.keys_due) {
            header(Rect::of_size(self.size), encoding::EXTENDED_KEYS, &mut rects);
            count += 1;
        }
        if self.abilities.pointer_change && self.pointer_told != Some(absolute) {
            self.pointer_told = Some(absolute);
            let rect = Rect { x: absolute.into(), ..Rect::of_size(self.size) };
            header(rect, encoding::POINTER_CHANGE, &mut rects);
            count += 1;
        }
        (count, rects)
    }

    fn pointer(&mut self, buttons: u8, at: [i32; 2], absolute: bool) -> Vec<Input> {
        /// Where movements are sent, what stands for none.
        const STILL: i32 = 0x7fff;
        let mut events = vec![];
        if absolute {
            let scaled = |i: usize| at[i].min(i32::from(self.size[i])) * 0x7fff / i32::from(self.size[i].max(2) - 1);
            events.push(Input::At([scaled(0).min(0x7fff), scaled(1).min(0x7fff)]));
        } else if self.pointer_told == Some(false) {
            events.push(Input::Moved(at.map(|value| value - STILL)));
        } else if let Some(before) = self.pointer {
            events.push(Input::Moved([at[0] - before[0], at[1] - before[1]]));
        }
        self.pointer = Some(at);
        let changed = self.buttons ^ buttons;
        events.extend(
            (0..8).filter(|bit| changed >> bit & 1 != 0).map(|bit| Input::Button(bit, buttons >> bit & 1 != 0)),
        );
        self.buttons = buttons;
        events
    }
}
