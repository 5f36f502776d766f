//! What gdb asks for, packet by packet.

use std::rc::Rc;

use lockstep_accel::{CpuState, DebugControl, DebugStop, VcpuSet, WatchKind, Watchpoint};
use lockstep_qapi::schema::RunState;
use lockstep_util::report;

use super::{
    memory, packet,
    packet::{LONGEST, escape, hex, unhex},
    registers,
};
use crate::{
    monitor::hmp,
    vm::{Accelerator, Vm},
};

/// gdb's numbers of signals (`include/gdb/signals.def`).
mod signal {
    pub const INT: u8 = 2;
    pub const QUIT: u8 = 3;
    pub const TRAP: u8 = 5;
    pub const ABRT: u8 = 6;
    pub const ALRM: u8 = 14;
    pub const STOP: u8 = 17;
    pub const XCPU: u8 = 24;
    pub const UNKNOWN: u8 = 143;
}

/// Most breakpoints and watchpoints at a time.
const MOST_POINTS: usize = 1024;
/// How single steps are made: bit 0 that they are, bits 1 and 2 that interrupts and timers wait. Interrupts always wait here.
const STEP_FLAGS: u32 = 7;

/// The answer to a mistake: `EINVAL`, `EFAULT`.
const INVALID: &str = "E22";
const FAULT: &str = "E14";

/// What is to be done after a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// Say this.
    Say(Vec<u8>),
    /// The guest runs: the answer comes when it stops.
    Later,
    /// The guest is to run, with nothing to be told.
    Gone(Vec<u8>),
    /// The program is to end.
    Kill(Vec<u8>),
}

impl From<&str> for Reply {
    fn from(text: &str) -> Self {
        Self::Say(text.into())
    }
}

impl From<String> for Reply {
    fn from(text: String) -> Self {
        Self::Say(text.into())
    }
}

/// One vCPU of a `vCont`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Stand,
    Continue,
    Step,
}

/// A connection's state.
pub struct Session {
    vm: Rc<Vm>,
    /// vCPU of registers and memory, and the one that stopped or is to go on.
    general: usize,
    resumed: usize,
    multiprocess: bool,
    physical: bool,
    step_flags: u32,
    /// Threads that `qsThreadInfo` has yet to tell.
    next_thread: usize,
    points: DebugControl,
    /// Physical addresses of breakpoints that are in memory while the guest runs, with the bytes that they replaced.
    replaced: Vec<(u64, u8)>,
}

impl Session {
    /// A new one.
    pub fn new(vm: &Rc<Vm>) -> Self {
        Self {
            vm: vm.clone(),
            general: 0,
            resumed: 0,
            multiprocess: false,
            physical: false,
            step_flags: STEP_FLAGS,
            next_thread: 0,
            points: DebugControl::default(),
            replaced: vec![],
        }
    }

    fn vcpus(&self) -> Option<&VcpuSet> {
        self.vm.vcpus().filter(|v| !v.is_empty())
    }

    fn count(&self) -> usize {
        self.vcpus().map_or(0, VcpuSet::len)
    }

    fn in_kernel(&self) -> bool {
        matches!(self.vm.accelerator, Accelerator::Kvm(_))
    }

    fn state_of(&self, index: usize) -> Option<CpuState> {
        let vcpu = self.vcpus().filter(|v| index < v.len())?.cpu(index);
        vcpu.lock().save().ok()
    }

