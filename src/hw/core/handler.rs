//! Registers made of two functions.

use std::sync::Arc;

use lockstep_memory::{AccessRules, IoHandler, Region};

struct FnHandler<R, W> {
    rules: AccessRules,
    read: R,
    write: W,
}

impl<R, W> IoHandler for FnHandler<R, W>
where
    R: Fn(u64, u32) -> u64 + Send + Sync,
    W: Fn(u64, u32, u64) + Send + Sync,
{
    fn read(&self, offset: u64, size: u32) -> u64 {
        (self.read)(offset, size)
    }

    fn write(&self, offset: u64, size: u32, value: u64) {
        (self.write)(offset, size, value);
    }

    fn rules(&self) -> AccessRules {
        self.rules
    }
}

/// A handler that reads with `read(offset, size)` and writes with `write(offset, size, value)`.
pub fn io_handler(
    rules: AccessRules,
    read: impl Fn(u64, u32) -> u64 + Send + Sync + 'static,
    write: impl Fn(u64, u32, u64) + Send + Sync + 'static,
) -> Arc<dyn IoHandler> {
    Arc::new(FnHandler { rules, read, write })
}

/// A region of byte registers: wider accesses are split. The functions are given the device, the register and the value.
pub fn byte_registers<T: Send + Sync + 'static>(
    name: &str,
    size: u64,
    device: &Arc<T>,
    read: impl Fn(&T, u64) -> u8 + Send + Sync + 'static,
    write: impl Fn(&T, u64, u8) + Send + Sync + 'static,
) -> Region {
    let (reader, writer) = (device.clone(), device.clone());
    let handler = io_handler(
        AccessRules::bytes(4),
        move |offset, _| read(&reader, offset).into(),
        move |offset, _, value| write(&writer, offset, value as u8),
    );
    Region::io(name, size, handler)
}
