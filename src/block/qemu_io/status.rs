//! Commands that look at the disk, or change it as a whole.

use super::{Command, Session, args, format};
use crate::driver::Preallocation;
use crate::open::OpenFlags;
use lockstep_util::Error;
use serde_json::Value;
use std::time::Duration;

/// `length`.
pub async fn length(session: &mut Session) -> bool {
    let Some(backend) = session.backend.clone() else { return false };
    match backend.len() {
        Ok(len) => {
            session.say(format::size(len as f64));
            true
        }
        Err(e) => {
            session.say(Error::with_errno("getlength", &e).message());
            false
        }
    }
}

/// `alloc`.
pub async fn alloc(session: &mut Session, _command: &Command, arguments: &[String]) -> bool {
    let Some(offset) = args::number(session, &arguments[0]) else { return false };
    let count = match arguments.get(1) {
        Some(text) => match args::number(session, text) {
            Some(n) => n,
            None => return false,
        },
        None => 512,
    };
    let Some(node) = session.backend.as_ref().and_then(|b| b.node()) else { return false };
    let (mut allocated, mut at) = (0, offset);
    let end = offset.saturating_add(count);
    while at < end {
        let n = match node.block_status(at, end - at, false).await {
            Ok(extent) => {
                let n = extent.len;
                if extent.status.contains(crate::Status::ALLOCATED) {
                    allocated += n;
                }
                n
            }
            Err(e) => {
                session.say(Error::with_errno("is_allocated failed", &e).message());
                return false;
            }
        };
        at += n.max(1);
    }
    session.say(format!("{allocated}/{count} bytes allocated at offset {}", format::size(offset as f64)));
    true
}

/// `map`.
pub async fn map(session: &mut Session) -> bool {
    let Some(node) = session.backend.as_ref().and_then(|b| b.node()) else { return false };
    let Ok(length) = node.len() else {
        session.say("Failed to query image length");
        return false;
    };
    let mut at = 0;
    while at < length {
        let (mut end, mut first) = (at, None);
        while end < length {
            let Ok(extent) = node.block_status(end, length - end, false).await else {
                session.say("Failed to get allocation status");
                return false;
            };
            let allocated = extent.status.contains(crate::Status::ALLOCATED);
            if *first.get_or_insert(allocated) != allocated {
                break;
            }
            end += extent.len;
        }
        let word = if first == Some(true) { "    allocated" } else { "not allocated" };
        session.say(format!(
            "{} ({:#x}) bytes {word} at offset {} ({at:#x})",
            format::size((end - at) as f64),
            end - at,
            format::size(at as f64)
        ));
        at = end;
    }
    true
}

/// `info`.
pub async fn info(session: &mut Session) -> bool {
    let Some(node) = session.backend.as_ref().and_then(|b| b.node()) else { return false };
    let Ok(driver) = node.driver() else { return false };
    let facts = driver.format_info();
    session.say(format!("format name: {}", driver.format_name()));
    session.say(format!("cluster size: {}", format::size(facts.cluster_size as f64)));
    session.say(format!("vm state offset: {}", format::size(facts.vm_state_offset as f64)));
    let data = facts.specific.as_ref().and_then(|s| s.get("data")).and_then(Value::as_object);
    if let Some(data) = data.filter(|d| !d.is_empty()) {
        session.say("Format specific information:");
        let mut members: Vec<(&String, &Value)> = data.iter().collect();
        crate::json::sort_members(&mut members);
        for (key, value) in members {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            session.say(format!("    {}: {value}", key.replace('-', " ")));
        }
    }
    true
}

/// `truncate`.
pub async fn truncate(session: &mut Session, command: &Command, arguments: &[String]) -> bool {
    let Some(a) = args::parse(session, command, arguments, "m:") else { return false };
    let mode = match a.value('m') {
        None => Preallocation::Off,
        Some(name) => match Preallocation::NAMES.iter().find(|(n, _)| *n == name) {
            Some((_, mode)) => *mode,
            None => {
                session.say(format!("Parameter 'prealloc' does not accept value '{name}'"));
                return false;
            }
        },
    };
    let [text] = a.rest.as_slice() else {
        session.say(command.line());
        return false;
    };
    let Some(len) = args::number(session, text) else { return false };
    let Some(node) = session.backend.as_ref().and_then(|b| b.node()) else { return false };
    match node.truncate(len, false, mode).await {
        Ok(()) => true,
        Err(e) => {
            session.say(e.message());
            false
        }
    }
}

/// `reopen -r` and `reopen -w`.
pub async fn reopen(session: &mut Session, command: &Command, arguments: &[String]) -> bool {
    let Some(a) = args::parse(session, command, arguments, "rw") else { return false };
    let Some(backend) = session.backend.clone() else { return false };
    let Some(node) = backend.node() else { return false };
    if a.has('r') == a.has('w') {
        session.say(command.line());
        return false;
    }
    let (perm, shared) = backend.perms();
    let writing = crate::Perm::WRITE | crate::Perm::RESIZE;
    let done = async {
        if a.has('r') {
            backend.set_perms(perm - writing, shared)?;
        }
        session.graph.reopen(&node, OpenFlags { read_only: a.has('r'), ..node.flags() }).await?;
        if a.has('w') {
            backend.set_perms(perm | writing, shared)?;
        }
        Ok::<(), Error>(())
    }
    .await;
    match done {
        Ok(()) => true,
        Err(e) => {
            session.say(e.message());
            false
        }
    }
}

/// `close`.
pub async fn close(session: &mut Session) -> bool {
    super::requests::aio_flush(session).await;
    session.backend = None;
    session.graph.collect().await;
    true
}

/// `sleep`.
pub async fn sleep(session: &mut Session, _command: &Command, arguments: &[String]) -> bool {
    match arguments[0].parse::<u64>() {
        Ok(ms) => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            true
        }
        Err(_) => {
            session.say(format!("{}: Invalid argument", arguments[0]));
            false
        }
    }
}