    /// Answers a packet. The guest stands.
    pub async fn answer(&mut self, packet: &[u8]) -> Reply {
        let Some((&command, rest)) = packet.split_first() else { return "".into() };
        let text = String::from_utf8_lossy(rest).into_owned();
        match command {
            b'!' => "OK".into(),
            b'?' => {
                self.remove_all_points();
                self.told_stop(signal::TRAP)
            }
            b'c' | b's' => {
                if !text.is_empty() && !self.set_rip(&text) {
                    return INVALID.into();
                }
                self.resume_one(command == b's').await
            }
            b'C' | b'S' => match u8::from_str_radix(&text, 16) {
                // A processor has no signals to be given.
                Ok(_) => self.resume_one(command == b'S').await,
                Err(_) => INVALID.into(),
            },
            b'D' => self.detach(&text),
            b'g' => self.all_registers(),
            b'G' => self.set_all_registers(rest),
            b'H' => self.choose_thread(&text),
            b'k' => Reply::Kill(vec![]),
            b'm' => self.read_memory(&text),
            b'M' => self.write_memory(&text),
            b'p' => self.one_register(&text),
            b'P' => self.set_one_register(&text),
            b'q' | b'Q' => self.query(command, &text).await,
            b'T' => match self.thread(&text) {
                Some(Thread::One(_)) => "OK".into(),
                _ => INVALID.into(),
            },
            b'v' => self.verbose(&text).await,
            b'z' | b'Z' => self.point(command == b'Z', &text),
            _ => "".into(),
        }
    }

    // Threads.

    fn thread_id(&self, index: usize) -> String {
        if self.multiprocess { format!("p01.{:02x}", index + 1) } else { format!("{:02x}", index + 1) }
    }

    fn thread(&self, text: &str) -> Option<Thread> {
        let number = |text: &str| match text {
            "-1" => Some(None),
            text => u32::from_str_radix(text, 16).ok().map(Some),
        };
        let thread = match text.strip_prefix('p') {
            Some(text) => {
                let (process, thread) = text.split_once('.').unwrap_or((text, "-1"));
                if !matches!(number(process)?, None | Some(0 | 1)) {
                    return None;
                }
                thread
            }
            None => text,
        };
        match number(thread)? {
            None => Some(Thread::All),
            Some(0) => Some(Thread::Any),
            Some(n) => (n as usize <= self.count()).then(|| Thread::One(n as usize - 1)),
        }
    }

    fn choose_thread(&mut self, text: &str) -> Reply {
        let mut chars = text.chars();
        let kind = chars.next();
        let chosen = match self.thread(chars.as_str()) {
            Some(Thread::One(index)) => Some(index),
            Some(_) => None,
            None => return INVALID.into(),
        };
        match kind {
            Some('c') => self.resumed = chosen.unwrap_or(self.resumed),
            Some('g') => self.general = chosen.unwrap_or(self.general),
            _ => return INVALID.into(),
        }
        "OK".into()
    }

    fn next_threads(&mut self) -> Reply {
        if self.next_thread >= self.count() {
            return "l".into();
        }
        self.next_thread += 1;
        format!("m{}", self.thread_id(self.next_thread - 1)).into()
    }

    // Registers.

    fn all_registers(&self) -> Reply {
        let Some(state) = self.state_of(self.general) else { return FAULT.into() };
        let bytes: Vec<u8> = (0..registers::count()).filter_map(|n| registers::read(&state, n)).flatten().collect();
        hex(&bytes).into()
    }

    fn change(&self, change: &mut dyn FnMut(&mut CpuState)) -> bool {
        let Some(vcpu) = self.vcpus().filter(|v| self.general < v.len()) else { return false };
        vcpu.cpu(self.general).lock().update(change).is_ok()
    }

    fn set_all_registers(&self, digits: &[u8]) -> Reply {
        let Some(bytes) = unhex(digits) else { return INVALID.into() };
        let done = self.change(&mut |state| {
            let mut rest = &bytes[..];
            for number in 0..registers::count() {
                let size = registers::size(number).unwrap_or(0);
                let Some((value, after)) = rest.split_at_checked(size) else { return };
                registers::write(state, number, value);
                rest = after;
            }
        });
        if done { "OK".into() } else { FAULT.into() }
    }

    fn one_register(&self, text: &str) -> Reply {
        let Ok(number) = usize::from_str_radix(text, 16) else { return INVALID.into() };
        let value = self.state_of(self.general).and_then(|s| registers::read(&s, number));
        value.map_or(FAULT.into(), |v| hex(&v).into())
    }

