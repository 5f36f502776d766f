//! Keyboard and mouse: the 8042 with its PS/2 devices, port 92h, and VMware's absolute mouse.

pub mod i8042;
pub mod port92;
pub mod vmport;
