//! `-drive` and its shorthands: a disk with its block nodes, and the place it goes to.

use std::rc::Rc;

use lockstep_block::{Backend, Graph, OpenFlags, Options, io::DetectZeroes};
use lockstep_qapi::opts::{self, Opts};
use lockstep_util::{Result, bail, err};

/// Which kind of bus a drive asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// A device takes it by its id.
    None,
    /// An IDE disk of the machine's.
    Ide,
    /// The floppy drive.
    Floppy,
}

/// What kind of medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// A hard disk.
    Disk,
    /// A CD-ROM.
    Cdrom,
}

/// What happens when a request fails (`rerror`, `werror`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// Stop for lack of space, tell the guest anything else.
    #[default]
    Auto,
    /// Tell the guest.
    Report,
    /// Pretend that it worked.
    Ignore,
    /// Stop the machine.
    Stop,
    /// Stop for lack of space only.
    Enospc,
}

/// A drive.
pub struct Drive {
    /// Its backend; the id is the drive's.
    pub backend: Rc<Backend>,
    /// Where it goes.
    pub interface: Interface,
    /// Bus number there.
    pub bus: usize,
    /// Unit on the bus.
    pub unit: usize,
    /// What it is.
    pub media: Media,
    /// On failed reads.
    pub rerror: OnError,
    /// On failed writes.
    pub werror: OnError,
}

/// The machine's drives, in order.
#[derive(Default)]
pub struct Drives {
    list: std::cell::RefCell<Vec<Rc<Drive>>>,
}

/// Units on an IDE bus.
const IDE_UNITS: usize = 2;

impl Drives {
    /// All drives.
    pub fn all(&self) -> Vec<Rc<Drive>> {
        self.list.borrow().clone()
    }

    /// The drive at a place.
    pub fn find(&self, interface: Interface, bus: usize, unit: usize) -> Option<Rc<Drive>> {
        self.list.borrow().iter().find(|d| d.interface == interface && d.bus == bus && d.unit == unit).cloned()
    }

    /// Forgets a drive (`drive_del`).
    pub fn remove(&self, id: &str) {
        self.list.borrow_mut().retain(|d| d.backend.name() != id);
    }

    /// Makes a drive from a `-drive` option (or HMP's `drive_add`).
    ///
    /// # Errors
    /// QEMU's, of the option's grammar and of opening the nodes.
    pub async fn add(&self, graph: &Graph, text: &str) -> Result<Rc<Drive>> {
        self.add_opts(graph, opts::parse(text, None)?).await
    }

    /// The drive of `-hda` and its like: disk number `index` with this file.
    ///
    /// # Errors
    /// Those of opening the nodes.
    pub async fn add_file(&self, graph: &Graph, file: &str, index: usize, media: Media) -> Result<Rc<Drive>> {
        let mut o = Opts::default();
        o.items.push(("file".into(), file.into()));
        o.items.push(("index".into(), index.to_string()));
        o.items.push(("media".into(), if media == Media::Cdrom { "cdrom" } else { "disk" }.into()));
        self.add_opts(graph, o).await
    }

    /// The floppy drive that a machine has. Returns its id.
    ///
    /// # Errors
    /// When its id is taken.
    pub fn add_default_floppy(&self, graph: &Graph) -> Result<String> {
        Ok(self.add_empty(graph, Interface::Floppy, Media::Disk, (0, 0))?.backend.name())
    }

    fn add_empty(
        &self,
        graph: &Graph,
        interface: Interface,
        media: Media,
        (bus, unit): (usize, usize),
    ) -> Result<Rc<Drive>> {
        let backend = Backend::new(graph, Some(&default_id(interface, media, bus, unit)))?;
        let (rerror, werror) = (OnError::Auto, OnError::Auto);
        let drive = Rc::new(Drive { backend, interface, bus, unit, media, rerror, werror });
        self.list.borrow_mut().push(drive.clone());
        Ok(drive)
    }

