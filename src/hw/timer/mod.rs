//! Timers: the 8254, the speaker port that watches it, and the HPET.

pub mod hpet;
pub mod pcspk;
pub mod pit;
