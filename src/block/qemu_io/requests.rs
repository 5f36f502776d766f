//! Commands that read and write.

use super::args::{self, Args};
use super::{Command, Session, format};
use crate::backend::Backend;
use crate::driver::WriteFlags;
use lockstep_util::Error;
use std::io;
use std::rc::Rc;
use std::time::Instant;

/// Most bytes in one request.
const MAX: u64 = (1 << 31) - 512;
/// What buffers are filled with unless a pattern is given.
const FILLING: u8 = 0xcd;

fn failed(what: &str, e: &io::Error) -> String {
    Error::with_errno(format!("{what} failed"), e).message().to_owned()
}

/// Offset and length of a request; several lengths add up.
fn range(session: &mut Session, rest: &[String]) -> Option<(u64, u64)> {
    let offset = args::number(session, &rest[0])?;
    let mut len = 0u64;
    for text in &rest[1..] {
        len = len.saturating_add(args::number(session, text)?);
    }
    if len > MAX {
        session.say(format!("length cannot exceed {MAX}, given {}", rest[1]));
        return None;
    }
    Some((offset, len))
}

struct Read {
    offset: u64,
    len: u64,
    pattern: Option<u8>,
    /// Part that the pattern is looked for in: start and length.
    part: (u64, u64),
    verbose: bool,
    quiet: bool,
    compact: bool,
}

fn parse_read(session: &mut Session, command: &Command, arguments: &[String], letters: &str) -> Option<Read> {
    let a = args::parse(session, command, arguments, letters)?;
    let exact = matches!(command.name, "read" | "write");
    if a.rest.len() < 2 || exact && a.rest.len() != 2 {
        session.say(command.line());
        return None;
    }
    let pattern = match a.value('P') {
        Some(text) => Some(args::pattern(session, text)?),
        None => None,
    };
    if pattern.is_none() && (a.has('l') || a.has('s')) {
        session.say(command.line());
        return None;
    }
    let (offset, len) = range(session, &a.rest)?;
    let start = match a.value('s') {
        Some(text) => args::number(session, text)?,
        None => 0,
    };
    let length = match a.value('l') {
        Some(text) => args::number(session, text)?,
        None => len.saturating_sub(start),
    };
    if start > len || length > len - start {
        session.say("pattern verification range exceeds end of read data");
        return None;
    }
    Some(Read {
        offset,
        len,
        pattern,
        part: (start, length),
        verbose: a.has('v'),
        quiet: a.has('q'),
        compact: a.has('C'),
    })
}

/// Reads, and says how it went.
async fn do_read(backend: &Backend, r: &Read) -> (String, bool) {
    let begin = Instant::now();
    let mut data = vec![0xab; r.len as usize];
    if let Err(e) = backend.read(r.offset, &mut data).await {
        return (failed("read", &e) + "\n", false);
    }
    let elapsed = begin.elapsed();
    let mut out = String::new();
    let mut ok = true;
    if let Some(byte) = r.pattern {
        let (start, len) = r.part;
        if data[start as usize..(start + len) as usize].iter().any(|b| *b != byte) {
            out.push_str(&format!(
                "Pattern verification failed at offset {}, {len} bytes\n",
                r.offset.saturating_add(start)
            ));
            ok = false;
        }
    }
    if r.verbose {
        out.push_str(&format::dump(&data, r.offset));
    }
    if !r.quiet {
        out.push_str(&format::report("read", elapsed, r.offset, r.len, r.len, 1, r.compact));
    }
    (out, ok)
}

/// `read`, `readv`.
pub async fn read(session: &mut Session, command: &Command, arguments: &[String]) -> bool {
    let letters = if command.name == "read" { "CqvpP:s:l:" } else { "CqvP:" };
    let Some(r) = parse_read(session, command, arguments, letters) else { return false };
    let Some(backend) = session.backend.clone() else { return false };
    let (text, ok) = do_read(&backend, &r).await;
    session.out.push_str(&text);
    ok
}

struct Write {
    offset: u64,
    len: u64,
    data: Vec<u8>,
    zeroes: bool,
    flags: WriteFlags,
    quiet: bool,
    compact: bool,
}

fn parse_write(session: &mut Session, command: &Command, arguments: &[String], letters: &str) -> Option<Write> {
    let a = args::parse(session, command, arguments, letters)?;
    let exact = matches!(command.name, "read" | "write");
    if a.rest.len() < 2 || exact && a.rest.len() != 2 {
        session.say(command.line());
        return None;
    }
    let zeroes = a.has('z');
    if let Some(text) = wrong_together(&a) {
        session.say(text);
        return None;
    }
    let pattern = match a.value('P') {
        Some(text) => args::pattern(session, text)?,
        None => FILLING,
    };
    let (offset, len) = range(session, &a.rest)?;
    let data = match a.value('s') {
        _ if zeroes => Vec::new(),
        None => vec![pattern; len as usize],
        Some(path) => match std::fs::read(path) {
            Ok(source) if source.is_empty() => {
                session.say(format!("{path}: file is empty"));
                return None;
            }
            Ok(source) => source.iter().copied().cycle().take(len as usize).collect(),
            Err(e) => {
                let text = Error::with_errno(path, &e);
                session.say(text.message());
                return None;
            }
        },
    };
    let mut flags = WriteFlags::empty();
    flags.set(WriteFlags::FUA, a.has('f'));
    flags.set(WriteFlags::MAY_UNMAP, a.has('u'));
    flags.set(WriteFlags::NO_FALLBACK, a.has('n'));
    flags.set(WriteFlags::COMPRESSED, a.has('c'));
    Some(Write { offset, len, data, zeroes, flags, quiet: a.has('q'), compact: a.has('C') })
}

