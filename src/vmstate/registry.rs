//! All devices with state, in the order of their registration.

use crate::{Decoder, Encoder, Layout, LoadError, VmState};
use lockstep_util::{Result, err};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// State that was parsed and found good, waiting to be applied.
pub struct Prepared(Box<dyn FnOnce() + Send>);

impl Prepared {
    /// State that `apply` puts into its device. It must not fail: whatever can be wrong was looked for before.
    pub fn new(apply: impl FnOnce() + Send + 'static) -> Self {
        Self(Box::new(apply))
    }

    /// Puts the state into its device.
    pub fn commit(self) {
        (self.0)();
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Prepared")
    }
}

/// What a section says about the form of its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateInfo {
    /// Name of the description (QEMU's vmsd).
    pub name: &'static str,
    /// The version that is written.
    pub version: u32,
    /// The oldest version that is read.
    pub minimum: u32,
}

/// Something whose state migrates. Most devices implement [`Snapshot`], which brings this along.
pub trait SaveState: Send + Sync {
    /// The form of the state.
    fn info(&self) -> StateInfo;

    /// The declared form, where there is a wire struct.
    fn layout(&self) -> Option<Layout> {
        None
    }

    /// Whether there is anything to send now; a section that is not needed is left out.
    fn needed(&self) -> bool {
        true
    }

    /// Writes the state. Called with the guest stopped.
    fn save(&self, out: &mut Encoder) -> Result<()>;

    /// Parses and validates state of the given version; must not touch the device.
    fn prepare(&self, input: &mut Decoder<'_>, version: u32) -> Result<Prepared, LoadError>;
}

/// A device whose state is a wire struct.
pub trait Snapshot: Send + Sync + 'static {
    /// The wire struct.
    type Wire: VmState + Send + 'static;

    /// The state now.
    fn snapshot(&self) -> Self::Wire;

    /// Refuses what the device cannot be: indexes out of range, other sizes than this machine's. Must not change anything.
    fn validate(&self, wire: &Self::Wire) -> Result<(), LoadError> {
        let _ = wire;
        Ok(())
    }

    /// Takes validated state over.
    fn restore(&self, wire: Self::Wire);

    /// Whether there is anything to send now.
    fn is_needed(&self) -> bool {
        true
    }
}

impl<T: Snapshot> SaveState for Arc<T> {
    fn info(&self) -> StateInfo {
        StateInfo { name: T::Wire::NAME, version: T::Wire::VERSION, minimum: T::Wire::MINIMUM }
    }

    fn layout(&self) -> Option<Layout> {
        Some(T::Wire::layout())
    }

    fn needed(&self) -> bool {
        self.is_needed()
    }

    fn save(&self, out: &mut Encoder) -> Result<()> {
        let wire = self.snapshot();
        wire.encode(out);
        out.describe(|| wire.description());
        Ok(())
    }

    fn prepare(&self, input: &mut Decoder<'_>, version: u32) -> Result<Prepared, LoadError> {
        let wire = T::Wire::decode(input, version)?;
        self.validate(&wire)?;
        let device = self.clone();
        Ok(Prepared::new(move || device.restore(wire)))
    }
}

/// One registered section.
#[derive(Clone)]
pub struct Entry {
    /// The section id: its number in the order of registration.
    pub id: u32,
    /// The section's name: the path of the device on its bus, a slash, and the description's name (`0000:00:04.0/rtl8139`).
    pub name: Arc<str>,
    /// Which one of that name.
    pub instance: u32,
    /// The state; `None` for a section that only has its number here (RAM, which the migration sends itself).
    pub state: Option<Arc<dyn SaveState>>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.id, self.name, self.instance)
    }
}

/// The registered sections. A handle: clones share the list.
#[derive(Clone, Debug, Default)]
pub struct StateRegistry {
    list: Arc<Mutex<List>>,
}

#[derive(Debug, Default)]
struct List {
    next_id: u32,
    entries: Vec<Entry>,
}

impl StateRegistry {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a section with the next free instance number of its name. Returns its id.
    pub fn register(&self, name: &str, state: impl SaveState + 'static) -> u32 {
        self.add(name, None, Some(Arc::new(state)))
    }

    /// Adds a section with a given instance number (vCPUs, APICs: theirs is the CPU's number). Returns its id.
    pub fn register_instance(&self, name: &str, instance: u32, state: impl SaveState + 'static) -> u32 {
        self.add(name, Some(instance), Some(Arc::new(state)))
    }

    /// Adds a section behind the one of the given name and instance, or as the last if there is none. Returns its id.
    pub fn register_after(&self, place: (&str, u32), name: &str, state: impl SaveState + 'static) -> u32 {
        let id = self.register(name, state);
        let mut list = self.lock();
        if let Some(at) = list.entries.iter().position(|e| *e.name == *place.0 && e.instance == place.1)
            && let Some(entry) = list.entries.pop()
        {
            list.entries.insert(at + 1, entry);
        }
        id
    }

