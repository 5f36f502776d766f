//! The named steps of a migration and of a checkpoint, at which a test can break in.

use crate::hooks::LocalFuture;
use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

/// What a test does at steps.
pub trait StepHook {
    /// Called (and waited for) when a step is reached.
    fn at(&self, step: &'static str) -> LocalFuture<'_, ()>;
}

/// Where the steps are told; does nothing by default.
#[derive(Clone, Default)]
pub struct Steps {
    hook: Option<Rc<dyn StepHook>>,
}

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Steps({})", if self.hook.is_some() { "hooked" } else { "off" })
    }
}

impl Steps {
    /// Tells a hook.
    pub fn new(hook: Rc<dyn StepHook>) -> Self {
        Self { hook: Some(hook) }
    }

    /// For tests of whole processes: the value `STEP=kill` or `STEP=freeze`, or with `@N` at the Nth time, makes the process kill or
    /// stop itself there. `None` and anything else do nothing.
    pub fn from_text(text: Option<&str>) -> Self {
        let parsed = text.and_then(|text| {
            let (step, action) = text.split_once('=')?;
            let (action, count) = action.split_once('@').unwrap_or((action, "1"));
            let signal = match action {
                "kill" => rustix::process::Signal::KILL,
                "freeze" => rustix::process::Signal::STOP,
                _ => return None,
            };
            Some(SignalAt { step: step.to_owned(), signal, left: Cell::new(count.parse().ok()?) })
        });
        Self { hook: parsed.map(|s| Rc::new(s) as Rc<dyn StepHook>) }
    }

    /// A step is reached.
    pub async fn at(&self, step: &'static str) {
        if let Some(hook) = &self.hook {
            hook.at(step).await;
        }
    }
}

struct SignalAt {
    step: String,
    signal: rustix::process::Signal,
    left: Cell<u32>,
}

impl StepHook for SignalAt {
    fn at(&self, step: &'static str) -> LocalFuture<'_, ()> {
        if step == self.step && self.left.get() > 0 {
            self.left.set(self.left.get() - 1);
            if self.left.get() == 0 {
                let _ = rustix::process::kill_process(rustix::process::getpid(), self.signal);
            }
        }
        Box::pin(async {})
    }
}
