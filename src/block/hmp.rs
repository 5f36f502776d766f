//! The human monitor's commands on disks: `info block`, `qemu-io`, `block_resize`.

use crate::backend::Backend;
use crate::child::Perm;
use crate::driver::Preallocation;
use crate::graph::Graph;
use crate::node::BlockOp;
use crate::qemu_io::{self, Session};
use crate::text::image_text;
use lockstep_util::{Error, Result, bail};
use serde_json::Value;
use std::fmt::Write;

/// `info block`: all devices or one, or with `nodes` named nodes; `verbose` with facts about the images.
pub async fn info_block(graph: &Graph, device: Option<&str>, nodes: bool, verbose: bool) -> Result<String> {
    let mut parts = Vec::new();
    if !nodes {
        for info in graph.query_block().await? {
            let name = info.get("device").and_then(Value::as_str).unwrap_or("");
            if device.is_none_or(|d| d == name) {
                parts.push(device_text(Some(&info), info.get("inserted"), verbose));
            }
        }
        if let (Some(device), true) = (device, parts.is_empty())
            && let Some(node) = graph.find_node(device)
        {
            let inserted = node.device_info(false, true).await?;
            parts.push(device_text(None, Some(&inserted), verbose));
        }
    } else {
        for node in graph.query_named_block_nodes(false).await? {
            let name = node.get("node-name").and_then(Value::as_str).unwrap_or("");
            if device.is_none_or(|d| d == name) {
                parts.push(device_text(None, Some(&node), verbose));
            }
        }
    }
    Ok(parts.join("\n"))
}

fn device_text(info: Option<&Value>, inserted: Option<&Value>, verbose: bool) -> String {
    let mut out = String::new();
    fn text<'a>(of: Option<&'a Value>, key: &str) -> Option<&'a str> {
        of.and_then(|v| v.get(key)).and_then(Value::as_str)
    }
    let flag = |of: Option<&Value>, key: &str| of.and_then(|v| v.get(key)).and_then(Value::as_bool).unwrap_or(false);
    let node = text(inserted, "node-name");
    match (text(info, "device"), node) {
        (Some(device), Some(node)) if !device.is_empty() => {
            let _ = write!(out, "{device} ({node})");
        }
        (Some(""), None) => out.push_str(text(info, "qdev").unwrap_or("")),
        (Some(device), None) => out.push_str(device),
        (_, node) => out.push_str(node.unwrap_or("")),
    }
    match inserted {
        Some(_) => {
            let read_only = if flag(inserted, "ro") { ", read-only" } else { "" };
            let (file, driver) = (text(inserted, "file").unwrap_or(""), text(inserted, "drv").unwrap_or(""));
            let inactive =
                if inserted.and_then(|i| i.get("active")) == Some(&Value::Bool(false)) { ", inactive" } else { "" };
            let _ = writeln!(out, ": {file} ({driver}{read_only}{inactive})");
        }
        None => out.push_str(": [not inserted]\n"),
    }
    if info.is_some() {
        if let Some(path) = text(info, "qdev") {
            let _ = writeln!(out, "    Attached to:      {path}");
        }
        if let Some(status) = text(info, "io-status").filter(|s| *s != "ok") {
            let _ = writeln!(out, "    I/O status:       {status}");
        }
        if flag(info, "removable") {
            let locked = if flag(info, "locked") { "" } else { "not " };
            let tray = if flag(info, "tray_open") { "open" } else { "closed" };
            let _ = writeln!(out, "    Removable device: {locked}locked, tray {tray}");
        }
    }
    let Some(inserted) = inserted else { return out };
    let cache = inserted.get("cache");
    let mode = if flag(cache, "writeback") { "writeback" } else { "writethrough" };
    let direct = if flag(cache, "direct") { ", direct" } else { "" };
    let no_flush = if flag(cache, "no-flush") { ", ignore flushes" } else { "" };
    let _ = writeln!(out, "    Cache mode:       {mode}{direct}{no_flush}");
    if let Some(backing) = text(Some(inserted), "backing_file") {
        let depth = inserted.get("backing_file_depth").and_then(Value::as_u64).unwrap_or(0);
        let _ = writeln!(out, "    Backing file:     {backing} (chain depth: {depth})");
    }
    if let Some(mode) = text(Some(inserted), "detect_zeroes").filter(|m| *m != "off") {
        let _ = writeln!(out, "    Detect zeroes:    {mode}");
    }
    if verbose {
        out.push_str("\nImages:\n");
        let mut image = inserted.get("image");
        while let Some(info) = image {
            out.push_str(&image_text(info, "", "/"));
            image = info.get("backing-image");
        }
    }
    out
}

/// What a `qemu-io` command came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QemuIoOutput {
    /// For the standard output.
    pub printed: String,
    /// For the monitor: why the command could not use the disk.
    pub refused: Option<String>,
}

/// `qemu-io`: runs a command on a drive (by id) or node, or with `by_guest_device` on that of a guest's device.
pub async fn run_qemu_io(graph: &Graph, device: &str, by_guest_device: bool, command: &str) -> Result<QemuIoOutput> {
    let found = if by_guest_device {
        let is_it = |b: &Backend| b.device().as_deref() == Some(device) || b.guest().is_some_and(|g| g.path == device);
        match graph.backends().into_iter().find(|b| is_it(b)) {
            Some(backend) => Some(backend),
            None => return Err(Error::device_not_found(device)),
        }
    } else {
        graph.find_backend(device)
    };
    let backend = match found {
        Some(backend) => backend,
        None => {
            let Some(node) = graph.find_node(device) else {
                bail!("Cannot find device='' nor node-name='{device}'");
            };
            let backend = Backend::new(graph, None)?;
            backend.insert(&node)?;
            backend
        }
    };
    let before = backend.perms();
    let mut session = Session::new(graph, Some(backend.clone()));
    qemu_io::execute(&mut session, command).await;
    qemu_io::finish(&mut session).await;
    let output = QemuIoOutput {
        printed: session.take_output(),
        refused: session.refused.take().map(|e| e.message().to_owned()),
    };
    drop(session);
    if backend.perms() != before {
        // What the command needed beyond the device's own is given back.
        backend.set_perms(before.0, before.1)?;
    }
    drop(backend);
    graph.collect().await;
    Ok(output)
}

/// `block_resize`: gives a device's medium or a node another length, in bytes.
pub async fn block_resize(graph: &Graph, device: Option<&str>, node_name: Option<&str>, size: i64) -> Result<()> {
    let found = match (device, node_name) {
        (Some(device), _) if graph.find_backend(device).is_some() => Some(graph.lookup(device)?),
        (_, Some(name)) => graph.find_node(name),
        (Some(name), None) => graph.find_node(name),
        (None, None) => None,
    };
    let Some(node) = found else {
        let (device, node_name) = (device.unwrap_or(""), node_name.unwrap_or(""));
        bail!("Cannot find device='{device}' nor node-name='{node_name}'");
    };
    let Ok(size) = u64::try_from(size) else { bail!("Parameter 'size' expects a >0 size") };
    node.check_op(BlockOp::Resize)?;
    let user = Backend::new(graph, None)?;
    user.set_perms(Perm::RESIZE, Perm::all())?;
    user.insert(&node)?;
    let _quiet = node.drain().await;
    node.truncate(size, false, Preallocation::Off).await
}
