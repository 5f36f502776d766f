//! What all devices share: the board they sit on, interrupt lines, properties, reset, the tree that users see, and input events.

mod backends;
mod board;
mod device;
mod guard;
mod handler;
mod input;
mod io_cpu;
mod irq;
mod property;
mod request;
mod reset;
mod tree;

pub use backends::{
    BackendProvider, Backends, CharHandle, DriveEvents, DriveHandle, DriveUser, ErrorAction, NicHandle, NicUser,
    NoEvents, OnError,
};
pub use board::{Board, FirmwareFiles};
pub(crate) use device::plug_device;
pub use device::{Category, CreateContext, Device, DeviceType, QomParent, TypeTable, create_device};
pub use guard::{GuardScope, Guarded, ReentrancyGuard};
pub use handler::{byte_registers, io_handler};
pub use input::{Axis, InputDevice, InputEvent, InputHub, InputKind, Key, MouseButton, MouseInfo};
pub use io_cpu::{IoCpu, IoRegisters, io_cpu, set_io_cpu};
pub use irq::{IrqLine, IrqSink, IrqTap, SharedLine};
pub use property::{Globals, Property, PropertyInput, PropertyKind, PropertySet, PropertyValue};
pub use request::{MachineRequest, Notifier, RequestSink, ResetCause, ShutdownCause};
pub use reset::{ResetId, ResetKind, ResetPhase, ResetRegistry};
pub use tree::{BusNode, DeviceNode, DeviceTree};
