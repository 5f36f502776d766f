#![no_std]
#![no_main]
//! The guest that the compatibility tests run: a network server on bare hardware. See `boot.rs` for how it gets here.
extern crate alloc;

mod boot;
mod cpu;
mod crc32c;
mod dirty;
mod header;
mod heap;
mod http;
mod ide;
mod irq;
mod net;
mod pci;
mod rtl8139;
mod serial;
mod store;
mod stream;

use alloc::format;
use alloc::string::String;
use core::sync::atomic::Ordering::Relaxed;
use serial::say;

/// RAM left alone at the end: the BIOS keeps its tables there.
const BIOS_RESERVED: usize = 1 << 20;

#[unsafe(no_mangle)]
extern "C" fn kmain() -> ! {
    serial::Serial::start();
    let header = header::read();
    let memory = heap::START + boot::MEMORY_ABOVE_16M.load(Relaxed) as usize * (64 << 10);
    heap::start((memory - BIOS_RESERVED).min(1 << 30));
    cpu::start_clock();
    say!("guest: {} MiB, {}", memory >> 20, if cpu::is_pvm() { "native under kvm-pvm" } else { "ordinary CPU" });
    pci::stop_usb();

    let nic = rtl8139::Rtl8139::start();
    irq::start(&[ide::IRQ, nic.as_ref().map_or(ide::IRQ, |nic| nic.irq)]);
    let mut disk = ide::Disk::start().expect("no IDE controller");
    let store = store::Store::open(&header, &mut disk, cpu::idle);
    say!("guest: {} keys in {} sectors of the log", store.len(), store.used);

    let mut entropy = cpu::Entropy::new();
    let Some(nic) = nic else { panic!("no RTL8139") };
    let [a, b, c, d] = header.address;
    say!("guest: {a}.{b}.{c}.{d}/{}, mac {:02x?}, irq {}", header.prefix, nic.mac, nic.irq);
    let mut net = net::Net::start(nic, &header, entropy.next());
    let dirtier = dirty::Dirtier::new();
    let mut world = http::World { store, dirtier, entropy, stats, requests: 0, net: [0; 3], disk: [0; 2] };
    say!("guest: ready");

    let nic_irq = net.nic.irq;
    loop {
        let seen = irq::take();
        if seen & 1 << nic_irq != 0 {
            net.nic.acknowledge();
        }
        // The tick looks after a disk whose interrupt got lost.
        if seen & (1 << ide::IRQ | 1 << irq::TIMER) != 0
            && let Some((_, good)) = disk.finish()
        {
            world.store.completed(good);
            world.disk = [disk.commands, disk.errors];
        }
        let mut worked = net.round(&mut world);
        world.store.advance(&mut disk);
        if !world.store.finished.is_empty() {
            net.stored(&core::mem::take(&mut world.store.finished));
            worked = true;
        }
        world.dirtier.run(cpu::now_us());
        if worked { cpu::window() } else { cpu::idle() }
    }
}

fn stats(world: &http::World) -> String {
    let [received, sent, nic_interrupts] = world.net;
    let [commands, errors] = world.disk;
    format!(
        "{{\"uptime_us\":{},\"native\":{},\"interrupts\":{},\"requests\":{},\"keys\":{},\"log_sectors\":{},\"frames_in\":{received},\
         \"frames_out\":{sent},\"nic_interrupts\":{nic_interrupts},\"disk_commands\":{commands},\"disk_errors\":{errors},\
         \"dirtied\":{},\"memory_left\":{}}}\n",
        cpu::now_us(),
        cpu::is_pvm(),
        boot::IRQ_COUNT.load(Relaxed),
        world.requests,
        world.store.len(),
        world.store.used,
        world.dirtier.counter,
        heap::untouched(),
    )
}

#[unsafe(no_mangle)]
extern "C" fn exception_entry(vector: u64, code: u64, rip: u64, address: u64) -> ! {
    say!("guest: exception {vector}, code {code:#x}, at {rip:#x}, cr2 {address:#x}");
    stop()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    say!("guest: {info}");
    stop()
}

fn stop() -> ! {
    loop {
        cpu::idle();
        irq::take();
    }
}
