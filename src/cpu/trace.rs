//! What `-d` logs of a processor, in QEMU's forms: scripts read them.
//!
//! With nothing logged, nothing of this is in the way of blocks. Code is shown where it is decoded, events where they are
//! delivered. While every block is to be shown (`exec`, `cpu`), blocks run one at a time and none is translated.

use std::{fmt::Write, ops::RangeInclusive, sync::Arc};

use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter, Instruction, OpKind};
use lockstep_util::log::{Log, LogWatcher, item};

use crate::{
    Cpu, CpuLink, Registers,
    fault::{R, Reason},
    interrupt::Source,
    mem::Access,
    platform::request,
    state::{cr, flag, gpr, seg},
};

impl LogWatcher for CpuLink {
    fn log_changed(&self) {
        self.raise(request::LOG);
    }
}

/// Writes registers out as text; the flag says whether those of the FPU are wanted.
pub type DumpRegisters = fn(&Registers, bool) -> String;

/// A processor's part of a log.
pub(crate) struct Tracer {
    log: &'static Log,
    dump: DumpRegisters,
    index: u32,
    items: u32,
    filter: Option<Arc<[RangeInclusive<u64>]>>,
}

impl Cpu {
    /// Has the processor, number `index` of its machine, tell `log` what it does.
    pub fn set_log(&mut self, log: &'static Log, index: u32, dump: DumpRegisters) {
        let link: std::sync::Weak<CpuLink> = Arc::downgrade(&self.link);
        log.watch(link);
        self.tracer = Some(Box::new(Tracer { log, dump, index, items: 0, filter: None }));
        self.follow_log();
    }

    /// Looks at what is to be logged from now on. No block runs.
    pub(crate) fn follow_log(&mut self) {
        let Some(tracer) = &mut self.tracer else { return };
        let items = tracer.log.items();
        if items == tracer.items {
            return;
        }
        (tracer.items, tracer.filter) = (items, tracer.log.filter());
        self.traced = items & (item::EXEC | item::CPU) != 0;
        // Code that was decoded is shown when it is met again.
        self.forget_all_code();
    }

    /// The tracer, if something of `items` is logged.
    #[inline]
    fn traces(&self, items: u32) -> Option<&Tracer> {
        self.tracer.as_deref().filter(|t| t.items & items != 0)
    }

    fn log_text(&self, text: &str) {
        if let Some(tracer) = &self.tracer {
            tracer.log.write(text);
        }
    }

    /// The registers as text, `RIP` being `rip`.
    fn dump_at(&mut self, rip: u64, with_fpu: bool) -> String {
        let mut registers = self.registers();
        registers.rip = rip;
        self.tracer.as_ref().map_or_else(String::new, |t| (t.dump)(&registers, with_fpu))
    }

    /// `in_asm`: instructions that were decoded at a linear address.
    pub(crate) fn trace_code(&self, address: u64, bytes: &[u8]) {
        let Some(tracer) = self.traces(item::IN_ASM) else { return };
        if tracer.shows(address) {
            tracer.log.write(&listing(address, bytes, [16, 32, 64][usize::from(self.bits)]));
        }
    }

    /// `exec` and `cpu`: what is at `RIP` is executed now. `code` is where the block is in this process.
    pub(crate) fn trace_block(&mut self, code: *const crate::block::Block) {
        let address = self.code_address();
        let Some(tracer) = self.traces(item::EXEC | item::CPU).filter(|t| t.shows(address)) else { return };
        let (items, index) = (tracer.items, tracer.index);
        let mut text = String::new();
        if items & item::EXEC != 0 {
            let base = if self.bits == 2 { 0 } else { self.segs[seg::CS].base };
            // The last number is for a block that is not chained to others.
            let kind = 0xff00_0200u32;
            let _ = writeln!(
                text,
                "Trace {index}: {code:p} [{base:08x}/{address:016x}/{:08x}/{kind:08x}] ",
                self.block_flags()
            );
        }
        if items & item::CPU != 0 {
            text += &self.dump_at(self.hot.gpr[gpr::RIP], items & item::FPU != 0);
        }
        self.log_text(&text);
    }

