//! A secondary without the machine around it: what comes on a channel goes to RAM and devices, on the caller's thread. For tests and
//! fuzzing, with primaries that say anything.

use super::secondary::Checkpoint;
use crate::channel::Channel;
use crate::incoming::Receiver;
use crate::stream::Frames;
use lockstep_memory::RamList;
use lockstep_util::Result;
use lockstep_vmstate::{Prepared, StateRegistry};
use std::convert::Infallible;
use std::sync::Arc;

/// Takes a machine of the type `machine` over, and then checkpoints, until the channel ends. Each shows in `ram` and `states` when all of
/// it has come, and not before.
///
/// # Errors
/// What ended it: the primary's first mistake, or the end of the channel.
pub fn take_in(channel: Arc<Channel>, machine: &str, ram: &RamList, states: &StateRegistry) -> Result<Infallible> {
    let mut receiver = Receiver::with(channel, machine, Frames::of_machine(machine), ram, states, true);
    let arrived = receiver.load()?;
    receiver.ram.begin_checkpoints()?;
    arrived.devices.into_iter().for_each(Prepared::commit);
    loop {
        receiver.wait_for_checkpoint()?;
        let checkpoint = receiver.receive_checkpoint()?;
        receiver.ram.apply_checkpoint()?;
        Checkpoint::commit(checkpoint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Yank;
    use crate::colo::Message;
    use crate::fake::EpochDevice;
    use crate::stream::{BlockTable, Command, PAGE, RAM_VERSION, RecordWriter, StreamWriter, mark};
    use lockstep_vmstate::Encoder;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::time::Duration;

    const MACHINE: &str = "pc-i440fx-10.0";

    struct Sender {
        states: StateRegistry,
        table: BlockTable,
    }

    impl Sender {
        /// A part of RAM's section with one page of each block.
        fn ram(&self, mark: u8, byte: u8, out: &mut Encoder) {
            let id = self.states.find("ram", 0).unwrap().id;
            let mut records = RecordWriter::default();
            match mark {
                mark::START => StreamWriter::new(out, Frames::of_machine(MACHINE)).begin(
                    mark,
                    &self.states.find("ram", 0).unwrap(),
                    RAM_VERSION,
                ),
                _ => StreamWriter::new(out, Frames::of_machine(MACHINE)).part(mark, id),
            }
            records.begin();
            if mark == mark::START {
                records.sizes(&self.table, out.buffer_mut());
            } else {
                for block in 0..self.table.blocks().len() {
                    let fill = |to: &mut [u8]| {
                        to.fill(byte);
                        Ok::<(), ()>(())
                    };
                    records.page(&self.table, block, PAGE as u64, out.buffer_mut(), fill).unwrap();
                }
            }
            records.end(out.buffer_mut());
            StreamWriter::new(out, Frames::of_machine(MACHINE)).footer(id);
        }

        fn join(&self) -> Vec<u8> {
            let mut out = Encoder::describing();
            let mut writer = StreamWriter::new(&mut out, Frames::of_machine(MACHINE));
            writer.header(MACHINE);
            writer.command(Command::EnableColo);
            self.ram(mark::START, 0, &mut out);
            self.ram(mark::END, 1, &mut out);
            let mut writer = StreamWriter::new(&mut out, Frames::of_machine(MACHINE));
            let devices = writer.devices(&self.states).unwrap();
            writer.eof();
            writer.description(MACHINE, devices, None);
            out.into_bytes()
        }

        fn checkpoint(&self, byte: u8) -> Vec<u8> {
            let mut out = Encoder::new();
            out.put_u32(Message::CheckpointRequest.number());
            out.put_u32(Message::VmstateSend.number());
            self.ram(mark::END, byte, &mut out);
            StreamWriter::new(&mut out, Frames::of_machine(MACHINE)).eof();
            let mut devices = Encoder::new();
            let mut writer = StreamWriter::new(&mut devices, Frames::of_machine(MACHINE));
            writer.devices(&self.states).unwrap();
            writer.eof();
            out.put_u32(Message::VmstateSize.number());
            out.put_u64(devices.len() as u64);
            out.put_bytes(devices.bytes());
            out.into_bytes()
        }
    }

    #[test]
    fn a_checkpoint_shows_when_its_last_byte_has_come() {
        let ram = RamList::new();
        ram.allocate("pc.ram", 4 * PAGE as u64).unwrap();
        let states = StateRegistry::new();
        states.reserve("ram");
        let sender = Sender { states: states.clone(), table: BlockTable::of(&ram.blocks()) };
        let whole = [sender.join(), sender.checkpoint(2), sender.checkpoint(3)].concat();
        let (first, second) = (sender.join().len(), sender.checkpoint(2).len());
        let shown = |end: usize| {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            let channel = Channel::from_fd(theirs.into(), Yank::new().unwrap()).unwrap();
            ours.write_all(&whole[..end]).unwrap();
            drop(ours);
            let Err(_) = take_in(channel, MACHINE, &ram, &states);
            let mut byte = [0];
            ram.blocks()[0].read(PAGE as u64, &mut byte).unwrap();
            byte[0]
        };
        assert_eq!(shown(whole.len()), 3);
        for (end, byte) in [(first, 1), (first + second - 1, 1), (first + second, 2), (whole.len() - 1, 2)] {
            assert_eq!(shown(end), byte, "after {end} bytes");
        }
    }

    /// What a secondary says to a primary that sends this and stays there.
    fn verdict(bytes: &[u8], ram: &RamList, states: &StateRegistry) -> String {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let channel = Channel::from_fd(theirs.into(), Yank::new().unwrap()).unwrap();
        let (ram, states) = (ram.clone(), states.clone());
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let Err(e) = take_in(channel, MACHINE, &ram, &states);
            let _ = tell.send(e.to_string());
        });
        ours.write_all(bytes).unwrap();
        told.recv_timeout(Duration::from_secs(20)).expect("a word")
    }

    #[test]
    fn device_state_is_refused_where_it_could_come_for_ever() {
        let ram = RamList::new();
        ram.allocate("pc.ram", 4 * PAGE as u64).unwrap();
        let states = StateRegistry::new();
        states.reserve("ram");
        let sender = Sender { states: states.clone(), table: BlockTable::of(&ram.blocks()) };
        let begin = |devices: usize| {
            let mut out = Encoder::new();
            let mut writer = StreamWriter::new(&mut out, Frames::of_machine(MACHINE));
            writer.header(MACHINE);
            writer.command(Command::EnableColo);
            sender.ram(mark::START, 0, &mut out);
            (0..devices).for_each(|_| drop(StreamWriter::new(&mut out, Frames::of_machine(MACHINE)).devices(&states)));
            out.into_bytes()
        };
        states.register("epoch", Arc::new(EpochDevice::default()));
        let twice = "The state of instance 0x0 of device 'epoch' came twice";
        assert_eq!(verdict(&begin(2), &ram, &states), twice);
        let mut out = Encoder::new();
        out.put_u32(Message::CheckpointRequest.number());
        out.put_u32(Message::VmstateSend.number());
        StreamWriter::new(&mut out, Frames::of_machine(MACHINE)).devices(&states).unwrap();
        let among_ram = [sender.join(), out.into_bytes()].concat();
        assert_eq!(verdict(&among_ram, &ram, &states), "Device state among the RAM of a checkpoint");
        let mut devices = Encoder::new();
        let mut writer = StreamWriter::new(&mut devices, Frames::of_machine(MACHINE));
        (0..2).for_each(|_| drop(writer.devices(&states).unwrap()));
        writer.eof();
        let mut out = Encoder::new();
        out.put_u32(Message::CheckpointRequest.number());
        out.put_u32(Message::VmstateSend.number());
        StreamWriter::new(&mut out, Frames::of_machine(MACHINE)).eof();
        out.put_u32(Message::VmstateSize.number());
        out.put_u64(devices.len() as u64);
        out.put_bytes(devices.bytes());
        assert_eq!(verdict(&[sender.join(), out.into_bytes()].concat(), &ram, &states), twice);
    }

    #[test]
    fn a_description_that_cannot_be_read_is_refused_as_the_connections_stand_there() {
        let ram = RamList::new();
        ram.allocate("pc.ram", 4 * PAGE as u64).unwrap();
        let states = StateRegistry::new();
        states.reserve("ram");
        let sender = Sender { states: states.clone(), table: BlockTable::of(&ram.blocks()) };
        let mut join = sender.join();
        *join.last_mut().unwrap() = b'!';
        let said = verdict(&join, &ram, &states);
        assert!(said.starts_with("The description of the migration stream is no JSON"), "{said}");
        // Somebody who only moves the machine has nothing there that is needed.
        let mut enable = Encoder::new();
        StreamWriter::new(&mut enable, Frames::of_machine(MACHINE)).command(Command::EnableColo);
        let at = join.windows(enable.len()).position(|w| w == enable.bytes()).expect("it is there");
        join.drain(at..at + enable.len());
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let channel = Channel::from_fd(theirs.into(), Yank::new().unwrap()).unwrap();
        ours.write_all(&join).unwrap();
        let arrived = Receiver::with(channel, MACHINE, Frames::of_machine(MACHINE), &ram, &states, true).load();
        assert!(arrived.unwrap().description.is_none());
    }

    #[test]
    fn device_state_with_a_tail_or_without_its_end_is_refused_before_anything_is_touched() {
        let ram = RamList::new();
        ram.allocate("pc.ram", 4 * PAGE as u64).unwrap();
        let states = StateRegistry::new();
        states.reserve("ram");
        let device = Arc::new(EpochDevice::default());
        states.register("epoch", device.clone());
        let sender = Sender { states: states.clone(), table: BlockTable::of(&ram.blocks()) };
        let join = sender.join();
        *device.epoch.lock() = 2;
        let good = sender.checkpoint(2);
        // The devices are the last of a checkpoint, behind their length.
        let mut devices = Encoder::new();
        let mut writer = StreamWriter::new(&mut devices, Frames::of_machine(MACHINE));
        writer.devices(&states).unwrap();
        writer.eof();
        let devices = devices.into_bytes();
        let head = &good[..good.len() - devices.len() - 8];
        let with = |devices: &[u8]| [&join, head, &(devices.len() as u64).to_be_bytes(), devices].concat();
        assert_eq!(with(&devices), [&join[..], &good].concat());
        let tail = "The device state of a checkpoint has a tail";
        let early = "The device state of a checkpoint ends early";
        for (devices, why) in [
            ([&devices[..], &[0]].concat(), tail),
            ([&devices[..], &devices].concat(), tail),
            (devices[..devices.len() - 1].to_vec(), early),
            (Vec::new(), early),
        ] {
            let bytes = with(&devices);
            *device.epoch.lock() = 7;
            assert_eq!(verdict(&bytes, &ram, &states), why);
            let mut byte = [0];
            ram.blocks()[0].read(PAGE as u64, &mut byte).unwrap();
            assert_eq!((byte[0], *device.epoch.lock()), (1, 0), "{why}: the machine is what has joined");
        }
    }
}