    fn set_one_register(&self, text: &str) -> Reply {
        let Some((number, value)) = text.split_once('=') else { return INVALID.into() };
        let (Ok(number), Some(value)) = (usize::from_str_radix(number, 16), unhex(value.as_bytes())) else {
            return INVALID.into();
        };
        if registers::size(number) != Some(value.len()) {
            return INVALID.into();
        }
        let done = self.change(&mut |state| registers::write(state, number, &value));
        if done { "OK".into() } else { FAULT.into() }
    }

    fn set_rip(&self, text: &str) -> bool {
        u64::from_str_radix(text, 16).is_ok_and(|at| self.change(&mut |state| state.rip = at))
    }

    // Memory.

    /// The state whose page tables are used: none for physical addresses.
    fn tables(&self) -> Option<CpuState> {
        if self.physical { Some(CpuState::default()) } else { self.state_of(self.general) }
    }

    fn read_memory(&self, text: &str) -> Reply {
        let Some((address, len)) = place(text) else { return INVALID.into() };
        if len > LONGEST as u64 / 2 {
            return INVALID.into();
        }
        let mut bytes = vec![0; len as usize];
        let space = &self.vm.board.memory_space;
        let read = self.tables().is_some_and(|s| memory::read(&s, space, address, &mut bytes));
        if read { hex(&bytes).into() } else { FAULT.into() }
    }

    fn write_memory(&self, text: &str) -> Reply {
        let Some((head, digits)) = text.split_once(':') else { return INVALID.into() };
        let (Some((address, len)), Some(bytes)) = (place(head), unhex(digits.as_bytes())) else {
            return INVALID.into();
        };
        if bytes.len() as u64 != len {
            return INVALID.into();
        }
        let space = &self.vm.board.memory_space;
        let written = self.tables().is_some_and(|s| memory::write(&s, space, address, &bytes));
        if written { "OK".into() } else { FAULT.into() }
    }

    // Breakpoints.

    fn point(&mut self, add: bool, text: &str) -> Reply {
        let mut parts = text.split(';').next().unwrap_or_default().split(',');
        let (Some(kind), Some(address), Some(len), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return INVALID.into();
        };
        let number = |t: &str| u64::from_str_radix(t, 16).ok();
        let (Some(address), Some(len)) = (number(address), number(len)) else { return INVALID.into() };
        let done = match (kind, add) {
            ("0", true) => self.add_software(address),
            ("0", false) => remove_first(&mut self.points.software, |b| *b == address),
            ("1", true) => self.add_hardware(address),
            ("1", false) => remove_first(&mut self.points.hardware, |b| *b == address),
            ("2" | "3" | "4", _) => {
                let kind = match kind {
                    "2" => WatchKind::Write,
                    "3" => WatchKind::Read,
                    _ => WatchKind::Access,
                };
                // The processor's registers know no reading alone.
                if kind == WatchKind::Read && self.in_kernel() {
                    return "".into();
                }
                let wanted = Watchpoint { address, len, kind };
                if add {
                    self.add_watchpoint(wanted)
                } else {
                    remove_first(&mut self.points.watchpoints, |w| *w == wanted)
                }
            }
            _ => return "".into(),
        };
        if done { "OK".into() } else { INVALID.into() }
    }

    fn has_room(&self) -> bool {
        let p = &self.points;
        p.software.len() + p.hardware.len() + p.watchpoints.len() < MOST_POINTS
    }

    fn add_software(&mut self, address: u64) -> bool {
        if self.points.software.contains(&address) {
            return true;
        }
        if !self.has_room() {
            return false;
        }
        let space = &self.vm.board.memory_space;
        if self.in_kernel() && !self.state_of(self.general).is_some_and(|s| memory::takes_int3(&s, space, address)) {
            return false;
        }
        self.points.software.push(address);
        true
    }

    fn registers_in_use(&self) -> usize {
        self.points.hardware.len() + self.points.watchpoints.len()
    }

