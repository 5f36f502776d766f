//! The power management function of the PIIX4 (Intel 290562-001): ACPI registers, SMBus, APM ports; and the general-purpose event
//! block and PCI hot-plug registers that QEMU's machine adds.

mod eeprom;
mod hotplug;
mod regs;
mod smbus;
mod vmstate;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Weak};

use lockstep_event::{Clock, Clocks, Timer};
use lockstep_memory::{AccessRules, Region};
use lockstep_util::Result;
use lockstep_vmstate::{LoadError, Snapshot, VmState};
use parking_lot::Mutex;

pub use eeprom::Eeprom;
pub use regs::{PM_TIMER_HZ, PmRegs, Sleep};
pub use vmstate::PmState;

use self::{hotplug::Hotplug, smbus::Smbus};
use crate::{
    core::{Board, Device, IrqLine, MachineRequest, RequestSink, ResetKind, ShutdownCause, byte_registers, io_handler},
    pci::{PciBus, PciDevice, PciFunction, PciIdentity},
};

const IDENTITY: PciIdentity = PciIdentity {
    vendor: 0x8086,
    device: 0x7113,
    revision: 3,
    class: 0x0680,
    prog_if: 0,
    subsystem: PciIdentity::SUBSYSTEM,
    pin: 1,
};

/// Base of the power management ports, and the register that enables them.
const PM_BASE: usize = 0x40;
const PM_ENABLE: usize = 0x80;
const SMB_BASE: usize = 0x90;
const SMB_ENABLE: usize = 0xd2;
/// Device activity: APMC may raise an SMI.
const SMI_CONTROL: usize = 0x5b;
const SMI_OFF: u8 = 0x02;

/// Ports of the general-purpose events.
pub const GPE_PORT: u16 = 0xafe0;
/// Ports of PCI hot-plug.
pub const PCI_HOTPLUG_PORT: u16 = 0xae00;

/// What the machine settles about the function.
#[derive(Clone, Copy, Debug)]
pub struct PmConfig {
    /// Where the SMBus ports are.
    pub smbus_base: u16,
    /// Whether there is system management mode.
    pub smm: bool,
    /// Neither suspend to RAM nor to disk is offered when set.
    pub disable_s3: bool,
    /// See `disable_s3`.
    pub disable_s4: bool,
    /// The sleep type of suspend to disk.
    pub s4_value: u8,
    /// Whether there is a parallel port at 378h, serial ports at 3F8h and 2F8h.
    pub parallel: bool,
    /// See `parallel`.
    pub serial: [bool; 2],
}

/// The function.
pub struct Piix4Pm {
    function: PciFunction,
    config: PmConfig,
    state: Mutex<State>,
    clocks: Clocks,
    sci: IrqLine,
    smi: IrqLine,
    timer: Timer,
    requests: RequestSink,
    ports: Region,
    smbus_ports: Region,
}

struct State {
    pm: PmRegs,
    smbus: Smbus,
    hotplug: Hotplug,
}

