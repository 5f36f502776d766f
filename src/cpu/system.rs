//! Instructions of the operating system: control registers, descriptor tables, MSRs, ports, SYSCALL and the like.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::{
    Cpu,
    block::Op,
    counting::is_timed,
    fault::{R, vector},
    ops,
    segment::Descriptor,
    state::{Segment, Table, attr, cr, flag, gpr, seg},
};

impl Cpu {
    fn privileged(&mut self) -> R<()> {
        if self.cpl != 0 && self.cr0 & cr::CR0_PE != 0 { Err(self.gp()) } else { Ok(()) }
    }

    /// UMIP: reading where the system's tables are is forbidden to programs.
    fn umip(&mut self) -> R<()> {
        if self.cr4 & cr::CR4_UMIP != 0 && self.cpl != 0 { Err(self.gp()) } else { Ok(()) }
    }

    /// Whether the present privilege may access I/O ports.
    pub(crate) fn check_port(&mut self, port: u16, size: u32) -> R<()> {
        let iopl = (self.rest >> 12 & 3) as u8;
        if self.cr0 & cr::CR0_PE == 0 || self.cpl <= iopl && !self.vm86() {
            return Ok(());
        }
        let tr = self.tr;
        if !tr.present() || tr.flags >> 11 & 1 == 0 || tr.limit < 0x67 {
            return Err(self.gp());
        }
        let map: u16 = self.as_supervisor(|cpu| cpu.load(tr.base.wrapping_add(0x66)))?;
        let at = u32::from(map) + u32::from(port >> 3);
        if at + 1 > tr.limit {
            return Err(self.gp());
        }
        let bits: u16 = self.as_supervisor(|cpu| cpu.load(tr.base.wrapping_add(at.into())))?;
        if bits >> (port & 7) & ((1 << size) - 1) != 0 {
            return Err(self.gp());
        }
        Ok(())
    }

    pub(crate) fn port_in(&mut self, port: u16, size: u32) -> u64 {
        let value = self.outside(|cpu| match cpu.machine.ports.load(port.into(), size) {
            Ok(value) => value,
            Err(_) => cpu.machine.ports.unassigned_value(size),
        });
        self.look_at_device_writes();
        value
    }

    pub(crate) fn port_out(&mut self, port: u16, size: u32, value: u64) {
        self.outside(|cpu| cpu.machine.ports.store(port.into(), size, value).unwrap_or(()));
        self.look_at_device_writes();
    }

    /// A device may have written to code before it said so.
    pub(crate) fn look_at_device_writes(&mut self) {
        self.machine.scan_device_writes();
    }

