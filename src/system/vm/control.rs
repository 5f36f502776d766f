//! Stopping, starting, resetting.

use std::rc::Rc;

use lockstep_hw::core::{MachineRequest, ResetCause, ResetKind};
use lockstep_qapi::{
    event,
    schema::{RebootAction, RunState, ShutdownAction, ShutdownCause},
};
use lockstep_util::{Result, err};

use super::Vm;
use crate::runstate;

impl Vm {
    /// Goes to another state that is not `running`, from one that is not `running`.
    pub fn set_state(&self, to: RunState) {
        let from = self.state.get();
        if !runstate::may_change(from, to) {
            tracing::error!("invalid runstate transition: '{}' -> '{}'", from.as_str(), to.as_str());
        }
        self.state.set(to);
    }

    /// Stops the guest. On return nothing of it moves: no vCPU runs, the virtual clock stands, and no disk request is
    /// under way. Its writes may still be in caches; [`stop_and_flush`](Self::stop_and_flush) puts them on disk too.
    ///
    /// When it is stopped already, the state stays as it is.
    pub async fn stop(&self, to: RunState) {
        let _transition = self.transition.lock().await;
        self.stop_now(to);
        drop(self.graph.drain_all().await);
    }

    /// [`stop`](Self::stop), and flushes all disks.
    ///
    /// # Errors
    /// Those of the flush; the guest is stopped all the same.
    pub async fn stop_and_flush(&self, to: RunState) -> std::io::Result<()> {
        self.stop(to).await;
        self.graph.flush_all().await
    }

    fn stop_now(&self, to: RunState) {
        if !self.is_running() {
            return;
        }
        if let Some(vcpus) = self.vcpus() {
            vcpus.pause();
        }
        self.clocks.enable_virtual(false);
        self.set_state(to);
        self.notify(false);
        self.emit::<event::Stop>(&Default::default());
    }

    /// Lets the guest run.
    pub async fn start(&self) {
        let _transition = self.transition.lock().await;
        if self.is_running() {
            return;
        }
        self.emit::<event::Resume>(&Default::default());
        self.graph.reset_io_status();
        self.set_state(RunState::Running);
        self.clocks.enable_virtual(true);
        self.notify(true);
        // Requests that stopped on an error, or came in the middle of it with a migration, are tried again.
        self.board.resumed.notify();
        if let Some(vcpus) = self.vcpus() {
            vcpus.resume();
        }
    }

    fn notify(&self, running: bool) {
        let listeners = self.listeners.borrow().clone();
        listeners.iter().for_each(|l| l(running, self.state()));
    }

    /// The user's `stop`: the guest stops, its disks are flushed. Nothing happens if it stands.
    pub async fn user_stop(&self) {
        match self.state() {
            RunState::Inmigrate => self.autostart.set(false),
            RunState::Suspended => {}
            _ => {
                if let Err(e) = self.stop_and_flush(RunState::Paused).await {
                    tracing::warn!("flushing the disks: {e}");
                }
            }
        }
    }

    /// The user's `cont`.
    ///
    /// # Errors
    /// When a reset is needed first, or a migration has not ended.
    pub async fn user_cont(&self) -> Result<()> {
        match self.state() {
            state if runstate::needs_reset(state) => Err(err!("Resetting the Virtual Machine is required")),
            RunState::Suspended => Ok(()),
            RunState::FinishMigrate => Err(err!("Migration is not finalized yet")),
            RunState::Inmigrate => {
                self.autostart.set(true);
                Ok(())
            }
            _ => {
                self.start().await;
                Ok(())
            }
        }
    }

    /// Looks at the vCPUs for a moment, between two instructions; users are not told.
    pub fn while_paused<T>(&self, look: impl FnOnce() -> T) -> T {
        let Some(vcpus) = self.vcpus().filter(|v| v.is_running()) else { return look() };
        vcpus.pause();
        let seen = look();
        vcpus.resume();
        seen
    }

    /// Presses the power button.
    pub fn powerdown(&self) {
        self.board.powerdown.notify();
        self.emit::<event::Powerdown>(&Default::default());
    }

    /// Resets the machine; it runs on if it ran.
    pub async fn reset(&self, cause: ShutdownCause) {
        let _transition = self.transition.lock().await;
        let running = self.is_running();
        if let (true, Some(vcpus)) = (running, self.vcpus()) {
            vcpus.pause();
        }
        drop(self.graph.drain_all().await);
        self.board.resets.reset(ResetKind::Warm);
        self.emit::<event::Reset>(&event::Reset { guest: by_guest(cause), reason: cause });
        if runstate::needs_reset(self.state()) || matches!(self.state(), RunState::GuestPanicked | RunState::Watchdog) {
            self.state.set(RunState::Paused);
        }
        if let (true, Some(vcpus)) = (running, self.vcpus()) {
            vcpus.resume();
        }
    }

    /// What a device or vCPU asked for.
    pub async fn handle_request(self: &Rc<Self>, request: MachineRequest) {
        match request {
            MachineRequest::Reset(cause) => {
                let cause = match cause {
                    ResetCause::GuestReset => ShutdownCause::GuestReset,
                    ResetCause::SubsystemReset => ShutdownCause::SubsystemReset,
                };
                if cause == ShutdownCause::GuestReset && self.on_reboot.get() == RebootAction::Shutdown {
                    self.shutdown(cause).await;
                } else {
                    self.reset(cause).await;
                }
            }
            MachineRequest::Shutdown(_) => self.shutdown(ShutdownCause::GuestShutdown).await,
            MachineRequest::SuspendToDisk => {
                self.emit::<event::SuspendDisk>(&Default::default());
                self.shutdown(ShutdownCause::GuestShutdown).await;
            }
            MachineRequest::Suspend => {
                self.stop(RunState::Suspended).await;
                self.emit::<event::Suspend>(&Default::default());
            }
            MachineRequest::Wakeup => {
                if self.state() == RunState::Suspended {
                    self.board.resets.reset(ResetKind::Warm);
                    self.board.wakeup.notify();
                    self.emit::<event::Wakeup>(&Default::default());
                    self.start().await;
                }
            }
        }
    }

    /// Ends the machine, as the user's actions say.
    pub async fn shutdown(&self, cause: ShutdownCause) {
        self.emit::<event::Shutdown>(&event::Shutdown { guest: by_guest(cause), reason: cause });
        if self.on_shutdown.get() == ShutdownAction::Pause {
            self.stop(RunState::Shutdown).await;
        } else {
            self.request_exit(cause, 0);
        }
    }

    /// `quit`: whatever the actions say.
    pub fn quit(&self, cause: ShutdownCause) {
        self.emit::<event::Shutdown>(&event::Shutdown { guest: by_guest(cause), reason: cause });
        self.request_exit(cause, 0);
    }
}

/// Whether a cause is the guest's doing (QAPI's `guest` member of `SHUTDOWN` and `RESET`).
fn by_guest(cause: ShutdownCause) -> bool {
    matches!(cause, ShutdownCause::GuestShutdown | ShutdownCause::GuestReset | ShutdownCause::GuestPanic)
}