impl Piix4Pm {
    /// The function as function 3 of `slot`.
    ///
    /// # Errors
    /// When the place on the bus is taken.
    pub fn new(
        board: &Board,
        bus: &Arc<PciBus>,
        slot: u8,
        config: PmConfig,
        sci: IrqLine,
        smi: IrqLine,
    ) -> Result<Arc<Self>> {
        let function = PciFunction::new(board, bus, Some(slot << 3 | 3), "PIIX4_PM", &IDENTITY, false)?;
        let clocks = board.clocks.clone();
        let pm = Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let timer = clocks.timer(Clock::Virtual, move || {
                this.upgrade().iter().for_each(|pm| pm.with(|s, now| s.pm.timer_expired(now)));
            });
            Self {
                function,
                config,
                state: Mutex::new(State {
                    pm: PmRegs::new(config.s4_value, !config.smm),
                    smbus: Smbus::default(),
                    hotplug: Hotplug::default(),
                }),
                clocks: clocks.clone(),
                sci,
                smi,
                timer,
                requests: board.requests.clone(),
                ports: Region::container("piix4-pm", 64),
                smbus_ports: Region::container("pm-smbus", 64),
            }
        });
        pm.add_ports(board);
        pm.set_registers_at_reset();
        bus.plug(pm.clone(), None);
        let button = Arc::downgrade(&pm);
        board.powerdown.add(move || button.upgrade().iter().for_each(|pm| pm.with(|s, _| s.pm.power_button())));
        let woken = Arc::downgrade(&pm);
        board.wakeup.add(move || woken.upgrade().iter().for_each(|pm| pm.with(|s, _| s.pm.wake())));
        Ok(pm)
    }

    /// What the machine settled.
    pub fn config(&self) -> &PmConfig {
        &self.config
    }

    /// The base of the power management ports, as firmware set it.
    pub fn port_base(&self) -> u16 {
        self.function.with_config(|c| c.u16(PM_BASE)) & 0xffc0
    }

    /// The file `etc/system-states`: which sleep states there are, and their types.
    pub fn system_states(&self) -> Vec<u8> {
        let c = &self.config;
        let there = |disabled: bool| if disabled { 0 } else { 0x80 };
        vec![0x80, 0, 0, 1 | there(c.disable_s3), c.s4_value | there(c.disable_s4), 0x80]
    }

    fn add_ports(self: &Arc<Self>, board: &Board) {
        let words = |name: &str, at: u64, size: u64| {
            let (reader, writer) = (self.clone(), self.clone());
            let handler = io_handler(
                AccessRules { valid_min: 1, valid_max: 4, unaligned: true, handled_min: 1, handled_max: 2 },
                move |offset, size| reader.with(|s, now| s.pm.read(at + offset, size, now)).into(),
                move |offset, size, value| writer.write_pm(at + offset, size, value as u16),
            );
            self.ports.add(at, &Region::io(name, size, handler));
        };
        words("acpi-evt", 0, 4);
        words("acpi-cnt", 4, 2);
        let reader = self.clone();
        let timer = io_handler(
            AccessRules { unaligned: true, ..AccessRules::sizes(1, 4) },
            move |offset, _| u64::from(reader.with(|s, now| s.pm.timer(now))) >> (offset * 8),
            |_, _, _| (),
        );
        self.ports.add(8, &Region::io("acpi-tmr", 4, timer));
        self.ports.set_enabled(false);
        board.ports.add(0, &self.ports);
        let smbus = byte_registers(
            "pm-smbus",
            64,
            self,
            |pm: &Self, at| pm.state.lock().smbus.read(at as u8),
            |pm: &Self, at, value| pm.state.lock().smbus.write(at as u8, value),
        );
        self.smbus_ports.add(0, &smbus);
        self.smbus_ports.set_enabled(false);
        board.ports.add(0, &self.smbus_ports);
        let apm = byte_registers(
            "apm-io",
            2,
            self,
            |pm: &Self, at| pm.with(|s, _| s.pm.read_apm(at)),
            |pm: &Self, at, value| pm.write_apm(at, value),
        );
        board.ports.add(0xb2, &apm);
        let gpe = byte_registers(
            "acpi-gpe0",
            4,
            self,
            |pm: &Self, at| pm.with(|s, _| s.pm.read_gpe(at)),
            |pm: &Self, at, value| pm.with(|s, _| s.pm.write_gpe(at, value)),
        );
        board.ports.add(GPE_PORT.into(), &gpe);
        let (reader, writer) = (self.clone(), self.clone());
        let hotplug = io_handler(
            AccessRules::sizes(4, 4),
            move |at, _| reader.state.lock().hotplug.read(at).into(),
            move |at, _, value| writer.state.lock().hotplug.write(at, value as u32),
        );
        board.ports.add(PCI_HOTPLUG_PORT.into(), &Region::io("acpi-pci-hotplug", hotplug::SIZE, hotplug));
    }

    fn with<T>(&self, f: impl FnOnce(&mut State, i64) -> T) -> T {
        let mut state = self.state.lock();
        let result = f(&mut state, self.clocks.now_ns(Clock::Virtual));
        self.follow(&state.pm);
        result
    }

    fn follow(&self, pm: &PmRegs) {
        self.sci.set(pm.sci());
        self.follow_timer(pm);
    }

    fn follow_timer(&self, pm: &PmRegs) {
        if self.timer.deadline() != pm.deadline() {
            match pm.deadline() {
                Some(at) => self.timer.arm(at),
                None => self.timer.cancel(),
            }
        }
    }

    fn write_pm(&self, offset: u64, size: u32, value: u16) {
        let sleep = self.with(|s, now| s.pm.write(offset, size, value, now));
        match sleep {
            Some(Sleep::PowerOff) => self.requests.request(MachineRequest::Shutdown(ShutdownCause::GuestShutdown)),
            Some(Sleep::ToRam) => self.requests.request(MachineRequest::Suspend),
            Some(Sleep::ToDisk) => self.requests.request(MachineRequest::SuspendToDisk),
            None => {}
        }
    }

    fn write_apm(&self, offset: u64, value: u8) {
        let is_command = self.with(|s, _| s.pm.write_apm(offset, value));
        let allowed = self.function.with_config(|c| c.u8(SMI_CONTROL)) & SMI_OFF != 0;
        // The commands that switch ACPI on and off are the chipset's own.
        if is_command && allowed && self.config.smm {
            self.smi.pulse();
        }
    }

    fn set_registers_at_reset(&self) {
        let config = &self.config;
        self.function.with_config(|c| {
            c.set(0x06, &[0x80, 0x02]);
            c.set(0x58, &[0; 4]);
            c.set(PM_BASE, &[0x01]);
            c.set(PM_ENABLE, &[0]);
            if !config.smm {
                c.set(SMI_CONTROL, &[SMI_OFF]);
            }
            c.set(SMB_BASE, &(config.smbus_base | 1).to_le_bytes());
            c.set(SMB_ENABLE, &[0x09]);
            c.set(0x5f, &[0x10 | if config.parallel { 0x80 } else { 0 }]);
            c.set(0x63, &[0x60]);
            let [first, second] = config.serial;
            c.set(0x67, &[if first { 0x08 } else { 0 } | if second { 0x90 } else { 0 }]);
        });
    }

    /// Has the ports follow their base registers.
    fn apply(&self) {
        let (pm, pm_on, smb, smb_on) = self.function.with_config(|c| {
            (c.u16(PM_BASE) & 0xffc0, c.u8(PM_ENABLE) & 1 != 0, c.u16(SMB_BASE) & 0xffc0, c.u8(SMB_ENABLE) & 1 != 0)
        });
        let _transaction = lockstep_memory::Transaction::begin();
        self.ports.set_address(pm.into());
        self.ports.set_enabled(pm_on);
        self.smbus_ports.set_address(smb.into());
        self.smbus_ports.set_enabled(smb_on);
    }
}