    pub(crate) fn execute_system(&mut self, insn: &Instruction, op: &Op) -> R<Option<bool>> {
        use Mnemonic as M;
        if is_timed(insn.mnemonic()) {
            self.sees_time()?;
            if self.counting.on {
                // So that it shows what this instruction sees.
                self.outside(|_| ());
            }
        }
        match insn.mnemonic() {
            M::In => {
                let port = if insn.op_kind(1) == OpKind::Register {
                    self.hot.gpr[gpr::RDX] as u16
                } else {
                    insn.immediate8().into()
                };
                let r = insn.op_register(0);
                self.check_port(port, r.size() as u32)?;
                self.note_port_access(port, r.size() as u32)?;
                let value = self.port_in(port, r.size() as u32);
                self.write_register(r, value);
                return Ok(Some(true));
            }
            M::Out => {
                let port = if insn.op_kind(0) == OpKind::Register {
                    self.hot.gpr[gpr::RDX] as u16
                } else {
                    insn.immediate8().into()
                };
                let r = insn.op_register(1);
                self.check_port(port, r.size() as u32)?;
                self.note_port_access(port, r.size() as u32)?;
                let value = self.register(r);
                self.port_out(port, r.size() as u32, value);
                return Ok(Some(true));
            }
            M::Cli | M::Sti => {
                let iopl = (self.rest >> 12 & 3) as u8;
                if self.cr0 & cr::CR0_PE != 0 && (self.cpl > iopl || self.vm86() && iopl < 3) {
                    return Err(self.gp());
                }
                if insn.mnemonic() == M::Cli {
                    self.rest &= !flag::IF;
                    return Ok(Some(false));
                }
                if self.rest & flag::IF == 0 {
                    self.rest |= flag::IF;
                    self.shadow = true;
                }
                self.flags_changed();
                return Ok(Some(true));
            }
            M::Hlt => {
                self.privileged()?;
                self.halted = true;
                return Ok(Some(true));
            }
            M::Mov => return self.move_control(insn).map(Some),
            M::Clts => {
                self.privileged()?;
                self.cr0 &= !cr::CR0_TS;
            }
            M::Lmsw => {
                self.privileged()?;
                let value = self.operand_of(insn, op, 0, 2)?;
                let new = self.cr0 & !0xe | value & 0xf | self.cr0 & 1;
                self.set_cr0(new)?;
                return Ok(Some(true));
            }
            M::Smsw => {
                self.umip()?;
                let value = self.cr0;
                if insn.op_kind(0) == OpKind::Register {
                    self.write_register(insn.op_register(0), value);
                } else {
                    let at = ops::operand_address(self, op, 2, true)?;
                    self.store(at, value as u16)?;
                }
            }
            M::Lgdt | M::Lidt => {
                self.privileged()?;
                let long = self.bits == 2;
                let at = ops::operand_address(self, op, if long { 10 } else { 6 }, false)?;
                let limit: u16 = self.load(at)?;
                let base = if long {
                    self.load::<u64>(at.wrapping_add(2))?
                } else {
                    self.load::<u32>(at.wrapping_add(2))?.into()
                };
                // With a 16-bit operand only 24 bits of the base count.
                let base =
                    if insn.memory_size().size() == 6 && is_narrow_table(insn) { base & 0xff_ffff } else { base };
                let table = Table { base, limit };
                if insn.mnemonic() == M::Lgdt {
                    self.gdt = table;
                } else {
                    self.idt = table;
                }
            }
            M::Sgdt | M::Sidt => {
                self.umip()?;
                let table = if insn.mnemonic() == M::Sgdt { self.gdt } else { self.idt };
                let long = self.bits == 2;
                let at = ops::operand_address(self, op, if long { 10 } else { 6 }, true)?;
                let mut bytes = [0; 10];
                bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
                bytes[2..].copy_from_slice(&table.base.to_le_bytes());
                self.store_bytes(at, &bytes[..if long { 10 } else { 6 }])?;
            }
            M::Sldt | M::Str => {
                if self.real_mode() {
                    return Err(self.ud());
                }
                self.umip()?;
                let selector = if insn.mnemonic() == M::Sldt { self.ldt.selector } else { self.tr.selector };
                if insn.op_kind(0) == OpKind::Register {
                    self.write_register(insn.op_register(0), selector.into());
                } else {
                    let at = ops::operand_address(self, op, 2, true)?;
                    self.store(at, selector)?;
                }
            }
            M::Lldt | M::Ltr => {
                if self.real_mode() {
                    return Err(self.ud());
                }
                self.privileged()?;
                let selector = self.operand_of(insn, op, 0, 2)? as u16;
                self.load_system_segment(selector, insn.mnemonic() == M::Ltr)?;
            }
            M::Lar | M::Lsl | M::Verr | M::Verw => {
                if self.real_mode() {
                    return Err(self.ud());
                }
                self.inspect_selector(insn, op)?;
            }
            M::Arpl => {
                if self.real_mode() {
                    return Err(self.ud());
                }
                let a = self.operand_of(insn, op, 0, 2)?;
                let b = self.register(insn.op_register(1));
                let flags = self.hot.arith() & !flag::ZF;
                if a & 3 < b & 3 {
                    self.write_operand(insn, op, 0, a & !3 | b & 3)?;
                    self.hot.set_arith(flags | flag::ZF);
                } else {
                    self.hot.set_arith(flags);
                }
            }
            M::Invlpg => {
                self.privileged()?;
                let offset = ops::operand_offset(self, op);
                let base = if self.bits != 2 || usize::from(op.seg) >= seg::FS {
                    self.segs[usize::from(op.seg).min(5)].base
                } else {
                    0
                };
                self.flush_page(base.wrapping_add(offset));
                return Ok(Some(true));
            }
            M::Invpcid => {
                self.privileged()?;
                let at = ops::operand_address(self, op, 16, false)?;
                let pcid = self.load::<u64>(at)?;
                let address = self.load::<u64>(at.wrapping_add(8))?;
                self.invpcid(self.register(insn.op_register(0)), pcid, address)?;
                return Ok(Some(true));
            }
            M::Invd | M::Wbinvd | M::Wbnoinvd => self.privileged()?,
            M::Rdmsr => {
                self.privileged()?;
                let index = self.hot.gpr[gpr::RCX] as u32;
                let Some(value) = self.read_msr(index) else { return Err(self.gp()) };
                self.hot.gpr[gpr::RAX] = value & 0xffff_ffff;
                self.hot.gpr[gpr::RDX] = value >> 32;
            }
            M::Wrmsr => {
                self.privileged()?;
                let index = self.hot.gpr[gpr::RCX] as u32;
                let value = self.hot.gpr[gpr::RAX] & 0xffff_ffff | self.hot.gpr[gpr::RDX] << 32;
                if !self.write_msr(index, value) {
                    return Err(self.gp());
                }
                self.update_mode();
                return Ok(Some(true));
            }
            M::Rdtsc | M::Rdtscp => {
                if self.cr4 & cr::CR4_TSD != 0 && self.cpl != 0 {
                    return Err(self.gp());
                }
                let value = self.read_tsc();
                self.hot.gpr[gpr::RAX] = value & 0xffff_ffff;
                self.hot.gpr[gpr::RDX] = value >> 32;
                if insn.mnemonic() == M::Rdtscp {
                    self.hot.gpr[gpr::RCX] = self.msrs.tsc_aux & 0xffff_ffff;
                }
            }
            M::Rdpid => {
                let value = self.msrs.tsc_aux;
                self.write_register(insn.op_register(0), value);
            }
            M::Rdpmc => {
                if self.cr4 & cr::CR4_PCE == 0 {
                    self.privileged()?;
                }
                return Err(self.gp());
            }
            M::Cpuid => {
                let (leaf, subleaf) = (self.hot.gpr[gpr::RAX] as u32, self.hot.gpr[gpr::RCX] as u32);
                let [a, b, c, d] = self.cpuid(leaf, subleaf);
                for (r, v) in [(gpr::RAX, a), (gpr::RBX, b), (gpr::RCX, c), (gpr::RDX, d)] {
                    self.hot.gpr[r] = v.into();
                }
            }
            M::Xgetbv => {
                if self.cr4 & cr::CR4_OSXSAVE == 0 {
                    return Err(self.ud());
                }
                let value = match self.hot.gpr[gpr::RCX] as u32 {
                    0 => self.xcr0,
                    1 => self.xcr0 & self.components_in_use(),
                    _ => return Err(self.gp()),
                };
                self.hot.gpr[gpr::RAX] = value & 0xffff_ffff;
                self.hot.gpr[gpr::RDX] = value >> 32;
            }
            M::Xsetbv => {
                if self.cr4 & cr::CR4_OSXSAVE == 0 {
                    return Err(self.ud());
                }
                self.privileged()?;
                let value = self.hot.gpr[gpr::RAX] & 0xffff_ffff | self.hot.gpr[gpr::RDX] << 32;
                let fits = value & 1 != 0 && value & !self.xcr0_allowed == 0 && (value & 4 == 0 || value & 2 != 0);
                if self.hot.gpr[gpr::RCX] as u32 != 0 || !fits {
                    return Err(self.gp());
                }
                self.xcr0 = value;
            }
            M::Swapgs => {
                if self.bits != 2 {
                    return Err(self.ud());
                }
                self.privileged()?;
                std::mem::swap(&mut self.segs[seg::GS].base, &mut self.msrs.kernel_gs_base);
            }
            M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => {
                if self.bits != 2 || self.cr4 & cr::CR4_FSGSBASE == 0 {
                    return Err(self.ud());
                }
                let which = if matches!(insn.mnemonic(), M::Rdfsbase | M::Wrfsbase) { seg::FS } else { seg::GS };
                let r = insn.op_register(0);
                if matches!(insn.mnemonic(), M::Rdfsbase | M::Rdgsbase) {
                    let base = self.segs[which].base;
                    self.write_register(r, base);
                } else {
                    let value = self.register(r);
                    if !canonical(value) {
                        return Err(self.gp());
                    }
                    self.segs[which].base = value;
                }
            }
            M::Stac | M::Clac => {
                if !self.has_smap || self.cpl != 0 {
                    return Err(self.ud());
                }
                if insn.mnemonic() == M::Stac {
                    self.rest |= flag::AC;
                } else {
                    self.rest &= !flag::AC;
                }
                self.update_mode();
                return Ok(Some(false));
            }
            M::Syscall => self.syscall()?,
            M::Sysret | M::Sysretq => self.sysret(insn.mnemonic() == M::Sysretq)?,
            M::Sysenter => self.sysenter()?,
            M::Sysexit | M::Sysexitq => self.sysexit(insn.mnemonic() == M::Sysexitq)?,
            _ => return Ok(None),
        }
        let ends = matches!(
            insn.mnemonic(),
            M::Syscall | M::Sysret | M::Sysretq | M::Sysenter | M::Sysexit | M::Sysexitq | M::Xsetbv | M::Cpuid
        );
        Ok(Some(ends))
    }

