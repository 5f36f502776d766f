//! Who owns the images: taking them over after an incoming migration, giving them away at the end of an outgoing one;
//! and changing a node between read-only and writable.

use crate::graph::Graph;
use crate::node::Node;
use crate::open::OpenFlags;
use crate::perm;
use lockstep_util::{Result, bail};
use std::rc::Rc;

impl Graph {
    /// Takes all images over (`bdrv_activate_all`): cached metadata is read again, devices get their permissions.
    pub async fn activate_all(&self) -> Result<()> {
        self.set_opens_inactive(false);
        for node in self.nodes() {
            node.activate().await?;
        }
        Ok(())
    }

    /// Gives all images away (`bdrv_inactivate_all`): users stop writing, everything is written back.
    pub async fn inactivate_all(&self) -> Result<()> {
        let nodes = self.nodes();
        for (i, node) in nodes.iter().enumerate() {
            // From the top: a node whose parents are still active waits for them.
            if !node.parent_edges().iter().any(|e| e.parent().is_some_and(|p| p.as_node().is_some()))
                && let Err(e) = node.inactivate().await
            {
                for node in &nodes[..=i] {
                    if let Err(again) = node.activate().await {
                        tracing::warn!("taking node '{}' back: {again}", node.name());
                    }
                }
                return Err(e);
            }
        }
        Ok(())
    }

    /// Opens a node again with other flags (read-only or writable). Children keep theirs, except that the `file` below
    /// follows.
    pub async fn reopen(&self, node: &Rc<Node>, flags: OpenFlags) -> Result<()> {
        let old = node.flags();
        if old == flags {
            return Ok(());
        }
        if flags.read_only && !old.read_only {
            let (perm, _) = perm::cumulative(node);
            if perm.intersects(crate::Perm::WRITE | crate::Perm::WRITE_UNCHANGED) {
                bail!("Block node is read-only");
            }
            node.flush().await?;
        }
        let file = node.primary_child().map(|c| c.node());
        if let Some(file) = &file
            && !flags.read_only
            && file.is_read_only()
        {
            Box::pin(self.reopen(file, OpenFlags { read_only: false, ..file.flags() })).await?;
        }
        node.driver()?.reopen(flags).await?;
        node.set_flags(flags);
        if let Err(e) = perm::refresh(std::slice::from_ref(node)) {
            node.set_flags(old);
            node.driver()?.reopen(old).await?;
            perm::refresh(std::slice::from_ref(node))?;
            return Err(e);
        }
        Ok(())
    }
}

impl Node {
    /// Takes the image over, children first.
    pub async fn activate(self: &Rc<Self>) -> Result<()> {
        for child in self.child_edges() {
            Box::pin(child.node().activate()).await?;
        }
        let old = self.flags();
        if !old.inactive {
            return Ok(());
        }
        self.set_flags(OpenFlags { inactive: false, ..old });
        if let Err(e) = self.activate_now().await {
            self.set_flags(old);
            if let Err(again) = perm::refresh(std::slice::from_ref(self)) {
                tracing::warn!("restoring permissions on node '{}': {again}", self.name());
            }
            return Err(e);
        }
        for edge in self.parent_edges() {
            if let Some(parent) = edge.parent() {
                parent.activated()?;
            }
        }
        Ok(())
    }

    async fn activate_now(self: &Rc<Self>) -> Result<()> {
        perm::refresh(std::slice::from_ref(self))?;
        if let Some(driver) = self.try_driver() {
            driver.activate().await?;
        }
        Ok(())
    }

    /// Gives the image away: users above first, then this node, then what is below and used by nobody active.
    pub async fn inactivate(self: &Rc<Self>) -> Result<()> {
        let flags = self.flags();
        let parents = self.parent_edges();
        let active_node_above =
            |e: &Rc<crate::Child>| e.parent().is_some_and(|p| p.as_node().is_some_and(|n| !n.flags().inactive));
        if flags.inactive || parents.iter().any(active_node_above) {
            return Ok(());
        }
        for edge in parents {
            if let Some(parent) = edge.parent() {
                parent.inactivate()?;
            }
        }
        let _drained = self.drain().await;
        if let Some(driver) = self.try_driver() {
            driver.inactivate().await?;
        }
        if perm::cumulative(self).0.intersects(crate::Perm::WRITE | crate::Perm::WRITE_UNCHANGED) {
            bail!("Node '{}' has an active writer", self.name());
        }
        self.set_flags(OpenFlags { inactive: true, ..flags });
        perm::refresh(std::slice::from_ref(self))?;
        for child in self.child_edges() {
            Box::pin(child.node().inactivate()).await?;
        }
        Ok(())
    }
}
