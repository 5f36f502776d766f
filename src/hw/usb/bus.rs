//! A USB bus: ports, the devices behind them, and what passes between a host controller and a device.

use std::sync::{Arc, Weak};

use lockstep_util::{Result, bail, err};
use parking_lot::Mutex;

/// What a packet from the host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// The eight bytes of a control request.
    Setup,
    /// Data for the device.
    Out,
}

/// Why a device did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing to give or no room now.
    Nak,
    /// The request or endpoint does not exist.
    Stall,
}

/// A device at a port. Called without locks of the controller's registers.
pub trait UsbDevice: Send + Sync {
    /// The address that the host gave it.
    fn address(&self) -> u8;
    /// A packet from the host.
    ///
    /// # Errors
    /// When it is not taken.
    fn put(&self, token: Token, endpoint: u8, data: &[u8]) -> std::result::Result<(), Refusal>;
    /// The host asks for at most `most` bytes.
    ///
    /// # Errors
    /// When there is none.
    fn get(&self, endpoint: u8, most: usize) -> std::result::Result<Vec<u8>, Refusal>;
    /// The port drives a reset.
    fn bus_reset(&self);
    /// Its name in `info usb`.
    fn product(&self) -> &str;
}

/// What a device can say to the host unasked.
pub trait Upstream: Send + Sync {
    /// The device at a port has something for the host, which may be asleep.
    fn wake(&self, port: usize);
    /// A device was plugged in or out.
    fn changed(&self, port: usize, present: bool);
}

/// A port as a device has it.
#[derive(Clone)]
pub struct Port {
    bus: Weak<UsbBus>,
    /// Counted from 0.
    pub number: usize,
}

impl Port {
    /// Wakes the host.
    pub fn wake(&self) {
        if let Some(upstream) = self.bus.upgrade().and_then(|b| b.upstream()) {
            upstream.wake(self.number);
        }
    }

    /// Takes the device out.
    pub fn unplug(&self) {
        let Some(bus) = self.bus.upgrade() else { return };
        bus.ports.lock()[self.number] = None;
        if let Some(upstream) = bus.upstream() {
            upstream.changed(self.number, false);
        }
    }
}

/// A bus with a fixed number of ports.
pub struct UsbBus {
    /// Its name (`usb-bus.0`).
    pub name: String,
    /// Its number among the machine's USB buses.
    pub number: usize,
    /// The path of its controller, for names of sections (`0000:00:03.0`).
    pub path: String,
    ports: Mutex<Vec<Option<Arc<dyn UsbDevice>>>>,
    upstream: Mutex<Option<Weak<dyn Upstream>>>,
}

impl UsbBus {
    /// A bus with `ports` empty ports.
    pub fn new(number: usize, path: String, ports: usize) -> Arc<Self> {
        Arc::new(Self {
            name: format!("usb-bus.{number}"),
            number,
            path,
            ports: Mutex::new(vec![None; ports]),
            upstream: Mutex::default(),
        })
    }

    /// Sets the controller.
    pub fn connect(&self, upstream: Weak<dyn Upstream>) {
        *self.upstream.lock() = Some(upstream);
    }

    fn upstream(&self) -> Option<Arc<dyn Upstream>> {
        self.upstream.lock().as_ref().and_then(Weak::upgrade)
    }

    /// The device at a port.
    pub fn device(&self, port: usize) -> Option<Arc<dyn UsbDevice>> {
        self.ports.lock().get(port).cloned().flatten()
    }

    /// A free port: the one a user names (counted from 1), or the first.
    ///
    /// # Errors
    /// When there is none.
    pub fn free_port(self: &Arc<Self>, wanted: Option<&str>, device: &str) -> Result<Port> {
        let ports = self.ports.lock();
        let number = match wanted.filter(|w| !w.is_empty()) {
            Some(name) => {
                let number = name.parse().ok().and_then(|n: usize| n.checked_sub(1));
                let free = number.filter(|&n| matches!(ports.get(n), Some(None)));
                free.ok_or_else(|| err!("usb port {name} (bus {}) not found (in use?)", self.name))?
            }
            None => match ports.iter().position(Option::is_none) {
                Some(n) => n,
                None => bail!("tried to attach usb device {device} to a bus with no free ports"),
            },
        };
        Ok(Port { bus: Arc::downgrade(self), number })
    }

    /// Plugs a device in.
    pub fn plug(&self, port: &Port, device: Arc<dyn UsbDevice>) {
        self.ports.lock()[port.number] = Some(device);
        if let Some(upstream) = self.upstream() {
            upstream.changed(port.number, true);
        }
    }

    /// The lines of `info usb`: each device's address, port and name.
    pub fn info(&self) -> Vec<String> {
        let ports = self.ports.lock().clone();
        let devices = ports.iter().enumerate().filter_map(|(i, d)| d.as_ref().map(|d| (i, d)));
        devices
            .map(|(i, d)| {
                let (bus, address, port) = (self.number, d.address(), i + 1);
                format!("  Device {bus}.{address}, Port {port}, Speed 12 Mb/s, Product {}", d.product())
            })
            .collect()
    }
}