    /// Operand `n` cut to `size` bytes, whatever the width of the instruction's register.
    fn operand_of(&mut self, insn: &Instruction, op: &Op, n: u32, size: u32) -> R<u64> {
        if insn.op_kind(n) == OpKind::Register {
            return Ok(self.register(insn.op_register(n)) & ((1 << (size * 8)) - 1));
        }
        let at = ops::operand_address(self, op, size, false)?;
        self.load_sized(at, size)
    }

    fn move_control(&mut self, insn: &Instruction) -> R<bool> {
        self.privileged()?;
        let (to, from) = (insn.op_register(0), insn.op_register(1));
        if to.is_cr() {
            let value = self.register(from);
            match to {
                Register::CR0 => self.set_cr0(value)?,
                Register::CR2 => self.cr2 = value,
                Register::CR3 => {
                    let pcids = self.cr4 & cr::CR4_PCIDE != 0;
                    let keep = pcids && value >> 63 != 0;
                    let value = if pcids { value & !(1 << 63) } else { value };
                    if self.long_mode() && value >> self.physical_bits != 0 {
                        return Err(self.gp());
                    }
                    self.set_cr3(value, keep);
                    self.trace_control(3);
                }
                Register::CR4 => self.set_cr4(value)?,
                Register::CR8 => {
                    if value & !15 != 0 {
                        return Err(self.gp());
                    }
                    self.sees_time()?;
                    self.outside(|cpu| cpu.platform.set_task_priority(value as u8));
                }
                _ => return Err(self.ud()),
            }
        } else if from.is_cr() {
            let value = match from {
                Register::CR0 => self.cr0,
                Register::CR2 => self.cr2,
                Register::CR3 => self.cr3,
                Register::CR4 => self.cr4,
                Register::CR8 => {
                    self.sees_time()?;
                    self.outside(|cpu| cpu.platform.task_priority()).into()
                }
                _ => return Err(self.ud()),
            };
            self.write_register(to, value);
        } else if to.is_dr() || from.is_dr() {
            let n = if to.is_dr() { to.number() } else { from.number() };
            if n >= 8 || matches!(n, 4 | 5) && self.cr4 & cr::CR4_DE != 0 {
                return Err(self.ud());
            }
            if self.dr[7] & 1 << 13 != 0 {
                self.dr[6] |= 1 << 13;
                return Err(self.raise(vector::DB, None));
            }
            let n = if matches!(n, 4 | 5) { n + 2 } else { n };
            if to.is_dr() {
                let value = self.register(from);
                self.set_debug_register(n, value)?;
            } else {
                let value = self.dr[n];
                self.write_register(to, value);
            }
        } else {
            return Err(self.ud());
        }
        Ok(true)
    }

