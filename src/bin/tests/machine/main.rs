//! The machine from outside, by the protocols that it speaks: its migration stream against QEMU's, and its devices by `qtest`.

mod colo;
mod devices;
mod gdb;
mod guest;
mod log;
mod migration;
mod qtest;
mod rare;
mod stream;
mod vm;
