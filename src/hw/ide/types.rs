//! The types `ide-hd`, `ide-cd` and `piix3-ide`, and how a user's drive becomes one on a channel.

use std::sync::Arc;

use lockstep_util::{Result, bail};

use super::{
    drive::{DriveConfig, DriveKind, Geometry},
    regs::SECTOR,
    wiring::{Disk, IdeChannel, default_model},
};
use crate::{
    core::{
        Category, CreateContext, Device, DeviceType, DriveUser, NoEvents, OnError, Property, PropertyKind, ResetKind,
    },
    pci::{PCI_DEVICE_PROPERTIES, PCI_PARENTS},
};

const ON_ERROR: PropertyKind = PropertyKind::Enum("BlockdevOnError", &["report", "ignore", "enospc", "stop", "auto"]);
const TRANSLATION: PropertyKind = PropertyKind::Enum("BiosAtaTranslation", &["auto", "none", "lba", "large", "rechs"]);

/// What all users of a drive have.
pub(crate) const DRIVE: &[Property] = &[
    Property::unset("drive", PropertyKind::Drive),
    Property::new("backend_defaults", PropertyKind::OnOffAuto, "auto"),
    Property::new("logical_block_size", PropertyKind::BlockSize, "0")
        .describe("A power of two between 512 B and 2 MiB"),
    Property::new("physical_block_size", PropertyKind::BlockSize, "0")
        .describe("A power of two between 512 B and 2 MiB"),
    Property::new("min_io_size", PropertyKind::Size, "0"),
    Property::new("opt_io_size", PropertyKind::Size, "0"),
    Property::new("discard_granularity", PropertyKind::Size, "4294967295"),
    Property::new("write-cache", PropertyKind::OnOffAuto, "auto"),
    Property::new("share-rw", PropertyKind::Bool, "off"),
    Property::new("account-invalid", PropertyKind::OnOffAuto, "auto"),
    Property::new("account-failed", PropertyKind::OnOffAuto, "auto"),
];

const BLOCK: &[Property] = &[
    Property::new("rerror", ON_ERROR, "auto").describe("Error handling policy (report/ignore/enospc/stop/auto)"),
    Property::new("werror", ON_ERROR, "auto").describe("Error handling policy (report/ignore/enospc/stop/auto)"),
    Property::unset("ver", PropertyKind::Str),
    Property::new("wwn", PropertyKind::U64, "0"),
    Property::unset("serial", PropertyKind::Str),
    Property::unset("model", PropertyKind::Str),
];

const DISK: &[Property] = &[
    Property::new("cyls", PropertyKind::U32, "0"),
    Property::new("heads", PropertyKind::U32, "0"),
    Property::new("secs", PropertyKind::U32, "0"),
    Property::new("lcyls", PropertyKind::U32, "0"),
    Property::new("lheads", PropertyKind::U32, "0"),
    Property::new("lsecs", PropertyKind::U32, "0"),
    Property::new("bios-chs-trans", TRANSLATION, "auto")
        .describe("Logical CHS translation algorithm  (auto/none/lba/large/rechs)"),
    Property::new("rotation_rate", PropertyKind::U16, "0"),
];

const PLACE: &[Property] = &[
    Property::new("unit", PropertyKind::U32, "4294967295"),
    Property::new("win2k-install-hack", PropertyKind::Bool, "off"),
    Property::unset("bootindex", PropertyKind::I32).hidden(),
];

const PARENTS: &[&str] = &["ide-device", "device", "object"];

/// A disk.
pub static IDE_HD: DeviceType = DeviceType {
    name: "ide-hd",
    alias: None,
    parents: PARENTS,
    bus: "IDE",
    category: Category::Storage,
    description: "virtual IDE disk",
    properties: &[DRIVE, BLOCK, DISK, PLACE],
    create: Some(|context| create(context, DriveKind::Disk)),
};

/// A CD-ROM drive.
pub static IDE_CD: DeviceType = DeviceType {
    name: "ide-cd",
    alias: None,
    parents: PARENTS,
    bus: "IDE",
    category: Category::Storage,
    description: "virtual IDE CD-ROM",
    properties: &[DRIVE, BLOCK, PLACE],
    create: Some(|context| create(context, DriveKind::Cd)),
};

/// The controller, which comes with the machine.
pub static PIIX3_IDE: DeviceType = DeviceType {
    name: "piix3-ide",
    alias: None,
    parents: PCI_PARENTS,
    bus: "PCI",
    category: Category::Storage,
    description: "",
    properties: &[PCI_DEVICE_PROPERTIES],
    create: None,
};

/// A channel as a bus that drives are plugged into.
pub struct IdeBus {
    channel: Arc<IdeChannel>,
    number: usize,
}

impl IdeBus {
    /// Channel `number` of the controller.
    pub fn new(channel: Arc<IdeChannel>, number: usize) -> Self {
        Self { channel, number }
    }

    /// The channel.
    pub fn channel(&self) -> &Arc<IdeChannel> {
        &self.channel
    }
}

/// A drive as a device: all of it is in its channel.
struct PluggedDrive;

impl Device for PluggedDrive {
    // The channel resets its drives.
    fn reset(&self, _: ResetKind) {}

    fn unplug(&self) -> Result<()> {
        bail!("Bus 'ide' does not support hotplugging")
    }
}