    /// Sets CR0 with its checks and what follows from them.
    pub(crate) fn set_cr0(&mut self, value: u64) -> R<()> {
        let pg = value & cr::CR0_PG != 0;
        let bad = value >> 32 != 0
            || pg && value & cr::CR0_PE == 0
            || value & (cr::CR0_NW | cr::CR0_CD) == cr::CR0_NW
            || !pg && self.bits == 2;
        if bad {
            return Err(self.gp());
        }
        let was_paging = self.cr0 & cr::CR0_PG != 0;
        if pg && !was_paging && self.efer & cr::EFER_LME != 0 {
            if self.cr4 & cr::CR4_PAE == 0 || self.segs[seg::CS].flags & attr::L != 0 {
                return Err(self.gp());
            }
            self.efer |= cr::EFER_LMA;
        } else if !pg && was_paging {
            if self.cr4 & cr::CR4_PCIDE != 0 {
                return Err(self.gp());
            }
            self.efer &= !cr::EFER_LMA;
        }
        let changed = self.cr0 ^ value;
        let defined = 0xe005_003f;
        self.cr0 = value & defined | cr::CR0_ET;
        self.trace_control(0);
        if self.cr0 & cr::CR0_PE == 0 || changed & cr::CR0_PE != 0 {
            self.cpl = 0;
        }
        if changed & (cr::CR0_PG | cr::CR0_WP | cr::CR0_PE) != 0 {
            self.flush_tlb();
        }
        self.update_mode();
        Ok(())
    }

