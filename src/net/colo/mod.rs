//! `colo-compare`: the comparing engine between three character devices, in an iothread.

mod desk;
mod task;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use lockstep_chardev::ChardevRegistry;
use lockstep_event::{Clocks, ContextHandle};
use lockstep_qapi::schema::ColoCompareProperties;
use lockstep_util::{Error, Result, bail};
use tokio::sync::{mpsc, oneshot};

use crate::compare::{CompareConfig, CompareStats, Divergence, IdentityGate};
pub(crate) use desk::Intake;
pub(crate) use task::Command;

/// Why a checkpoint is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The two sides differ.
    Divergence(Divergence),
    /// Output is buffered, and something waits.
    Output,
}

/// Called, from any thread, when a checkpoint is needed. Calls repeat while the need lasts.
pub type CheckpointNotifier = Arc<dyn Fn(Need) + Send + Sync>;

/// The iothread that an object runs in.
#[derive(Clone)]
pub struct IoThreadRef {
    /// Its context.
    pub context: ContextHandle,
    /// Its path in the object tree.
    pub path: String,
    /// Keeps the thread while the object lives.
    pub keep: Rc<dyn Any>,
}

/// What a compare object is made with.
pub(crate) struct Environment {
    pub chardevs: ChardevRegistry,
    pub clocks: Clocks,
    pub gate: Arc<IdentityGate>,
    pub notifier: Arc<parking_lot::RwLock<Option<CheckpointNotifier>>>,
}

/// A colo-compare object.
pub struct ColoCompare {
    id: String,
    primary_in: String,
    secondary_in: String,
    outdev: String,
    notify_dev: Option<String>,
    vnet_hdr_support: bool,
    iothread: IoThreadRef,
    timeout_ms: Cell<u64>,
    scan_ms: Cell<u32>,
    max_queue: Cell<u32>,
    commands: RefCell<Option<mpsc::UnboundedSender<Command>>>,
}

impl ColoCompare {
    /// Makes the object and starts it.
    pub(crate) fn new(
        id: &str,
        properties: &ColoCompareProperties,
        iothread: IoThreadRef,
        env: Environment,
    ) -> Result<Rc<Self>> {
        let (p, chardevs) = (properties, &env.chardevs);
        let names = [&p.primary_in, &p.secondary_in, &p.outdev];
        if p.primary_in == p.outdev || p.secondary_in == p.outdev || p.primary_in == p.secondary_in {
            bail!("'indev' and 'outdev' could not be same for compare module");
        }
        for name in names {
            chardevs.require_socket(name)?;
        }
        let positive = |name: &str, value: u64| match value {
            0 => Err(Error::new(format!("Property 'colo-compare.{name}' requires a positive value"))),
            value => Ok(value),
        };
        let timeout_ms = positive("compare_timeout", p.compare_timeout.unwrap_or(3000))?;
        let scan_ms = positive("expired_scan_cycle", p.expired_scan_cycle.unwrap_or(1000).into())?;
        let max_queue = positive("max_queue_size", p.max_queue_size.unwrap_or(1024).into())?;
        let primary = chardevs.attach(&p.primary_in)?;
        let secondary = chardevs.attach(&p.secondary_in)?;
        let out = chardevs.attach(&p.outdev)?;
        let notify = p.notify_dev.as_ref().map(|name| chardevs.attach(name)).transpose()?;
        let this = Rc::new(Self {
            id: id.to_owned(),
            primary_in: p.primary_in.clone(),
            secondary_in: p.secondary_in.clone(),
            outdev: p.outdev.clone(),
            notify_dev: p.notify_dev.clone(),
            vnet_hdr_support: p.vnet_hdr_support.unwrap_or(false),
            iothread,
            timeout_ms: Cell::new(timeout_ms),
            scan_ms: Cell::new(scan_ms as u32),
            max_queue: Cell::new(max_queue as u32),
            commands: RefCell::new(None),
        });
        let (tx, rx) = mpsc::unbounded_channel();
        *this.commands.borrow_mut() = Some(tx);
        let ends = task::Ends { primary, secondary, out, notify };
        let settings = desk::Settings {
            config: this.config(),
            scan_ms,
            vnet: this.vnet_hdr_support,
            gate: env.gate,
            clocks: env.clocks,
            notifier: env.notifier,
        };
        this.iothread.context.spawn(move || task::run(ends, settings, rx));
        Ok(this)
    }

    /// The object's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The device that the primary's packets come from.
    pub(crate) fn primary_in(&self) -> &str {
        &self.primary_in
    }

