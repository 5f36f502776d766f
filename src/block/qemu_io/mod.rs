//! The commands of `qemu-io`: small requests typed by a person, for the program of that name and the human monitor.

mod args;
mod format;
mod requests;
mod status;

use crate::backend::Backend;
use crate::child::Perm;
use crate::driver::LocalBoxFuture;
use crate::graph::Graph;
use lockstep_util::Error;
use std::fmt::Write;
use std::rc::Rc;

/// What commands work on, and what they print.
pub struct Session {
    /// The graph, for commands that change nodes.
    pub graph: Graph,
    /// The open disk, if any.
    pub backend: Option<Rc<Backend>>,
    /// Text printed so far.
    pub out: String,
    /// Why the last command was not let at the disk at all, if so.
    pub refused: Option<Error>,
    /// Requests of `aio_read` and `aio_write` still under way.
    pending: Vec<tokio::task::JoinHandle<(String, bool)>>,
}

impl Session {
    /// A session on a disk.
    pub fn new(graph: &Graph, backend: Option<Rc<Backend>>) -> Self {
        Self { graph: graph.clone(), backend, out: String::new(), refused: None, pending: Vec::new() }
    }

    /// Takes what was printed.
    pub fn take_output(&mut self) -> String {
        std::mem::take(&mut self.out)
    }

    fn say(&mut self, text: impl AsRef<str>) {
        self.out.push_str(text.as_ref());
        self.out.push('\n');
    }
}

type Run = for<'a> fn(&'a mut Session, &'a Command, &'a [String]) -> LocalBoxFuture<'a, bool>;

/// A command: its name, how many arguments it takes, what they are, what it does.
pub struct Command {
    name: &'static str,
    alias: &'static str,
    /// Fewest and most arguments.
    arity: (usize, usize),
    usage: &'static str,
    summary: &'static str,
    needs_file: bool,
    /// What the command does beyond reading.
    perm: Perm,
    run: Run,
}

const MANY: usize = usize::MAX;

const fn command(
    name: &'static str,
    alias: &'static str,
    arity: (usize, usize),
    usage: &'static str,
    summary: &'static str,
    run: Run,
) -> Command {
    Command { name, alias, arity, usage, summary, needs_file: true, perm: Perm::empty(), run }
}

const fn writing(command: Command, perm: Perm) -> Command {
    Command { perm, ..command }
}

/// All commands, by name.
static COMMANDS: &[Command] = &[
    command("aio_flush", "", (0, 0), "", "completes all outstanding aio requests", |s, _, _| {
        Box::pin(requests::aio_flush(s))
    }),
    command(
        "aio_read",
        "",
        (2, MANY),
        "[-Ciqrv] [-P pattern] off len [len..]",
        "asynchronously reads a number of bytes",
        |s, c, a| Box::pin(requests::aio_read(s, c, a)),
    ),
    writing(
        command(
            "aio_write",
            "",
            (2, MANY),
            "[-Cfiqruz] [-P pattern] off len [len..]",
            "asynchronously writes a number of bytes",
            |s, c, a| Box::pin(requests::aio_write(s, c, a)),
        ),
        Perm::WRITE,
    ),
    command("alloc", "a", (1, 2), "offset [count]", "checks if offset is allocated in the file", |s, c, a| {
        Box::pin(status::alloc(s, c, a))
    }),
    command("close", "c", (0, 0), "", "close the current open file", |s, _, _| Box::pin(status::close(s))),
    writing(
        command(
            "discard",
            "d",
            (2, MANY),
            "[-Cq] off len",
            "discards a number of bytes at a specified offset",
            |s, c, a| Box::pin(requests::discard(s, c, a)),
        ),
        Perm::WRITE,
    ),
    command("flush", "f", (0, 0), "", "flush all in-core file state to disk", |s, _, _| Box::pin(requests::flush(s))),
    Command {
        needs_file: false,
        ..command("help", "?", (0, 1), "[command]", "help for one or all commands", |s, _, a| {
            Box::pin(async move { help(s, a) })
        })
    },
    command("info", "i", (0, 0), "", "prints information about the current file", |s, _, _| Box::pin(status::info(s))),
    command("length", "l", (0, 0), "", "gets the length of the current file", |s, _, _| Box::pin(status::length(s))),
    command("map", "", (0, 0), "", "prints the allocated areas of a file", |s, _, _| Box::pin(status::map(s))),
    command(
        "read",
        "r",
        (2, MANY),
        "[-Cqv] [-P pattern [-s off] [-l len]] off len",
        "reads a number of bytes at a specified offset",
        |s, c, a| Box::pin(requests::read(s, c, a)),
    ),
    command(
        "readv",
        "rv",
        (2, MANY),
        "[-Cqv] [-P pattern] off len [len..]",
        "reads a number of bytes at a specified offset",
        |s, c, a| Box::pin(requests::read(s, c, a)),
    ),
    command("reopen", "", (0, 1), "[(-r|-w)]", "reopens an image read-only or writable", |s, c, a| {
        Box::pin(status::reopen(s, c, a))
    }),
    Command {
        needs_file: false,
        ..command("sleep", "", (1, 1), "", "waits for the given value in milliseconds", |s, c, a| {
            Box::pin(status::sleep(s, c, a))
        })
    },
    writing(
        command(
            "truncate",
            "t",
            (1, 3),
            "[-m prealloc_mode] off",
            "truncates the current file at the given offset",
            |s, c, a| Box::pin(status::truncate(s, c, a)),
        ),
        Perm::WRITE.union(Perm::RESIZE),
    ),
    writing(
        command(
            "write",
            "w",
            (2, MANY),
            "[-cCfnquz] [-P pattern | -s source_file] off len",
            "writes a number of bytes at a specified offset",
            |s, c, a| Box::pin(requests::write(s, c, a)),
        ),
        Perm::WRITE,
    ),
    writing(
        command(
            "writev",
            "wv",
            (2, MANY),
            "[-Cfq] [-P pattern] off len [len..]",
            "writes a number of bytes at a specified offset",
            |s, c, a| Box::pin(requests::write(s, c, a)),
        ),
        Perm::WRITE,
    ),
];