    fn set_cr4(&mut self, value: u64) -> R<()> {
        let bad = value & !self.cr4_allowed != 0
            || self.long_mode() && value & cr::CR4_PAE == 0
            || value & !self.cr4 & cr::CR4_PCIDE != 0 && (!self.long_mode() || self.cr3 & 0xfff != 0);
        if bad {
            return Err(self.gp());
        }
        self.cr4 = value;
        self.flush_tlb();
        self.update_mode();
        Ok(())
    }

    fn load_system_segment(&mut self, selector: u16, task: bool) -> R<()> {
        if selector & !3 == 0 {
            if task {
                return Err(self.gp());
            }
            self.ldt = Segment { selector, ..Segment::default() };
            return Ok(());
        }
        if selector & 4 != 0 {
            return Err(self.selector_fault(vector::GP, selector));
        }
        let mut d = self.descriptor(selector, vector::GP)?;
        let fits = if task { matches!(d.kind(), 9) || d.kind() == 1 && !self.long_mode() } else { d.kind() == 2 };
        if !fits {
            return Err(self.selector_fault(vector::GP, selector));
        }
        if !d.has(attr::P) {
            return Err(self.selector_fault(vector::NP, selector));
        }
        let table = self.gdt.base.wrapping_add(u64::from(selector & !7));
        let mut upper = 0;
        if self.long_mode() {
            if u32::from(selector & !7) + 15 > self.gdt.limit.into() {
                return Err(self.selector_fault(vector::GP, selector));
            }
            upper = self.as_supervisor(|cpu| cpu.load::<u32>(table.wrapping_add(8)))?;
        }
        if task {
            d.high |= 1 << 9;
            let high = d.high;
            self.as_supervisor(|cpu| cpu.store(table.wrapping_add(4), high))?;
        }
        let mut segment = d.segment(selector);
        segment.base |= u64::from(upper) << 32;
        if task {
            self.tr = segment;
        } else {
            self.ldt = segment;
        }
        Ok(())
    }

