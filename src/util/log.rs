//! The log of the guest (`-d`, `-D`, `-dfilter`, HMP `log` and `logfile`): what its processors and devices do, item by item.
//!
//! Entries are gathered and written by a thread of the log's own within [`DELAY`], or by whoever fills the buffer. Who has
//! something to tell asks [`Log::has`] first, one relaxed load; processors keep a copy of the items and are told of changes.

use std::{
    fs::File,
    io::{self, Write},
    ops::RangeInclusive,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};

use crate::{Error, Result, bail, err};

/// What can be logged, as bits.
pub mod item {
    #![allow(missing_docs)]
    pub const IN_ASM: u32 = 1;
    pub const INT: u32 = 1 << 1;
    pub const EXEC: u32 = 1 << 2;
    pub const CPU: u32 = 1 << 3;
    pub const FPU: u32 = 1 << 4;
    pub const MMU: u32 = 1 << 5;
    pub const CPU_RESET: u32 = 1 << 6;
    pub const UNIMP: u32 = 1 << 7;
    pub const GUEST_ERRORS: u32 = 1 << 8;
    pub const NOCHAIN: u32 = 1 << 9;
    pub const INVALID_MEM: u32 = 1 << 10;
}

/// Bit, name and meaning of each item, in the order of the help.
const ITEMS: &[(u32, &str, &str)] = &[
    (item::IN_ASM, "in_asm", "the guest's instructions, block by block, when they are decoded"),
    (item::INT, "int", "interrupts and exceptions"),
    (item::EXEC, "exec", "each block before it is executed (long)"),
    (item::CPU, "cpu", "the registers before each block is executed (very long)"),
    (item::FPU, "fpu", "with 'cpu': the registers of the FPU too"),
    (item::MMU, "mmu", "changes of CR0, and of CR3 while there is paging"),
    (item::CPU_RESET, "cpu_reset", "the registers before a reset of the CPU"),
    (item::UNIMP, "unimp", "what the guest uses and is not there, as unknown instructions"),
    (item::GUEST_ERRORS, "guest_errors", "what the guest does wrong with its devices"),
    (item::NOCHAIN, "nochain", "'exec' and 'cpu' of every block (they always are)"),
    (item::INVALID_MEM, "invalid_mem", "accesses that nothing answers"),
];

/// Time until an entry is in the file.
pub const DELAY: Duration = Duration::from_millis(20);
/// Bytes that are gathered at most.
const BUFFER: usize = 64 << 10;

/// Who is to know when the items change.
pub trait LogWatcher: Send + Sync {
    /// [`Log::items`] may be others now. Called on any thread.
    fn log_changed(&self);
}

/// A log.
pub struct Log {
    items: AtomicU32,
    /// Interrupts and exceptions told of.
    events: AtomicU64,
    writer: AtomicBool,
    target: Mutex<Target>,
    gathered: Condvar,
    watchers: Mutex<Vec<Weak<dyn LogWatcher>>>,
    filter: Mutex<Option<Arc<[RangeInclusive<u64>]>>>,
}

struct Target {
    /// The file's name, with the process's id in it.
    name: Option<String>,
    /// Nothing: standard error.
    file: Option<File>,
    buffer: Vec<u8>,
}

impl Target {
    fn flush(&mut self) {
        // A log that cannot be written must not stop the guest.
        let _ = match &mut self.file {
            Some(file) => file.write_all(&self.buffer),
            None => io::stderr().write_all(&self.buffer),
        };
        self.buffer.clear();
    }
}

static GLOBAL: Log = Log::new();

impl Default for Log {
    fn default() -> Self {
        Self::new()
    }
}

impl Log {
    /// A log of nothing, to standard error.
    pub const fn new() -> Self {
        Self {
            items: AtomicU32::new(0),
            events: AtomicU64::new(0),
            writer: AtomicBool::new(false),
            target: Mutex::new(Target { name: None, file: None, buffer: vec![] }),
            gathered: Condvar::new(),
            watchers: Mutex::new(vec![]),
            filter: Mutex::new(None),
        }
    }

