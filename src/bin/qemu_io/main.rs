//! `qemu-io`: reads and writes disk images by commands, for tests and for people.

use lockstep_bin::getopt::{Parsed, Spec, opt, parse};
use lockstep_bin::version;
use lockstep_block::qemu_io::{Session, execute, finish};
use lockstep_block::{Backend, Graph, OpenFlags, Options, Perm};
use lockstep_event::Context;
use lockstep_util::{Result, bail};
use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::rc::Rc;

const OPTIONS: &[Spec] = &[
    opt('h', "help", false),
    opt('V', "version", false),
    opt('c', "cmd", true),
    opt('f', "format", true),
    opt('r', "read-only", false),
    opt('n', "nocache", false),
    opt('t', "cache", true),
    opt('d', "discard", true),
    opt('U', "force-share", false),
    opt(' ', "image-opts", false),
];

const HELP: &str = "Usage: qemu-io [OPTIONS]... [-c STRING]... [file]
Reads and writes disk images

  --image-opts         treat file as option string
  -c, --cmd STRING     execute command with its arguments
                       from the given string
  -f, --format FMT     specifies the block driver to use
  -r, --read-only      export read-only
  -n, --nocache        disable host cache, short for -t none
  -t, --cache=MODE     use the given cache mode for the image
  -d, --discard=MODE   use the given discard mode for the image
  -U, --force-share    force shared permissions
  -h, --help           display this help and exit
  -V, --version        output version information and exit

See 'qemu-io -c help' for information on available commands.
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let (program, rest) = args.split_first().map_or(("qemu-io", &[][..]), |(p, r)| (p.as_str(), r));
    let parsed = match parse(rest, OPTIONS, true) {
        Ok(parsed) => parsed,
        Err(text) => {
            eprintln!("{program}: {text}");
            eprintln!("Try '{program} --help' for more information.");
            return ExitCode::FAILURE;
        }
    };
    if parsed.has("help") {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    if parsed.has("version") {
        println!("qemu-io version {}", version());
        return ExitCode::SUCCESS;
    }
    if parsed.rest.len() > 1 {
        print!("{HELP}");
        return ExitCode::FAILURE;
    }
    let context = match Context::new("qemu-io") {
        Ok(context) => context,
        Err(e) => {
            eprintln!("qemu-io: Failed to set up the event loop: {e}");
            return ExitCode::FAILURE;
        }
    };
    let ok = context.run(async {
        let graph = Graph::new();
        let ok = run(&graph, &parsed).await;
        graph.close_all().await;
        ok
    });
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run(graph: &Graph, parsed: &Parsed) -> bool {
    let backend = match parsed.rest.first() {
        None => None,
        Some(name) => match open(graph, parsed, name).await {
            Ok(backend) => Some(backend),
            Err(e) => {
                eprintln!("qemu-io: can't open{}: {}", device(parsed, name), e.message());
                eprint!("{}", e.hint_text());
                return false;
            }
        },
    };
    let mut session = Session::new(graph, backend);
    let commands = parsed.values("cmd");
    let mut all = true;
    if commands.is_empty() {
        all = interactive(&mut session).await;
    } else {
        for line in commands {
            if matches!(line.trim(), "quit" | "q") {
                return all & end(&mut session).await;
            }
            all &= execute(&mut session, line).await;
            show(&mut session);
        }
    }
    all & end(&mut session).await
}

async fn end(session: &mut Session) -> bool {
    let ok = finish(session).await;
    show(session);
    ok
}

fn device(parsed: &Parsed, name: &str) -> String {
    if parsed.has("image-opts") { String::new() } else { format!(" device {name}") }
}

fn show(session: &mut Session) {
    print!("{}", session.take_output());
    if let Some(e) = session.refused.take() {
        eprintln!("qemu-io: {}", e.message());
    }
    // A reader that has gone is noticed at the next print, if at all.
    let _ = std::io::stdout().flush();
}

/// Lines from the standard input until its end or `quit`.
async fn interactive(session: &mut Session) -> bool {
    let mut all = true;
    loop {
        print!("qemu-io> ");
        let _ = std::io::stdout().flush();
        let mut line = String::new();
        match std::io::stdin().lock().read_line(&mut line) {
            Ok(n) if n > 0 => {}
            _ => {
                println!();
                return all;
            }
        }
        if matches!(line.trim(), "quit" | "q") {
            return all;
        }
        all &= execute(session, &line).await;
        show(session);
    }
}

async fn open(graph: &Graph, parsed: &Parsed, name: &str) -> Result<Rc<Backend>> {
    let mut flags = OpenFlags {
        read_only: parsed.has("read-only"),
        force_share: parsed.has("force-share"),
        unmap: true,
        ..OpenFlags::default()
    };
    let mut writethrough = true;
    if parsed.has("nocache") {
        (flags.cache_direct, writethrough) = (true, false);
    }
    if let Some(mode) = parsed.value("cache") {
        (flags.cache_direct, flags.no_flush, writethrough) = match mode {
            "none" | "off" => (true, false, false),
            "directsync" => (true, false, true),
            "writeback" => (false, false, false),
            "unsafe" => (false, true, false),
            "writethrough" => (false, false, true),
            _ => bail!("Invalid cache option: {mode}"),
        };
    }
    match parsed.value("discard") {
        None | Some("unmap" | "on") => {}
        Some("ignore" | "off") => flags.unmap = false,
        Some(mode) => bail!("Invalid discard option: {mode}"),
    }
    let mut options = Options::new();
    let mut filename = Some(name);
    if parsed.has("image-opts") {
        for part in name.split(',').filter(|p| !p.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, "on"));
            options.set(key, value);
        }
        filename = None;
    } else if let Some(format) = parsed.value("format") {
        options.set("driver", format);
    }
    if flags.force_share {
        options.set("force-share", true);
    }
    let node = graph.open(filename, options, flags).await?;
    let backend = Backend::new(graph, None)?;
    backend.set_write_cache(!writethrough);
    let mut perm = Perm::CONSISTENT_READ;
    if !node.is_read_only() {
        perm |= Perm::WRITE | Perm::RESIZE;
    }
    backend.set_perms(perm, Perm::all())?;
    backend.insert(&node)?;
    Ok(backend)
}