impl Device for Piix4Pm {
    fn reset(&self, _: ResetKind) {
        self.function.reset();
        self.set_registers_at_reset();
        self.apply();
        self.with(|s, _| {
            s.pm.reset();
            s.smbus.reset_memories();
            s.hotplug = Hotplug::default();
        });
    }

    fn qtree_lines(&self) -> Vec<String> {
        crate::pci::qtree_lines(&self.function)
    }
}

impl PciDevice for Piix4Pm {
    fn function(&self) -> &PciFunction {
        &self.function
    }

    fn config_write(&self, at: usize, value: u32, len: usize) {
        self.function.config_write(at, value, len);
        let touches = |from: usize, size: usize| at < from + size && at + len > from;
        if touches(PM_BASE, 4) || touches(PM_ENABLE, 1) || touches(SMB_BASE, 4) || touches(SMB_ENABLE, 1) {
            self.apply();
        }
    }
}

impl Snapshot for Piix4Pm {
    type Wire = PmState;

    fn snapshot(&self) -> PmState {
        let state = self.state.lock();
        let (acpi_pcihp_pci_status, hotplug_select, acpi_index) = state.hotplug.save();
        let pm = &state.pm;
        vmstate::PmState {
            parent_obj: self.function.save(),
            smb: state.smbus.save(),
            hotplug_select,
            acpi_pcihp_pci_status,
            acpi_index,
            memhp: Some(vmstate::MemoryHotplugState { acpi_memory_hotplug: vmstate::SelectorState { selector: 0 } }),
            ..pm.save()
        }
    }

    fn validate(&self, wire: &PmState) -> Result<(), LoadError> {
        self.function.validate(&wire.parent_obj)?;
        wire.validate()
    }

    fn restore(&self, wire: PmState) {
        self.function.load(&wire.parent_obj);
        self.apply();
        let mut state = self.state.lock();
        state.pm.load(&wire);
        state.smbus.load(&wire.smb);
        state.hotplug.load(&wire);
        // The interrupt controllers load their inputs themselves.
        self.follow_timer(&state.pm);
    }
}

/// The section `i2c_bus`: the address of the transfer that is going on. The SMBus host finishes its transfers at once.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "i2c_bus", version = 1)]
#[allow(missing_docs)]
pub struct I2cBusState {
    pub saved_address: u8,
}

/// The SMBus as a section.
pub struct I2cBus;

impl Snapshot for I2cBus {
    type Wire = I2cBusState;

    fn snapshot(&self) -> I2cBusState {
        I2cBusState { saved_address: 0xff }
    }

    fn restore(&self, _: I2cBusState) {}
}
