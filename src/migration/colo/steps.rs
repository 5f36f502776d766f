//! The named steps of a migration, a checkpoint and a failover, at which a test can break in.

use crate::hooks::LocalFuture;
use lockstep_util::{Result, bail, err};
use rustix::process::{Signal, getpid, kill_process};
use std::cell::Cell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// The steps, in the order in which a pair comes to them. What each stands before is in `docs/architecture.md`.
pub const STEPS: [&str; 27] = [
    "precopy-setup",
    "precopy-iterate",
    "precopy-device",
    "incoming-loaded",
    "secondary-start",
    "primary-wait-ready",
    "secondary-wait-request",
    "primary-request",
    "secondary-request",
    "secondary-stopped",
    "primary-reply",
    "primary-stopped",
    "primary-send",
    "secondary-validated",
    "secondary-received",
    "primary-received",
    "primary-released",
    "secondary-ram-applied",
    "secondary-devices-applied",
    "secondary-applied",
    "primary-loaded",
    "primary-failover",
    "primary-failover-disks",
    "secondary-failover",
    "secondary-failover-disks",
    "secondary-failover-net",
    "secondary-failover-start",
];

/// What a test does at steps.
pub trait StepHook {
    /// Called (and waited for) when a step is reached.
    ///
    /// # Errors
    /// What is to go wrong there.
    fn at(&self, step: &'static str) -> LocalFuture<'_, Result<()>>;
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

    /// For tests of whole processes: a list of `STEP=ACTION` or `STEP@N=ACTION` (at the Nth time only; else every time), with commas in
    /// between. The actions are `abort` (the process is dead at once, by SIGKILL), `freeze` (it stops itself by SIGSTOP), `error` (the
    /// step fails) and `pause:PATH` (the file PATH is made, and the step waits until it is gone).
    ///
    /// # Errors
    /// When the text is not such a list, or names a step that there is none of.
    pub fn from_text(text: &str) -> Result<Self> {
        let points = text.split(',').map(str::trim).filter(|t| !t.is_empty());
        let points = points.map(Failpoint::parse).collect::<Result<Vec<_>>>()?;
        Ok(if points.is_empty() { Self::default() } else { Self::new(Rc::new(Failpoints(points))) })
    }

    /// A step is reached.
    ///
    /// # Errors
    /// What a test wants to go wrong there.
    pub async fn at(&self, step: &'static str) -> Result<()> {
        match &self.hook {
            Some(hook) => hook.at(step).await,
            None => Ok(()),
        }
    }
}

/// How often a pause looks for its file.
const PAUSE_LOOKS: Duration = Duration::from_millis(1);

enum Action {
    Signal(Signal),
    Error,
    Pause(PathBuf),
}

struct Failpoint {
    step: String,
    action: Action,
    /// At which time; 0: every time.
    nth: u32,
    reached: Cell<u32>,
}

impl Failpoint {
    fn parse(text: &str) -> Result<Self> {
        let wrong = || err!("Failpoint '{text}' is not of the form STEP=ACTION or STEP@N=ACTION");
        let (place, action) = text.split_once('=').ok_or_else(wrong)?;
        let (step, nth) = match place.split_once('@') {
            Some((step, nth)) => (step, nth.parse().ok().filter(|n| *n > 0).ok_or_else(wrong)?),
            None => (place, 0),
        };
        if !STEPS.contains(&step) {
            bail!("Failpoint '{text}': there is no step '{step}'");
        }
        let action = match action.split_once(':') {
            None if action == "abort" => Action::Signal(Signal::KILL),
            None if action == "freeze" => Action::Signal(Signal::STOP),
            None if action == "error" => Action::Error,
            Some(("pause", path)) if !path.is_empty() => Action::Pause(path.into()),
            _ => return Err(wrong()),
        };
        Ok(Self { step: step.to_owned(), action, nth, reached: Cell::new(0) })
    }

    fn is_due(&self, step: &str) -> bool {
        if self.step != step {
            return false;
        }
        self.reached.set(self.reached.get().saturating_add(1));
        self.nth == 0 || self.nth == self.reached.get()
    }

    async fn act(&self) -> Result<()> {
        match &self.action {
            Action::Signal(signal) => Ok(kill_process(getpid(), *signal).map_err(std::io::Error::from)?),
            Action::Error => bail!("Failpoint {}", self.step),
            Action::Pause(path) => pause(path).await,
        }
    }
}

async fn pause(path: &Path) -> Result<()> {
    std::fs::write(path, [])?;
    while path.exists() {
        tokio::time::sleep(PAUSE_LOOKS).await;
    }
    Ok(())
}

struct Failpoints(Vec<Failpoint>);

impl StepHook for Failpoints {
    fn at(&self, step: &'static str) -> LocalFuture<'_, Result<()>> {
        Box::pin(async move {
            for point in &self.0 {
                if point.is_due(step) {
                    point.act().await?;
                }
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        lockstep_event::Context::new("main").unwrap().run(future)
    }

    #[test]
    fn a_failpoint_acts_at_its_time_or_every_time() {
        let steps = Steps::from_text("primary-send@2=error, primary-loaded=error").unwrap();
        block_on(async {
            assert!(steps.at("primary-send").await.is_ok());
            assert_eq!(steps.at("primary-send").await.unwrap_err().message(), "Failpoint primary-send");
            assert!(steps.at("primary-send").await.is_ok());
            assert!(steps.at("primary-reply").await.is_ok());
            assert!(steps.at("primary-loaded").await.is_err() && steps.at("primary-loaded").await.is_err());
        });
    }

    #[test]
    fn a_pause_lasts_as_long_as_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("there");
        let steps = Steps::from_text(&format!("primary-send=pause:{}", path.display())).unwrap();
        block_on(async {
            let (at, file) = (steps.at("primary-send"), path.clone());
            let remove = async move {
                while !file.exists() {
                    tokio::task::yield_now().await;
                }
                std::fs::remove_file(file).unwrap();
            };
            tokio::join!(async { at.await.unwrap() }, remove);
        });
    }

    #[test]
    fn wrong_failpoints_are_refused() {
        for (text, message) in [
            ("x", "Failpoint 'x' is not of the form STEP=ACTION or STEP@N=ACTION"),
            ("x=abort", "Failpoint 'x=abort': there is no step 'x'"),
            (
                "primary-send@0=abort",
                "Failpoint 'primary-send@0=abort' is not of the form STEP=ACTION or STEP@N=ACTION",
            ),
            ("primary-send=boom", "Failpoint 'primary-send=boom' is not of the form STEP=ACTION or STEP@N=ACTION"),
            ("primary-send=pause:", "Failpoint 'primary-send=pause:' is not of the form STEP=ACTION or STEP@N=ACTION"),
        ] {
            assert_eq!(Steps::from_text(text).unwrap_err().message(), message);
        }
        assert!(Steps::from_text(" ").unwrap().hook.is_none());
    }
}