    /// The process's log.
    pub fn global() -> &'static Self {
        &GLOBAL
    }

    /// What is logged, bits of [`item`].
    pub fn items(&self) -> u32 {
        self.items.load(Ordering::Relaxed)
    }

    /// Whether something of `bits` is logged.
    #[inline]
    pub fn has(&self, bits: u32) -> bool {
        self.items() & bits != 0
    }

    /// The next number of an interrupt or exception.
    pub fn next_event(&self) -> u64 {
        self.events.fetch_add(1, Ordering::Relaxed)
    }

    /// The addresses that [`set_filter`](Self::set_filter) set.
    pub fn filter(&self) -> Option<Arc<[RangeInclusive<u64>]>> {
        self.filter.lock().clone()
    }

    /// Adds an entry, whole lines. From any thread.
    pub fn write(&'static self, entry: &str) {
        if !self.writer.swap(true, Ordering::Relaxed) {
            let started = thread::Builder::new().name("log".into()).spawn(|| self.run_writer());
            if started.is_err() {
                self.writer.store(false, Ordering::Relaxed);
            }
        }
        let mut target = self.target.lock();
        let first = target.buffer.is_empty();
        target.buffer.extend_from_slice(entry.as_bytes());
        if target.buffer.len() >= BUFFER || !self.writer.load(Ordering::Relaxed) {
            target.flush();
        } else if first {
            self.gathered.notify_one();
        }
    }

    fn run_writer(&self) {
        let mut target = self.target.lock();
        loop {
            if target.buffer.is_empty() {
                self.gathered.wait(&mut target);
            } else {
                parking_lot::MutexGuard::unlocked(&mut target, || thread::sleep(DELAY));
                target.flush();
            }
        }
    }

    /// Writes what was gathered.
    pub fn flush(&self) {
        self.target.lock().flush();
    }

    /// Has `watcher` told of changes, as long as it lives.
    pub fn watch(&self, watcher: Weak<dyn LogWatcher>) {
        let mut watchers = self.watchers.lock();
        watchers.retain(|w| w.strong_count() != 0);
        watchers.push(watcher);
    }

    /// Sets what is logged.
    pub fn set_items(&self, items: u32) {
        if self.items.swap(items, Ordering::SeqCst) == items {
            return;
        }
        let watchers: Vec<_> = self.watchers.lock().iter().filter_map(Weak::upgrade).collect();
        watchers.iter().for_each(|w| w.log_changed());
    }

    /// Sets the file from now on, which is emptied if it is another than before. `%d` in its name is the process's id.
    ///
    /// # Errors
    /// When the name has another `%`, or the file cannot be opened: then the log goes on as it did.
    pub fn set_file(&self, template: &str) -> Result<()> {
        let name = file_name(template).ok_or_else(|| err!("Bad logfile template: {template}"))?;
        if self.target.lock().name.as_ref() == Some(&name) {
            return Ok(());
        }
        let file = File::options().write(true).create(true).truncate(true).open(&name);
        let file = file.map_err(|e| Error::with_errno(format!("Error opening logfile {name}"), &e))?;
        let mut target = self.target.lock();
        target.flush();
        (target.file, target.name) = (Some(file), Some(name));
        Ok(())
    }

    /// The file, if the log has one: for those who want to write there too.
    pub fn file(&self) -> Option<OwnedFd> {
        self.target.lock().file.as_ref()?.as_fd().try_clone_to_owned().ok()
    }

    /// Sets the addresses that code is logged of (`-dfilter`): `first+length`, `last-length` or `first..last`, separated by commas.
    ///
    /// # Errors
    /// When a range is not one.
    pub fn set_filter(&self, text: &str) -> Result<()> {
        let ranges = text.split(',').map(range).collect::<Result<Vec<_>>>()?;
        *self.filter.lock() = Some(ranges.into());
        Ok(())
    }
}

/// The items that names separated by commas stand for; nothing if one is none.
pub fn parse_items(text: &str) -> Option<u32> {
    text.split(',').try_fold(0, |items, name| match name {
        "all" => Some(items | ITEMS.iter().fold(0, |all, i| all | i.0)),
        name => ITEMS.iter().find(|i| i.1 == name).map(|i| items | i.0),
    })
}

/// The list of items. `monitor`: as the command `log` knows them.
pub fn usage(monitor: bool) -> String {
    let mut text = String::from("Log items (comma separated):\n");
    if monitor {
        text.push_str("none            remove all logs\n");
    }
    for (_, name, help) in ITEMS {
        text.push_str(&format!("{name:<15} {help}\n"));
    }
    text.push('\n');
    text
}

fn file_name(template: &str) -> Option<String> {
    let mut parts = template.split('%');
    let first = parts.next()?.to_owned();
    match (parts.next(), parts.next()) {
        (None, _) => Some(first),
        (Some(rest), None) => Some(format!("{first}{}{}", std::process::id(), rest.strip_prefix('d')?)),
        _ => None,
    }
}

