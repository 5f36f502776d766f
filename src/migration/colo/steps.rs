//! The named steps of a migration, a checkpoint and a failover, at which a test can break in.

use crate::hooks::{ColoMode, LocalFuture};
use lockstep_util::{Result, bail, err};
use rustix::process::{Signal, getpid, kill_process};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// What a pair is at while it comes to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The machine is sent over, the pair begins.
    Join,
    /// A checkpoint.
    Checkpoint,
    /// One side is told that it is alone, until its guest runs.
    Failover,
    /// The survivor's overlays are merged while its guest runs.
    Merge,
}

/// A named step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The side that comes to it.
    pub side: ColoMode,
    /// What it is a step of.
    pub part: Part,
    /// Its name.
    pub name: &'static str,
}

const fn step(side: ColoMode, part: Part, name: &'static str) -> Step {
    Step { side, part, name }
}

use ColoMode::{Primary, Secondary};
use Part::{Checkpoint, Failover, Join, Merge};

/// The steps; those of one side and part in the order in which it comes to them. What each stands before is in
/// `docs/architecture.md`. A test of whatever must hold at every step takes them from here.
pub const STEPS: [Step; 40] = [
    step(Primary, Join, "precopy-setup"),
    step(Primary, Join, "precopy-iterate"),
    step(Primary, Join, "precopy-device"),
    step(Secondary, Join, "incoming-loaded"),
    step(Secondary, Join, "secondary-start"),
    step(Primary, Join, "primary-wait-ready"),
    step(Secondary, Checkpoint, "secondary-wait-request"),
    step(Primary, Checkpoint, "primary-request"),
    step(Secondary, Checkpoint, "secondary-request"),
    step(Secondary, Checkpoint, "secondary-stopped"),
    step(Primary, Checkpoint, "primary-reply"),
    step(Primary, Checkpoint, "primary-stopped"),
    step(Primary, Checkpoint, "primary-send"),
    step(Secondary, Checkpoint, "secondary-validated"),
    step(Secondary, Checkpoint, "secondary-received"),
    step(Primary, Checkpoint, "primary-received"),
    step(Primary, Checkpoint, "primary-released"),
    step(Secondary, Checkpoint, "secondary-ram-applied"),
    step(Secondary, Checkpoint, "secondary-devices-applied"),
    step(Secondary, Checkpoint, "secondary-applied"),
    step(Primary, Checkpoint, "primary-loaded"),
    step(Primary, Failover, "primary-failover"),
    step(Primary, Failover, "primary-failover-stopped"),
    step(Primary, Failover, "primary-failover-disks"),
    step(Primary, Failover, "primary-failover-net"),
    step(Primary, Failover, "primary-failover-start"),
    step(Primary, Failover, "primary-failover-end"),
    step(Secondary, Failover, "secondary-failover"),
    step(Secondary, Failover, "secondary-failover-stopped"),
    step(Secondary, Failover, "secondary-failover-applied"),
    step(Secondary, Failover, "secondary-failover-disks"),
    step(Secondary, Failover, "secondary-failover-revoked"),
    step(Secondary, Failover, "secondary-failover-drained"),
    step(Secondary, Failover, "secondary-failover-flushed"),
    step(Secondary, Failover, "secondary-failover-net"),
    step(Secondary, Failover, "secondary-failover-announce"),
    step(Secondary, Failover, "secondary-failover-start"),
    step(Secondary, Failover, "secondary-failover-end"),
    step(Secondary, Merge, "secondary-merge"),
    step(Secondary, Merge, "secondary-merged"),
];

/// The names of one side's steps of one part.
pub fn steps_of(side: ColoMode, part: Part) -> impl Iterator<Item = &'static str> {
    STEPS.iter().filter(move |s| s.side == side && s.part == part).map(|s| s.name)
}

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
    /// step fails) and `pause:PATH` (the file PATH is made, and the step waits until it is gone). `@FILE` stands for the list in a file,
    /// which is looked at anew at every step and may be missing; when it changes, counting begins again.
    ///
    /// # Errors
    /// When the text is not such a list, or names a step that there is none of.
    pub fn from_text(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix('@') {
            let file = FailpointFile { path: path.into(), last: RefCell::default() };
            file.look()?;
            return Ok(Self::new(Rc::new(file)));
        }
        let points = parse(text)?;
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
        if !STEPS.iter().any(|s| s.name == step) {
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

fn parse(text: &str) -> Result<Vec<Failpoint>> {
    text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(Failpoint::parse).collect()
}

#[derive(Default)]
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

/// Failpoints that change while the process runs.
struct FailpointFile {
    path: PathBuf,
    /// The file's text when it was last looked at, and what it says.
    last: RefCell<(String, Rc<Failpoints>)>,
}

impl FailpointFile {
    fn look(&self) -> Result<Rc<Failpoints>> {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        let mut last = self.last.borrow_mut();
        if last.0 != text {
            *last = (text.clone(), Rc::new(Failpoints(parse(&text)?)));
        }
        Ok(last.1.clone())
    }
}

impl StepHook for FailpointFile {
    fn at(&self, step: &'static str) -> LocalFuture<'_, Result<()>> {
        Box::pin(async move {
            let points = self.look()?;
            points.at(step).await
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
    fn failpoints_of_a_file_change_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("failpoints");
        let text = format!("@{}", path.display());
        let steps = Steps::from_text(&text).unwrap();
        block_on(async {
            assert!(steps.at("primary-send").await.is_ok(), "there is no file");
            std::fs::write(&path, "primary-send@2=error").unwrap();
            assert!(steps.at("primary-send").await.is_ok() && steps.at("primary-send").await.is_err());
            std::fs::write(&path, "primary-send@2=error\n").unwrap();
            assert!(steps.at("primary-send").await.is_ok() && steps.at("primary-send").await.is_err(), "counted anew");
            std::fs::write(&path, "nowhere=error").unwrap();
            let e = steps.at("primary-send").await.unwrap_err();
            assert_eq!(e.message(), "Failpoint 'nowhere=error': there is no step 'nowhere'");
            assert!(Steps::from_text(&text).is_err());
        });
    }

    #[test]
    fn the_map_explains_each_step_once() {
        let map = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/architecture.md");
        let map = std::fs::read_to_string(map).unwrap();
        let table = map.split("| step | stands |").nth(1).unwrap().split("\n\n").next().unwrap();
        let left_column = table.lines().filter_map(|line| line.split('|').nth(1));
        let told: Vec<&str> = left_column.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
        for step in STEPS {
            assert_eq!(told.iter().filter(|name| **name == step.name).count(), 1, "{}", step.name);
        }
        assert_eq!(told.len(), STEPS.len());
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