    /// LAR, LSL, VERR, VERW: ZF says whether the selector is good for it.
    fn inspect_selector(&mut self, insn: &Instruction, op: &Op) -> R<()> {
        use Mnemonic as M;
        let n = insn.op_count() - 1;
        let selector = self.operand_of(insn, op, n, 2)? as u16;
        let m = insn.mnemonic();
        let found = if selector & !3 == 0 { None } else { self.find_descriptor(selector)? };
        let rpl = (selector & 3) as u8;
        let long = self.long_mode();
        let good = found.filter(|d: &Descriptor| {
            let conforming = d.is_code() && d.has(attr::EXPAND_DOWN);
            let privileged = conforming || d.dpl() >= self.cpl && d.dpl() >= rpl;
            let kind_ok = if d.has(attr::S) {
                match m {
                    M::Verr => !d.is_code() || d.has(attr::WRITABLE),
                    M::Verw => !d.is_code() && d.has(attr::WRITABLE),
                    _ => true,
                }
            } else {
                let kind = d.kind();
                match m {
                    M::Lar => matches!(kind, 2 | 9 | 0xb | 0xc) || !long && matches!(kind, 1 | 3 | 4 | 5),
                    M::Lsl => matches!(kind, 2 | 9 | 0xb) || !long && matches!(kind, 1 | 3),
                    _ => false,
                }
            };
            privileged && kind_ok
        });
        let flags = self.hot.arith() & !flag::ZF;
        let Some(d) = good else {
            self.hot.set_arith(flags);
            return Ok(());
        };
        self.hot.set_arith(flags | flag::ZF);
        match m {
            M::Lar => self.write_register(insn.op_register(0), u64::from(d.high & 0x00ff_ff00)),
            M::Lsl => self.write_register(insn.op_register(0), d.limit().into()),
            _ => {}
        }
        Ok(())
    }

    pub(crate) fn flat(selector: u16, code: bool, dpl: u8, long: bool) -> Segment {
        let kind = if code { 0xb00 } else { 0x300 };
        let width = match (code, long) {
            (true, true) => attr::L,
            _ => attr::DB,
        };
        Segment {
            selector,
            base: 0,
            limit: 0xffff_ffff,
            flags: kind | attr::S | attr::P | attr::G | width | u32::from(dpl) << 13,
        }
    }

    fn syscall(&mut self) -> R<()> {
        if self.efer & cr::EFER_SCE == 0 || self.cr0 & cr::CR0_PE == 0 || !self.long_mode() && self.vendor_is_intel {
            return Err(self.ud());
        }
        let star = self.msrs.star;
        let cs = (star >> 32) as u16 & !3;
        if self.long_mode() {
            self.hot.gpr[gpr::RCX] = self.next;
            self.hot.gpr[gpr::R11] = self.rflags() & !flag::RF;
            let target = if self.bits == 2 { self.msrs.lstar } else { self.msrs.cstar };
            let clear = self.msrs.fmask & 0xffff_ffff;
            let flags = self.rflags() & !clear & !flag::RF;
            self.segs[seg::CS] = Self::flat(cs, true, 0, true);
            self.segs[seg::SS] = Self::flat(cs.wrapping_add(8), false, 0, false);
            self.cpl = 0;
            self.set_rflags(flags);
            self.next = target;
        } else {
            self.hot.gpr[gpr::RCX] = self.next & 0xffff_ffff;
            self.segs[seg::CS] = Self::flat(cs, true, 0, false);
            self.segs[seg::SS] = Self::flat(cs.wrapping_add(8), false, 0, false);
            self.cpl = 0;
            let flags = self.rflags() & !(flag::VM | flag::IF | flag::RF);
            self.set_rflags(flags);
            self.next = star & 0xffff_ffff;
        }
        self.update_mode();
        Ok(())
    }