    /// Takes an id and an instance number for a section that is sent by other means (`ram`). Returns its id.
    pub fn reserve(&self, name: &str) -> u32 {
        self.add(name, None, None)
    }

    /// Takes a section out, when its device is unplugged. Unknown ids are ignored.
    pub fn unregister(&self, id: u32) {
        self.lock().entries.retain(|e| e.id != id);
    }

    /// The sections in order.
    pub fn entries(&self) -> Vec<Entry> {
        self.lock().entries.clone()
    }

    /// The section of a name and instance. A name without a bus path also finds the one device whose path ends in it, as QEMU does
    /// for streams of machines that had no paths.
    pub fn find(&self, name: &str, instance: u32) -> Option<Entry> {
        let list = self.lock();
        let exact = list.entries.iter().find(|e| e.instance == instance && *e.name == *name);
        let by_tail = || {
            let tail = |e: &&Entry| e.name.rsplit_once('/').is_some_and(|(_, tail)| tail == name);
            list.entries.iter().filter(tail).nth(instance as usize)
        };
        exact.or_else(by_tail).cloned()
    }

    /// Writes all that is needed of one section's state, without any frame.
    pub fn save(&self, entry: &Entry, out: &mut Encoder) -> Result<()> {
        match &entry.state {
            Some(state) => state.save(out).map_err(|e| e.prepend(format_args!("Failed to save {}: ", entry.name))),
            None => Err(err!("Section {} has no state of its own", entry.name)),
        }
    }

    /// Parses and validates the state of a named section and touches nothing.
    pub fn prepare(
        &self,
        name: &str,
        instance: u32,
        version: u32,
        input: &mut Decoder<'_>,
    ) -> Result<Prepared, LoadError> {
        let unknown = || LoadError::UnknownSection { name: name.to_owned(), instance };
        let state = self.find(name, instance).and_then(|e| e.state).ok_or_else(unknown)?;
        let info = state.info();
        crate::wire::check_version(name, version, info.version, info.minimum)?;
        state.prepare(input, version)
    }

    fn add(&self, name: &str, instance: Option<u32>, state: Option<Arc<dyn SaveState>>) -> u32 {
        let mut list = self.lock();
        let of_name = || list.entries.iter().filter(|e| *e.name == *name);
        let instance = instance.unwrap_or_else(|| of_name().map(|e| e.instance + 1).max().unwrap_or(0));
        debug_assert!(of_name().all(|e| e.instance != instance), "{name} instance {instance} is registered twice");
        let id = list.next_id;
        list.next_id += 1;
        list.entries.push(Entry { id, name: name.into(), instance, state });
        id
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        // The list is whole at every step, so a panic elsewhere does not spoil it.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Saves `device`, loads the bytes into `fresh`, saves that, and compares; also tries every shorter input, which must be refused
/// without a trace. Returns what went wrong, in words. The base of [`vmstate_roundtrip!`](crate::vmstate_roundtrip).
pub fn check_roundtrip<T: SaveState>(device: &T, fresh: &T) -> std::result::Result<(), String> {
    let bytes_of = |d: &T| {
        let mut out = Encoder::new();
        d.save(&mut out).map(|()| out.into_bytes()).map_err(|e| e.to_string())
    };
    let (saved, before) = (bytes_of(device)?, bytes_of(fresh)?);
    let version = device.info().version;
    // All of them where that is cheap, some hundred otherwise.
    for cut in (0..saved.len()).step_by(saved.len() / 2048 + 1) {
        if let Err(e) = fresh.prepare(&mut Decoder::partial(&saved[..cut]), version) {
            if !e.is_short() {
                return Err(format!("{cut} of {} bytes: {e}", saved.len()));
            }
        } else {
            return Err(format!("{cut} of {} bytes are taken for all", saved.len()));
        }
    }
    if bytes_of(fresh)? != before {
        return Err("preparing changed the device".into());
    }
    let mut input = Decoder::new(&saved);
    let prepared = fresh.prepare(&mut input, version).map_err(|e| e.to_string())?;
    if input.remaining() != 0 {
        return Err(format!("{} bytes are left over", input.remaining()));
    }
    prepared.commit();
    let again = bytes_of(fresh)?;
    match saved.iter().zip(&again).position(|(a, b)| a != b) {
        Some(at) => Err(format!("byte {at} is {:#04x}, and {:#04x} after the trip", saved[at], again[at])),
        None if saved.len() != again.len() => Err(format!("{} bytes, and {} after the trip", saved.len(), again.len())),
        None => Ok(()),
    }
}
