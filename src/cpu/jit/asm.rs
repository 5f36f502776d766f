//! Just enough of an assembler for what lies around a guest's own instructions.

/// Host registers by number.
#[allow(missing_docs)]
pub(super) mod r {
    pub const RAX: u8 = 0;
    pub const RCX: u8 = 1;
    pub const RDX: u8 = 2;
    pub const RBP: u8 = 5;
    pub const RSI: u8 = 6;
    pub const RDI: u8 = 7;
    pub const R11: u8 = 11;
}

/// A memory operand: `[base + index << scale + disp]`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mem {
    pub base: Option<u8>,
    pub index: Option<u8>,
    pub scale: u8,
    pub disp: i32,
}

impl Mem {
    pub fn at(disp: i32) -> Self {
        Self { disp, ..Self::default() }
    }
    pub fn base(base: u8, disp: i32) -> Self {
        Self { base: Some(base), disp, ..Self::default() }
    }
    pub fn sum(base: u8, index: u8, disp: i32) -> Self {
        Self { base: Some(base), index: Some(index), scale: 0, disp }
    }
}

/// Extensions of group opcodes, and condition codes.
#[allow(missing_docs)]
pub(super) mod ext {
    pub const ADD: u8 = 0;
    pub const OR: u8 = 1;
    pub const ADC: u8 = 2;
    pub const AND: u8 = 4;
    pub const SUB: u8 = 5;
    pub const XOR: u8 = 6;
    pub const CMP: u8 = 7;
    pub const SHL: u8 = 4;
    pub const SHR: u8 = 5;
    pub const SAR: u8 = 7;
    pub const B: u8 = 2;
    pub const AE: u8 = 3;
    pub const E: u8 = 4;
    pub const NE: u8 = 5;
    pub const BE: u8 = 6;
    pub const S: u8 = 8;
}

/// A place in the code that is not known yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fixup(usize);

/// The code so far. Distances are within it, or to absolute addresses that are settled when its own address is known.
#[derive(Default)]
pub(super) struct Asm {
    pub code: Vec<u8>,
    /// Positions of 32-bit distances to absolute addresses.
    pub outside: Vec<(usize, u64)>,
}

impl Asm {
    pub fn here(&self) -> usize {
        self.code.len()
    }
    pub fn bytes(&mut self, b: &[u8]) {
        self.code.extend_from_slice(b);
    }
    pub fn imm32(&mut self, v: i32) {
        self.code.extend_from_slice(&v.to_le_bytes());
    }

    /// Opcode with a register and a memory operand. `gs`: relative to the processor's state.
    pub fn op_mem(&mut self, gs: bool, prefix: &[u8], wide: bool, opcode: &[u8], reg: u8, m: Mem) {
        if gs {
            self.code.push(0x65);
        }
        self.bytes(prefix);
        let (b, x) = (m.base.unwrap_or(0), m.index.unwrap_or(0));
        let rex = 0x40 | u8::from(wide) << 3 | (reg >> 3) << 2 | (x >> 3) << 1 | b >> 3;
        // Byte registers 4 to 7 need the prefix; it does no harm elsewhere.
        if rex != 0x40 {
            self.code.push(rex);
        }
        self.bytes(opcode);
        let reg = (reg & 7) << 3;
        let Some(base) = m.base else {
            // No base: SIB without one, 32-bit displacement.
            let index = m.index.map_or(4, |i| i & 7);
            self.bytes(&[4 | reg, m.scale << 6 | index << 3 | 5]);
            return self.imm32(m.disp);
        };
        let short = i8::try_from(m.disp).is_ok();
        let form = if m.disp == 0 && base & 7 != 5 {
            0
        } else if short {
            0x40
        } else {
            0x80
        };
        match m.index {
            None if base & 7 != 4 => self.code.push(form | reg | base & 7),
            index => {
                let index = index.map_or(4, |i| i & 7);
                self.bytes(&[form | reg | 4, m.scale << 6 | index << 3 | base & 7]);
            }
        }
        match form {
            0 => {}
            0x40 => self.code.push(m.disp as u8),
            _ => self.imm32(m.disp),
        }
    }

