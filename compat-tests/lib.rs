//! Tests of Lockstep from outside: the documented COLO procedure and other real sessions, replayed with a guest that notices every
//! lost byte. The guest itself is in `guest/`.

pub mod colo;
pub mod deaths;
pub mod emulator;
pub mod guest_image;
pub mod image;
pub mod machine;
pub mod memory;
pub mod monitor;
pub mod procedure;
mod repeat;
pub mod stage;
pub mod steady;
pub mod timeline;
pub mod traffic;
