//! Vector instructions that access memory element by element, as a mask says: AVX2's gathers, each load of which may fault after
//! those before it are done (Intel SDM volume 2, VPGATHERDD and its kin), and masked moves, which do not touch the memory of
//! elements that the mask leaves out (VMASKMOV, VPMASKMOV, MASKMOVDQU, MASKMOVQ).

use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

use crate::{
    Cpu,
    block::{Op, form},
    fault::R,
    fpu::at,
    host::Class,
    ops,
};

/// Sizes in bytes of the index and of the element.
fn sizes(insn: &Instruction) -> Option<(usize, usize)> {
    Some(match insn.mnemonic() {
        M::Vpgatherdd | M::Vgatherdps => (4, 4),
        M::Vpgatherdq | M::Vgatherdpd => (4, 8),
        M::Vpgatherqd | M::Vgatherqps => (8, 4),
        M::Vpgatherqq | M::Vgatherqpd => (8, 8),
        _ => return None,
    })
}

/// Class, size in bytes of the element, and the operand that is the mask, of a masked move.
fn masked_move(insn: &Instruction) -> Option<(Class, usize, u32)> {
    Some(match insn.mnemonic() {
        M::Vmaskmovps | M::Vpmaskmovd => (Class::Avx, 4, 1),
        M::Vmaskmovpd | M::Vpmaskmovq => (Class::Avx, 8, 1),
        M::Maskmovq => (Class::Mmx, 1, 2),
        M::Maskmovdqu => (Class::Sse, 1, 2),
        M::Vmaskmovdqu => (Class::Avx, 1, 2),
        _ => return None,
    })
}

/// Is this an instruction of this module?
pub(crate) fn is_masked(insn: &Instruction) -> bool {
    sizes(insn).is_some() || masked_move(insn).is_some()
}

impl Cpu {
    /// A gather or a masked move. False: the instruction is another.
    pub(crate) fn execute_masked(&mut self, insn: &Instruction, op: &Op) -> R<bool> {
        match masked_move(insn) {
            Some((class, size, by)) => self.move_masked(insn, op, class, size, by).map(|()| true),
            None => self.execute_gather(insn, op),
        }
    }

    fn move_masked(&mut self, insn: &Instruction, op: &Op, class: Class, size: usize, by: u32) -> R<()> {
        self.check_class(class)?;
        let mask = self.elements(insn.op_register(by));
        let chosen = |i: usize| mask[i * size + size - 1] & 0x80 != 0;
        let start = ops::operand_offset(self, op);
        if insn.op_kind(0) == OpKind::Register {
            let to = insn.op0_register();
            let mut value = [0; 32];
            for i in (0..to.size() / size).filter(|&i| chosen(i)) {
                let address = self.element_address(op, start, i * size, size, false)?;
                let element = self.load_sized(address, size as u32)?.to_le_bytes();
                value[i * size..(i + 1) * size].copy_from_slice(&element[..size]);
            }
            self.hot.vec[to.number() & 15] = value;
            return Ok(());
        }
        // The operand that is neither memory nor mask.
        let from = insn.op_register(3 - by);
        let value = self.elements(from);
        let count = from.size() / size;
        // Nothing is written when one of them faults.
        for i in (0..count).filter(|&i| chosen(i)) {
            let address = self.element_address(op, start, i * size, size, true)?;
            self.probe_write(address, size as u64)?;
        }
        for i in (0..count).filter(|&i| chosen(i)) {
            let address = self.element_address(op, start, i * size, size, true)?;
            let mut wide = [0; 8];
            wide[..size].copy_from_slice(&value[i * size..(i + 1) * size]);
            self.store_sized(address, size as u32, u64::from_le_bytes(wide))?;
        }
        Ok(())
    }

    /// What an MMX or vector register holds.
    fn elements(&self, register: Register) -> [u8; 32] {
        if !register.is_mm() {
            return self.hot.vec[register.number() & 15];
        }
        let from = at::ST + 16 * register.number();
        let mut value = [0; 32];
        value[..8].copy_from_slice(&self.hot.fx[from..from + 8]);
        value
    }

    /// The linear address of the element that lies `distance` behind the operand's beginning.
    fn element_address(&mut self, op: &Op, start: u64, distance: usize, size: usize, write: bool) -> R<u64> {
        let mut address = start.wrapping_add(distance as u64);
        if op.form & 3 != 0 {
            address &= 0xffff_ffff;
        }
        if op.form & form::SEGMENT != 0 {
            address = self.segment_address(op.seg.into(), address, size as u32, write)?;
        }
        Ok(address)
    }

    fn execute_gather(&mut self, insn: &Instruction, op: &Op) -> R<bool> {
        let Some((index_size, size)) = sizes(insn) else { return Ok(false) };
        self.check_class(Class::Avx)?;
        let (index, mask) = (insn.memory_index(), insn.op2_register());
        let (to, from, by) = (insn.op0_register().number(), index.number(), mask.number());
        if to == from || to == by || from == by || [to, from, by].iter().any(|&n| n >= 16) {
            return Err(self.ud());
        }
        // The narrower of the two kinds leaves part of its register unused.
        let count = (insn.op0_register().size() / size).min(index.size() / index_size);
        let start = ops::operand_offset(self, op);
        for i in 0..count {
            let at = i * size;
            if self.hot.vec[by][at + size - 1] & 0x80 != 0 {
                let mut wide = [0; 8];
                wide[..index_size].copy_from_slice(&self.hot.vec[from][i * index_size..(i + 1) * index_size]);
                let offset = u64::from_le_bytes(wide);
                let offset = if index_size == 4 { offset as i32 as u64 } else { offset };
                let distance = offset.wrapping_mul(insn.memory_index_scale().into());
                let address = self.element_address(op, start.wrapping_add(distance), 0, size, false)?;
                let value = self.load_sized(address, size as u32)?.to_le_bytes();
                self.hot.vec[to][at..at + size].copy_from_slice(&value[..size]);
                self.hot.vec[by][at..at + size].fill(0);
            }
        }
        self.hot.vec[by].fill(0);
        self.hot.vec[to][count * size..].fill(0);
        Ok(true)
    }
}
