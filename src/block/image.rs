//! Images as `qemu-img create` and such see them: made by format name, from options.

use crate::driver::Preallocation;
use crate::graph::Graph;
use crate::open::{OpenFlags, find_driver, has_protocol};
use crate::options::Options;
use crate::qcow2::create::CreateOptions;
use crate::qcow2::header::Compression;
use crate::{file, qcow2};
use lockstep_util::{Error, Result, bail, err};

/// One option that `create` takes for a format.
pub struct CreateOption {
    /// Its name.
    pub name: &'static str,
    /// `<size>`, `<str>`, `<bool (on/off)>` or `<num>`.
    pub kind: &'static str,
    /// What it is, with the default where there is one.
    pub help: &'static str,
}

const fn option(name: &'static str, kind: &'static str, help: &'static str) -> CreateOption {
    CreateOption { name, kind, help }
}

const SIZE: &str = "<size>";
const STR: &str = "<str>";
const BOOL: &str = "<bool (on/off)>";
const NUM: &str = "<num>";

/// Options of qcow2.
pub const QCOW2_OPTIONS: &[CreateOption] = &[
    option("backing_file", STR, "File name of a base image"),
    option("backing_fmt", STR, "Image format of the base image"),
    option("cluster_size", SIZE, "qcow2 cluster size"),
    option("compat", STR, "Compatibility level (v2 [0.10] or v3 [1.1])"),
    option("compression_type", STR, "Compression method used for image cluster compression"),
    option("extended_l2", BOOL, "Extended L2 tables"),
    option("lazy_refcounts", BOOL, "Postpone refcount updates"),
    option("preallocation", STR, "Preallocation mode (allowed values: off, metadata, falloc, full)"),
    option("refcount_bits", NUM, "Width of a reference count entry in bits"),
    option("size", SIZE, "Virtual disk size"),
];

/// Options of raw images.
pub const RAW_OPTIONS: &[CreateOption] = &[
    option("preallocation", STR, "Preallocation mode (allowed values: off, falloc, full)"),
    option("size", SIZE, "Virtual disk size"),
];

/// The options a format can be created with; `None` if it cannot be created at all.
pub fn create_options(format: &str) -> Option<&'static [CreateOption]> {
    match format {
        "qcow2" => Some(QCOW2_OPTIONS),
        "raw" | "file" => Some(RAW_OPTIONS),
        _ => None,
    }
}

/// Takes the options of a new qcow2 image.
pub fn parse_qcow2_options(mut options: Options) -> Result<CreateOptions> {
    let defaults = CreateOptions::default();
    let version = match options.take_str("compat")?.as_deref() {
        None | Some("1.1" | "v3") => 3,
        Some("0.10" | "v2") => 2,
        Some(other) => bail!("Parameter 'version' does not accept value '{other}'"),
    };
    let parsed = CreateOptions {
        size: options.take_size("size")?.unwrap_or(0),
        version,
        cluster_size: options.take_size("cluster_size")?.unwrap_or(defaults.cluster_size),
        refcount_bits: options.take_u64("refcount_bits")?.unwrap_or(defaults.refcount_bits),
        lazy_refcounts: options.take_bool("lazy_refcounts")?.unwrap_or(false),
        extended_l2: options.take_bool("extended_l2")?.unwrap_or(false),
        compression: options.take_enum("compression_type", Compression::NAMES)?.unwrap_or(defaults.compression),
        backing_file: options.take_str("backing_file")?,
        backing_format: options.take_str("backing_fmt")?,
        preallocation: options.take_enum("preallocation", Preallocation::NAMES)?.unwrap_or_default(),
    };
    refuse_rest(&options)?;
    // A virtual length is in sectors.
    Ok(CreateOptions { size: parsed.size.next_multiple_of(512), ..parsed })
}

fn refuse_rest(options: &Options) -> Result<()> {
    match options.keys().next() {
        Some(key) => bail!("Invalid parameter '{key}'"),
        None => Ok(()),
    }
}

/// Makes an image: the file is created or emptied, the format laid out in it.
pub async fn create(graph: &Graph, filename: &str, format: &str, mut options: Options) -> Result<()> {
    find_driver(format)?;
    if has_protocol(filename) && !filename.starts_with("file:") {
        let protocol = filename.split(':').next().unwrap_or_default();
        bail!(
            "Protocol driver '{protocol}' does not support creating images, so an existing image must be selected as the target"
        );
    }
    let filename = filename.strip_prefix("file:").unwrap_or(filename);
    match format {
        "raw" | "file" => {
            let size = options.take_size("size")?.unwrap_or(0).next_multiple_of(512);
            let prealloc = options.take_enum("preallocation", Preallocation::NAMES)?.unwrap_or_default();
            if options.take("backing_file").is_some() {
                bail!("Backing file not supported for file format '{format}'");
            }
            if options.take("backing_fmt").is_some() {
                bail!("Backing format not supported for file format '{format}'");
            }
            refuse_rest(&options)?;
            file::create(filename, size, prealloc).await.map_err(|e| too_large(e, format, ""))
        }
        "qcow2" => {
            let create = parse_qcow2_options(options)?;
            create.check()?;
            file::create(filename, 0, Preallocation::Off).await?;
            let mut options = Options::new();
            options.set("driver", "file");
            options.set("filename", filename);
            let flags = OpenFlags::default();
            let node = graph.open(None, options, flags).await?;
            let user = crate::Backend::new(graph, None)?;
            user.set_perms(crate::Perm::all(), crate::Perm::empty())?;
            user.insert(&node)?;
            let formatted = qcow2::create::format(&node, &create).await;
            formatted.map_err(|e| too_large(e, format, " (try using a larger cluster size)"))?;
            drop(node);
            drop(user);
            graph.collect().await;
            if create.preallocation != Preallocation::Off {
                preallocate(graph, filename, &create).await?;
            }
            Ok(())
        }
        _ => Err(err!("Format driver '{format}' does not support image creation")),
    }
}

/// A size that is too large reads the same for every format.
fn too_large(e: Error, format: &str, advice: &str) -> Error {
    let text = e.message();
    if text.ends_with("File too large") || text.starts_with("The image size is too large") {
        err!("The image size is too large for file format '{format}'{advice}")
    } else {
        e
    }
}

async fn preallocate(graph: &Graph, filename: &str, create: &CreateOptions) -> Result<()> {
    let mut options = Options::new();
    options.set("driver", "qcow2");
    options.set("file.driver", "file");
    options.set("file.filename", filename);
    let node = graph.open(None, options, OpenFlags { no_backing: true, ..OpenFlags::default() }).await?;
    let user = crate::Backend::new(graph, None)?;
    user.set_perms(crate::Perm::all(), crate::Perm::empty())?;
    user.insert(&node)?;
    let done = match node.driver_as::<qcow2::Qcow2>() {
        Some(image) => image.preallocate(0, create.size, create.preallocation).await,
        None => Err(err!("The new image is not a qcow2 image")),
    };
    drop(user);
    drop(node);
    graph.collect().await;
    done
}
