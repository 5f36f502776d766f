//! AVX2's gathers: as many loads as there are set signs in the mask, each of which may fault after those before it are done
//! (Intel SDM volume 2, VPGATHERDD and its kin).

use iced_x86::{Instruction, Mnemonic as M};

use crate::{
    Cpu,
    block::{Op, form},
    fault::R,
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

impl Cpu {
    /// A gather. False: the instruction is another.
    pub(crate) fn execute_gather(&mut self, insn: &Instruction, op: &Op) -> R<bool> {
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
                let mut address = start.wrapping_add(offset.wrapping_mul(insn.memory_index_scale().into()));
                if op.form & form::MASK32 != 0 {
                    address &= 0xffff_ffff;
                }
                if op.form & form::SEGMENT != 0 {
                    address = self.segment_address(op.seg.into(), address, size as u32, false)?;
                }
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
