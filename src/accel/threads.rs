//! The vCPU threads and the gate that stops them.

use std::{
    sync::{
        Arc, Once,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use lockstep_util::{Result, err};
use parking_lot::Mutex;

use crate::gate::{Gate, Pass};
use crate::{Vcpu, VcpuEvent};

/// The signal that takes a vCPU thread out of the kernel.
const KICK_SIGNAL: libc::c_int = libc::SIGUSR1;

thread_local! {
    /// The byte that makes the next `KVM_RUN` return at once, of the vCPU that this thread runs.
    static IMMEDIATE_EXIT: std::cell::Cell<*mut u8> = const { std::cell::Cell::new(std::ptr::null_mut()) };
}

/// Has the kick signal set `*flag` while the calling thread runs a vCPU. Null takes it back.
pub(crate) fn set_immediate_exit_flag(flag: *mut u8) {
    IMMEDIATE_EXIT.with(|f| f.set(flag));
}

extern "C" fn on_kick(_signal: libc::c_int) {
    let flag = IMMEDIATE_EXIT.with(std::cell::Cell::get);
    if !flag.is_null() {
        // SAFETY: set by the vCPU that this thread is running, and taken back before its mapping goes away.
        unsafe { flag.write_volatile(1) };
    }
}

/// Installs the handler of the kick signal, once for the process.
pub fn install_kick_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler only reads a constant-initialised thread-local and writes one byte.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_kick as *const () as usize;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(KICK_SIGNAL, &action, std::ptr::null_mut());
        }
    });
}

/// All vCPUs of a machine with their threads. They start stopped.
pub struct VcpuSet {
    shared: Arc<Shared>,
    cpus: Vec<Arc<Mutex<Box<dyn Vcpu>>>>,
    threads: Vec<Thread>,
}

struct Thread {
    join: Option<JoinHandle<()>>,
    kick: Box<dyn Fn() + Send + Sync>,
    pthread: libc::pthread_t,
    thread_id: i32,
}

struct Shared {
    gate: Gate,
    /// vCPUs that stand though the gate is open.
    frozen: Vec<AtomicBool>,
    on_event: Box<dyn Fn(usize, VcpuEvent) + Send + Sync>,
}

impl VcpuSet {
    /// Starts one thread for each vCPU. `on_event` is called on a vCPU's thread for everything but kicks; that vCPU then
    /// stands until the gate is opened the next time.
    ///
    /// # Errors
    /// When the host has no more threads.
    pub fn start(
        cpus: Vec<Box<dyn Vcpu>>,
        on_event: impl Fn(usize, VcpuEvent) + Send + Sync + 'static,
    ) -> Result<Self> {
        install_kick_handler();
        let frozen = cpus.iter().map(|_| AtomicBool::new(false)).collect();
        let shared = Arc::new(Shared { gate: Gate::new(cpus.len()), frozen, on_event: Box::new(on_event) });
        let mut set = Self { shared, cpus: vec![], threads: vec![] };
        for (index, cpu) in cpus.into_iter().enumerate() {
            let kick = cpu.kicker();
            let cpu = Arc::new(Mutex::new(cpu));
            let (tx, rx) = std::sync::mpsc::channel();
            let (shared, thread_cpu) = (set.shared.clone(), cpu.clone());
            let join = thread::Builder::new()
                .name(format!("CPU {index}"))
                .spawn(move || {
                    // SAFETY: the calling thread always exists.
                    let pthread = unsafe { libc::pthread_self() };
                    let _ = tx.send((pthread, rustix::thread::gettid().as_raw_nonzero().get()));
                    shared.run(index, &thread_cpu);
                })
                .map_err(|e| err!("cannot start a vCPU thread: {e}"))?;
            let (pthread, thread_id) = rx.recv().map_err(|_| err!("a vCPU thread ended at its start"))?;
            set.cpus.push(cpu);
            set.threads.push(Thread { join: Some(join), kick, pthread, thread_id });
        }
        Ok(set)
    }

    /// Stops all vCPUs between two instructions; on return none runs guest code or device code. Not to be called on a vCPU
    /// thread, nor with a device's lock held.
    pub fn pause(&self) {
        self.shared.gate.close(|| self.kick_all());
    }

    /// Lets all vCPUs run.
    pub fn resume(&self) {
        self.shared.gate.open();
    }

    /// Has a vCPU stand from the next opening of the gate on, or run again from then on. To be called while the gate is closed.
    pub fn freeze(&self, index: usize, frozen: bool) {
        self.shared.frozen[index].store(frozen, Ordering::SeqCst);
        self.cpus[index].lock().hold(frozen);
    }

    /// Whether the gate is open.
    pub fn is_running(&self) -> bool {
        self.shared.gate.is_open()
    }

    /// Number of vCPUs.
    pub fn len(&self) -> usize {
        self.cpus.len()
    }

    /// Whether there are none (`-accel qtest`, `-machine none`).
    pub fn is_empty(&self) -> bool {
        self.cpus.is_empty()
    }

    /// A vCPU, to be locked while the gate is closed. (While it is open the vCPU's thread has it.)
    pub fn cpu(&self, index: usize) -> &Arc<Mutex<Box<dyn Vcpu>>> {
        &self.cpus[index]
    }

    /// The kernel's id of a vCPU's thread.
    pub fn thread_id(&self, index: usize) -> i32 {
        self.threads[index].thread_id
    }