    fn add_hardware(&mut self, address: u64) -> bool {
        if self.points.hardware.contains(&address) {
            // The processor's registers are used once for each.
            return !self.in_kernel();
        }
        if !self.has_room() || self.in_kernel() && self.registers_in_use() >= 4 {
            return false;
        }
        self.points.hardware.push(address);
        true
    }

    fn add_watchpoint(&mut self, w: Watchpoint) -> bool {
        let Watchpoint { address, len, .. } = w;
        if len == 0 || address.checked_add(len - 1).is_none() {
            report::error(format_args!("tried to set invalid watchpoint at {address:x}, len={len}"));
            return false;
        }
        if self.in_kernel() {
            let fits = matches!(len, 1 | 2 | 4 | 8) && address.is_multiple_of(len);
            if !fits || self.registers_in_use() >= 4 || self.points.watchpoints.contains(&w) {
                return false;
            }
        }
        if !self.has_room() {
            return false;
        }
        self.points.watchpoints.push(w);
        true
    }

    /// Takes all breakpoints out of the guest: it is as if there had been no debugger. The guest stands.
    pub fn remove_all_points(&mut self) {
        self.stand();
        self.points = DebugControl::default();
        let Some(vcpus) = self.vcpus() else { return };
        for index in 0..vcpus.len() {
            if let Err(e) = vcpus.cpu(index).lock().set_debug(&DebugControl::default()) {
                report::error(e.message());
            }
        }
    }

    // Running.

    /// What the guest runs with. In the kernel breakpoints are the processor's while it has registers left: the others
    /// are written to memory.
    fn arm(&mut self) -> DebugControl {
        let mut armed = self.points.clone();
        if !self.in_kernel() {
            return armed;
        }
        let room = 4usize.saturating_sub(self.registers_in_use()).min(armed.software.len());
        armed.hardware.extend(armed.software.drain(..room));
        if let Some(state) = self.state_of(self.general) {
            let space = &self.vm.board.memory_space;
            self.replaced = armed.software.iter().filter_map(|&b| memory::insert_int3(&state, space, b)).collect();
        }
        armed
    }

    /// The guest stands: memory is as it is without a debugger.
    pub fn stand(&mut self) {
        let space = &self.vm.board.memory_space;
        // The last one first, for two at the same place.
        self.replaced.drain(..).rev().for_each(|(physical, byte)| memory::remove_int3(space, physical, byte));
        if let Some(vcpus) = self.vcpus() {
            (0..vcpus.len()).for_each(|index| vcpus.freeze(index, false));
        }
    }

    async fn resume_one(&mut self, step: bool) -> Reply {
        let mut actions = vec![Action::Continue; self.count()];
        if step && let Some(action) = actions.get_mut(self.resumed) {
            *action = Action::Step;
        }
        self.resume(&actions).await
    }

    async fn resume(&mut self, actions: &[Action]) -> Reply {
        // A machine that needs a reset first does not go on.
        if matches!(self.vm.state(), RunState::Shutdown | RunState::InternalError) {
            return self.told_stop(signal::TRAP);
        }
        let points = self.arm();
        if let Some(vcpus) = self.vcpus() {
            for (index, action) in actions.iter().enumerate() {
                let step = *action == Action::Step && self.step_flags & 1 != 0;
                vcpus.freeze(index, *action == Action::Stand);
                if let Err(e) = vcpus.cpu(index).lock().set_debug(&DebugControl { step, ..points.clone() }) {
                    report::error(e.message());
                    return INVALID.into();
                }
            }
        }
        self.vm.start().await;
        Reply::Later
    }

    fn told_stop(&mut self, signal: u8) -> Reply {
        self.general = self.resumed;
        format!("T{signal:02x}thread:{};", self.thread_id(self.resumed)).into()
    }

