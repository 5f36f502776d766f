//! The run state: what the machine is doing, and which change may follow which.

use lockstep_qapi::schema::RunState;

/// Whether the machine may go from one state to another. The table is QEMU's
/// (`docs/interop/qmp` shows the states; transitions outside it are mistakes of this program).
pub fn may_change(from: RunState, to: RunState) -> bool {
    use RunState::*;
    if from == to {
        return true;
    }
    match from {
        Prelaunch => {
            matches!(to, Running | FinishMigrate | Inmigrate | Suspended | Paused | Shutdown | InternalError | Colo)
        }
        Inmigrate => !matches!(to, SaveVm | RestoreVm),
        Debug => matches!(to, Suspended | Running | FinishMigrate | Prelaunch | Paused | Shutdown),
        InternalError | IoError => matches!(to, Paused | Running | FinishMigrate | Prelaunch | Shutdown | Colo),
        Paused => !matches!(to, Inmigrate | RestoreVm),
        Postmigrate => matches!(to, Running | FinishMigrate | Prelaunch | Paused | Shutdown | Colo),
        FinishMigrate => matches!(
            to,
            Running
                | Postmigrate
                | Prelaunch
                | Colo
                | InternalError
                | IoError
                | Shutdown
                | Suspended
                | Watchdog
                | GuestPanicked
                | Paused
                | Debug
        ),
        RestoreVm => matches!(to, Running | Prelaunch | Suspended | Paused | Shutdown),
        Colo => {
            matches!(to, Running | Prelaunch | Shutdown | Paused | InternalError | Suspended | GuestPanicked | IoError)
        }
        Running => !matches!(to, Inmigrate | Prelaunch | Postmigrate),
        SaveVm => !matches!(to, Inmigrate),
        Shutdown => matches!(to, Paused | FinishMigrate | Prelaunch | Colo | Running | SaveVm),
        Suspended => matches!(to, Running | FinishMigrate | Prelaunch | Paused | SaveVm | RestoreVm | Shutdown | Colo),
        Watchdog | GuestPanicked => {
            matches!(to, Running | Paused | FinishMigrate | Prelaunch | Suspended | Colo | Shutdown)
        }
    }
}

/// Whether `cont` is refused until the machine was reset.
pub fn needs_reset(state: RunState) -> bool {
    matches!(state, RunState::InternalError | RunState::Shutdown)
}
