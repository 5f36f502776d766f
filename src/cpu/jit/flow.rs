//! Jumps, calls, and the stack, of 64 bits and of flat 32 bits.

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
        if insn.is_jcc_short_or_near() && matches!(insn.op_kind(0), OpKind::NearBranch64 | OpKind::NearBranch32) {
            self.save_flags();
            self.load_flags();
            let taken = self.a.jcc(condition_code(insn));
            let next = self.next;
            self.exit(1, next);
            self.a.land(taken);
            self.exit(0, insn.near_branch_target());
            return Ok(true);
        }
        match insn.code() {
            Code::Stac | Code::Clac => return self.suspend_smap(insn.code() == Code::Stac),
            Code::Syscall | Code::Sysretq => self.system_call(insn.code())?,
            Code::Jmp_rel8_64 | Code::Jmp_rel32_64 | Code::Jmp_rel8_32 | Code::Jmp_rel32_32 => {
                self.save_flags();
                self.exit(0, insn.near_branch_target());
            }
            Code::Call_rel32_64 | Code::Call_rel32_32 => {
                let at = self.probe_push()?;
                self.store_return(at);
                self.move_stack(-self.word());
                self.exit(0, insn.near_branch_target());
            }
            Code::Jmp_rm64 | Code::Jmp_rm32 => {
                self.save_flags();
                if insn.op_kind(0) == OpKind::Memory {
                    let ea = self.ea(insn)?;
                    let at = self.probe(&ea, self.read_word())?;
                    self.load_word(r::R11, at);
                } else {
                    self.guest_to(r::R11, insn.op_register(0).full_register().number());
                }
                self.look_up();
            }
            Code::Call_rm64 | Code::Call_rm32 => {
                let memory = insn.op_kind(0) == OpKind::Memory;
                if memory {
                    let ea = self.ea(insn)?;
                    let at = self.probe(&ea, self.read_word())?;
                    self.load_word(r::R11, at);
                    self.a.store_gs(layout::TEMPORARY, r::R11);
                }
                let at = self.probe_push()?;
                self.store_return(at);
                if memory {
                    self.a.load_gs(r::R11, layout::TEMPORARY);
                } else {
                    self.guest_to(r::R11, insn.op_register(0).full_register().number());
                }
                self.move_stack(-self.word());
                self.look_up();
            }
            Code::Retnq | Code::Retnq_imm16 | Code::Retnd | Code::Retnd_imm16 => {
                let release = if insn.op_count() == 1 { i32::from(insn.immediate16()) } else { 0 };
                let at = self.probe(&Ea::register(gpr::RSP, 0), self.read_word())?;
                self.load_word(r::R11, at);
                self.move_stack(self.word() + release);
                self.look_up();
            }
            _ => return Err(TooHard),
        }
        Ok(true)
    }

    /// Bytes of what is pushed usually.
    fn word(&self) -> i32 {
        if self.long { 8 } else { 4 }
    }

    fn read_word(&self) -> Access {
        Access { size: self.word(), write: false, align: 1 }
    }

    /// Where the next push goes.
    fn probe_push(&mut self) -> Result<Mem, TooHard> {
        self.probe(&Ea::register(gpr::RSP, -self.word()), Access { write: true, ..self.read_word() })
    }

    /// The same place in terms of RAX and a guest register, with R11 free.
    fn without_r11(&mut self, at: Mem) -> Mem {
        if self.long {
            return at;
        }
        self.a.lea(r::RAX, at);
        Mem::base(r::RAX, 0)
    }

    fn load_word(&mut self, to: u8, at: Mem) {
        self.a.op_mem(false, &[], self.long, &[0x8b], to, at);
    }

    fn store_word(&mut self, at: Mem, from: u8) {
        self.a.op_mem(false, &[], self.long, &[0x89], from, at);
    }

    fn move_stack(&mut self, by: i32) {
        self.a.op_mem(false, &[], self.long, &[0x8d], SP, Mem::base(SP, by));
    }

    /// Stores the address behind the instruction.
    fn store_return(&mut self, at: Mem) {
        let next = if self.long { self.next as i64 } else { i64::from(self.next as i32) };
        if let Ok(v) = i32::try_from(next) {
            self.a.op_mem(false, &[], self.long, &[0xc7], 0, at);
            self.a.imm32(v);
        } else {
            self.a.constant(r::R11, self.next);
            self.a.store(at, r::R11);
        }
    }

    /// PUSH, POP and LEAVE of the usual width.
    pub fn stack(&mut self, insn: &Instruction) -> Result<(), TooHard> {
        let register = insn.op_count() == 1 && insn.op_kind(0) == OpKind::Register;
        let n = if register { insn.op_register(0).full_register().number() } else { 0 };
        match insn.code() {
            Code::Push_r64 | Code::Push_rm64 | Code::Push_r32 | Code::Push_rm32 if register => {
                let at = self.probe_push()?;
                if HOST[n] == IN_MEMORY {
                    self.a.load_gs(r::R11, layout::gpr(n));
                    self.store_word(at, r::R11);
                } else {
                    self.store_word(at, HOST[n]);
                }
                self.move_stack(-self.word());
            }
            Code::Pushq_imm8 | Code::Pushq_imm32 | Code::Pushd_imm8 | Code::Pushd_imm32 => {
                let value = insn.immediate(0) as i64;
                let value = if self.long { value } else { i64::from(value as i32) };
                let value = i32::try_from(value).map_err(|_| TooHard)?;
                let at = self.probe_push()?;
                self.a.op_mem(false, &[], self.long, &[0xc7], 0, at);
                self.a.imm32(value);
                self.move_stack(-self.word());
            }
            Code::Push_rm64 | Code::Push_rm32 => {
                let ea = self.ea(insn)?;
                let at = self.probe(&ea, self.read_word())?;
                self.load_word(r::R11, at);
                self.a.store_gs(layout::TEMPORARY, r::R11);
                let at = self.probe_push()?;
                let at = self.without_r11(at);
                self.a.load_gs(r::R11, layout::TEMPORARY);
                self.store_word(at, r::R11);
                self.move_stack(-self.word());
            }
            Code::Pop_r64 | Code::Pop_rm64 | Code::Pop_r32 | Code::Pop_rm32 if register => {
                let at = self.probe(&Ea::register(gpr::RSP, 0), self.read_word())?;
                if n == gpr::RSP {
                    self.load_word(SP, at);
                    return Ok(());
                }
                if HOST[n] == IN_MEMORY {
                    self.a.load(r::R11, at);
                    self.a.store_gs(layout::gpr(n), r::R11);
                } else {
                    self.load_word(HOST[n], at);
                }
                self.move_stack(self.word());
            }
            Code::Pushfq | Code::Pushfd => {
                self.keep_flags();
                let at = self.probe_push()?;
                let at = self.without_r11(at);
                self.a.load_gs(r::R11, layout::TEMPORARY);
                self.store_word(at, r::R11);
                self.move_stack(-self.word());
            }
            Code::Leaveq | Code::Leaved => {
                let at = self.probe(&Ea::register(gpr::RBP, 0), self.read_word())?;
                self.load_word(r::R11, at);
                self.a.op_mem(false, &[], self.long, &[0x8d], SP, Mem::base(r::RBP, self.word()));
                self.a.mov(r::RBP, r::R11);
            }
            _ => return Err(TooHard),
        }
        Ok(())
    }
}