    /// What code depends on, as bits that QEMU gives it (`HF_*` of its `cpu.h`).
    fn block_flags(&self) -> u32 {
        let s = &self.segs;
        let protected = self.cr0 & cr::CR0_PE != 0;
        let simple = protected && self.rest & flag::VM == 0 && self.bits != 0;
        let based = [seg::DS, seg::ES, seg::SS].iter().any(|&i| s[i].base != 0);
        let long = self.efer & 1 << 10 != 0;
        let bit = |set: bool, at: u32| u32::from(set) << at;
        u32::from(self.cpl)
            | bit(self.shadow, 3)
            | bit(self.bits != 0, 4)
            | bit(self.bits == 2 || protected && s[seg::SS].flags & 1 << 22 != 0, 5)
            | bit(self.bits != 2 && (!simple || based), 6)
            | bit(protected, 7)
            | (self.cr0 as u32 & 0xe) << 8
            | bit(long, 14)
            | bit(self.bits == 2, 15)
            | bit(self.cr4 & 1 << 9 != 0, 22)
            | bit(self.cr4 & 1 << 21 != 0, 23)
            | (self.rest & (flag::TF | flag::IOPL | flag::RF | flag::VM | flag::AC)) as u32
    }

    /// [`enter`](Self::enter), told of under `int`. `rip` is where the event is.
    pub(crate) fn enter_traced(&mut self, v: u8, code: Option<u32>, source: Source, rip: u64) -> R<()> {
        if self.traces(item::INT).is_none() || self.cr0 & cr::CR0_PE == 0 {
            return self.enter(v, code, source);
        }
        let cs = self.segs[seg::CS];
        let linear = if self.bits == 2 { rip } else { cs.base.wrapping_add(rip) & 0xffff_ffff };
        let mut text = format!(
            "v={v:02x} e={:04x} i={} cpl={} IP={:04x}:{rip:016x} pc={linear:016x} SP={:04x}:{:016x} ",
            code.unwrap_or(0),
            u8::from(source == Source::Software),
            self.cpl,
            cs.selector,
            self.segs[seg::SS].selector,
            self.hot.gpr[gpr::RSP],
        );
        let _ = match v {
            crate::fault::vector::PF => writeln!(text, "CR2={:016x}", self.cr2),
            _ => writeln!(text, "env->regs[R_EAX]={:016x}", self.hot.gpr[gpr::RAX]),
        };
        text += &self.dump_at(rip, false);
        let result = self.enter(v, code, source);
        // Else it is tried again.
        if (result.is_ok() || !matches!(self.reason, Reason::Alone))
            && let Some(tracer) = &self.tracer
        {
            tracer.log.write(&format!("{:6}: {text}", tracer.log.next_event()));
        }
        result
    }

    /// `int`: an exception is raised, maybe while another one was being delivered.
    pub(crate) fn trace_exception(&self, old: Option<u8>, new: u8) {
        if self.traces(item::INT).is_some() {
            let old = old.map_or(u32::MAX, u32::from);
            self.log_text(&format!("check_exception old: {old:#x} new {new:#x}\n"));
        }
    }

    /// `int`: an interrupt controller's vector is taken.
    pub(crate) fn trace_interrupt(&self, v: u8) {
        if self.traces(item::INT).is_some() {
            self.log_text(&format!("Servicing hardware INT={v:#04x}\n"));
        }
    }

    /// `cpu_reset`: the machine is to be reset because an exception could not be delivered.
    pub(crate) fn trace_triple_fault(&self) {
        if self.traces(item::CPU_RESET).is_some() {
            self.log_text("Triple fault\n");
        }
    }

    /// `cpu_reset`: INIT comes.
    pub(crate) fn trace_reset(&mut self) {
        if let Some(index) = self.traces(item::CPU_RESET).map(|t| t.index) {
            let registers = self.dump_at(self.hot.gpr[gpr::RIP], true);
            self.log_text(&format!("CPU Reset (CPU {index})\n{registers}"));
        }
    }

