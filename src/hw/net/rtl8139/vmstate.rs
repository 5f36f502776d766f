//! The section `rtl8139` in QEMU's layout.

use lockstep_vmstate::{Buffer, LoadError, Unused, VmState};

use super::{
    eeprom::{Eeprom, Mode},
    regs::{Regs, Tally},
};
use crate::pci::PciDeviceState;

/// The registers on the wire.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "rtl8139", version = 5, minimum = 3)]
#[allow(missing_docs)]
pub struct Rtl8139State {
    pub parent_obj: PciDeviceState,
    pub phys: Buffer<6>,
    pub mult: Buffer<8>,
    #[vmstate(name = "TxStatus")]
    pub tx_status: [u32; 4],
    #[vmstate(name = "TxAddr")]
    pub tx_addr: [u32; 4],
    #[vmstate(name = "RxBuf")]
    pub rx_buf: u32,
    #[vmstate(name = "RxBufferSize")]
    pub rx_buffer_size: u32,
    #[vmstate(name = "RxBufPtr")]
    pub rx_buf_ptr: u32,
    #[vmstate(name = "RxBufAddr")]
    pub rx_buf_addr: u32,
    #[vmstate(name = "IntrStatus")]
    pub intr_status: u16,
    #[vmstate(name = "IntrMask")]
    pub intr_mask: u16,
    #[vmstate(name = "TxConfig")]
    pub tx_config: u32,
    #[vmstate(name = "RxConfig")]
    pub rx_config: u32,
    #[vmstate(name = "RxMissed")]
    pub rx_missed: u32,
    #[vmstate(name = "CSCR")]
    pub cscr: u16,
    #[vmstate(name = "Cfg9346")]
    pub cfg9346: u8,
    #[vmstate(name = "Config0")]
    pub config0: u8,
    #[vmstate(name = "Config1")]
    pub config1: u8,
    #[vmstate(name = "Config3")]
    pub config3: u8,
    #[vmstate(name = "Config4")]
    pub config4: u8,
    #[vmstate(name = "Config5")]
    pub config5: u8,
    pub clock_enabled: u8,
    #[vmstate(name = "bChipCmdState")]
    pub chip_cmd: u8,
    #[vmstate(name = "MultiIntr")]
    pub multi_intr: u16,
    #[vmstate(name = "BasicModeCtrl")]
    pub basic_mode_ctrl: u16,
    #[vmstate(name = "BasicModeStatus")]
    pub basic_mode_status: u16,
    #[vmstate(name = "NWayAdvert")]
    pub nway_advert: u16,
    #[vmstate(name = "NWayLPAR")]
    pub nway_lpar: u16,
    #[vmstate(name = "NWayExpansion")]
    pub nway_expansion: u16,
    #[vmstate(name = "CpCmd")]
    pub cp_cmd: u16,
    #[vmstate(name = "TxThresh")]
    pub tx_thresh: u8,
    pub unused: Unused<4>,
    #[vmstate(name = "conf.macaddr")]
    pub macaddr: Buffer<6>,
    #[vmstate(name = "rtl8139_mmio_io_addr_dummy")]
    pub dummy: i32,
    #[vmstate(name = "currTxDesc")]
    pub curr_tx_desc: u32,
    #[vmstate(name = "currCPlusRxDesc")]
    pub curr_cplus_rx_desc: u32,
    #[vmstate(name = "currCPlusTxDesc")]
    pub curr_cplus_tx_desc: u32,
    #[vmstate(name = "RxRingAddrLO")]
    pub rx_ring_addr_lo: u32,
    #[vmstate(name = "RxRingAddrHI")]
    pub rx_ring_addr_hi: u32,
    #[vmstate(name = "eeprom.contents")]
    pub eeprom_contents: [u16; 64],
    #[vmstate(name = "eeprom.mode")]
    pub eeprom_mode: i32,
    #[vmstate(name = "eeprom.tick")]
    pub eeprom_tick: u32,
    #[vmstate(name = "eeprom.address")]
    pub eeprom_address: u8,
    #[vmstate(name = "eeprom.input")]
    pub eeprom_input: u16,
    #[vmstate(name = "eeprom.output")]
    pub eeprom_output: u16,
    #[vmstate(name = "eeprom.eecs")]
    pub eeprom_eecs: u8,
    #[vmstate(name = "eeprom.eesk")]
    pub eeprom_eesk: u8,
    #[vmstate(name = "eeprom.eedi")]
    pub eeprom_eedi: u8,
    #[vmstate(name = "eeprom.eedo")]
    pub eeprom_eedo: u8,
    #[vmstate(name = "TCTR")]
    pub tctr: u32,
    #[vmstate(name = "TimerInt")]
    pub timer_int: u32,
    #[vmstate(name = "TCTR_base")]
    pub tctr_base: i64,
    #[vmstate(name = "tally_counters.TxOk")]
    pub tx_ok: u64,
    #[vmstate(name = "tally_counters.RxOk")]
    pub rx_ok: u64,
    #[vmstate(name = "tally_counters.TxERR")]
    pub tx_err: u64,
    #[vmstate(name = "tally_counters.RxERR")]
    pub rx_err: u32,
    #[vmstate(name = "tally_counters.MissPkt")]
    pub miss_pkt: u16,
    #[vmstate(name = "tally_counters.FAE")]
    pub fae: u16,
    #[vmstate(name = "tally_counters.Tx1Col")]
    pub tx_1col: u32,
    #[vmstate(name = "tally_counters.TxMCol")]
    pub tx_mcol: u32,
    #[vmstate(name = "tally_counters.RxOkPhy")]
    pub rx_ok_phy: u64,
    #[vmstate(name = "tally_counters.RxOkBrd")]
    pub rx_ok_brd: u64,
    #[vmstate(name = "tally_counters.RxOkMul", since = 5)]
    pub rx_ok_mul: u32,
    #[vmstate(name = "tally_counters.TxAbt")]
    pub tx_abt: u16,
    #[vmstate(name = "tally_counters.TxUndrn")]
    pub tx_undrn: u16,
    #[vmstate(since = 4)]
    pub cplus_enabled: u32,
    #[vmstate(subsection)]
    pub hotplug_ready: Option<HotplugReady>,
}