    fn sysret(&mut self, wide: bool) -> R<()> {
        if self.efer & cr::EFER_SCE == 0 || self.cr0 & cr::CR0_PE == 0 {
            return Err(self.ud());
        }
        if self.cpl != 0 {
            return Err(self.gp());
        }
        let selector = (self.msrs.star >> 48) as u16;
        let rcx = self.hot.gpr[gpr::RCX];
        if self.long_mode() {
            if wide && !canonical(rcx) {
                return Err(self.gp());
            }
            let flags = self.hot.gpr[gpr::R11] & 0x3c_7fd7 & !flag::RF;
            let cs = if wide { selector.wrapping_add(16) } else { selector } | 3;
            self.segs[seg::CS] = Self::flat(cs, true, 3, wide);
            self.segs[seg::SS] = Self::flat(selector.wrapping_add(8) | 3, false, 3, false);
            self.cpl = 3;
            self.set_rflags(flags);
            self.next = if wide { rcx } else { rcx & 0xffff_ffff };
        } else {
            self.segs[seg::CS] = Self::flat(selector | 3, true, 3, false);
            self.segs[seg::SS] = Self::flat(selector.wrapping_add(8) | 3, false, 3, false);
            self.cpl = 3;
            let flags = self.rflags() | flag::IF;
            self.set_rflags(flags);
            self.next = rcx & 0xffff_ffff;
        }
        self.update_mode();
        Ok(())
    }

    fn sysenter(&mut self) -> R<()> {
        let cs = self.msrs.sysenter_cs as u16;
        if self.cr0 & cr::CR0_PE == 0 || cs & !3 == 0 {
            return Err(self.gp());
        }
        let long = self.long_mode();
        if long && !self.vendor_is_intel {
            // AMD has it in legacy modes only.
            return Err(self.ud());
        }
        let flags = self.rflags() & !(flag::VM | flag::IF | flag::RF);
        self.segs[seg::CS] = Self::flat(cs & !3, true, 0, long);
        self.segs[seg::SS] = Self::flat((cs & !3).wrapping_add(8), false, 0, false);
        self.cpl = 0;
        self.set_rflags(flags);
        self.hot.gpr[gpr::RSP] = if long { self.msrs.sysenter_esp } else { self.msrs.sysenter_esp & 0xffff_ffff };
        self.next = if long { self.msrs.sysenter_eip } else { self.msrs.sysenter_eip & 0xffff_ffff };
        self.update_mode();
        Ok(())
    }

    fn sysexit(&mut self, wide: bool) -> R<()> {
        let cs = self.msrs.sysenter_cs as u16 & !3;
        if self.cr0 & cr::CR0_PE == 0 || cs == 0 || self.cpl != 0 {
            return Err(self.gp());
        }
        if self.long_mode() && !self.vendor_is_intel {
            return Err(self.ud());
        }
        let (rcx, rdx) = (self.hot.gpr[gpr::RCX], self.hot.gpr[gpr::RDX]);
        let offset = if wide { 32 } else { 16 };
        self.segs[seg::CS] = Self::flat(cs.wrapping_add(offset) | 3, true, 3, wide);
        self.segs[seg::SS] = Self::flat(cs.wrapping_add(offset + 8) | 3, false, 3, false);
        self.cpl = 3;
        self.hot.gpr[gpr::RSP] = if wide { rcx } else { rcx & 0xffff_ffff };
        self.next = if wide { rdx } else { rdx & 0xffff_ffff };
        self.update_mode();
        self.flags_changed();
        Ok(())
    }
}

/// Whether a linear address has equal bits from 47 up.
pub(crate) fn canonical(address: u64) -> bool {
    ((address as i64) << 16 >> 16) as u64 == address
}

fn is_narrow_table(insn: &Instruction) -> bool {
    use iced_x86::Code;
    matches!(insn.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16)
}