    /// Opcode with two registers: `reg` and `rm`.
    pub fn op_reg(&mut self, wide: bool, opcode: &[u8], reg: u8, rm: u8) {
        let rex = 0x40 | u8::from(wide) << 3 | (reg >> 3) << 2 | rm >> 3;
        if rex != 0x40 {
            self.code.push(rex);
        }
        self.bytes(opcode);
        self.code.push(0xc0 | (reg & 7) << 3 | rm & 7);
    }

    /// 64-bit MOV.
    pub fn mov(&mut self, to: u8, from: u8) {
        self.op_reg(true, &[0x89], from, to);
    }
    pub fn load(&mut self, to: u8, m: Mem) {
        self.op_mem(false, &[], true, &[0x8b], to, m);
    }
    pub fn store(&mut self, m: Mem, from: u8) {
        self.op_mem(false, &[], true, &[0x89], from, m);
    }
    /// From the processor's state.
    pub fn load_gs(&mut self, to: u8, at: i32) {
        self.op_mem(true, &[], true, &[0x8b], to, Mem::at(at));
    }
    pub fn store_gs(&mut self, at: i32, from: u8) {
        self.op_mem(true, &[], true, &[0x89], from, Mem::at(at));
    }
    pub fn lea(&mut self, to: u8, m: Mem) {
        self.op_mem(false, &[], true, &[0x8d], to, m);
    }
    /// The shortest MOV of a constant.
    pub fn constant(&mut self, to: u8, v: u64) {
        if let Ok(v) = u32::try_from(v) {
            if to >= 8 {
                self.code.push(0x41);
            }
            self.code.push(0xb8 | to & 7);
            self.imm32(v as i32);
        } else if let Ok(v) = i32::try_from(v as i64) {
            self.bytes(&[0x48 | to >> 3, 0xc7, 0xc0 | to & 7]);
            self.imm32(v);
        } else {
            self.bytes(&[0x48 | to >> 3, 0xb8 | to & 7]);
            self.code.extend_from_slice(&v.to_le_bytes());
        }
    }
    /// ADD, AND, CMP and so on of a register with a constant.
    pub fn alu(&mut self, wide: bool, ext: u8, rm: u8, v: i32) {
        if let Ok(v) = i8::try_from(v) {
            self.op_reg(wide, &[0x83], ext, rm);
            self.code.push(v as u8);
        } else {
            self.op_reg(wide, &[0x81], ext, rm);
            self.imm32(v);
        }
    }
    pub fn shift(&mut self, wide: bool, ext: u8, rm: u8, count: u8) {
        self.op_reg(wide, &[0xc1], ext, rm);
        self.code.push(count);
    }

    /// A jump on a condition to a place that is settled later.
    pub fn jcc(&mut self, condition: u8) -> Fixup {
        self.bytes(&[0x0f, 0x80 | condition, 0, 0, 0, 0]);
        Fixup(self.here() - 4)
    }
    pub fn jmp(&mut self) -> Fixup {
        self.bytes(&[0xe9, 0, 0, 0, 0]);
        Fixup(self.here() - 4)
    }
    pub fn call(&mut self) -> Fixup {
        self.bytes(&[0xe8, 0, 0, 0, 0]);
        Fixup(self.here() - 4)
    }
    /// Where the distance of a jump lies.
    pub fn position(fixup: Fixup) -> usize {
        fixup.0
    }
    pub fn land(&mut self, fixup: Fixup) {
        self.land_at(fixup, self.here());
    }
    pub fn land_at(&mut self, fixup: Fixup, to: usize) {
        let distance = to as i64 - (fixup.0 as i64 + 4);
        self.code[fixup.0..fixup.0 + 4].copy_from_slice(&(distance as i32).to_le_bytes());
    }
    pub fn land_outside(&mut self, fixup: Fixup, to: u64) {
        self.outside.push((fixup.0, to));
    }

    /// Settles distances to absolute addresses for code that will run at `address`.
    pub fn settle(&mut self, address: u64) {
        for &(at, to) in &self.outside {
            let distance = to.wrapping_sub(address + at as u64 + 4) as i32;
            self.code[at..at + 4].copy_from_slice(&distance.to_le_bytes());
        }
    }
}
