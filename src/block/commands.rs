//! Monitor commands on the block graph, with QEMU's checks and error texts. The monitors parse the arguments and call
//! these on the graph's thread.
//!
//! Commands that use nodes or connections of a job that was just told to end wait (bounded) until it has let go, so that
//! commands may be pasted without a pause.

use std::rc::Rc;
use std::time::Duration;

use lockstep_util::{Error, Result, bail};

use crate::export::Exports;
use crate::graph::Graph;
use crate::jobs::Jobs;
use crate::node::BlockOp;
use crate::open::OpenFlags;
use crate::options::Options;

/// `drive_add -n`: opens a node that the monitor owns.
pub async fn drive_add_node(graph: &Graph, options: Options) -> Result<()> {
    Jobs::of(graph).settle().await;
    if options.get_str("node-name").is_none() {
        bail!("'node-name' needs to be specified");
    }
    let node = graph.open(None, options, OpenFlags::default()).await?;
    graph.own(&node);
    Ok(())
}

/// `drive_del`: deletes a node of the monitor's, or takes a drive's medium away and forgets its id.
pub async fn drive_del(graph: &Graph, id: &str) -> Result<()> {
    Jobs::of(graph).settle().await;
    if graph.find_node(id).is_some() {
        return graph.blockdev_del(id).await;
    }
    let Some(backend) = graph.find_backend(id) else {
        return Err(Error::device_not_found(id));
    };
    if let Some(node) = backend.node() {
        node.check_op(BlockOp::DriveDel)?;
        let _quiet = node.drain().await;
        backend.remove_medium();
    }
    graph.remove_backend(id);
    drop(backend);
    graph.collect().await;
    Ok(())
}

/// `blockdev-add`
pub async fn blockdev_add(graph: &Graph, options: Options) -> Result<()> {
    Jobs::of(graph).settle().await;
    graph.blockdev_add(options).await.map(|_| ())
}

/// `blockdev-del`
pub async fn blockdev_del(graph: &Graph, node_name: &str) -> Result<()> {
    Jobs::of(graph).settle().await;
    graph.blockdev_del(node_name).await
}

/// How long requests may take when the program ends, and how often those that hang are cut off then.
const END_GRACE: Duration = Duration::from_secs(1);
const END_RETRY: Duration = Duration::from_millis(100);

/// The program ends: jobs are cancelled, the NBD server is stopped. From now on a frozen peer holds no request for longer
/// than a moment, so that what drains the graph after this comes to its end.
pub async fn end_users(graph: &Graph) {
    let weak = graph.downgrade();
    tokio::task::spawn_local(async move {
        tokio::time::sleep(END_GRACE).await;
        while let Some(graph) = weak.upgrade() {
            graph.nodes().iter().for_each(|n| n.cancel_in_flight());
            drop(graph);
            tokio::time::sleep(END_RETRY).await;
        }
    });
    Jobs::of(graph).cancel_all().await;
    // An error says that there is none.
    let _ = Exports::of(graph).server_stop(graph).await;
}

/// `x-blockdev-change`: adds a node to, or removes a child from, a node that can have any number of them.
pub async fn x_blockdev_change(graph: &Graph, parent: &str, child: Option<&str>, node: Option<&str>) -> Result<()> {
    Jobs::of(graph).settle().await;
    let parent_node = graph.lookup(parent)?;
    if child.is_some() == node.is_some() {
        if child.is_some() {
            bail!("The parameters child and node are in conflict");
        }
        bail!("Either child or node must be specified");
    }
    if let Some(name) = child {
        let Some(child) = parent_node.child(name) else { bail!("Node '{parent}' does not have child '{name}'") };
        parent_node.driver()?.del_child(graph, &parent_node, &child).await?;
        drop(child);
        graph.collect().await;
    }
    if let Some(name) = node {
        let Some(new) = graph.find_node(name) else { bail!("Node '{name}' not found") };
        if new.parent_edges().iter().any(|e| e.parent().is_some_and(|p| p.as_node().is_some())) {
            bail!("The node {name} already has a parent");
        }
        parent_node.driver()?.add_child(graph, &parent_node, Rc::clone(&new)).await?;
    }
    Ok(())
}
