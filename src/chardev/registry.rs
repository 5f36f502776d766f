//! All character devices of a machine, by id. Lives on the main context.

use std::any::Any;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use indexmap::IndexMap;
use lockstep_qapi::schema::{ChardevBackend, ChardevBackendInfo, ChardevInfo, ChardevReturn, DataFormat};
use lockstep_util::{Error, Result, YankGuard, YankInstance, YankRegistry, bail, err};
use tokio::task::JoinHandle;

use crate::backend::{self, Backend};
use crate::frontend::CharFrontend;
use crate::link::Link;
use crate::memory;
use crate::mux::Mux;
use crate::shared::Shared;

/// The backends there are, as `query-chardev-backends` names them.
const BACKENDS: [&str; 10] = ["file", "pipe", "socket", "udp", "pty", "null", "mux", "stdio", "ringbuf", "memory"];

/// The character devices. Cheap to clone; every clone is the same registry.
#[derive(Clone)]
pub struct ChardevRegistry {
    inner: Rc<Inner>,
}

struct Inner {
    /// Tells the machines of one process (in tests) apart.
    realm: u64,
    devices: RefCell<IndexMap<String, Device>>,
    yank: YankRegistry,
    quit: RefCell<Rc<dyn Fn()>>,
}

struct Device {
    /// The name of its backend in the schema.
    kind: &'static str,
    shared: Arc<Shared>,
    driver: Option<JoinHandle<()>>,
    reconnectable: bool,
    switches_context: bool,
    hotswap: bool,
    mux: Option<Mux>,
    /// Dropped last: what holds the backend, and its yank instance.
    _keep: Option<Box<dyn Any>>,
    _yank: Vec<YankGuard>,
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.abort();
        }
    }
}

impl ChardevRegistry {
    /// An empty registry whose sockets can be cut through `yank`.
    pub fn new(yank: YankRegistry) -> Self {
        static REALMS: AtomicU64 = AtomicU64::new(1);
        let realm = REALMS.fetch_add(1, Ordering::Relaxed);
        let inner = Inner { realm, devices: RefCell::default(), yank, quit: RefCell::new(Rc::new(|| {})) };
        Self { inner: Rc::new(inner) }
    }

    /// What a multiplexer does on `C-a x`.
    pub fn on_quit(&self, quit: impl Fn() + 'static) {
        *self.inner.quit.borrow_mut() = Rc::new(quit);
    }

    /// Makes a device (the command line's way: errors are the backend's own). Waits for a client if the backend says so.
    ///
    /// # Errors
    /// `Chardev with id '...' already exists`, and those of the backend.
    pub async fn create(&self, id: &str, description: ChardevBackend) -> Result<ChardevReturn> {
        self.check_free(id)?;
        if let ChardevBackend::Mux(w) = &description {
            let base = w.data.chardev.clone();
            return self.create_mux(id, &base);
        }
        let kind = description.tag().as_str();
        let (yank, made) = self.prepare(id, description).await?;
        self.check_free(id)?;
        let pty = made.pty.clone();
        let shared = Shared::new(id, made.idle_filename.clone(), self.inner.realm);
        let device = self.install(kind, shared, made, yank);
        self.inner.devices.borrow_mut().insert(id.to_owned(), device);
        Ok(ChardevReturn { pty })
    }

    /// `chardev-add`.
    ///
    /// # Errors
    /// Those of [`ChardevRegistry::create`], those of the backend with `Failed to add chardev '...': ` before them.
    pub async fn add(&self, id: &str, description: ChardevBackend) -> Result<ChardevReturn> {
        self.check_free(id)?;
        self.create(id, description).await.map_err(|e| e.prepend(format_args!("Failed to add chardev '{id}': ")))
    }

    /// `chardev-change`: puts another backend behind a device.
    ///
    /// # Errors
    /// `Chardev '...' does not exist`, `Chardev user does not support chardev hotswap`, and the backend's.
    pub async fn change(&self, id: &str, description: ChardevBackend) -> Result<ChardevReturn> {
        let shared = {
            let devices = self.inner.devices.borrow();
            let Some(device) = devices.get(id) else { bail!("Chardev '{id}' does not exist") };
            if device.mux.is_some() || matches!(description, ChardevBackend::Mux(_)) {
                bail!("Mux device hotswap not supported yet");
            }
            if device.shared.is_attached() && !device.hotswap {
                bail!("Chardev user does not support chardev hotswap");
            }
            device.shared.clone()
        };
        let kind = description.tag().as_str();
        let made = backend::make(id, description).await;
        let made = made.map_err(|e| e.prepend(format_args!("Failed to add chardev '{id}': ")))?;
        let mut devices = self.inner.devices.borrow_mut();
        let Some(old) = devices.shift_remove(id) else { bail!("Chardev '{id}' does not exist") };
        let hotswap = old.hotswap;
        if let Some((generation, _)) = shared.link() {
            shared.close(generation);
        }
        drop(old);
        let pty = made.pty.clone();
        let yank = self.register_yank(id, &made)?;
        shared.set_idle_filename(made.idle_filename.clone());
        let mut device = self.install(kind, shared, made, yank);
        device.hotswap = hotswap;
        devices.insert(id.to_owned(), device);
        Ok(ChardevReturn { pty })
    }

