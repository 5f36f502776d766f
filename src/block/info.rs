//! What is told about nodes: filenames, `ImageInfo`, `BlockDeviceInfo`.

use crate::child::ChildRole;
use crate::driver::DriverKind;
use crate::graph::Graph;
use crate::json;
use crate::node::Node;
use crate::open::resolve_relative;
use lockstep_util::{Error, Result};
use serde_json::{Map, Value, json};
use std::rc::Rc;

impl Node {
    /// The name shown for the node: a plain filename if that alone opens it, else `json:{…}`.
    pub fn filename(&self) -> String {
        match self.plain_filename() {
            Some(name) => name,
            None => format!("json:{}", json::to_line(&self.full_options())),
        }
    }

    /// Options that open the node again, children included.
    pub fn full_options(&self) -> Value {
        let mut options = Map::new();
        options.insert("driver".into(), self.def().name.into());
        let given = self.given_options.borrow();
        for name in self.def().strong_options {
            for (key, value) in given.iter() {
                if key == *name || key.starts_with(name) && key.as_bytes().get(name.len()) == Some(&b'.') {
                    options.insert(key.to_owned(), value.clone());
                }
            }
        }
        let mut lists: Vec<(String, Vec<Value>)> = Vec::new();
        for child in self.child_edges() {
            if child.role().contains(ChildRole::COW) && !given.contains_group("backing") {
                continue;
            }
            let value = child.node().full_options();
            // `children.0` and its like are elements of a list.
            match child.name().rsplit_once('.') {
                Some((list, n)) if n.parse::<usize>().is_ok() => match lists.iter_mut().find(|(l, _)| l == list) {
                    Some((_, values)) => values.push(value),
                    None => lists.push((list.to_owned(), vec![value])),
                },
                _ => {
                    options.insert(child.name().to_owned(), value);
                }
            }
        }
        options.extend(lists.into_iter().map(|(name, values)| (name, Value::Array(values))));
        Value::Object(options)
    }

    /// Bytes that the node takes on the host.
    pub async fn allocated_size(&self) -> Option<u64> {
        let own = self.try_driver()?.allocated_size().await;
        if own.is_some() {
            return own;
        }
        let mut sum = 0;
        for child in self.child_edges() {
            if child.role().intersects(ChildRole::DATA | ChildRole::METADATA | ChildRole::FILTERED) {
                sum += Box::pin(child.node().allocated_size()).await?;
            }
        }
        Some(sum)
    }

    /// `ImageInfo` without the backing image's.
    pub async fn image_info(self: &Rc<Self>) -> Result<Value> {
        let driver = self.driver().map_err(|e| Error::with_errno("No medium", &e))?;
        let size =
            self.len().map_err(|e| Error::with_errno(format!("Can't get image size '{}'", self.filename()), &e))?;
        let info = driver.format_info();
        let mut image = Map::new();
        image.insert("filename".into(), self.filename().into());
        image.insert("format".into(), self.def().name.into());
        image.insert("virtual-size".into(), size.into());
        if let Some(actual) = self.allocated_size().await {
            image.insert("actual-size".into(), actual.into());
        }
        // A filter has the facts of what it shows. Composite nodes have none, nor has one that stores nothing.
        let shown = self.skip_filters();
        let facts = shown.driver().map(|d| d.format_info()).unwrap_or_default();
        if facts.cluster_size > 0 {
            image.insert("cluster-size".into(), facts.cluster_size.into());
        }
        let has_facts = matches!(shown.def().kind, DriverKind::Format | DriverKind::Protocol);
        if has_facts && !shown.def().name.starts_with("null-") {
            image.insert("dirty-flag".into(), facts.dirty.into());
        }
        if let Some(specific) = info.specific {
            image.insert("format-specific".into(), specific);
        }
        if let Some(name) = info.backing_filename {
            if let Ok(full) = resolve_relative(self, &name) {
                image.insert("full-backing-filename".into(), full.into());
            }
            image.insert("backing-filename".into(), name.into());
        }
        if let Some(format) = info.backing_format {
            image.insert("backing-filename-format".into(), format.into());
        }
        if !info.snapshots.is_empty() {
            image.insert("snapshots".into(), info.snapshots.into());
        }
        Ok(Value::Object(image))
    }

