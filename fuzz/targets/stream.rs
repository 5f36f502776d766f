//! A migration stream: head, sections, RAM records, commands, description; in pieces as they come from a socket.
#![no_main]
use libfuzzer_sys::fuzz_target;
use lockstep_migration::stream::{BlockTable, DeviceLoader, Frames, SectionHeader, StreamParser};
use lockstep_vmstate::{Decoder, LoadError};

/// Devices whose state is as long as its first byte says.
struct Devices;

impl DeviceLoader for Devices {
    fn load(&mut self, _: &SectionHeader, input: &mut Decoder<'_>) -> Result<(), LoadError> {
        let length = input.get_u8()?;
        input.take(usize::from(length)).map(drop)
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((first, data)) = data.split_first() else { return };
    let table = BlockTable::new([("pc.ram".to_string(), 1 << 20), ("vga.vram".to_string(), 1 << 16)]);
    let mut parser = StreamParser::new("pc-i440fx-10.0", table, Frames::of_machine("pc-i440fx-10.0"));
    if first & 1 != 0 {
        parser.resume();
    }
    // Part after part arrives; what was not taken is shown again with more behind it.
    let part = usize::from(first >> 1) + 1;
    let (mut taken, mut arrived) = (0, 0);
    while arrived < data.len() {
        arrived = (arrived + part).min(data.len());
        loop {
            match parser.next(&data[taken..arrived], &mut Devices) {
                Ok(Some((count, _))) => {
                    assert!(count <= arrived - taken);
                    taken += count;
                    if count == 0 || parser.is_done() {
                        break;
                    }
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        if parser.is_done() {
            break;
        }
    }
    parser.take_description();
});