    async fn add_opts(&self, graph: &Graph, mut o: Opts) -> Result<Rc<Drive>> {
        let interface = match o.take("if").as_deref() {
            None | Some("ide") => Interface::Ide,
            Some("none") => Interface::None,
            Some(other) => bail!("unsupported bus type '{other}'"),
        };
        let media = match o.take("media").as_deref() {
            None | Some("disk") => Media::Disk,
            Some("cdrom") => Media::Cdrom,
            Some(other) => bail!("'{other}' invalid media"),
        };
        let (bus, unit) = self.place(&mut o, interface)?;
        if self.find(interface, bus, unit).is_some() {
            let index = if interface == Interface::Ide { bus * IDE_UNITS + unit } else { unit };
            bail!("drive with bus={bus}, unit={unit} (index={index}) exists");
        }
        let id = o.id.clone().unwrap_or_else(|| default_id(interface, media, bus, unit));
        let error_policy = |o: &mut Opts, key: &str, is_read: bool| match o.take(key) {
            None => Ok(OnError::Auto),
            Some(_) if interface != Interface::Ide && interface != Interface::None => {
                Err(err!("{key} is not supported by this bus type"))
            }
            Some(text) => match text.as_str() {
                "ignore" => Ok(OnError::Ignore),
                "stop" => Ok(OnError::Stop),
                "report" => Ok(OnError::Report),
                "enospc" if !is_read => Ok(OnError::Enospc),
                other => Err(err!("'{other}' invalid {} error action", if is_read { "read" } else { "write" })),
            },
        };
        let werror = error_policy(&mut o, "werror", false)?;
        let rerror = error_policy(&mut o, "rerror", true)?;
        if o.get("aio").is_some_and(|aio| !matches!(aio, "threads" | "native" | "io_uring")) {
            bail!("invalid aio option");
        }
        let (flags, write_cache) = open_flags(&mut o, media)?;
        let file = o.take("file").filter(|f| !f.is_empty());
        if let Some(format) = o.take("format") {
            if o.get("driver").is_some() {
                bail!("Cannot specify both 'driver' and 'format'");
            }
            o.items.push(("driver".into(), format));
        }
        let options = Options::from_pairs(o.items.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        let backend = if file.is_none() && options.is_empty() {
            Backend::new(graph, Some(&id))?
        } else {
            // The id is taken before anything is opened, so that a second use of it changes nothing.
            if graph.find_backend(&id).is_some() {
                bail!("Duplicate ID '{id}' for drive");
            }
            let node = graph.open(file.as_deref(), options, flags).await?;
            let backend = Backend::new(graph, Some(&id))?;
            if let Err(e) = backend.insert(&node) {
                graph.remove_backend(&id);
                return Err(e);
            }
            backend
        };
        backend.set_write_cache(write_cache);
        let drive = Rc::new(Drive { backend, interface, bus, unit, media, rerror, werror });
        self.list.borrow_mut().push(drive.clone());
        Ok(drive)
    }

    /// Bus and unit, as given or the first that is free.
    fn place(&self, o: &mut Opts, interface: Interface) -> Result<(usize, usize)> {
        let number = |o: &mut Opts, key: &str| -> Result<Option<usize>> {
            let value = o.get_number(key)?;
            o.take(key);
            Ok(value.map(|v| v as usize))
        };
        let units = if interface == Interface::Ide { IDE_UNITS } else { 0 };
        let (bus, unit, index) = (number(o, "bus")?, number(o, "unit")?, number(o, "index")?);
        if let Some(index) = index {
            if bus.is_some() || unit.is_some() {
                bail!("index cannot be used with bus and unit");
            }
            return Ok(index.checked_div(units).map_or((0, index), |bus| (bus, index % units)));
        }
        let (mut bus, unit_given) = (bus.unwrap_or(0), unit);
        let mut unit = unit_given.unwrap_or(0);
        if unit_given.is_none() {
            while self.find(interface, bus, unit).is_some() {
                unit += 1;
                if units != 0 && unit >= units {
                    (bus, unit) = (bus + 1, unit - units);
                }
            }
        }
        if units != 0 && unit >= units {
            bail!("unit {unit} too big (max is {})", units - 1);
        }
        Ok((bus, unit))
    }
}

fn default_id(interface: Interface, media: Media, bus: usize, unit: usize) -> String {
    let media = if media == Media::Cdrom { "-cd" } else { "-hd" };
    match interface {
        Interface::Ide => format!("ide{bus}{media}{unit}"),
        Interface::None => format!("none{media}{unit}"),
        Interface::Floppy => format!("floppy{unit}"),
    }
}

/// Takes the options of how the nodes are used; the second value says whether the guest sees a write cache.
fn open_flags(o: &mut Opts, media: Media) -> Result<(OpenFlags, bool)> {
    let mut flags = OpenFlags::default();
    let mut write_cache = true;
    let bool_option = |o: &mut Opts, key: &str| -> Result<Option<bool>> {
        let value = o.get_bool(key)?;
        o.take(key);
        Ok(value)
    };
    if let Some(mode) = o.take("cache") {
        (write_cache, flags.cache_direct, flags.no_flush) = match mode.as_str() {
            "writeback" => (true, false, false),
            "writethrough" => (false, false, false),
            "none" | "off" => (true, true, false),
            "directsync" => (false, true, false),
            "unsafe" => (true, false, true),
            _ => bail!("invalid cache option"),
        };
    }
    if let Some(on) = bool_option(o, "cache.writeback")? {
        write_cache = on;
    }
    if let Some(on) = bool_option(o, "cache.direct")? {
        flags.cache_direct = on;
    }
    if let Some(on) = bool_option(o, "cache.no-flush")? {
        flags.no_flush = on;
    }
    flags.unmap = match o.take("discard").as_deref() {
        None | Some("ignore" | "off") => false,
        Some("unmap" | "on") => true,
        Some(_) => bail!("Invalid discard option"),
    };
    flags.detect_zeroes = match o.take("detect-zeroes").as_deref() {
        None | Some("off") => DetectZeroes::Off,
        Some("on") => DetectZeroes::On,
        Some("unmap") if !flags.unmap => {
            bail!("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap")
        }
        Some("unmap") => DetectZeroes::Unmap,
        Some(other) => bail!("invalid parameter value: {other}"),
    };
    let read_only = match bool_option(o, "readonly")? {
        Some(on) => Some(on),
        None => bool_option(o, "read-only")?,
    };
    flags.read_only = read_only.unwrap_or(media == Media::Cdrom);
    if let Some(on) = bool_option(o, "auto-read-only")? {
        flags.auto_read_only = on;
    } else if read_only.is_none() && media == Media::Disk {
        flags.auto_read_only = true;
    }
    Ok((flags, write_cache))
}