/// Says that the card was plugged in while the machine ran.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "rtl8139/hotplug_ready", version = 1)]
pub struct HotplugReady {}

impl Rtl8139State {
    pub(super) fn save(parent_obj: PciDeviceState, r: &Regs, now: i64) -> Self {
        let (e, t) = (&r.eeprom, &r.tally);
        Self {
            parent_obj,
            phys: r.phys.into(),
            mult: r.mult.into(),
            tx_status: r.tx_status,
            tx_addr: r.tx_address,
            rx_buf: r.rx_buffer,
            rx_buffer_size: r.rx_size,
            rx_buf_ptr: r.rx_read,
            rx_buf_addr: r.rx_write,
            intr_status: r.status,
            intr_mask: r.mask,
            tx_config: r.tx_config,
            rx_config: r.rx_config,
            rx_missed: r.rx_missed,
            cscr: r.cscr,
            cfg9346: r.cfg9346,
            config0: r.config[0],
            config1: r.config[1],
            config3: r.config[3],
            config4: r.config[4],
            config5: r.config[5],
            clock_enabled: r.clock_enabled.into(),
            chip_cmd: r.command,
            multi_intr: r.multiple_interrupt,
            basic_mode_ctrl: r.bmcr,
            basic_mode_status: r.bmsr,
            nway_advert: r.nway[0],
            nway_lpar: r.nway[1],
            nway_expansion: r.nway[2],
            cp_cmd: r.cplus_command,
            tx_thresh: r.tx_threshold,
            unused: Unused,
            macaddr: r.mac.into(),
            dummy: 0,
            curr_tx_desc: r.tx_next,
            curr_cplus_rx_desc: r.rx_descriptor,
            curr_cplus_tx_desc: r.tx_descriptor,
            rx_ring_addr_lo: r.rx_ring[0],
            rx_ring_addr_hi: r.rx_ring[1],
            eeprom_contents: e.contents,
            eeprom_mode: e.mode as i32,
            eeprom_tick: e.tick,
            eeprom_address: e.address,
            eeprom_input: e.input,
            eeprom_output: e.output,
            eeprom_eecs: e.select.into(),
            eeprom_eesk: e.clock.into(),
            eeprom_eedi: e.data_in.into(),
            eeprom_eedo: e.data_out.into(),
            tctr: r.timer_count(now),
            timer_int: r.timer_interrupt,
            tctr_base: r.timer_base,
            tx_ok: t.tx_ok,
            rx_ok: t.rx_ok,
            tx_err: t.tx_error,
            rx_err: t.rx_error,
            miss_pkt: t.missed,
            fae: t.alignment,
            tx_1col: t.one_collision,
            tx_mcol: t.collisions,
            rx_ok_phy: t.rx_mine,
            rx_ok_brd: t.rx_broadcast,
            rx_ok_mul: t.rx_multicast,
            tx_abt: t.tx_aborted,
            tx_undrn: t.tx_underrun,
            cplus_enabled: r.cplus.into(),
            hotplug_ready: None,
        }
    }