const LARGEST_DISK_NUMBERS: [(&str, u32); 3] = [("cyls", 65535), ("heads", 16), ("secs", 255)];

fn create(context: &mut CreateContext<'_>, kind: DriveKind) -> Result<Arc<dyn Device>> {
    let bus = context.bus_object::<IdeBus>()?;
    let name = context.id.unwrap_or(context.path).to_owned();
    let properties = &mut *context.properties;
    let unit = match properties.u32("unit") {
        u32::MAX => u32::from(bus.channel.has_drive(0)),
        n => n,
    };
    if unit > 1 {
        bail!("Can't create IDE unit {unit}, bus supports only 2 units");
    }
    if bus.channel.has_drive(unit as usize) {
        bail!("IDE unit {unit} is in use");
    }
    let drive_id = properties.str("drive").map(str::to_owned);
    if kind == DriveKind::Disk && drive_id.is_none() {
        bail!("No drive specified");
    }
    if !matches!(properties.u64("logical_block_size"), 0 | 512) {
        bail!("logical_block_size must be 512 for IDE");
    }
    let user = DriveUser {
        type_name: if kind == DriveKind::Cd { "ide-cd" } else { "ide-hd" },
        name,
        path: context.path.to_owned(),
        writes: kind == DriveKind::Disk,
        resizable: kind == DriveKind::Disk,
        removable: kind == DriveKind::Cd,
        has_tray: kind == DriveKind::Cd,
        reports_errors: true,
        share_rw: properties.bool("share-rw"),
    };
    let handle = drive_id.map(|id| context.board.backends.drive(&id, &user)).transpose()?;
    if let Some(handle) = &handle
        && kind == DriveKind::Disk
    {
        if !handle.backend.is_inserted() {
            bail!("Device needs media, but drive is empty");
        }
        if handle.backend.is_read_only() {
            bail!("Can't use a read-only drive");
        }
    }
    let sectors = handle.as_ref().map_or(0, |h| h.backend.len() / SECTOR);
    let physical = properties.u64("physical_block_size").max(512);
    properties.set("logical_block_size", 512_u64);
    properties.set("physical_block_size", physical);
    if properties.u64("discard_granularity") == u64::from(u32::MAX) {
        properties.set("discard_granularity", 512_u64);
    }
    let geometry = match kind {
        DriveKind::Cd => Geometry { cylinders: 0, heads: 0, sectors: 0 },
        DriveKind::Disk => geometry(properties, sectors)?,
    };
    let serial =
        properties.str("serial").map_or_else(|| format!("QM{:05}", bus.number * 2 + unit as usize + 1), str::to_owned);
    let version = properties.str("ver").unwrap_or("2.5+").to_owned();
    properties.set("serial", serial.clone());
    properties.set("ver", version.clone());
    properties.set("unit", unit);
    let write_cache = match properties.str("write-cache") {
        Some("on") => true,
        Some("off") => false,
        _ => handle.as_ref().is_none_or(|h| h.backend.write_cache()),
    };
    let on_error = |name: &str, default: OnError| properties.str(name).and_then(OnError::parse).unwrap_or(default);
    let config = DriveConfig {
        kind,
        serial,
        model: properties.str("model").unwrap_or(default_model(kind)).to_owned(),
        version,
        wwn: properties.u64("wwn"),
        geometry,
        sectors,
        physical_exponent: (physical / 512).trailing_zeros() as u8,
        rotation_rate: properties.u32("rotation_rate") as u16,
        discard: kind == DriveKind::Disk && properties.u64("discard_granularity") != 0,
        write_cache,
        read_error: on_error("rerror", handle.as_ref().map_or(OnError::Report, |h| h.read_error)),
        write_error: on_error("werror", handle.as_ref().map_or(OnError::Enospc, |h| h.write_error)),
    };
    match handle {
        None => bus.channel.attach(unit as usize, config, None, Arc::new(NoEvents)),
        Some(handle) => {
            handle.backend.set_write_cache(write_cache);
            let disk: Arc<dyn Disk> = Arc::new(handle.backend.clone());
            bus.channel.attach(unit as usize, config, Some(disk), handle.events);
            bus.channel.follow_medium(unit as usize, &handle.backend);
        }
    }
    Ok(Arc::new(PluggedDrive))
}

/// The geometry that the user gave, or the usual one for the size.
fn geometry(properties: &mut crate::core::PropertySet, sectors: u64) -> Result<Geometry> {
    let given = ["cyls", "heads", "secs"].map(|n| properties.u32(n));
    let geometry = if given == [0, 0, 0] {
        Geometry::default_for(sectors)
    } else {
        for ((name, most), value) in LARGEST_DISK_NUMBERS.into_iter().zip(given) {
            if !(1..=most).contains(&value) {
                bail!("{name} must be between 1 and {most}");
            }
        }
        Geometry { cylinders: given[0], heads: given[1], sectors: given[2] }
    };
    properties.set("cyls", geometry.cylinders);
    properties.set("heads", geometry.heads);
    properties.set("secs", geometry.sectors);
    if properties.str("bios-chs-trans") == Some("auto") {
        // The BIOS can address 1024 cylinders.
        properties.set("bios-chs-trans", if geometry.cylinders > 1024 { "lba" } else { "none" });
    }
    Ok(geometry)
}