/// A number as C has it: decimal, `0x` hexadecimal, or octal with a leading zero.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None if text.len() > 1 && text.starts_with('0') => u64::from_str_radix(text, 8).ok(),
        None => text.parse().ok(),
    }
}

fn range(text: &str) -> Result<RangeInclusive<u64>> {
    let operator =
        ["-", "+", ".."].into_iter().find(|o| text.contains(o)).ok_or_else(|| err!("Bad range specifier"))?;
    let (left, right) = text.split_once(operator).unwrap_or_default();
    let first = number(left).ok_or_else(|| err!("Invalid number to the left of {operator}"))?;
    let second = number(right).ok_or_else(|| err!("Invalid number to the right of {operator}"))?;
    let range = match operator {
        "+" => second.checked_sub(1).and_then(|n| first.checked_add(n)).map(|last| first..=last),
        "-" => second.checked_sub(1).and_then(|n| first.checked_sub(n)).map(|low| low..=first),
        _ => Some(first..=second).filter(|r| !r.is_empty()),
    };
    match range {
        Some(range) => Ok(range),
        None => bail!("Invalid range"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_names_between_commas_and_an_unknown_one_spoils_all() {
        assert_eq!(parse_items("int,in_asm"), Some(item::INT | item::IN_ASM));
        assert_eq!(parse_items("all").unwrap().count_ones() as usize, ITEMS.len());
        for wrong in ["", "none", "help", "int,", ",int", "int,foo", "INT"] {
            assert_eq!(parse_items(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_files_name_has_the_process_id_at_most_once() {
        let id = std::process::id();
        assert_eq!(file_name("a%db").unwrap(), format!("a{id}b"));
        assert_eq!(file_name("plain").unwrap(), "plain");
        for wrong in ["%d%d", "a%s", "100%", "%%d"] {
            assert_eq!(file_name(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn ranges_have_three_forms() {
        let ok = |text: &str| range(text).unwrap();
        assert_eq!(ok("0x1000+0x10"), 0x1000..=0x100f);
        assert_eq!(ok("0x1000-16"), 0xff1..=0x1000);
        assert_eq!(ok("0..010"), 0..=8);
        assert_eq!(ok("0xffffffffffffffff+1"), u64::MAX..=u64::MAX);
        let fails = |text: &str| range(text).unwrap_err().message().to_owned();
        assert_eq!(fails("0x1000"), "Bad range specifier");
        assert_eq!(fails(""), "Bad range specifier");
        assert_eq!(fails("0x1000+0x"), "Invalid number to the right of +");
        assert_eq!(fails("x..1"), "Invalid number to the left of ..");
        for wrong in ["0x3000..0x1000", "0x1000-0x2000", "0x1000+0", "0xffffffffffffffff+2", "0-0"] {
            assert_eq!(fails(wrong), "Invalid range", "{wrong}");
        }
    }

    #[test]
    fn another_file_begins_empty_and_the_same_one_goes_on() {
        struct Count(AtomicU32);
        impl LogWatcher for Count {
            fn log_changed(&self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let log: &'static Log = Box::leak(Box::default());
        let watcher = Arc::new(Count(AtomicU32::new(0)));
        let weak: Weak<Count> = Arc::downgrade(&watcher);
        log.watch(weak);
        let folder = std::env::temp_dir();
        let path = |n: u32| folder.join(format!("lockstep-log-{}-{n}", std::process::id())).display().to_string();
        std::fs::write(path(0), "old").unwrap();
        log.set_file(&path(0)).unwrap();
        log.set_items(item::INT);
        log.set_items(item::INT);
        assert_eq!(watcher.0.load(Ordering::SeqCst), 1);
        log.write("one\n");
        log.set_file(&path(0)).unwrap();
        log.write("two\n");
        log.set_file(&path(1)).unwrap();
        log.write("three\n");
        log.flush();
        assert!(log.set_file("/nonexistent/x").is_err());
        log.write("four\n");
        log.flush();
        let text = |n| std::fs::read_to_string(path(n)).unwrap();
        assert_eq!((text(0).as_str(), text(1).as_str()), ("one\ntwo\n", "three\nfour\n"));
        let _ = (std::fs::remove_file(path(0)), std::fs::remove_file(path(1)));
    }
}
