//! VMware's backdoor port (5658h) with its absolute mouse, which guests without a USB tablet driver use.
//!
//! A guest reads the port with a magic number in EAX and a command in ECX; arguments and results are in the other registers.

mod mouse;
mod vmstate;

use std::sync::Arc;

use lockstep_memory::{AccessRules, Region};
use lockstep_vmstate::{LoadError, Snapshot};
use parking_lot::Mutex;

pub use vmstate::VmMouseState;

use self::mouse::Queue;
use super::i8042::I8042;
use crate::core::{Axis, Board, InputDevice, InputEvent, InputHub, InputKind, IoRegisters, io_cpu, io_handler};

const PORT: u64 = 0x5658;
const MAGIC: u32 = 0x564d_5868;
const REFUSED: u32 = u32::MAX;

const GET_VERSION: u16 = 0x0a;
const GET_RAM_SIZE: u16 = 0x14;
const POINTER_DATA: u16 = 0x27;
const POINTER_STATUS: u16 = 0x28;
const POINTER_COMMAND: u16 = 0x29;

const VERSION: u32 = 6;
/// The product: a server.
const PRODUCT: u32 = 2;
const RAM_SIZE_MAGIC: u32 = 0x1177;

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;

/// The port and the mouse behind it.
pub struct VmPort {
    state: Mutex<State>,
    /// The mouse whose interrupt has the guest's driver look here.
    i8042: Arc<I8042>,
    hub: InputHub,
    ram_size: u64,
}

struct State {
    queue: Queue,
    /// Its number as an input device while the guest uses it, and whether it takes positions.
    registered: Option<(u32, bool)>,
    position: [i32; 2],
}

impl VmPort {
    /// The port, for a guest of `ram_size` bytes.
    pub fn new(board: &Board, i8042: &Arc<I8042>, ram_size: u64) -> Arc<Self> {
        let state = State { queue: Queue::default(), registered: None, position: [0; 2] };
        let port =
            Arc::new(Self { state: Mutex::new(state), i8042: i8042.clone(), hub: board.input.clone(), ram_size });
        let reader = port.clone();
        let handler = io_handler(
            AccessRules { unaligned: true, ..AccessRules::sizes(1, 4) },
            move |_, _| reader.read().into(),
            // Writes are commands to services that there are none of.
            |_, _, _| (),
        );
        board.ports.add(PORT, &Region::io("vmport", 1, handler));
        port
    }

    fn read(self: &Arc<Self>) -> u32 {
        let Some(cpu) = io_cpu() else { return REFUSED };
        let mut registers = cpu.registers();
        if registers[EAX] != MAGIC {
            return REFUSED;
        }
        let result = self.command(&mut registers);
        cpu.set_registers(&registers);
        result
    }

    fn command(self: &Arc<Self>, registers: &mut IoRegisters) -> u32 {
        match registers[ECX] as u16 {
            GET_VERSION => {
                registers[EBX] = MAGIC;
                registers[ECX] = PRODUCT;
                VERSION
            }
            GET_RAM_SIZE => {
                registers[EBX] = RAM_SIZE_MAGIC;
                self.ram_size.min(u32::MAX.into()) as u32
            }
            POINTER_DATA => {
                let mut state = self.state.lock();
                let count = registers[EBX] as usize;
                if !state.queue.take(count, registers) {
                    tracing::debug!("vmmouse: {count} words were asked for");
                }
                registers[EAX]
            }
            POINTER_STATUS => self.state.lock().queue.status(),
            POINTER_COMMAND => {
                let wanted = self.state.lock().queue.command(registers[EBX]);
                self.follow(wanted);
                registers[EAX]
            }
            _ => REFUSED,
        }
    }

    /// Has the hub give events here while the guest uses the mouse.
    fn follow(self: &Arc<Self>, wanted: Option<bool>) {
        let now = self.state.lock().registered;
        if now.map(|(_, absolute)| absolute) == wanted {
            return;
        }
        if let Some((index, _)) = now {
            self.hub.unregister(index);
        }
        let registered = wanted.map(|absolute| {
            let index = self.hub.register(Arc::new(Pointer { port: self.clone(), absolute }));
            self.hub.activate(index);
            (index, absolute)
        });
        self.state.lock().registered = registered;
    }

    /// Resets the mouse.
    pub fn reset(self: &Arc<Self>) {
        self.state.lock().queue = Queue::default();
        self.follow(None);
    }

    /// The section of the mouse.
    pub fn section(self: &Arc<Self>) -> Arc<VmMouseSection> {
        Arc::new(VmMouseSection(self.clone()))
    }
}

/// The mouse as input sees it.
struct Pointer {
    port: Arc<VmPort>,
    absolute: bool,
}

impl InputDevice for Pointer {
    fn name(&self) -> &str {
        "vmmouse"
    }

