//! Opening nodes from options: `-drive` and `blockdev-add` values, filenames, `json:` names, format probing, backing
//! chains. Defaults and error texts are QEMU's.

use crate::child::{Child, ChildRole};
use crate::driver::{DriverDef, DriverKind};
use crate::drivers;
use crate::graph::Graph;
use crate::io::DetectZeroes;
use crate::node::Node;
use crate::options::{ChildSpec, Options};
use lockstep_util::{Error, Result, bail, err};
use serde_json::Value;
use std::rc::Rc;

/// How a node is opened and used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// Not for writing (`read-only`).
    pub read_only: bool,
    /// May fall back to reading only, and opens for writing only when a user needs it (`auto-read-only`).
    pub auto_read_only: bool,
    /// Bypass the host's page cache (`cache.direct`).
    pub cache_direct: bool,
    /// Ignore flushes (`cache.no-flush`).
    pub no_flush: bool,
    /// Pass discards on (`discard=unmap`).
    pub unmap: bool,
    /// Turn writes of zeroes into zero writes.
    pub detect_zeroes: DetectZeroes,
    /// The image belongs to the other side of a migration that has not ended.
    pub inactive: bool,
    /// Do not open the backing file.
    pub no_backing: bool,
    /// Opened to be checked: damage is for the checker to report.
    pub check: bool,
    /// Open although others use it (`force-share`).
    pub force_share: bool,
    /// The format was guessed.
    pub probed: bool,
    /// No data will be asked for: only metadata.
    pub no_io: bool,
}

/// What a driver's `open` gets.
pub struct OpenContext {
    /// The graph.
    pub graph: Graph,
    /// The node being made; keep only a weak reference in the driver.
    pub node: Rc<Node>,
    /// Options not taken yet. What is left after opening is unknown to the driver.
    pub options: Options,
}

impl OpenContext {
    /// The flags of the node.
    pub fn flags(&self) -> OpenFlags {
        self.node.flags()
    }

    /// Opens the child `name` as the options say. `Ok(None)` if the options do not mention it.
    pub async fn open_child(&mut self, name: &str, role: ChildRole) -> Result<Option<Rc<Child>>> {
        let Some(spec) = self.options.take_child(name)? else { return Ok(None) };
        let child = open_child_spec(&self.graph, &self.node, spec, role).await?;
        Ok(Some(self.node.attach_child(name, role, &child)?))
    }

    /// Opens the child `file` of a format (data, metadata, primary) or filter; its absence is an error.
    pub async fn open_file_child(&mut self, role: ChildRole) -> Result<Rc<Child>> {
        match self.open_child("file", role).await? {
            Some(child) => Ok(child),
            None => bail!("A block device must be specified for \"file\""),
        }
    }

    pub(crate) fn refuse_unknown_options(&self) -> Result<()> {
        let Some(key) = self.options.keys().next() else { return Ok(()) };
        let def = self.node.def();
        match def.kind {
            DriverKind::Protocol => bail!("Block protocol '{}' doesn't support the option '{key}'", def.name),
            _ => bail!("Block format '{}' does not support the option '{key}'", def.name),
        }
    }
}

/// Opens the node that a child option describes, for a parent with the given node's flags.
pub async fn open_child_spec(graph: &Graph, parent: &Node, spec: ChildSpec, role: ChildRole) -> Result<Rc<Node>> {
    match spec {
        ChildSpec::Reference(name) => graph.lookup(&name),
        ChildSpec::Inline(options) => {
            let flags = inherited_flags(parent.flags(), role, parent.def().kind == DriverKind::Format);
            let protocol = role.contains(ChildRole::PRIMARY) && parent.def().kind == DriverKind::Format;
            Box::pin(open_inner(graph, None, options, flags, protocol)).await
        }
    }
}

/// What a child's flags are when its options do not say.
fn inherited_flags(parent: OpenFlags, role: ChildRole, parent_is_format: bool) -> OpenFlags {
    let mut flags = OpenFlags {
        read_only: parent.read_only,
        auto_read_only: parent.auto_read_only,
        cache_direct: parent.cache_direct,
        no_flush: parent.no_flush,
        unmap: parent.unmap,
        detect_zeroes: DetectZeroes::Off,
        inactive: parent.inactive,
        force_share: parent.force_share,
        ..OpenFlags::default()
    };
    if role.contains(ChildRole::COW) {
        flags.read_only = true;
        flags.auto_read_only = false;
    } else if parent_is_format {
        // The format filters what the user wants discarded; the file does as it is told.
        flags.unmap = true;
    }
    flags
}