    /// Makes every running vCPU leave guest code for a moment.
    pub fn kick_all(&self) {
        for thread in &self.threads {
            (thread.kick)();
            // SAFETY: the thread is joined only when `self` is dropped, so that its handle is valid.
            unsafe { libc::pthread_kill(thread.pthread, KICK_SIGNAL) };
        }
    }
}

impl Drop for VcpuSet {
    fn drop(&mut self) {
        self.pause();
        self.shared.gate.quit();
        for thread in &mut self.threads {
            if let Some(join) = thread.join.take() {
                let _ = join.join();
            }
        }
    }
}

impl Shared {
    fn run(&self, index: usize, cpu: &Mutex<Box<dyn Vcpu>>) {
        let mut pass = Pass::default();
        while self.gate.enter(&mut pass) {
            if self.frozen[index].load(Ordering::SeqCst) {
                pass.hold();
                continue;
            }
            let event = {
                let mut cpu = cpu.lock();
                let event = loop {
                    match cpu.run() {
                        VcpuEvent::Kicked if self.gate.is_open() => {}
                        event => break event,
                    }
                };
                cpu.finish_io();
                event
            };
            match event {
                VcpuEvent::Kicked => {}
                event => {
                    pass.hold();
                    (self.on_event)(index, event);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{atomic::AtomicU64, mpsc};

    use super::*;
    use crate::CpuState;

    /// Counts while it runs; ends with a triple fault when it is told to.
    struct Counter {
        count: Arc<AtomicU64>,
        fault: Arc<AtomicBool>,
        kicked: Arc<AtomicBool>,
    }

    impl Vcpu for Counter {
        fn run(&mut self) -> VcpuEvent {
            loop {
                self.count.fetch_add(1, Ordering::SeqCst);
                if self.fault.swap(false, Ordering::SeqCst) {
                    return VcpuEvent::TripleFault;
                }
                if self.kicked.swap(false, Ordering::SeqCst) {
                    return VcpuEvent::Kicked;
                }
                thread::yield_now();
            }
        }
        fn finish_io(&mut self) {}
        fn save(&mut self) -> Result<CpuState> {
            Ok(CpuState { rip: self.count.load(Ordering::SeqCst), ..CpuState::default() })
        }
        fn load(&mut self, state: &CpuState) -> Result<()> {
            self.count.store(state.rip, Ordering::SeqCst);
            Ok(())
        }
        fn set_debug(&mut self, _: &crate::DebugControl) -> Result<()> {
            Ok(())
        }
        fn reset(&mut self) -> Result<()> {
            self.count.store(0, Ordering::SeqCst);
            Ok(())
        }
        fn kicker(&self) -> Box<dyn Fn() + Send + Sync> {
            let kicked = self.kicked.clone();
            Box::new(move || kicked.store(true, Ordering::SeqCst))
        }
        fn id(&self) -> u32 {
            0
        }
    }

    #[test]
    fn a_closed_gate_means_that_nothing_moves() {
        let counts: Vec<_> = (0..3).map(|_| Arc::new(AtomicU64::new(0))).collect();
        let cpus = counts
            .iter()
            .map(|c| {
                Box::new(Counter { count: c.clone(), fault: Arc::default(), kicked: Arc::default() }) as Box<dyn Vcpu>
            })
            .collect();
        let set = VcpuSet::start(cpus, |_, e| panic!("{e:?}")).unwrap();
        let now = || counts.iter().map(|c| c.load(Ordering::SeqCst)).collect::<Vec<_>>();
        assert_eq!(now(), [0, 0, 0], "they start stopped");
        for _ in 0..20 {
            let before = now();
            set.resume();
            while now().iter().zip(&before).any(|(a, b)| a == b) {
                thread::yield_now();
            }
            set.pause();
            let stopped = now();
            assert_eq!(set.cpu(1).lock().save().unwrap().rip, stopped[1]);
            assert_eq!(now(), stopped);
        }
    }

    #[test]
    fn a_frozen_vcpu_stands_while_the_others_run() {
        let counts: Vec<_> = (0..2).map(|_| Arc::new(AtomicU64::new(0))).collect();
        let counter = |c: &Arc<AtomicU64>| Counter { count: c.clone(), fault: Arc::default(), kicked: Arc::default() };
        let cpus = counts.iter().map(|c| Box::new(counter(c)) as Box<dyn Vcpu>).collect();
        let set = VcpuSet::start(cpus, |_, e| panic!("{e:?}")).unwrap();
        set.freeze(0, true);
        set.resume();
        while counts[1].load(Ordering::SeqCst) < 10 {
            thread::yield_now();
        }
        set.pause();
        assert_eq!(counts[0].load(Ordering::SeqCst), 0);
        set.freeze(0, false);
        set.resume();
        while counts[0].load(Ordering::SeqCst) < 10 {
            thread::yield_now();
        }
    }

    #[test]
    fn a_vcpu_that_faulted_stands_until_the_gate_opens_again() {
        let (count, fault) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(true)));
        let cpu = Counter { count: count.clone(), fault: fault.clone(), kicked: Arc::default() };
        let (tx, rx) = mpsc::channel();
        let set = VcpuSet::start(vec![Box::new(cpu)], move |i, e| tx.send((i, e)).unwrap()).unwrap();
        set.resume();
        assert_eq!(rx.recv(), Ok((0, VcpuEvent::TripleFault)));
        set.pause();
        let stood = count.load(Ordering::SeqCst);
        set.resume();
        while count.load(Ordering::SeqCst) == stood {
            thread::yield_now();
        }
    }
}
