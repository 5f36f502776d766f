//! Descriptors that whoever uses the program hands over: open when it starts (by number), sent to a monitor's socket (by
//! name), or kept in sets that file names lead to (`/dev/fdset/N`).
//!
//! A number alone is taken for a descriptor only if it was open at the start: all others are the program's own.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::scope::{self, Scoped};
use crate::{Error, Result, bail, err};

static INHERITED: Mutex<BTreeMap<RawFd, OwnedFd>> = Mutex::new(BTreeMap::new());
static SETS: Mutex<BTreeMap<i64, Vec<SetEntry>>> = Mutex::new(BTreeMap::new());

thread_local! {
    static CLIENT: RefCell<Option<Client>> = const { RefCell::new(None) };
}

/// Takes note of the descriptors that are open, but for standard input, output and error.
///
/// # Safety
/// To be called before the program opens any of its own.
pub unsafe fn note_inherited() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let numbers: Vec<RawFd> = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    let mut inherited = INHERITED.lock();
    for number in numbers.into_iter().filter(|n| *n > 2) {
        // SAFETY: F_GETFD only asks whether the number is open: that of the listing above is closed by now.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0 {
            // SAFETY: it is open, and by the caller's promise nobody in this program has it.
            inherited.insert(number, unsafe { OwnedFd::from_raw_fd(number) });
        }
    }
}

/// Makes a descriptor one of those that numbers name, as if it had been open at the start. Returns the number.
pub fn inherit(fd: OwnedFd) -> RawFd {
    let number = fd.as_raw_fd();
    INHERITED.lock().insert(number, fd);
    number
}

/// The descriptor of a number, if it was open at the start and nobody has taken it yet.
pub fn numbered(number: RawFd) -> Option<OwnedFd> {
    INHERITED.lock().remove(&number)
}

/// A copy of the descriptor of a number, which others may take later.
pub fn copy_of_numbered(number: RawFd) -> Option<OwnedFd> {
    INHERITED.lock().get(&number)?.try_clone().ok()
}

/// The descriptor that an option names: by the name that it got from the monitor whose command runs, or by number.
/// `None` when nothing is open with this number.
///
/// # Errors
/// `File descriptor named '...' has not been found`, `Invalid file descriptor number '...'`.
pub fn take(name: &str) -> Result<Option<OwnedFd>> {
    match Client::current() {
        Some(client) if !name.starts_with(|c: char| c.is_ascii_digit()) => client.take(name).map(Some),
        _ => match name.parse() {
            Ok(number) if number >= 0 => Ok(numbered(number)),
            _ => bail!("Invalid file descriptor number '{name}'"),
        },
    }
}

/// The socket that an address names: from a monitor by name only, else by number.
///
/// # Errors
/// `File descriptor named '...' has not been found`, `Unable to parse FD number ...`,
/// `File descriptor '...' is not a socket`.
pub fn take_socket(name: &str) -> Result<OwnedFd> {
    let fd = match (Client::current(), name.parse::<RawFd>()) {
        (Some(client), _) => Some(client.take(name)?),
        (None, Ok(number)) => numbered(number),
        (None, Err(_)) => bail!("Unable to parse FD number {name}"),
    };
    let is_socket = |fd: &OwnedFd| rustix::net::sockopt::socket_type(fd).is_ok();
    fd.filter(is_socket).ok_or_else(|| err!("File descriptor '{name}' is not a socket"))
}

/// A monitor's client, which may send descriptors along with its requests and give them names. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    inner: Arc<ClientInner>,
}

struct ClientInner {
    names: Mutex<BTreeMap<String, OwnedFd>>,
    receive: Box<dyn Fn() -> Option<OwnedFd> + Send + Sync>,
}

impl Client {
    /// A client; `receive` takes the descriptor that came last.
    pub fn new(receive: impl Fn() -> Option<OwnedFd> + Send + Sync + 'static) -> Self {
        Self { inner: Arc::new(ClientInner { names: Mutex::default(), receive: Box::new(receive) }) }
    }

    /// The client whose command runs.
    pub fn current() -> Option<Self> {
        CLIENT.with(|c| c.borrow().clone())
    }