    /// `ImageInfo` with `backing-image` nested (`query-block`).
    pub async fn image_info_chain(self: &Rc<Self>, flat: bool) -> Result<Value> {
        let mut info = self.image_info().await?;
        if !flat
            && let Some(below) = self.below()
            && let Value::Object(map) = &mut info
        {
            map.insert("backing-image".into(), Box::pin(below.image_info_chain(false)).await?);
        }
        Ok(info)
    }

    /// The node under this one in its chain: what a filter shows, or what an image is laid over.
    fn below(&self) -> Option<Rc<Self>> {
        self.filtered_child().or_else(|| self.cow_child()).map(|c| c.node())
    }

    /// `BlockGraphInfo`: `ImageInfo` and `children`, each with its own.
    pub async fn graph_info(self: &Rc<Self>) -> Result<Value> {
        let mut info = self.image_info().await?;
        let mut children = Vec::new();
        for child in self.child_edges() {
            let below = Box::pin(child.node().graph_info()).await?;
            children.push(json!({"name": child.name(), "info": below}));
        }
        if let Value::Object(map) = &mut info {
            map.insert("children".into(), children.into());
        }
        Ok(info)
    }

    /// `BlockDeviceInfo` (the `inserted` of `query-block`, an element of `query-named-block-nodes`).
    pub async fn device_info(self: &Rc<Self>, flat: bool, write_cache: bool) -> Result<Value> {
        let flags = self.flags();
        let mut depth = 0u64;
        let mut at = if flat { None } else { self.below() };
        while let Some(node) = at {
            depth += 1;
            at = node.below();
        }
        // What is there counts, not what the image's header says.
        let backing = self.cow_child().map(|c| c.node().filename()).or(self.driver()?.format_info().backing_filename);
        let mut device = Map::new();
        device.insert("file".into(), self.filename().into());
        device.insert("node-name".into(), self.name().into());
        device.insert("ro".into(), flags.read_only.into());
        device.insert("active".into(), (!flags.inactive).into());
        device.insert("drv".into(), self.def().name.into());
        if let Some(name) = backing {
            device.insert("backing_file".into(), name.into());
        }
        device.insert("backing_file_depth".into(), depth.into());
        device.insert("encrypted".into(), false.into());
        device.insert("detect_zeroes".into(), flags.detect_zeroes.as_str().into());
        for limit in ["bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"] {
            device.insert(limit.into(), 0.into());
        }
        device.insert("write_threshold".into(), 0.into());
        device.insert(
            "cache".into(),
            json!({"writeback": write_cache, "direct": flags.cache_direct, "no-flush": flags.no_flush}),
        );
        device.insert("image".into(), self.image_info_chain(flat).await?);
        Ok(Value::Object(device))
    }
}

impl Graph {
    /// `query-block`: every backend with an id or a device.
    pub async fn query_block(&self) -> Result<Vec<Value>> {
        let mut list = Vec::new();
        for backend in self.devices() {
            let guest = backend.guest();
            let mut info = Map::new();
            info.insert("device".into(), backend.name().into());
            info.insert("type".into(), "unknown".into());
            info.insert("locked".into(), guest.as_ref().is_some_and(|g| g.locked).into());
            // Without a device whatever comes may be one whose medium can be changed.
            let removable = guest.as_ref().is_none_or(|g| g.removable);
            info.insert("removable".into(), removable.into());
            if let Some(guest) = guest {
                info.insert("qdev".into(), guest.path.into());
                if let Some(open) = guest.tray_open {
                    info.insert("tray_open".into(), open.into());
                }
                if let Some(status) = guest.io_status {
                    info.insert("io-status".into(), status.as_str().into());
                }
            }
            if let Some(node) = backend.node() {
                info.insert("inserted".into(), node.device_info(false, backend.write_cache()).await?);
            }
            list.push(Value::Object(info));
        }
        Ok(list)
    }

    /// `query-named-block-nodes`, newest node first.
    pub async fn query_named_block_nodes(&self, flat: bool) -> Result<Vec<Value>> {
        let mut list = Vec::new();
        for node in self.nodes().into_iter().rev() {
            if node.try_driver().is_some() {
                list.push(node.device_info(flat, true).await?);
            }
        }
        Ok(list)
    }
}
