//! A VNC server: it shows a machine's screen to viewers, and gives the machine their keys and pointers. The protocol is RFB
//! (RFC 6143), versions 3.3, 3.7 and 3.8.
//!
//! | file | what it is |
//! |---|---|
//! | `server.rs` | listening, the viewers, passwords |
//! | `session.rs` | one viewer from its first byte to its last |
//! | `handshake.rs` | versions and authentication |
//! | `wire.rs` | the messages of a viewer |
//! | `pixel.rs`, `encode.rs` | pixels as a viewer wants them; raw and ZRLE rectangles |
//! | `screen.rs` | what is shown, and which parts are new to whom |
//! | `keysym.rs` | keys by their X11 names |
//!
//! A server has a thread of its own: pictures are made, compared and compressed there, not where the guest's networks wait.
//! What viewers send is bounded everywhere; a viewer that does not read holds up nobody, and has one update in memory.

mod encode;
mod handshake;
mod keysym;
mod pixel;
mod screen;
mod server;
mod session;
#[cfg(test)]
mod tests;
mod wire;

pub use screen::Picture;
pub use server::{Client, Connected, Display, Endpoint, Family, Options, Share, serve_one};

/// The machine whose screen is shown. Called on the server's thread.
pub trait Machine: Send + Sync + 'static {
    /// What its screen shows now; nothing where there is no screen.
    fn screen(&self) -> Option<Picture>;
    /// Events of one moment.
    fn input(&self, events: Vec<Input>);
    /// Whether the pointer in use takes positions, not movements.
    fn pointer_is_absolute(&self) -> bool;
    /// Something happened that monitors are told of.
    fn event(&self, event: Event);
}

/// A key of a PC's keyboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// By its Linux input event code (`linux/input-event-codes.h`).
    Code(u16),
    /// By the code it sends (set 1), with bit 7 for those after `e0`.
    Scancode(u8),
}

/// What a viewer's user did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A key went down or up.
    Key(Key, bool),
    /// A button went down or up: the number of its bit in RFB's mask.
    Button(u8, bool),
    /// The pointer moved, in pixels.
    Moved([i32; 2]),
    /// The pointer is at a position; from 0 to 32767 in each direction.
    At([i32; 2]),
}

/// What monitors are told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody has connected.
    Connected(Connected),
    /// A viewer is through with authentication.
    Initialized(Connected),
    /// It has gone.
    Disconnected(Connected),
}
