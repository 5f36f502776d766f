//! The devices' registers against their datasheets, by `qtest`: what a driver sees, through the real program.

mod board;
mod firmware;
mod fw_cfg;
mod i8042;
mod ide;
mod interrupts;
mod rtl8139;
mod serial;
mod state;
mod timers;
mod uhci;
mod vga;
