//! Jumps, calls, and the stack of 64-bit mode.

use iced_x86::{Code, Instruction, OpKind};

use crate::{execute::condition_code, state::gpr};

use super::{
    asm::{Mem, r},
    insn::{Access, Ea},
    layout::{self, HOST, IN_MEMORY},
    translate::{TooHard, Tx},
};

const SP: u8 = HOST[gpr::RSP];

impl Tx<'_> {
    /// What ends a block. True, or too hard.
    pub fn flow(&mut self, insn: &Instruction) -> Result<bool, TooHard> {
        if insn.is_jcc_short_or_near() && insn.op_kind(0) == OpKind::NearBranch64 {
            self.save_flags();
            self.load_flags();
            let taken = self.a.jcc(condition_code(insn));
            let next = self.next;
            self.exit(1, next);
            self.a.land(taken);
            self.exit(0, insn.near_branch64());
            return Ok(true);
        }
        match insn.code() {
            Code::Stac | Code::Clac => return self.suspend_smap(insn.code() == Code::Stac),
            Code::Syscall | Code::Sysretq => self.system_call(insn.code())?,
            Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => {
                self.save_flags();
                self.exit(0, insn.near_branch64());
            }
            Code::Call_rel32_64 => {
                let at = self.probe(&Ea::register(gpr::RSP, -8), Access::WRITE8)?;
                self.store_return(at);
                self.a.lea(SP, Mem::base(SP, -8));
                self.exit(0, insn.near_branch64());
            }
            Code::Jmp_rm64 => {
                self.save_flags();
                if insn.op_kind(0) == OpKind::Memory {
                    let ea = self.ea(insn)?;
                    let at = self.probe(&ea, Access::READ8)?;
                    self.a.load(r::R11, at);
                } else {
                    self.guest_to(r::R11, insn.op_register(0).number());
                }
                self.look_up();
            }
            Code::Call_rm64 => {
                let memory = insn.op_kind(0) == OpKind::Memory;
                if memory {
                    let ea = self.ea(insn)?;
                    let at = self.probe(&ea, Access::READ8)?;
                    self.a.load(r::R11, at);
                    self.a.store_gs(layout::TEMPORARY, r::R11);
                }
                let at = self.probe(&Ea::register(gpr::RSP, -8), Access::WRITE8)?;
                self.store_return(at);
                if memory {
                    self.a.load_gs(r::R11, layout::TEMPORARY);
                } else {
                    self.guest_to(r::R11, insn.op_register(0).number());
                }
                self.a.lea(SP, Mem::base(SP, -8));
                self.look_up();
            }
            Code::Retnq | Code::Retnq_imm16 => {
                let release = if insn.op_count() == 1 { i32::from(insn.immediate16()) } else { 0 };
                let at = self.probe(&Ea::register(gpr::RSP, 0), Access::READ8)?;
                self.a.load(r::R11, at);
                self.a.lea(SP, Mem::base(SP, 8 + release));
                self.look_up();
            }
            _ => return Err(TooHard),
        }
        Ok(true)
    }

    /// Stores the address behind the instruction.
    fn store_return(&mut self, at: Mem) {
        let next = self.next;
        if let Ok(v) = i32::try_from(next as i64) {
            self.a.op_mem(false, &[], true, &[0xc7], 0, at);
            self.a.imm32(v);
        } else {
            self.a.constant(r::R11, next);
            self.a.store(at, r::R11);
        }
    }

    /// PUSH, POP and LEAVE of the usual width.
    pub fn stack(&mut self, insn: &Instruction) -> Result<(), TooHard> {
        let register = insn.op_count() == 1 && insn.op_kind(0) == OpKind::Register;
        let n = if register { insn.op_register(0).number() } else { 0 };
        match insn.code() {
            Code::Push_r64 | Code::Push_rm64 if register => {
                let at = self.probe(&Ea::register(gpr::RSP, -8), Access::WRITE8)?;
                if HOST[n] == IN_MEMORY {
                    self.a.load_gs(r::R11, layout::gpr(n));
                    self.a.store(at, r::R11);
                } else {
                    self.a.store(at, HOST[n]);
                }
                self.a.lea(SP, Mem::base(SP, -8));
            }
            Code::Pushq_imm8 | Code::Pushq_imm32 => {
                let value = i32::try_from(insn.immediate(0) as i64).map_err(|_| TooHard)?;
                let at = self.probe(&Ea::register(gpr::RSP, -8), Access::WRITE8)?;
                self.a.op_mem(false, &[], true, &[0xc7], 0, at);
                self.a.imm32(value);
                self.a.lea(SP, Mem::base(SP, -8));
            }
            Code::Push_rm64 => {
                let ea = self.ea(insn)?;
                let at = self.probe(&ea, Access::READ8)?;
                self.a.load(r::R11, at);
                self.a.store_gs(layout::TEMPORARY, r::R11);
                let at = self.probe(&Ea::register(gpr::RSP, -8), Access::WRITE8)?;
                self.a.load_gs(r::R11, layout::TEMPORARY);
                self.a.store(at, r::R11);
                self.a.lea(SP, Mem::base(SP, -8));
            }
            Code::Pop_r64 | Code::Pop_rm64 if register => {
                let at = self.probe(&Ea::register(gpr::RSP, 0), Access::READ8)?;
                if n == gpr::RSP {
                    self.a.load(SP, at);
                    return Ok(());
                }
                if HOST[n] == IN_MEMORY {
                    self.a.load(r::R11, at);
                    self.a.store_gs(layout::gpr(n), r::R11);
                } else {
                    self.a.load(HOST[n], at);
                }
                self.a.lea(SP, Mem::base(SP, 8));
            }
            Code::Pushfq => {
                self.keep_flags();
                let at = self.probe(&Ea::register(gpr::RSP, -8), Access::WRITE8)?;
                self.a.load_gs(r::R11, layout::TEMPORARY);
                self.a.store(at, r::R11);
                self.a.lea(SP, Mem::base(SP, -8));
            }
            Code::Leaveq => {
                let at = self.probe(&Ea::register(gpr::RBP, 0), Access::READ8)?;
                self.a.load(r::R11, at);
                self.a.lea(SP, Mem::base(r::RBP, 8));
                self.a.mov(r::RBP, r::R11);
            }
            _ => return Err(TooHard),
        }
        Ok(())
    }
}
