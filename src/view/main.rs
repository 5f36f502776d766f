//! `colo-view MONITOR MONITOR [--once | --plain]`: a pair, live.
use lockstep_view::model::Model;
use lockstep_view::monitor::{Update, now, watch};
use lockstep_view::{plain, screen};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const USAGE: &str = "usage: colo-view MONITOR MONITOR [--once | --plain]
  MONITOR  a VM's QMP socket: a path, or HOST:PORT (start the VM with one more -qmp, say -qmp unix:/run/vm.qmp,server=on,wait=off)
  --once   print what both say now; the exit code is 0 if they are in lock-step
  --plain  a line for each checkpoint and event, for pipes";
/// How long `--once` waits for both VMs.
const ONCE: Duration = Duration::from_secs(3);
const FRAME: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Screen,
    Once,
    Plain,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut addresses = Vec::new();
    let mut mode = if io::stdout().is_terminal() { Mode::Screen } else { Mode::Plain };
    for word in &words {
        match word.as_str() {
            "--once" => mode = Mode::Once,
            "--plain" => mode = Mode::Plain,
            word if word.starts_with('-') => return usage(),
            word => addresses.push(word),
        }
    }
    let &[first, second] = addresses.as_slice() else { return usage() };
    let (sender, updates) = channel();
    for (side, address) in [first, second].map(str::to_string).into_iter().enumerate() {
        let sender = sender.clone();
        std::thread::spawn(move || watch(&address, side, &sender));
    }
    let mut model = Model::new([first, second]);
    let done = match mode {
        Mode::Screen => live(&mut model, &updates),
        Mode::Plain => log(&mut model, &updates),
        Mode::Once => {
            once(&mut model, &updates);
            print!("{}", plain::summary(&model));
            return if model.is_in_lockstep() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the pipe has had enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("colo-view: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

fn once(model: &mut Model, updates: &Receiver<(usize, Update)>) {
    let end = Instant::now() + ONCE;
    let mut answered = [false; 2];
    while answered != [true; 2] {
        let Ok((side, update)) = updates.recv_timeout(end.saturating_duration_since(Instant::now())) else { return };
        answered[side] |= matches!(update, Update::Colo(_) | Update::Lost { .. });
        model.apply(side, update);
    }
}

fn log(model: &mut Model, updates: &Receiver<(usize, Update)>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let mut states = [String::new(), String::new()];
    while let Ok((side, update)) = updates.recv() {
        model.apply(side, update);
        while model.pauses.front().is_some_and(|pause| pause.cause.is_some() || model.pauses.len() > 1) {
            let pause = model.pauses.pop_front().expect("there is one");
            writeln!(out, "{}", plain::pause(&pause))?;
        }
        while let Some(event) = model.events.pop_front() {
            writeln!(out, "{}", plain::event(model, &event))?;
        }
        let state = plain::state(&model.sides[side]);
        if state != states[side] && !state.ends_with('?') {
            writeln!(out, "{} {} {state}", plain::clock(now()), model.sides[side].address)?;
            states[side] = state;
        }
        out.flush()?;
    }
    Ok(())
}

fn live(model: &mut Model, updates: &Receiver<(usize, Update)>) -> io::Result<()> {
    let mut terminal = ratatui::try_init()?;
    let result = loop {
        while let Ok((side, update)) = updates.try_recv() {
            model.apply(side, update);
        }
        if let Err(error) = terminal.draw(|frame| screen::draw(frame, model, now())) {
            break Err(error);
        }
        match ended() {
            Ok(false) => {}
            Ok(true) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    ratatui::restore();
    result
}

/// Waits for a key for one frame's time: does it end the view?
fn ended() -> io::Result<bool> {
    if !event::poll(FRAME)? {
        return Ok(false);
    }
    let Event::Key(key) = event::read()? else { return Ok(false) };
    let interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    Ok(interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}