impl Command {
    /// `read [-v] off len -- reads …`
    fn line(&self) -> String {
        let gap = if self.usage.is_empty() { "" } else { " " };
        format!("{}{gap}{} -- {}", self.name, self.usage, self.summary)
    }
}

fn help(session: &mut Session, args: &[String]) -> bool {
    match args {
        [name] => match find(name) {
            Some(command) => {
                let line = command.line();
                session.say(line);
                true
            }
            None => {
                session.say(format!("command {name} not found"));
                false
            }
        },
        _ => {
            for command in COMMANDS {
                let line = command.line();
                session.say(line);
            }
            session.say("quit -- exit the program");
            session.say("\nUse 'help commandname' for extended help.");
            true
        }
    }
}

fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|c| c.name == name || (!c.alias.is_empty() && c.alias == name))
}

/// Names of all commands (for completion and the human monitor's help).
pub fn names() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().map(|c| c.name)
}

/// Runs one line; says whether it succeeded. What it prints is in the session's output; why it was refused, if it was, in
/// `refused`. An empty line does nothing.
pub async fn execute(session: &mut Session, line: &str) -> bool {
    session.refused = None;
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let Some((name, args)) = words.split_first() else { return true };
    let Some(command) = find(name) else {
        session.say(format!("command \"{name}\" not found"));
        return false;
    };
    if command.needs_file && session.backend.is_none() {
        session.say("no file open, try 'help open'");
        return false;
    }
    let (least, most) = command.arity;
    if args.len() < least || args.len() > most {
        let mut text = format!("bad argument count {} to {}, expected ", args.len(), command.name);
        let _ = match (least, most) {
            (_, MANY) => write!(text, "at least {least} arguments"),
            (a, b) if a == b => write!(text, "{a} arguments"),
            (a, b) => write!(text, "between {a} and {b} arguments"),
        };
        session.say(text);
        return false;
    }
    if !command.perm.is_empty()
        && let Some(backend) = session.backend.clone()
    {
        let (perm, shared) = backend.perms();
        if !perm.contains(command.perm)
            && let Err(e) = backend.set_perms(perm | command.perm, shared)
        {
            session.refused = Some(e);
            return false;
        }
    }
    (command.run)(session, command, args).await
}

/// Waits for what `aio_` commands have started.
pub async fn finish(session: &mut Session) -> bool {
    requests::aio_flush(session).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OpenFlags, Options};
    use lockstep_event::Context;

    fn run(lines: &[&str]) -> Vec<(String, bool)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.qcow2");
        Context::new("test").unwrap().run(async {
            let graph = Graph::new();
            let mut options = Options::new();
            options.set("size", "1M");
            crate::image::create(&graph, path.to_str().unwrap(), "qcow2", options).await.unwrap();
            let options = Options::from_pairs([("driver", "qcow2"), ("file.filename", path.to_str().unwrap())]);
            let node = graph.open(None, options, OpenFlags { unmap: true, ..OpenFlags::default() }).await.unwrap();
            let backend = Backend::new(&graph, None).unwrap();
            backend.set_perms(Perm::all(), Perm::all()).unwrap();
            backend.insert(&node).unwrap();
            drop(node);
            let mut session = Session::new(&graph, Some(backend));
            let mut results = Vec::new();
            for line in lines {
                let ok = execute(&mut session, line).await;
                results.push((session.take_output(), ok));
            }
            drop(session);
            graph.close_all().await;
            results
        })
    }

    #[test]
    fn patterns_are_written_and_verified() {
        let results =
            run(&["write -q -P 0x55 0 64k", "read -P 85 0 64k -q", "read -q -P 0 64k 64k", "read -q -P 1 0 1k"]);
        let ok: Vec<bool> = results.iter().map(|r| r.1).collect();
        assert_eq!(ok, [true, true, true, false]);
        assert_eq!(results[3].0, "Pattern verification failed at offset 0, 1024 bytes\n");
    }

    #[test]
    fn the_words_are_those_of_the_original() {
        let results = run(&[
            "nosuch",
            "read 0",
            "read a b",
            "read -x 0 512",
            "write -n 0 512",
            "length",
            "alloc 0",
            "map",
            "write -P 3 1M 512",
            "read -v -q 0 16",
        ]);
        let texts: Vec<&str> = results.iter().map(|r| r.0.as_str()).collect();
        assert_eq!(texts[0], "command \"nosuch\" not found\n");
        assert_eq!(texts[1], "bad argument count 1 to read, expected at least 2 arguments\n");
        assert_eq!(texts[2], "Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- a\n");
        assert!(texts[3].starts_with("read: invalid option -- 'x'\n"));
        assert_eq!(texts[4], "-n requires -z to be specified\n");
        assert_eq!(texts[5], "1 MiB\n");
        assert_eq!(texts[6], "0/512 bytes allocated at offset 0 bytes\n");
        assert_eq!(texts[7], "1 MiB (0x100000) bytes not allocated at offset 0 bytes (0x0)\n");
        assert_eq!(texts[8], "write failed: Input/output error\n");
        assert_eq!(texts[9], "00000000:  00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................\n");
    }
}
