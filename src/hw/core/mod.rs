//! What all devices share: interrupt lines.

mod irq;

pub use irq::{IrqLine, IrqSink, SharedLine};
