//! Work that is done over and over beside a test, each kind on a thread of its own.
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

/// What is done over and over, until it is finished or fails.
#[derive(Default)]
pub(crate) struct Repeated {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Repeated {
    /// Does `work` again and again, with a rest after each time. It is told how often it was done.
    pub fn start(&mut self, rest: Duration, mut work: impl FnMut(u64) -> io::Result<()> + Send + 'static) {
        let told = Arc::clone(&self.stop);
        self.threads.push(std::thread::spawn(move || {
            for number in 0.. {
                if told.load(Relaxed) {
                    break;
                }
                work(number)?;
                std::thread::sleep(rest);
            }
            Ok(())
        }));
    }

    /// Has none of it failed?
    pub fn check_alive(&mut self) -> io::Result<()> {
        match self.threads.iter().position(JoinHandle::is_finished) {
            Some(ended) => self.threads.swap_remove(ended).join().expect("no panic"),
            None => Ok(()),
        }
    }

    /// Ends it, once each is done with what it is at.
    pub fn finish(self) -> io::Result<()> {
        self.stop.store(true, Relaxed);
        self.threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    }
}
