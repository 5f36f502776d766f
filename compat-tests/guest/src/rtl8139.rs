//! RTL8139 in C+ mode: descriptor rings in memory, so that a batch of frames costs one register write.
//!
//! Register numbers: Realtek RTL8139C+ data sheet. Each port access is an exit to the VMM; receiving reads none, acknowledging
//! an interrupt writes one, sending a batch writes one.
use crate::cpu::{inb, outb, outl, outw};
use crate::pci::Function;
use alloc::boxed::Box;
use core::ptr::{read_volatile, write_volatile};
use core::sync::atomic::{Ordering, compiler_fence};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

const RX_RING: usize = 256;
const TX_RING: usize = 64;
const BUFFER: usize = 2048;

const OWN: u32 = 1 << 31;
const END_OF_RING: u32 = 1 << 30;
const FIRST_AND_LAST: u32 = 3 << 28;
const LENGTH: u32 = 0x1fff;

/// ROK, RER, RXOVW, FOVW.
const INTERRUPTS: u16 = 0x0053;
/// TOK, TER, TDU: wanted only while every transmit descriptor is taken.
const TX_INTERRUPTS: u16 = 0x008c;

#[repr(C, align(256))]
struct Ring<const N: usize>([[u32; 4]; N]);

/// The network card.
pub struct Rtl8139 {
    ports: u16,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Interrupt line.
    pub irq: u8,
    rx: Box<Ring<RX_RING>>,
    tx: Box<Ring<TX_RING>>,
    rx_buffers: Box<[u8]>,
    tx_buffers: Box<[u8]>,
    rx_next: usize,
    tx_next: usize,
    tx_unsent: usize,
    tx_starved: bool,
    /// Frames received since boot.
    pub received: u64,
    /// Frames sent since boot.
    pub sent: u64,
    /// Interrupts acknowledged since boot.
    pub interrupts: u64,
}

impl Rtl8139 {
    /// Finds the card and starts it.
    pub fn start() -> Option<Self> {
        let function = Function::find(|identity, _| identity == 0x8139_10ec)?;
        function.enable();
        let ports = function.ports(0);
        let mut nic = Self {
            ports,
            mac: core::array::from_fn(|i| inb(ports + i as u16)),
            irq: function.irq(),
            rx: Box::new(Ring([[0; 4]; RX_RING])),
            tx: Box::new(Ring([[0; 4]; TX_RING])),
            rx_buffers: crate::heap::buffer(RX_RING * BUFFER).into_boxed_slice(),
            tx_buffers: crate::heap::buffer(TX_RING * BUFFER).into_boxed_slice(),
            rx_next: 0,
            tx_next: 0,
            tx_unsent: 0,
            tx_starved: false,
            received: 0,
            sent: 0,
            interrupts: 0,
        };
        for i in 0..RX_RING {
            nic.rx.0[i][2] = nic.rx_buffers[i * BUFFER..].as_ptr() as u32;
            nic.give_back(i);
        }
        for i in 0..TX_RING {
            nic.tx.0[i] = [0, 0, nic.tx_buffers[i * BUFFER..].as_ptr() as u32, 0];
        }
        outb(ports + 0x52, 0); // CONFIG1: power up
        outb(ports + 0x37, 0x10); // CR: reset
        while inb(ports + 0x37) & 0x10 != 0 {}
        outw(ports + 0xe0, 3); // C+CR: both rings
        outl(ports + 0x20, nic.tx.0.as_ptr() as u32);
        outl(ports + 0x24, 0);
        outl(ports + 0xe4, nic.rx.0.as_ptr() as u32);
        outl(ports + 0xe8, 0);
        outb(ports + 0x37, 0x0c); // CR: receiver and transmitter on
        outl(ports + 0x44, 0x070a); // RCR: broadcast and own address, unlimited DMA burst
        outl(ports + 0x40, 0x0300_0700); // TCR: standard gap, unlimited DMA burst
        outw(ports + 0x3c, INTERRUPTS);
        Some(nic)
    }

    /// Acknowledges the card's interrupt. Frames are looked for in the ring afterwards, so none is missed.
    pub fn acknowledge(&mut self) {
        self.interrupts += 1;
        outw(self.ports + 0x3e, 0xffff);
    }