fn wrong_together(a: &Args) -> Option<&'static str> {
    let (c, z, p, s) = (a.has('c'), a.has('z'), a.has('P'), a.has('s'));
    if c && z {
        Some("-c and -z cannot be specified at the same time")
    } else if a.has('f') && c {
        Some("-f and -c cannot be specified at the same time")
    } else if a.has('n') && !z {
        Some("-n requires -z to be specified")
    } else if a.has('u') && !z {
        Some("-u requires -z to be specified")
    } else if usize::from(z) + usize::from(p) + usize::from(s) > 1 {
        Some("Only one of -z, -P, and -s can be specified at the same time")
    } else {
        None
    }
}

async fn do_write(backend: &Backend, w: &Write) -> (String, bool) {
    let begin = Instant::now();
    let result = if w.zeroes {
        backend.write_zeroes(w.offset, w.len, w.flags).await
    } else {
        backend.write(w.offset, &w.data, w.flags).await
    };
    match result {
        Err(e) => (failed("write", &e) + "\n", false),
        Ok(()) if w.quiet => (String::new(), true),
        Ok(()) => (format::report("wrote", begin.elapsed(), w.offset, w.len, w.len, 1, w.compact), true),
    }
}

/// `write`, `writev`.
pub async fn write(session: &mut Session, command: &Command, arguments: &[String]) -> bool {
    let letters = if command.name == "write" { "cCfnpquzP:s:" } else { "CfqP:" };
    let Some(w) = parse_write(session, command, arguments, letters) else { return false };
    let Some(backend) = session.backend.clone() else { return false };
    let (text, ok) = do_write(&backend, &w).await;
    session.out.push_str(&text);
    ok
}

/// `aio_read`: the answer is printed when it is there, at the latest by `aio_flush`.
pub async fn aio_read(session: &mut Session, command: &Command, arguments: &[String]) -> bool {
    let Some(r) = parse_read(session, command, arguments, "CqvP:") else { return false };
    let Some(backend) = session.backend.clone() else { return false };
    start(session, backend, move |b| async move { do_read(&b, &r).await });
    true
}

/// `aio_write`.
pub async fn aio_write(session: &mut Session, command: &Command, arguments: &[String]) -> bool {
    let Some(w) = parse_write(session, command, arguments, "CfquzP:") else { return false };
    let Some(backend) = session.backend.clone() else { return false };
    start(session, backend, move |b| async move { do_write(&b, &w).await });
    true
}

fn start<F, Fut>(session: &mut Session, backend: Rc<Backend>, work: F)
where
    F: FnOnce(Rc<Backend>) -> Fut + 'static,
    Fut: Future<Output = (String, bool)> + 'static,
{
    session.pending.push(tokio::task::spawn_local(work(backend)));
}

/// `aio_flush`: waits for all of them.
pub async fn aio_flush(session: &mut Session) -> bool {
    let mut all = true;
    for task in std::mem::take(&mut session.pending) {
        match task.await {
            Ok((text, ok)) => {
                session.out.push_str(&text);
                all &= ok;
            }
            Err(_) => all = false,
        }
    }
    all
}

/// `flush`.
pub async fn flush(session: &mut Session) -> bool {
    let Some(backend) = session.backend.clone() else { return false };
    match backend.flush().await {
        Ok(()) => true,
        Err(e) => {
            session.say(failed("flush", &e));
            false
        }
    }
}

/// `discard`.
pub async fn discard(session: &mut Session, command: &Command, arguments: &[String]) -> bool {
    let Some(a) = args::parse(session, command, arguments, "Cq") else { return false };
    if a.rest.len() != 2 {
        session.say(command.line());
        return false;
    }
    let Some((offset, len)) = range(session, &a.rest) else { return false };
    let Some(backend) = session.backend.clone() else { return false };
    let begin = Instant::now();
    match backend.discard(offset, len).await {
        Ok(()) => {
            if !a.has('q') {
                let text = format::report("discard", begin.elapsed(), offset, len, len, 1, a.has('C'));
                session.out.push_str(&text);
            }
            true
        }
        Err(e) => {
            session.say(failed("discard", &e));
            false
        }
    }
}
