//! Migration and COLO: the stream, how it travels, the sender, the receiver, and the checkpoints of a pair.

pub mod stream;