    /// Runs a command of this client.
    pub fn during<F: Future>(&self, command: F) -> impl Future<Output = F::Output> + use<F> {
        Scoped::new(&CLIENT, self.clone(), command)
    }

    /// The descriptor that came with the request.
    ///
    /// # Errors
    /// `No file descriptor supplied via SCM_RIGHTS`.
    pub fn receive(&self) -> Result<OwnedFd> {
        (self.inner.receive)().ok_or_else(|| err!("No file descriptor supplied via SCM_RIGHTS"))
    }

    /// `getfd`: names the descriptor that came with the request. One that had the name is closed.
    ///
    /// # Errors
    /// When none came, or the name begins with a digit.
    pub fn name(&self, name: &str) -> Result<()> {
        let fd = self.receive()?;
        if name.starts_with(|c: char| c.is_ascii_digit()) {
            bail!("Parameter 'fdname' expects a name not starting with a digit");
        }
        self.inner.names.lock().insert(name.to_owned(), fd);
        Ok(())
    }

    /// `closefd`.
    ///
    /// # Errors
    /// `File descriptor named '...' not found`.
    pub fn close(&self, name: &str) -> Result<()> {
        let closed = self.inner.names.lock().remove(name);
        closed.map(drop).ok_or_else(|| err!("File descriptor named '{name}' not found"))
    }

    fn take(&self, name: &str) -> Result<OwnedFd> {
        let taken = self.inner.names.lock().remove(name);
        taken.ok_or_else(|| err!("File descriptor named '{name}' has not been found"))
    }
}

/// A descriptor of a set.
struct SetEntry {
    fd: OwnedFd,
    opaque: Option<String>,
}

/// A set as users are told of it: its id, and number and note of each descriptor.
pub type SetInfo = (i64, Vec<(RawFd, Option<String>)>);

/// Adds a descriptor to a set, by default to a new one. Returns the set and the descriptor's number.
///
/// # Errors
/// `Parameter 'fdset-id' expects a non-negative value`.
pub fn add_to_set(fd: OwnedFd, set: Option<i64>, opaque: Option<String>) -> Result<(i64, RawFd)> {
    let mut sets = SETS.lock();
    let set = match set {
        Some(set) if set < 0 => bail!("Parameter 'fdset-id' expects a non-negative value"),
        Some(set) => set,
        None => (0..).find(|id| !sets.contains_key(id)).unwrap_or_default(),
    };
    let number = fd.as_raw_fd();
    sets.entry(set).or_default().push(SetEntry { fd, opaque });
    Ok((set, number))
}

/// Closes a descriptor of a set, or all; a set without any is gone.
///
/// # Errors
/// `File descriptor named 'fdset-id:..., fd:...' not found`.
pub fn remove_from_set(set: i64, fd: Option<i64>) -> Result<()> {
    let mut sets = SETS.lock();
    let not_found = || match fd {
        Some(fd) => err!("File descriptor named 'fdset-id:{set}, fd:{fd}' not found"),
        None => err!("File descriptor named 'fdset-id:{set}' not found"),
    };
    let entries = sets.get_mut(&set).ok_or_else(not_found)?;
    let before = entries.len();
    entries.retain(|e| fd.is_some_and(|fd| i64::from(e.fd.as_raw_fd()) != fd));
    if entries.len() == before {
        return Err(not_found());
    }
    if entries.is_empty() {
        sets.remove(&set);
    }
    Ok(())
}

/// All sets, those with the greatest number first.
pub fn sets() -> Vec<SetInfo> {
    let sets = SETS.lock();
    let fds = |entries: &[SetEntry]| entries.iter().map(|e| (e.fd.as_raw_fd(), e.opaque.clone())).collect();
    sets.iter().rev().map(|(id, entries)| (*id, fds(entries))).collect()
}

/// The set that a file name means.
pub fn set_of_path(path: &Path) -> Option<i64> {
    path.to_str()?.strip_prefix("/dev/fdset/")?.parse().ok()
}

