//! Permissions: what the users of a node need and share, checked against each other and passed down the graph.

use crate::child::{Child, ChildRole, Parent, Perm};
use crate::node::Node;
use lockstep_util::{Result, bail};
use std::rc::Rc;

/// The needs of an ordinary driver (QEMU's `bdrv_default_perms`).
pub fn default_child_perms(node: &Node, role: ChildRole, perm: Perm, shared: Perm) -> (Perm, Perm) {
    let inactive = node.flags().inactive;
    if role.contains(ChildRole::FILTERED) {
        return (perm, shared);
    }
    if role.contains(ChildRole::COW) {
        let mut share = Perm::CONSISTENT_READ | Perm::WRITE_UNCHANGED;
        if shared.contains(Perm::WRITE) || inactive || node.is_shared_below() {
            share |= Perm::WRITE | Perm::RESIZE;
        }
        return (perm & Perm::CONSISTENT_READ, share);
    }
    let (mut perm, mut shared) = (perm | Perm::CONSISTENT_READ, shared);
    if role.contains(ChildRole::METADATA) {
        if node.is_writable() {
            perm |= Perm::WRITE | Perm::RESIZE;
        }
        shared -= Perm::WRITE | Perm::RESIZE;
    } else if role.contains(ChildRole::DATA) {
        if perm.contains(Perm::WRITE) {
            perm |= Perm::RESIZE;
        }
        shared -= Perm::RESIZE;
    }
    if inactive {
        shared |= Perm::WRITE | Perm::RESIZE;
    }
    (perm, shared)
}

/// What all parents of a node need together and all of them share.
pub fn cumulative(node: &Node) -> (Perm, Perm) {
    node.parent_edges().iter().fold((Perm::empty(), Perm::all()), |(p, s), e| (p | e.perm.get(), s & e.shared.get()))
}

/// Recomputes the permissions of these nodes and everything below them. On an error all is as before.
pub fn refresh(nodes: &[Rc<Node>]) -> Result<()> {
    let order = topological(nodes);
    let mut undo: Vec<(Rc<Child>, Perm, Perm)> = Vec::new();
    let mut checked: Vec<(Rc<Node>, Perm, Perm)> = Vec::new();
    for node in &order {
        if let Err(e) = refresh_one(node, &mut undo, &mut checked) {
            for (edge, perm, shared) in undo.into_iter().rev() {
                edge.perm.set(perm);
                edge.shared.set(shared);
            }
            for (node, _, _) in checked {
                if let Some(driver) = node.try_driver() {
                    driver.abort_perms();
                }
            }
            return Err(e);
        }
    }
    for (node, perm, shared) in checked {
        if let Some(driver) = node.try_driver() {
            driver.set_perms(perm, shared);
        }
    }
    Ok(())
}

fn refresh_one(
    node: &Rc<Node>,
    undo: &mut Vec<(Rc<Child>, Perm, Perm)>,
    checked: &mut Vec<(Rc<Node>, Perm, Perm)>,
) -> Result<()> {
    check_conflicts(node)?;
    let (perm, shared) = cumulative(node);
    if perm.intersects(Perm::WRITE | Perm::WRITE_UNCHANGED) && !node.is_writable() && !node.flags().auto_read_only {
        bail!("Block node is read-only");
    }
    let Some(driver) = node.try_driver() else { return Ok(()) };
    checked.push((node.clone(), perm, shared));
    driver.check_perms(perm, shared)?;
    for edge in node.child_edges() {
        let (p, s) = driver.child_perms(node, edge.role(), perm, shared);
        undo.push((edge.clone(), edge.perm.replace(p), edge.shared.replace(s)));
    }
    Ok(())
}

fn check_conflicts(node: &Rc<Node>) -> Result<()> {
    let edges = node.parent_edges();
    for a in &edges {
        for b in &edges {
            if Rc::ptr_eq(a, b) {
                continue;
            }
            let conflict = a.perm.get() - b.shared.get();
            if !conflict.is_empty() {
                let who = |e: &Rc<Child>| e.parent().map_or_else(|| "another user".to_owned(), |p| p.description());
                let name = node.name();
                bail!(
                    "Permission conflict on node '{name}': permissions '{}' are both required by {} (uses node \
                     '{name}' as '{}' child) and unshared by {} (uses node '{name}' as '{}' child).",
                    conflict.names(),
                    who(a),
                    a.name(),
                    who(b),
                    b.name(),
                );
            }
        }
    }
    Ok(())
}

/// These nodes and all below them, parents before children.
pub(crate) fn topological(roots: &[Rc<Node>]) -> Vec<Rc<Node>> {
    fn visit(node: &Rc<Node>, seen: &mut Vec<*const Node>, out: &mut Vec<Rc<Node>>) {
        if seen.contains(&Rc::as_ptr(node)) {
            return;
        }
        seen.push(Rc::as_ptr(node));
        for edge in node.child_edges() {
            visit(&edge.node(), seen, out);
        }
        out.push(node.clone());
    }
    let mut out = Vec::new();
    let mut seen = Vec::new();
    for root in roots {
        visit(root, &mut seen, &mut out);
    }
    out.reverse();
    out
}

/// `block device 'd0'` and such for a parent that is a node.
pub(crate) fn describe_node(node: &Node) -> String {
    format!("node '{}'", node.name())
}

/// Whether any user above the node is a device or another root user (for `is in use` texts).
pub fn has_users(node: &Node) -> bool {
    node.parent_edges().iter().any(|e| e.parent().is_some_and(|p: Rc<dyn Parent>| p.as_node().is_some() || e.is_root()))
}