impl Graph {
    /// Opens a node from a filename (as on a command line: `x.qcow2`, `nbd://…`, `json:{…}`), options, or both.
    pub async fn open(&self, filename: Option<&str>, options: Options, flags: OpenFlags) -> Result<Rc<Node>> {
        // Nodes whose last user just went may still hold a name or a file lock.
        self.collect().await;
        let flags = OpenFlags { inactive: flags.inactive || self.opens_inactive(), ..flags };
        let node = open_inner(self, filename, options, flags, false).await;
        if node.is_err() {
            // What was opened on the way is not wanted any more.
            self.collect().await;
        }
        node
    }

    /// `blockdev-add`: a node of the monitor's own, with a name and a driver.
    pub async fn blockdev_add(&self, options: Options) -> Result<Rc<Node>> {
        if options.get_str("driver").is_none() {
            bail!("Parameter 'driver' is missing");
        }
        if options.get_str("node-name").is_none() {
            bail!("'node-name' must be specified for the root node");
        }
        let node = self.open(None, options, OpenFlags { auto_read_only: false, ..OpenFlags::default() }).await?;
        self.own(&node);
        Ok(node)
    }

    /// `blockdev-del`: gives back a node that `blockdev-add` made.
    pub async fn blockdev_del(&self, name: &str) -> Result<()> {
        let Some(node) = self.find_node(name) else { bail!("Failed to find node with node-name='{name}'") };
        if let Some(device) = node.device_name() {
            bail!("Node {name} is in use by device {device}");
        }
        // Whoever forbids it uses it.
        node.check_op(crate::node::BlockOp::DriveDel).map_err(|_| err!("Node {name} is in use"))?;
        if !self.is_owned(&node) {
            bail!("Node {name} is not owned by the monitor");
        }
        if !node.parent_edges().is_empty() {
            bail!("Block device {name} is in use");
        }
        self.disown(&node);
        drop(node);
        self.collect().await;
        Ok(())
    }
}

/// Layers of a backing chain at most: an image may name itself as its backing file.
const MAX_CHAIN: usize = 200;

/// A node and what is to become its backing file.
struct Opened {
    node: Rc<Node>,
    backing: Option<ChildSpec>,
}

/// Opens a node and the chain of backing files below it, one after the other.
async fn open_inner(
    graph: &Graph,
    filename: Option<&str>,
    options: Options,
    flags: OpenFlags,
    as_protocol: bool,
) -> Result<Rc<Node>> {
    let mut at = open_one(graph, filename, options, flags, as_protocol).await?;
    let top = at.node.clone();
    for depth in 1.. {
        let Some(spec) = at.backing.take() else { break };
        let below = if depth > MAX_CHAIN {
            Err(err!("Backing chain is too long"))
        } else {
            open_backing(graph, &at.node, spec).await
        };
        match below {
            Ok(Some(below)) => at = below,
            Ok(None) => break,
            // Each layer has failed to open its backing file; a long chain does not say it for each.
            Err(e) => return Err(e.prepend("Could not open backing file: ".repeat(depth.min(3)))),
        }
    }
    Ok(top)
}

