//! Guest RAM on its way: what is still to be sent, and where what arrives goes.

mod cache;
mod receiver;
mod sender;

pub use cache::RamCache;
pub use receiver::RamReceiver;
pub use sender::RamSender;

#[cfg(test)]
mod tests;