    /// `chardev-remove`.
    ///
    /// # Errors
    /// `Chardev '...' not found`, `Chardev '...' is busy`.
    pub fn remove(&self, id: &str) -> Result<()> {
        let device = {
            let mut devices = self.inner.devices.borrow_mut();
            let Some(device) = devices.get(id) else { bail!("Chardev '{id}' not found") };
            if device.shared.is_attached() || device.mux.as_ref().is_some_and(Mux::is_busy) {
                bail!("Chardev '{id}' is busy");
            }
            devices.shift_remove(id)
        };
        if let Some(device) = device {
            device.shared.remove();
        }
        Ok(())
    }

    /// `query-chardev`, in the order of creation.
    pub fn query(&self) -> Vec<ChardevInfo> {
        let devices = self.inner.devices.borrow();
        let info = |device: &Device| ChardevInfo {
            label: device.shared.id.clone(),
            filename: device.shared.filename(),
            frontend_open: device.shared.is_listening() || device.mux.as_ref().is_some_and(Mux::is_busy),
        };
        devices.values().map(info).collect()
    }

    /// Ids and kinds, in the order of creation.
    pub fn kinds(&self) -> Vec<(String, &'static str)> {
        self.inner.devices.borrow().iter().map(|(id, device)| (id.clone(), device.kind)).collect()
    }

    /// `query-chardev-backends`.
    pub fn backends(&self) -> Vec<ChardevBackendInfo> {
        BACKENDS.iter().map(|name| ChardevBackendInfo { name: (*name).to_owned() }).collect()
    }

    /// Whether there is a device with this id.
    pub fn contains(&self, id: &str) -> bool {
        self.inner.devices.borrow().contains_key(id)
    }

    /// Becomes the user of a device.
    ///
    /// # Errors
    /// `Device '...' not found` (class `DeviceNotFound`), `chardev '...' is already in use`.
    pub fn attach(&self, id: &str) -> Result<CharFrontend> {
        let devices = self.inner.devices.borrow();
        let device = devices.get(id).ok_or_else(|| Error::device_not_found(id))?;
        if let Some(mux) = &device.mux {
            return mux.attach();
        }
        match device.shared.attach() {
            Some(attachment) => Ok(CharFrontend::new(device.shared.clone(), attachment)),
            None => Err(err!("chardev '{id}' is already in use")),
        }
    }

    /// Becomes the user of a device, and lets `chardev-change` replace it meanwhile.
    ///
    /// # Errors
    /// Those of [`ChardevRegistry::attach`].
    pub fn attach_hotswap(&self, id: &str) -> Result<CharFrontend> {
        let frontend = self.attach(id)?;
        if let Some(device) = self.inner.devices.borrow_mut().get_mut(id) {
            device.hotswap = true;
        }
        Ok(frontend)
    }

    /// Checks what colo-compare needs of a device: that it comes back after its peer has gone, and works from an iothread.
    ///
    /// # Errors
    /// `Device '...' not found`, `chardev "..." is not reconnectable`, `chardev "..." cannot switch context`.
    pub fn require_socket(&self, id: &str) -> Result<()> {
        let devices = self.inner.devices.borrow();
        let device = devices.get(id).ok_or_else(|| Error::device_not_found(id))?;
        if !device.reconnectable {
            bail!("chardev \"{id}\" is not reconnectable");
        }
        if !device.switches_context {
            bail!("chardev \"{id}\" cannot switch context");
        }
        Ok(())
    }

    /// The device at the other end of this one's connection, if that is one of ours too (a loopback pair).
    pub fn loopback_peer(&self, id: &str) -> Option<String> {
        let devices = self.inner.devices.borrow();
        let ends = |device: &Device| device.shared.link().and_then(|(_, link)| link.addresses());
        let (local, peer) = ends(devices.get(id)?)?;
        let other = devices.iter().find(|(_, device)| ends(device) == Some((peer, local)))?;
        Some(other.0.clone())
    }

    /// Bytes that a device has taken for sending on its connection.
    pub fn accepted_bytes(&self, id: &str) -> Option<u64> {
        self.inner.devices.borrow().get(id).map(|device| device.shared.accepted())
    }

    /// `chardev-send-break`.
    ///
    /// # Errors
    /// `Chardev '...' not found`.
    pub fn send_break(&self, id: &str) -> Result<()> {
        match self.inner.devices.borrow().get(id) {
            Some(device) => device.shared.send_break(),
            None => bail!("Chardev '{id}' not found"),
        }
        Ok(())
    }