    /// The guest stopped: what is to be said, if anything. `cause` is the vCPU's and its reason, if it was a debugger's.
    pub fn stopped(&mut self, state: RunState, cause: Option<(usize, DebugStop)>) -> Option<Vec<u8>> {
        let signal = match state {
            RunState::Debug => {
                let (index, stop) = cause?;
                self.resumed = index;
                self.general = index;
                if let DebugStop::Watchpoint(w) = stop {
                    let kind = match w.kind {
                        WatchKind::Write => "",
                        WatchKind::Read => "r",
                        WatchKind::Access => "a",
                    };
                    let (signal, thread) = (signal::TRAP, self.thread_id(index));
                    return Some(format!("T{signal:02x}thread:{thread};{kind}watch:{:x};", w.address).into());
                }
                signal::TRAP
            }
            RunState::Paused => signal::INT,
            RunState::Shutdown => signal::QUIT,
            RunState::IoError => signal::STOP,
            RunState::Watchdog => signal::ALRM,
            RunState::InternalError => signal::ABRT,
            RunState::SaveVm | RunState::RestoreVm => return None,
            RunState::FinishMigrate => signal::XCPU,
            _ => signal::UNKNOWN,
        };
        match self.told_stop(signal) {
            Reply::Say(text) => Some(text),
            _ => None,
        }
    }

    fn detach(&mut self, text: &str) -> Reply {
        match text.strip_prefix(';') {
            None if !text.is_empty() => return INVALID.into(),
            Some(process) if u32::from_str_radix(process, 16) != Ok(1) => return INVALID.into(),
            _ => {}
        }
        self.remove_all_points();
        Reply::Gone(b"OK".to_vec())
    }

    async fn verbose(&mut self, text: &str) -> Reply {
        if text == "Cont?" {
            return "vCont;c;C;s;S".into();
        }
        if let Some(actions) = text.strip_prefix("Cont") {
            return match self.actions(actions) {
                Some(actions) => self.resume(&actions).await,
                None => INVALID.into(),
            };
        }
        match text.split_once(';') {
            Some(("Attach", process)) if u32::from_str_radix(process, 16) == Ok(1) => self.told_stop(signal::TRAP),
            Some(("Attach", _)) => INVALID.into(),
            Some(("Kill", _)) => Reply::Kill(b"OK".to_vec()),
            _ => "".into(),
        }
    }

    /// What each vCPU is to do; the first action that names a vCPU counts.
    fn actions(&mut self, text: &str) -> Option<Vec<Action>> {
        let mut all: Vec<Option<Action>> = vec![None; self.count()];
        for part in text.strip_prefix(';')?.split(';') {
            let (action, thread) = part.split_once(':').map_or((part, None), |(a, t)| (a, Some(t)));
            let action = match action.split_at_checked(1)? {
                ("c", "") => Action::Continue,
                ("s", "") => Action::Step,
                ("C", digits) | ("S", digits) => {
                    u8::from_str_radix(digits, 16).ok()?;
                    if action.starts_with('S') { Action::Step } else { Action::Continue }
                }
                _ => return None,
            };
            match thread.map_or(Some(Thread::All), |t| self.thread(t))? {
                Thread::All => all.iter_mut().for_each(|a| *a = a.or(Some(action))),
                Thread::Any => {
                    let one = all.get_mut(self.resumed)?;
                    *one = one.or(Some(action));
                }
                Thread::One(index) => {
                    all[index] = all[index].or(Some(action));
                    self.resumed = index;
                }
            }
        }
        Some(all.into_iter().map(|a| a.unwrap_or(Action::Stand)).collect())
    }

    // Queries.