    fn kind(&self) -> InputKind {
        if self.absolute { InputKind::AbsolutePointer } else { InputKind::RelativePointer }
    }

    fn event(&self, event: &InputEvent) {
        let mut state = self.port.state.lock();
        match *event {
            InputEvent::Absolute(axis, value) => state.position[usize::from(axis == Axis::Y)] = value << 1,
            InputEvent::Relative(axis, by) => state.position[usize::from(axis == Axis::Y)] += by,
            InputEvent::Button(button, down) => state.queue.button(button, down),
            InputEvent::Key(..) => {}
        }
    }

    fn sync(&self) {
        {
            let mut state = self.port.state.lock();
            let position = state.position;
            if !self.absolute {
                state.position = [0; 2];
            }
            state.queue.push(position, self.absolute);
        }
        self.port.i8042.nudge_mouse();
    }
}

/// The section `vmmouse`.
pub struct VmMouseSection(Arc<VmPort>);

impl Snapshot for VmMouseSection {
    type Wire = VmMouseState;

    fn snapshot(&self) -> VmMouseState {
        self.0.state.lock().queue.save()
    }

    fn validate(&self, wire: &VmMouseState) -> Result<(), LoadError> {
        wire.validate()
    }

    fn restore(&self, wire: VmMouseState) {
        let wanted = {
            let mut state = self.0.state.lock();
            state.queue.load(&wire);
            state.queue.wanted()
        };
        self.0.follow(wanted);
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use lockstep_event::Clocks;
    use lockstep_vmstate::vmstate_roundtrip;

    use super::*;
    use crate::{
        core::{IoCpu, IrqLine, MouseButton, set_io_cpu},
        input::i8042::Pins,
    };

    struct Cpu(Cell<IoRegisters>);

    impl IoCpu for Cpu {
        fn registers(&self) -> IoRegisters {
            self.0.get()
        }
        fn set_registers(&self, registers: &IoRegisters) {
            self.0.set(*registers);
        }
    }

    fn setup() -> (Board, Arc<VmPort>) {
        let board = Board::new(Clocks::manual());
        let line = IrqLine::unconnected;
        let i8042 = I8042::new(&board, Pins { keyboard: line(), mouse: line(), a20: line() });
        let port = VmPort::new(&board, &i8042, 64 << 20);
        (board, port)
    }

    fn call(board: &Board, command: u32, ebx: u32) -> (u32, IoRegisters) {
        let cpu = Rc::new(Cpu(Cell::new([MAGIC, ebx, command, PORT as u32, 0, 0])));
        set_io_cpu(Some(cpu.clone()));
        let eax = board.port_space.read_u32(PORT);
        set_io_cpu(None);
        (eax, cpu.0.get())
    }

    fn read(board: &Board) -> u32 {
        call(board, POINTER_STATUS.into(), 0).0
    }

    #[test]
    fn the_port_is_found_by_its_magic() {
        let (board, _) = setup();
        let (eax, registers) = call(&board, GET_VERSION.into(), 0);
        assert_eq!((eax, registers[EBX], registers[ECX]), (6, MAGIC, 2));
        assert_eq!(call(&board, GET_RAM_SIZE.into(), 0).0, 64 << 20);
        assert_eq!(call(&board, 0x99, 0).0, REFUSED);
        assert_eq!(board.port_space.read_u8(PORT), 0xff, "no CPU");
    }

    #[test]
    fn the_mouse_gives_positions_once_the_guest_asks() {
        let (board, _) = setup();
        assert_eq!(read(&board), 0xffff_0000);
        call(&board, POINTER_COMMAND.into(), 0x4541_4552);
        assert_eq!(read(&board), 1);
        assert_eq!(call(&board, POINTER_DATA.into(), 1).1[EAX], 0x3442_554a);
        call(&board, POINTER_COMMAND.into(), 0x5342_4152);
        assert!(board.input.pointer_is_absolute());
        board.input.send(&InputEvent::Absolute(Axis::X, 0x100));
        board.input.send(&InputEvent::Absolute(Axis::Y, 0x200));
        board.input.send(&InputEvent::Button(MouseButton::Left, true));
        board.input.sync();
        assert_eq!(read(&board), 4);
        assert_eq!(call(&board, POINTER_DATA.into(), 4).1[..4], [0x20, 0x200, 0x400, 0]);
        call(&board, POINTER_COMMAND.into(), 0xf5);
        assert!(!board.input.pointer_is_absolute());
        call(&board, POINTER_DATA.into(), 7);
        assert_eq!(read(&board) >> 16, 0xffff);
    }

    vmstate_roundtrip!(
        state_survives_the_wire,
        || {
            let (board, port) = setup();
            call(&board, POINTER_COMMAND.into(), 0x4541_4552);
            call(&board, POINTER_COMMAND.into(), 0x5342_4152);
            port.section()
        },
        || setup().1.section()
    );
}
