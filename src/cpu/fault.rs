//! Exceptions of the architecture.

/// Vectors (Intel SDM volume 3, table 6-1).
#[allow(missing_docs)]
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const XM: u8 = 19;
}

/// Says that the instruction did not complete; the reason is in the processor. It carries nothing so that results stay in
/// registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

/// What an instruction's parts return.
pub type R<T> = Result<T, Fault>;

/// Why an instruction did not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Reason {
    /// Nothing is wrong.
    #[default]
    None,
    /// An exception.
    Exception {
        /// Which.
        vector: u8,
        /// Its error code.
        code: Option<u32>,
        /// What CR2 becomes, for page faults.
        address: u64,
    },
    /// The instruction writes to the code that is being run: it is to be run again alone.
    Alone,
}

/// Whether two exceptions in a row make a double fault (Intel SDM volume 3, table 6-5).
pub fn makes_double_fault(first: u8, second: u8) -> bool {
    let contributory = |v: u8| matches!(v, vector::DE | vector::TS | vector::NP | vector::SS | vector::GP);
    match first {
        vector::PF => second == vector::PF || contributory(second),
        v if contributory(v) => contributory(second),
        _ => false,
    }
}

/// Whether an exception pushes an error code.
pub fn has_error_code(v: u8) -> bool {
    matches!(v, vector::DF | vector::TS | vector::NP | vector::SS | vector::GP | vector::PF | vector::AC)
}