    async fn query(&mut self, command: u8, text: &str) -> Reply {
        let (name, value) = match text.find([':', ',', '=']) {
            Some(at) => (&text[..at], Some(&text[at + 1..])),
            None => (text, None),
        };
        match (command, name) {
            (b'q', "Supported") => {
                self.multiprocess = value.is_some_and(|v| v.split(';').any(|f| f == "multiprocess+"));
                format!("PacketSize={LONGEST:x};qXfer:features:read+;vContSupported+;multiprocess+").into()
            }
            (b'q', "C") => format!("QC{}", self.thread_id(self.resumed)).into(),
            (b'q', "fThreadInfo") => {
                self.next_thread = 0;
                self.next_threads()
            }
            (b'q', "sThreadInfo") => self.next_threads(),
            (b'q', "Attached") => "1".into(),
            (b'q', "ThreadExtraInfo") => match value.and_then(|v| self.thread(v)) {
                Some(Thread::One(index)) => {
                    let halted = self.state_of(index).is_some_and(|s| s.mp_state != Default::default());
                    let state = if halted { "halted " } else { "running" };
                    hex(format!("CPU#{index} [{state}]").as_bytes()).into()
                }
                _ => INVALID.into(),
            },
            (b'q', "Rcmd") => match value.and_then(|v| unhex(v.as_bytes())) {
                Some(line) if !line.is_empty() => self.monitor(&String::from_utf8_lossy(&line)).await,
                Some(_) => INVALID.into(),
                None => "E01".into(),
            },
            (b'q', "Xfer") => self.transfer(value.unwrap_or_default()),
            (b'q', "qemu.sstepbits") => "ENABLE=1,NOIRQ=2,NOTIMER=4".into(),
            (b'q', "qemu.sstep") if value.is_none() => format!("0x{:x}", self.step_flags).into(),
            (_, "qemu.sstep") => match value.and_then(|v| u32::from_str_radix(v, 16).ok()) {
                Some(flags) if flags & !STEP_FLAGS == 0 => {
                    self.step_flags = flags;
                    "OK".into()
                }
                _ => INVALID.into(),
            },
            (b'q', "qemu.PhyMemMode") => if self.physical { "1" } else { "0" }.into(),
            (b'Q', "qemu.PhyMemMode") => match value {
                Some("0" | "1") => {
                    self.physical = value == Some("1");
                    "OK".into()
                }
                _ => INVALID.into(),
            },
            _ => "".into(),
        }
    }

    /// Runs a command of the human monitor; its output goes ahead of the answer.
    async fn monitor(&mut self, line: &str) -> Reply {
        let output = hmp::run_line(&self.vm, line).await;
        let mut all = vec![];
        for piece in output.as_bytes().chunks(LONGEST / 2 - 8) {
            all.extend(packet::packet(format!("O{}", hex(piece)).as_bytes()));
        }
        // The caller frames the last one.
        let mut answer = all;
        answer.extend(b"OK");
        Reply::Say(answer)
    }

    fn transfer(&self, text: &str) -> Reply {
        let mut parts = text.splitn(4, ':');
        let (object, action, annex, range) = (parts.next(), parts.next(), parts.next(), parts.next());
        if (object, action) != (Some("features"), Some("read")) {
            return "".into();
        }
        let Some((offset, len)) = range.and_then(place) else { return INVALID.into() };
        if annex != Some("target.xml") {
            return "E00".into();
        }
        let text = registers::description().as_bytes();
        let Some(rest) = usize::try_from(offset).ok().and_then(|at| text.get(at..)) else { return "E00".into() };
        let len = rest.len().min(len as usize).min((LONGEST - 5) / 2);
        let mark = if len < rest.len() { b'm' } else { b'l' };
        let mut answer = vec![mark];
        answer.extend(escape(&rest[..len]));
        Reply::Say(answer)
    }
}

/// Which vCPUs an id means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thread {
    All,
    Any,
    One(usize),
}

/// `ADDRESS,LENGTH`.
fn place(text: &str) -> Option<(u64, u64)> {
    let (address, len) = text.split_once(',')?;
    Some((u64::from_str_radix(address, 16).ok()?, u64::from_str_radix(len, 16).ok()?))
}

fn remove_first<T>(list: &mut Vec<T>, is: impl FnMut(&T) -> bool) -> bool {
    list.iter().position(is).map(|at| list.swap_remove(at)).is_some()
}