    /// `mmu`: CR0 or CR3 was written.
    pub(crate) fn trace_control(&self, register: u32) {
        if self.traces(item::MMU).is_none() {
            return;
        }
        match register {
            0 => self.log_text(&format!("CR0 update: CR0={:#010x}\n", self.cr0)),
            3 if self.cr0 & cr::CR0_PG != 0 => self.log_text(&format!("CR3 update: CR3={:016x}\n", self.cr3)),
            _ => {}
        }
    }

    /// `unimp`: the `len` bytes at [`here`](Self::here) are no instruction.
    pub(crate) fn trace_unknown(&mut self, len: usize) {
        if self.traces(item::UNIMP).is_none() {
            return;
        }
        let base = if self.bits == 2 { 0 } else { self.segs[seg::CS].base };
        let start = base.wrapping_add(self.here) & if self.bits == 2 { u64::MAX } else { 0xffff_ffff };
        let mut text = format!("ILLOPC: {start:016x}:");
        for i in 0..len as u64 {
            // They were fetched from there.
            let Ok(physical) = self.translate(start.wrapping_add(i), Access::Exec) else { return };
            let byte = self.physical_load(physical, 1);
            let _ = write!(text, " {byte:02x}");
        }
        self.log_text(&(text + "\n"));
    }
}

impl Tracer {
    fn shows(&self, address: u64) -> bool {
        self.filter.as_ref().is_none_or(|f| f.iter().any(|r| r.contains(&address)))
    }
}

/// Instructions with address and bytes, after the header that QEMU gives them. There are no names of places.
fn listing(address: u64, bytes: &[u8], width: u32) -> String {
    let mut text = String::from("----------------\nIN: \n");
    let mut decoder = Decoder::with_ip(width, bytes, address, DecoderOptions::NONE);
    let mut formatter = GasFormatter::new();
    let options = formatter.options_mut();
    options.set_space_after_operand_separator(true);
    options.set_gas_show_mnemonic_size_suffix(true);
    options.set_rip_relative_addresses(true);
    options.set_displacement_leading_zeros(false);
    options.set_branch_leading_zeros(false);
    options.set_show_branch_size(false);
    options.set_uppercase_hex(false);
    let mut insn = Instruction::default();
    let place = |at: usize| {
        let at = address.wrapping_add(at as u64);
        if width == 64 { at } else { at & 0xffff_ffff }
    };
    while decoder.can_decode() {
        let at = decoder.position();
        decoder.decode_out(&mut insn);
        if insn.is_invalid() {
            // Nobody knows where the next one begins.
            for (i, byte) in bytes.iter().enumerate().skip(at) {
                let _ = writeln!(text, "0x{:08x}:  {byte:02x}{:<23}.byte    0x{byte:02x}", place(i), "");
            }
            break;
        }
        let (mut name, mut operands) = (String::new(), String::new());
        formatter.format_mnemonic(&insn, &mut name);
        match insn.op0_kind() {
            OpKind::FarBranch16 => operands = far(&insn, insn.far_branch16().into()),
            OpKind::FarBranch32 => operands = far(&insn, insn.far_branch32()),
            _ => formatter.format_all_operands(&insn, &mut operands),
        }
        for (n, part) in bytes[at..decoder.position()].chunks(8).enumerate() {
            let hex: Vec<_> = part.iter().map(|b| format!("{b:02x}")).collect();
            let place = place(at + 8 * n);
            let _ = match n {
                0 => writeln!(text, "0x{place:08x}:  {:<24} {name:<8} {operands}", hex.join(" ")),
                _ => writeln!(text, "0x{place:08x}:  {}", hex.join(" ")),
            };
        }
    }
    text + "\n"
}

fn far(insn: &Instruction, offset: u32) -> String {
    format!("$0x{:x}:$0x{offset:x}", insn.far_branch_selector())
}
