//! Between a port and the character device behind it.

use std::sync::{Arc, OnceLock};

use lockstep_chardev::{CharEvent, CharFrontend, CharHandlers};

use crate::core::CharHandle;

/// A character device as a port sees it: somewhere to send bytes. What arrives is given to the port's own methods.
pub trait CharSink: Send + Sync {
    /// Sends bytes. Never blocks: what cannot be sent now is kept or dropped by the other side.
    fn send(&self, bytes: &[u8]);
    /// The port can take more bytes than it could before.
    fn can_receive_more(&self) {}
}

/// Drops everything.
pub struct NullSink;

impl CharSink for NullSink {
    fn send(&self, _: &[u8]) {}
}

/// A port's way to a character device, which is connected once both exist.
#[derive(Default)]
pub(super) struct Line {
    frontend: OnceLock<CharFrontend>,
}

impl Line {
    /// Connects the device. `room` says how many bytes the port takes, `receive` gives them, `on_break` tells of a break.
    pub(super) fn connect(
        self: &Arc<Self>,
        handle: CharHandle,
        room: impl Fn() -> usize + Send + 'static,
        receive: impl Fn(&[u8]) + Send + 'static,
        on_break: impl Fn() + Send + 'static,
    ) {
        let handlers = CharHandlers {
            can_read: Box::new(room),
            read: Box::new(receive),
            event: Box::new(move |event| {
                if event == CharEvent::Break {
                    on_break();
                }
            }),
        };
        handle.frontend.start(&handle.context, handlers);
        let first = self.frontend.set(handle.frontend).is_ok();
        debug_assert!(first, "a port is connected once");
    }
}

impl CharSink for Line {
    fn send(&self, bytes: &[u8]) {
        if let Some(frontend) = self.frontend.get() {
            frontend.write(bytes);
        }
    }

    fn can_receive_more(&self) {
        if let Some(frontend) = self.frontend.get() {
            frontend.accept_input();
        }
    }
}
