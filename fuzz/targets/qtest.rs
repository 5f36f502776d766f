//! Lines of the qtest protocol, on a memory map with some RAM.
#![no_main]
use libfuzzer_sys::fuzz_target;
use lockstep_accel::qtest::{IrqAccess, Qtest};
use lockstep_event::Clocks;
use lockstep_memory::{AddressSpace, RamBlock, Region};
use std::sync::Arc;

struct NoLines;

impl IrqAccess for NoLines {
    fn intercept(&self, path: &str, _: bool, _: Arc<dyn Fn(u32, bool) + Send + Sync>) -> bool {
        path.len() % 2 == 0
    }
    fn set_input(&self, _: &str, _: &str, n: u32, _: bool) -> bool {
        n < 24
    }
}

fuzz_target!(|text: &str| {
    let root = Region::container("memory", u64::MAX);
    root.add(0, &Region::ram("ram", RamBlock::new("ram", 1 << 16).unwrap()));
    let ports = Region::container("io", 1 << 16);
    let (memory, ports) = (AddressSpace::memory("memory", &root), AddressSpace::ports("io", &ports));
    let mut session = Qtest::new(memory, ports, Clocks::manual(), Arc::new(NoLines), Arc::new(|_| ()));
    for line in text.lines() {
        let answer = session.line(line);
        assert!(answer.is_empty() || answer.ends_with('\n'));
    }
});