    /// `ringbuf-write`.
    ///
    /// # Errors
    /// `Device '...' not found`, `... is not a ringbuf device`.
    pub fn ringbuf_write(&self, id: &str, data: &str, format: Option<DataFormat>) -> Result<()> {
        let link = self.ring_of(id)?;
        let bytes = match format {
            Some(DataFormat::Base64) => decode(data)?,
            _ => data.as_bytes().to_vec(),
        };
        if let Link::Ring(ring) = &*link {
            ring.lock().push(&bytes);
        }
        Ok(())
    }

    /// `ringbuf-read`: takes up to `size` bytes out.
    ///
    /// # Errors
    /// `Device '...' not found`, `... is not a ringbuf device`, `size must be greater than zero`.
    pub fn ringbuf_read(&self, id: &str, size: i64, format: Option<DataFormat>) -> Result<String> {
        let link = self.ring_of(id)?;
        let count =
            usize::try_from(size).ok().filter(|&n| n > 0).ok_or_else(|| err!("size must be greater than zero"))?;
        let Link::Ring(ring) = &*link else { return Ok(String::new()) };
        let bytes = ring.lock().take(count);
        Ok(match format {
            Some(DataFormat::Base64) => BASE64.encode(&bytes),
            _ => String::from_utf8_lossy(&bytes).into_owned(),
        })
    }

    /// Waits until what was written has been taken by the operating system, but not longer than `limit`: before the
    /// process exits.
    pub async fn drain(&self, limit: std::time::Duration) {
        let all: Vec<Arc<Shared>> = self.inner.devices.borrow().values().map(|d| d.shared.clone()).collect();
        let _ = tokio::time::timeout(limit, async {
            for shared in all {
                while !shared.flush_queue() {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
            }
        })
        .await;
    }

    fn ring_of(&self, id: &str) -> Result<Arc<Link>> {
        let devices = self.inner.devices.borrow();
        let Some(device) = devices.get(id) else { bail!("Device '{id}' not found") };
        match device.shared.link() {
            Some((_, link)) if matches!(*link, Link::Ring(_)) => Ok(link),
            _ => bail!("{id} is not a ringbuf device"),
        }
    }

    fn check_free(&self, id: &str) -> Result<()> {
        if self.contains(id) {
            bail!("Chardev with id '{id}' already exists");
        }
        Ok(())
    }

    async fn prepare(&self, id: &str, description: ChardevBackend) -> Result<(Vec<YankGuard>, Backend)> {
        let made = backend::make(id, description).await?;
        Ok((self.register_yank(id, &made)?, made))
    }

    fn register_yank(&self, id: &str, made: &Backend) -> Result<Vec<YankGuard>> {
        if !made.yankable {
            return Ok(Vec::new());
        }
        Ok(vec![self.inner.yank.register(YankInstance::Chardev(id.to_owned()))?])
    }

    fn install(&self, kind: &'static str, shared: Arc<Shared>, made: Backend, mut yank: Vec<YankGuard>) -> Device {
        if made.telnet {
            backend::socket::set_telnet(&shared);
        }
        if let Some((link, filename)) = made.link {
            shared.open(link, filename);
            memory::connected(&shared);
        }
        if made.yankable {
            let target = shared.clone();
            yank.push(self.inner.yank.add(YankInstance::Chardev(shared.id.clone()), move || {
                if let Some((_, link)) = target.link() {
                    link.shutdown();
                }
            }));
        }
        let driver = made.driver.map(|driver| tokio::task::spawn_local(driver(shared.clone())));
        Device {
            kind,
            shared,
            driver,
            reconnectable: made.reconnectable,
            switches_context: made.switches_context,
            hotswap: false,
            mux: None,
            _keep: made.keep,
            _yank: yank,
        }
    }

    fn create_mux(&self, id: &str, base: &str) -> Result<ChardevReturn> {
        if !self.contains(base) {
            bail!("mux: base chardev {base} not found");
        }
        let frontend = self.attach(base)?;
        let quit = self.inner.quit.borrow().clone();
        let device = Device {
            kind: "mux",
            shared: Shared::new(id, "mux".to_owned(), self.inner.realm),
            driver: None,
            reconnectable: false,
            switches_context: false,
            hotswap: false,
            mux: Some(Mux::new(id, frontend, quit)),
            _keep: None,
            _yank: Vec::new(),
        };
        self.inner.devices.borrow_mut().insert(id.to_owned(), device);
        Ok(ChardevReturn { pty: None })
    }
}

fn decode(data: &str) -> Result<Vec<u8>> {
    if !data.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=\n".contains(&b)) {
        bail!("Base64 data contains invalid characters");
    }
    BASE64.decode(data).map_err(|_| err!("Base64 data '{data}' is not valid"))
}

impl std::fmt::Debug for ChardevRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.inner.devices.borrow().keys()).finish()
    }
}