    /// The next received frame, left in place.
    pub fn peek(&self) -> Option<&[u8]> {
        // SAFETY: the descriptor is ours, the card writes it by DMA.
        let status = unsafe { read_volatile(&self.rx.0[self.rx_next][0]) };
        if status & OWN != 0 {
            return None;
        }
        compiler_fence(Ordering::Acquire);
        let length = ((status & LENGTH) as usize).saturating_sub(4).min(BUFFER);
        Some(&self.rx_buffers[self.rx_next * BUFFER..][..length])
    }

    /// Tells the card about the frames queued since last time.
    pub fn kick(&mut self) {
        if self.tx_unsent != 0 {
            self.tx_unsent = 0;
            outb(self.ports + 0xd9, 0x40); // TPPoll: normal priority queue
        }
    }

    fn give_back(&mut self, i: usize) {
        let end = if i == RX_RING - 1 { END_OF_RING } else { 0 };
        compiler_fence(Ordering::Release);
        // SAFETY: as in peek.
        unsafe { write_volatile(&mut self.rx.0[i][0], OWN | end | BUFFER as u32) }
    }

    fn tx_free(&mut self) -> bool {
        // Buffers of the last frames may still be read by the card: two descriptors stay free so that a token pair always works.
        let free = |i: usize| {
            // SAFETY: as in peek.
            (unsafe { read_volatile(&self.tx.0[i % TX_RING][0]) }) & OWN == 0
        };
        if free(self.tx_next) && free(self.tx_next + 1) {
            if self.tx_starved {
                self.tx_starved = false;
                outw(self.ports + 0x3c, INTERRUPTS);
            }
            return true;
        }
        self.kick();
        if !self.tx_starved {
            self.tx_starved = true;
            outw(self.ports + 0x3c, INTERRUPTS | TX_INTERRUPTS);
        }
        false
    }
}

/// A received frame.
pub struct RxToken<'a>(&'a [u8], &'a mut u64);
/// Room for a frame to send.
pub struct TxToken<'a> {
    descriptor: &'a mut [u32; 4],
    buffer: &'a mut [u8],
    end: u32,
    next: &'a mut usize,
    unsent: &'a mut usize,
    sent: &'a mut u64,
}

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        *self.1 += 1;
        f(self.0)
    }
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let result = f(&mut self.buffer[..length]);
        let padded = length.max(60);
        self.buffer[length..padded].fill(0);
        compiler_fence(Ordering::Release);
        // SAFETY: the descriptor is free; this hands it to the card.
        unsafe { write_volatile(&mut self.descriptor[0], OWN | self.end | FIRST_AND_LAST | padded as u32) };
        *self.next = (*self.next + 1) % TX_RING;
        *self.unsent += 1;
        *self.sent += 1;
        result
    }
}

impl Rtl8139 {
    fn tx_token(&mut self) -> (TxToken<'_>, &[u8], &mut u64) {
        let i = self.tx_next;
        let token = TxToken {
            descriptor: &mut self.tx.0[i],
            buffer: &mut self.tx_buffers[i * BUFFER..][..BUFFER],
            end: if i == TX_RING - 1 { END_OF_RING } else { 0 },
            next: &mut self.tx_next,
            unsent: &mut self.tx_unsent,
            sent: &mut self.sent,
        };
        (token, &self.rx_buffers, &mut self.received)
    }
}

impl Device for Rtl8139 {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        // The frame handed out last time has been consumed by now: its buffer goes back to the card one call later.
        let i = self.rx_next;
        let length = self.peek()?.len();
        if !self.tx_free() {
            return None;
        }
        let (tx, buffers, received) = self.tx_token();
        Some((RxToken(&buffers[i * BUFFER..][..length], received), tx))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_>> {
        self.tx_free().then(|| self.tx_token().0)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

impl Rtl8139 {
    /// Gives the buffer of the frame that [`peek`](Self::peek) showed back to the card.
    pub fn release(&mut self) {
        self.give_back(self.rx_next);
        self.rx_next = (self.rx_next + 1) % RX_RING;
    }
}