    fn config(&self) -> CompareConfig {
        CompareConfig {
            timeout_ns: i64::try_from(self.timeout_ms.get()).unwrap_or(i64::MAX).saturating_mul(1_000_000),
            max_queue: self.max_queue.get() as usize,
            ..CompareConfig::default()
        }
    }

    fn command(&self, command: Command) -> bool {
        self.commands.borrow().as_ref().is_some_and(|tx| tx.send(command).is_ok())
    }

    /// A checkpoint begins: the secondary will wait until what it has said is acknowledged.
    pub(crate) fn acknowledge(&self) {
        self.command(Command::Acknowledge);
    }

    /// The secondary has stopped, and everything that it said is with this host: takes that in, and nothing more before
    /// the next flush, since what comes then is of the new epoch.
    pub(crate) async fn end_epoch(&self) {
        let (done, wait) = oneshot::channel();
        if self.command(Command::EndEpoch(done)) {
            let _ = wait.await;
        }
    }

    /// Releases what is held and makes both sides equal: all of a checkpoint has arrived at the secondary. The secondary's
    /// stream is read empty first, and the primary's as far as `primary_bytes`, if that is known. From then on, if `buffered`,
    /// the secondary says nothing, and whatever is held asks for the next flush.
    pub(crate) async fn flush(&self, primary_bytes: Option<u64>, buffered: bool) {
        let (done, wait) = oneshot::channel();
        if self.command(Command::Flush { primary_bytes, buffered, done }) {
            let _ = wait.await;
        }
    }

    /// The counters.
    pub async fn stats(&self) -> CompareStats {
        let (done, wait) = oneshot::channel();
        if !self.command(Command::Stats(done)) {
            return CompareStats::default();
        }
        wait.await.unwrap_or_default()
    }

    /// Ends the object: what is held leaves, then its devices are free.
    pub(crate) async fn stop(&self) {
        let (done, wait) = oneshot::channel();
        if self.command(Command::Stop(done)) {
            let _ = wait.await;
        }
        self.commands.borrow_mut().take();
    }

    /// The names and types of the properties.
    pub const PROPERTIES: &[(&str, &str)] = &[
        ("compare_timeout", "uint64"),
        ("expired_scan_cycle", "uint32"),
        ("iothread", "link<iothread>"),
        ("max_queue_size", "uint32"),
        ("notify_dev", "string"),
        ("outdev", "string"),
        ("primary_in", "string"),
        ("secondary_in", "string"),
        ("vnet_hdr_support", "bool"),
    ];

    /// The value of a property.
    pub fn get(&self, name: &str) -> Option<serde_json::Value> {
        Some(match name {
            "compare_timeout" => self.timeout_ms.get().into(),
            "expired_scan_cycle" => self.scan_ms.get().into(),
            "iothread" => self.iothread.path.clone().into(),
            "max_queue_size" => self.max_queue.get().into(),
            "notify_dev" => self.notify_dev.clone().unwrap_or_default().into(),
            "outdev" => self.outdev.clone().into(),
            "primary_in" => self.primary_in.clone().into(),
            "secondary_in" => self.secondary_in.clone().into(),
            "vnet_hdr_support" => self.vnet_hdr_support.into(),
            _ => return None,
        })
    }

    /// Changes a property of the running object.
    ///
    /// # Errors
    /// `Property 'colo-compare.X' requires a positive value`, and a wrong type or a property that stays as it is.
    pub fn set(&self, name: &str, value: &serde_json::Value) -> Result<()> {
        let number = |max: u64, ty: &str| match value.as_u64() {
            Some(0) => Err(Error::new(format!("Property 'colo-compare.{name}' requires a positive value"))),
            Some(n) if n <= max => Ok(n),
            _ => Err(Error::new(format!("Parameter '{name}' expects {ty}"))),
        };
        match name {
            "compare_timeout" => self.timeout_ms.set(number(u64::MAX, "uint64")?),
            "expired_scan_cycle" => self.scan_ms.set(number(u32::MAX.into(), "uint32_t")? as u32),
            "max_queue_size" => self.max_queue.set(number(u32::MAX.into(), "uint32_t")? as u32),
            _ => bail!("Property 'colo-compare.{name}' can't be changed after the object was made"),
        }
        self.command(Command::Configure { config: self.config(), scan_ms: self.scan_ms.get().into() });
        Ok(())
    }
}

impl std::fmt::Debug for ColoCompare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ColoCompare").field("id", &self.id).finish_non_exhaustive()
    }
}