async fn open_one(
    graph: &Graph,
    filename: Option<&str>,
    mut options: Options,
    mut flags: OpenFlags,
    as_protocol: bool,
) -> Result<Opened> {
    let mut filename = filename.map(str::to_owned);
    if let Some(json) = filename.as_deref().and_then(|f| f.strip_prefix("json:")) {
        let given = parse_json_filename(json)?;
        for (key, value) in given.iter() {
            options.set_default(key, value.clone());
        }
        filename = None;
    }
    let node_name = options.take_str("node-name")?;
    take_flags(&mut options, &mut flags)?;
    let def = match options.take_str("driver")? {
        Some(name) => Some(find_driver(&name)?),
        None => None,
    };
    let protocol = def.map_or(as_protocol, |d| d.kind == DriverKind::Protocol);

    if protocol {
        let parse = filename.is_some() && !options.contains("filename");
        if let (true, Some(name)) = (parse, &filename) {
            options.set("filename", name.clone());
        }
        let path = options.get_str("filename").map(str::to_owned);
        let chosen = match (def, &path) {
            (Some(def), _) => def,
            (None, Some(path)) => find_protocol(path, parse)?,
            (None, None) => bail!("Must specify either driver or file"),
        };
        if let (true, Some(path), Some(parse_filename)) = (parse, &path, chosen.parse_filename) {
            options.take("filename");
            parse_filename(path, &mut options)?;
        }
        if chosen.needs_filename && !options.contains("filename") {
            bail!("The '{}' block driver requires a file name", chosen.name);
        }
        return build(graph, chosen, node_name, options, flags).await;
    }

    // A format or filter. A filename is its file's; without a driver the file's contents tell the format.
    if let Some(name) = &filename {
        if options.contains("file") {
            bail!("Cannot reference an existing block device with additional options or a new filename");
        }
        let mut file = options.take_group("file");
        if file.contains("filename") {
            bail!("Can't specify 'file' and 'filename' options at the same time");
        }
        let file_def = find_protocol(name, true)?;
        file.set("filename", name.clone());
        if let Some(parse_filename) = file_def.parse_filename {
            file.take("filename");
            parse_filename(name, &mut file)?;
        }
        file.set("driver", file_def.name);
        options.put_group("file", &file);
    }
    // The file is opened first in any case; the format then takes it by its name.
    let mut file = None;
    if options.contains_group("file") {
        file = match options.take_child("file")? {
            Some(ChildSpec::Reference(name)) => Some(graph.lookup(&name)?),
            Some(ChildSpec::Inline(file_options)) => {
                let file_flags = inherited_flags(flags, ChildRole::IMAGE, true);
                Some(Box::pin(open_inner(graph, None, file_options, file_flags, true)).await?)
            }
            None => None,
        };
    }
    if let Some(file) = &file {
        options.set("file", file.name());
    }
    let def = match (def, &file) {
        (Some(def), _) => def,
        (None, Some(file)) => {
            flags.probed = true;
            probe(file).await?
        }
        (None, None) => bail!("Must specify either driver or file"),
    };
    let opened = build(graph, def, node_name, options, flags).await;
    // Until the format had it, nobody but this function did.
    drop(file);
    opened
}

/// Makes the node; its backing file is for later.
async fn build(
    graph: &Graph,
    def: &'static DriverDef,
    node_name: Option<String>,
    mut options: Options,
    flags: OpenFlags,
) -> Result<Opened> {
    let given = options.clone();
    let has_backing_option = options.contains_group("backing");
    let mut backing = None;
    if def.supports_backing {
        match options.get("backing") {
            Some(Value::Null) => {
                options.take("backing");
            }
            Some(Value::String(s)) if s.is_empty() => {
                options.take("backing");
            }
            _ if options.get_str("backing").is_some() => backing = options.take_child("backing")?,
            _ => backing = Some(ChildSpec::Inline(options.take_group("backing"))),
        }
    } else if has_backing_option && def.kind == DriverKind::Format {
        bail!("Driver doesn't support backing files");
    }
    let node = graph.build_node(def, node_name.as_deref(), options, flags).await?;
    *node.given_options.borrow_mut() = given;
    Ok(Opened { node, backing: backing.filter(|_| !flags.no_backing) })
}

async fn open_backing(graph: &Graph, node: &Rc<Node>, spec: ChildSpec) -> Result<Option<Opened>> {
    let backing = match spec {
        ChildSpec::Reference(name) => Opened { node: graph.lookup(&name)?, backing: None },
        ChildSpec::Inline(mut options) => {
            let info = node.driver()?.format_info();
            let mut filename = None;
            // Options naming a file of their own override what the image says.
            if !options.contains_group("file") && !options.contains("filename") && !options.contains("driver")
                || options.is_empty()
            {
                let Some(name) = info.backing_filename.filter(|n| !n.is_empty()) else {
                    if options.is_empty() {
                        return Ok(None);
                    }
                    bail!("Must specify either driver or file");
                };
                filename = Some(resolve_relative(node, &name)?);
                if let Some(format) = info.backing_format.filter(|f| !f.is_empty()) {
                    options.set_default("driver", format);
                }
            } else if !options.contains_group("file") && !options.contains("filename") {
                filename = match info.backing_filename.filter(|n| !n.is_empty()) {
                    Some(name) => Some(resolve_relative(node, &name)?),
                    None => None,
                };
            }
            let flags = inherited_flags(node.flags(), ChildRole::COW, true);
            Box::pin(open_one(graph, filename.as_deref(), options, flags, false)).await?
        }
    };
    node.attach_child("backing", ChildRole::COW, &backing.node)?;
    Ok(Some(backing))
}

/// A backing filename as seen from the directory of the image that names it.
pub fn resolve_relative(node: &Rc<Node>, name: &str) -> Result<String> {
    if name.starts_with('/') || has_protocol(name) {
        return Ok(name.to_owned());
    }
    // The image's own file says where it lies, whatever else the node was opened with.
    let file = node.primary_child().and_then(|c| c.node().plain_filename());
    let base = file.or_else(|| node.plain_filename()).unwrap_or_default();
    Ok(combine_path(&base, name))
}

