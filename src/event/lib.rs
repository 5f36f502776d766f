//! Event contexts, the guest's clocks and their timers.
//!
//! A [`Context`] is a thread's event loop: a tokio `current_thread` runtime with a `LocalSet`, so that what lives on it may
//! be `!Send`. The main loop is one; every iothread is another. Other threads reach it through its [`ContextHandle`].
//!
//! [`Clocks`] are the three clocks a machine has, with timers of nanosecond resolution. They are not tokio time, whose sleep
//! has steps of 1 ms.

mod clock;
mod context;
mod local;

pub use clock::{Clock, Clocks, Timer};
pub use context::{Context, ContextHandle, IoThread};
pub use local::Local;