    pub(super) fn check(&self) -> Result<(), LoadError> {
        if ![8192, 16384, 32768, 65536].contains(&self.rx_buffer_size) {
            return Err(LoadError::invalid("rtl8139: RxBufferSize is no size of a ring"));
        }
        if self.rx_buf_addr >= self.rx_buffer_size || self.rx_buf_ptr >= self.rx_buffer_size {
            return Err(LoadError::invalid("rtl8139: the receive ring's pointers are outside"));
        }
        if self.curr_tx_desc > 3 || self.curr_cplus_tx_desc > 63 {
            return Err(LoadError::invalid("rtl8139: no such transmit descriptor"));
        }
        if Mode::from_number(self.eeprom_mode).is_none() || self.eeprom_address > 63 {
            return Err(LoadError::invalid("rtl8139: the EEPROM is in no state of its own"));
        }
        if self.tctr_base < 0 {
            return Err(LoadError::invalid("rtl8139: TCTR_base is negative"));
        }
        Ok(())
    }

    pub(super) fn load(self, r: &mut Regs) {
        let clock_enabled = self.clock_enabled != 0;
        *r = Regs {
            mac: *self.macaddr,
            phys: *self.phys,
            mult: *self.mult,
            tx_status: self.tx_status,
            tx_address: self.tx_addr,
            rx_buffer: self.rx_buf,
            rx_size: self.rx_buffer_size,
            rx_read: self.rx_buf_ptr,
            rx_write: self.rx_buf_addr,
            status: self.intr_status,
            mask: self.intr_mask,
            tx_config: self.tx_config,
            rx_config: self.rx_config,
            rx_missed: self.rx_missed,
            cscr: self.cscr,
            cfg9346: self.cfg9346,
            config: [self.config0, self.config1, 0, self.config3, self.config4, self.config5],
            clock_enabled,
            command: self.chip_cmd,
            multiple_interrupt: self.multi_intr,
            bmcr: self.basic_mode_ctrl,
            bmsr: self.basic_mode_status,
            nway: [self.nway_advert, self.nway_lpar, self.nway_expansion],
            cplus_command: self.cp_cmd,
            tx_threshold: self.tx_thresh,
            tx_next: self.curr_tx_desc,
            rx_descriptor: self.curr_cplus_rx_desc,
            tx_descriptor: self.curr_cplus_tx_desc,
            rx_ring: [self.rx_ring_addr_lo, self.rx_ring_addr_hi],
            eeprom: Eeprom {
                contents: self.eeprom_contents,
                mode: Mode::from_number(self.eeprom_mode).unwrap_or_default(),
                tick: self.eeprom_tick,
                address: self.eeprom_address,
                input: self.eeprom_input,
                output: self.eeprom_output,
                select: self.eeprom_eecs != 0,
                clock: self.eeprom_eesk != 0,
                data_in: self.eeprom_eedi != 0,
                data_out: self.eeprom_eedo != 0,
            },
            timer_interrupt: self.timer_int,
            timer_base: self.tctr_base,
            tally: Tally {
                tx_ok: self.tx_ok,
                rx_ok: self.rx_ok,
                tx_error: self.tx_err,
                rx_error: self.rx_err,
                missed: self.miss_pkt,
                alignment: self.fae,
                one_collision: self.tx_1col,
                collisions: self.tx_mcol,
                rx_mine: self.rx_ok_phy,
                rx_broadcast: self.rx_ok_brd,
                rx_multicast: self.rx_ok_mul,
                tx_aborted: self.tx_abt,
                tx_underrun: self.tx_undrn,
            },
            // Streams older than version 4 do not say.
            cplus: self.cplus_enabled != 0 || self.cp_cmd != 0,
            rx_epoch: r.rx_epoch + 1,
        };
    }
}