/// `name` relative to the directory that `base` lies in.
pub fn combine_path(base: &str, name: &str) -> String {
    if name.starts_with('/') || has_protocol(name) {
        return name.to_owned();
    }
    match base.rfind('/') {
        Some(at) => format!("{}{name}", &base[..=at]),
        None => match (has_protocol(base), base.find(':')) {
            (true, Some(at)) => format!("{}{name}", &base[..=at]),
            _ => name.to_owned(),
        },
    }
}

/// Whether a filename begins with a protocol (`nbd:`, `json:`), not a path.
pub fn has_protocol(name: &str) -> bool {
    match name.find([':', '/']) {
        Some(at) => name.as_bytes()[at] == b':',
        None => false,
    }
}

/// The row of the driver table.
pub fn find_driver(name: &str) -> Result<&'static DriverDef> {
    drivers::TABLE.iter().copied().find(|d| d.name == name).ok_or_else(|| err!("Unknown driver '{name}'"))
}

/// Names of all drivers.
pub fn driver_names() -> Vec<&'static str> {
    drivers::TABLE.iter().map(|d| d.name).collect()
}

fn find_protocol(filename: &str, allow_prefix: bool) -> Result<&'static DriverDef> {
    if !allow_prefix || !has_protocol(filename) {
        return find_driver(drivers::host_protocol(filename));
    }
    let prefix = filename.split(':').next().unwrap_or_default();
    drivers::TABLE
        .iter()
        .copied()
        .find(|d| d.protocols.contains(&prefix))
        .ok_or_else(|| err!("Unknown protocol '{prefix}'"))
}

fn parse_json_filename(json: &str) -> Result<Options> {
    let value: Value = match serde_json::from_str(json) {
        Ok(v) => v,
        Err(e) => bail!("Could not parse the JSON options: {e}"),
    };
    if !value.is_object() {
        bail!("Invalid JSON object given");
    }
    Options::from_json(&value)
}

/// Takes the options out that every node has.
fn take_flags(options: &mut Options, flags: &mut OpenFlags) -> Result<()> {
    if let Some(v) = options.take_bool("read-only")? {
        flags.read_only = v;
    }
    if let Some(v) = options.take_bool("auto-read-only")? {
        flags.auto_read_only = v;
    }
    if let Some(v) = options.take_bool("cache.direct")? {
        flags.cache_direct = v;
    }
    if let Some(v) = options.take_bool("cache.no-flush")? {
        flags.no_flush = v;
    }
    if let Some(v) = options.take_bool("force-share")? {
        flags.force_share = v;
    }
    if let Some(v) = options.take_str("discard")? {
        flags.unmap = match v.as_str() {
            "unmap" | "on" => true,
            "ignore" | "off" => false,
            _ => bail!("Invalid discard option"),
        };
    }
    if let Some(v) = options.take_str("detect-zeroes")? {
        let known = DetectZeroes::NAMES.iter().find(|(name, _)| *name == v);
        let Some((_, mode)) = known else { bail!("Parameter 'detect-zeroes' does not accept value '{v}'") };
        if *mode == DetectZeroes::Unmap && !flags.unmap {
            bail!("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap");
        }
        flags.detect_zeroes = *mode;
    }
    if flags.force_share && !flags.read_only {
        bail!("force-share=on can only be used with read-only images");
    }
    Ok(())
}

/// Bytes of an image that probing looks at.
const PROBE_SIZE: usize = 2048;

/// The format whose signs the file bears; `raw` if none.
pub async fn probe(file: &Rc<Node>) -> Result<&'static DriverDef> {
    let length = file.len().map_err(|e| Error::with_errno("Could not get image size", &e))?;
    let mut head = vec![0; PROBE_SIZE.min(usize::try_from(length).unwrap_or(PROBE_SIZE))];
    file.read(0, &mut head)
        .await
        .map_err(|e| Error::with_errno("Could not read image for determining its format", &e))?;
    let filename = file.plain_filename().unwrap_or_default();
    let best = drivers::TABLE
        .iter()
        .copied()
        .filter_map(|d| d.probe.map(|p| (p(&head, &filename), d)))
        .filter(|(score, _)| *score > 0)
        .max_by_key(|(score, _)| *score);
    match best {
        Some((_, def)) => Ok(def),
        None => find_driver("raw"),
    }
}

impl Node {
    /// A filename that opens this node with no other option, if there is one.
    pub fn plain_filename(&self) -> Option<String> {
        self.try_driver()?.plain_filename(self)
    }
}