/// Opens a file, or takes a copy of the set's descriptor that has the same access.
///
/// # Errors
/// Those of open(2); of a set, `ENOENT` when there is none of this number, `EACCES` when none of its descriptors may do
/// what is wanted.
pub fn open(path: &Path, flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC;
    let Some(set) = set_of_path(path) else { return Ok(rustix::fs::open(path, flags, mode.into())?) };
    let sets = SETS.lock();
    let entries = sets.get(&set).ok_or(Errno::NOENT)?;
    let access = |fd: &OwnedFd| rustix::fs::fcntl_getfl(fd).map(|f| f & OFlags::ACCMODE);
    let fits = |e: &&SetEntry| access(&e.fd).is_ok_and(|a| a == flags & OFlags::ACCMODE);
    let copy = entries.iter().find(fits).ok_or(Errno::ACCESS)?.fd.as_fd().try_clone_to_owned()?;
    if flags.contains(OFlags::TRUNC) {
        rustix::fs::ftruncate(&copy, 0)?;
    }
    if flags.contains(OFlags::APPEND) {
        rustix::fs::fcntl_setfl(&copy, rustix::fs::fcntl_getfl(&copy)? | OFlags::APPEND)?;
    }
    Ok(copy)
}

/// The error of a number that is not open.
pub fn not_open(name: &str) -> Error {
    Error::with_errno(format_args!("Can't use file descriptor {name}"), &io::Error::from(Errno::BADF))
}

/// Runs a function as a command of a client: for tests of what takes descriptors by name.
pub fn as_client<R>(client: &Client, f: impl FnOnce() -> R) -> R {
    scope::within(&CLIENT, client.clone(), f)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn null(write: bool) -> OwnedFd {
        File::options().read(true).write(write).open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_client_names_what_it_sends_and_each_name_is_taken_once() {
        let client = Client::new(|| Some(null(true)));
        client.name("a").unwrap();
        assert_eq!(
            client.name("1a").unwrap_err().message(),
            "Parameter 'fdname' expects a name not starting with a digit"
        );
        as_client(&client, || {
            assert!(take("a").unwrap().is_some());
            assert_eq!(take("a").unwrap_err().message(), "File descriptor named 'a' has not been found");
            assert_eq!(take_socket("7").unwrap_err().message(), "File descriptor named '7' has not been found");
        });
        assert_eq!(client.close("a").unwrap_err().message(), "File descriptor named 'a' not found");
        let empty = Client::new(|| None);
        assert_eq!(empty.name("a").unwrap_err().message(), "No file descriptor supplied via SCM_RIGHTS");
    }

    #[test]
    fn numbers_name_only_what_was_open_at_the_start() {
        let own = null(true);
        assert!(take(&own.as_raw_fd().to_string()).unwrap().is_none());
        let number = inherit(null(true)).to_string();
        assert_eq!(take_socket(&number).unwrap_err().message(), format!("File descriptor '{number}' is not a socket"));
        let number = inherit(null(true)).to_string();
        assert!(take(&number).unwrap().is_some() && take(&number).unwrap().is_none());
        assert_eq!(take("x").unwrap_err().message(), "Invalid file descriptor number 'x'");
        assert_eq!(take_socket("x").unwrap_err().message(), "Unable to parse FD number x");
    }

    #[test]
    fn sets_give_copies_with_the_access_that_is_asked_for() {
        let (set, both) = add_to_set(null(true), Some(71), Some("note".into())).unwrap();
        let (_, read) = add_to_set(null(false), Some(71), None).unwrap();
        assert!(sets().contains(&(set, vec![(both, Some("note".into())), (read, None)])));
        let open = |flags| super::open(Path::new("/dev/fdset/71"), flags, 0).map_err(|e| e.raw_os_error());
        assert!(open(OFlags::RDONLY).is_ok() && open(OFlags::RDWR).is_ok());
        assert_eq!(open(OFlags::WRONLY).unwrap_err(), Some(libc::EACCES));
        let missing = remove_from_set(71, Some(9999)).unwrap_err();
        assert_eq!(missing.message(), "File descriptor named 'fdset-id:71, fd:9999' not found");
        remove_from_set(71, None).unwrap();
        assert_eq!(open(OFlags::RDONLY).unwrap_err(), Some(libc::ENOENT));
        assert_eq!(remove_from_set(71, None).unwrap_err().message(), "File descriptor named 'fdset-id:71' not found");
        assert!(add_to_set(null(true), Some(-1), None).is_err());
    }
}
