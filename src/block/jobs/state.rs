//! The states of a job, the moves between them and the commands each state accepts, as tables.
//!
//! Names, order and meaning are those of `JobStatus` and `JobVerb` in `qapi/job.json`.

use lockstep_util::{Result, bail};

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobStatus {
    /// Not yet initialized.
    Undefined,
    /// Exists, not started.
    Created,
    /// Works.
    Running,
    /// Stopped by a user or a drain before it was ready.
    Paused,
    /// In its steady state (mirror, active commit).
    Ready,
    /// Paused while ready.
    Standby,
    /// Done, waits for its transaction.
    Waiting,
    /// Done, waits for `job-finalize`.
    Pending,
    /// Undoes its work.
    Aborting,
    /// Finished, waits for `job-dismiss`.
    Concluded,
    /// About to disappear.
    Null,
}

use JobStatus::*;

impl JobStatus {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Undefined => "undefined",
            Created => "created",
            Running => "running",
            Paused => "paused",
            Ready => "ready",
            Standby => "standby",
            Waiting => "waiting",
            Pending => "pending",
            Aborting => "aborting",
            Concluded => "concluded",
            Null => "null",
        }
    }

    /// The states that may follow this one.
    pub fn successors(self) -> &'static [JobStatus] {
        match self {
            Undefined => &[Created],
            Created => &[Running, Aborting, Null],
            Running => &[Paused, Ready, Waiting, Aborting],
            Paused => &[Running],
            Ready => &[Standby, Waiting, Aborting],
            Standby => &[Ready],
            Waiting => &[Pending, Aborting],
            Pending => &[Aborting, Concluded],
            Aborting => &[Aborting, Concluded],
            Concluded => &[Null],
            Null => &[],
        }
    }
}

/// A command to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobVerb {
    /// `job-cancel`, `block-job-cancel`
    Cancel,
    /// `job-pause`, `block-job-pause`
    Pause,
    /// `job-resume`, `block-job-resume`
    Resume,
    /// `block-job-set-speed`
    SetSpeed,
    /// `job-complete`, `block-job-complete`
    Complete,
    /// `job-dismiss`, `block-job-dismiss`
    Dismiss,
    /// `job-finalize`, `block-job-finalize`
    Finalize,
    /// `block-job-change`
    Change,
}

impl JobVerb {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::SetSpeed => "set-speed",
            Self::Complete => "complete",
            Self::Dismiss => "dismiss",
            Self::Finalize => "finalize",
            Self::Change => "change",
        }
    }

    /// The states in which the command is accepted.
    pub fn accepted_in(self) -> &'static [JobStatus] {
        match self {
            Self::Cancel => &[Created, Running, Paused, Ready, Standby, Waiting, Pending],
            Self::Pause | Self::Resume | Self::SetSpeed | Self::Change => &[Created, Running, Paused, Ready, Standby],
            Self::Complete => &[Ready],
            Self::Dismiss => &[Concluded],
            Self::Finalize => &[Pending],
        }
    }

    /// Fails with QEMU's words if the state does not accept the command.
    pub fn check(self, id: &str, status: JobStatus) -> Result<()> {
        if !self.accepted_in().contains(&status) {
            bail!("Job '{id}' in state '{}' cannot accept command verb '{}'", status.as_str(), self.as_str());
        }
        Ok(())
    }
}

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobType {
    /// Merges an overlay into its base.
    Commit,
    /// Pulls data from the backing chain.
    Stream,
    /// Copies a disk and keeps the copy equal.
    Mirror,
    /// Copies a disk as it was at one moment.
    Backup,
}

impl JobType {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Stream => "stream",
            Self::Mirror => "mirror",
            Self::Backup => "backup",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [JobStatus; 11] =
        [Undefined, Created, Running, Paused, Ready, Standby, Waiting, Pending, Aborting, Concluded, Null];

    #[test]
    fn every_state_can_reach_the_end() {
        for start in ALL {
            let mut seen = vec![start];
            let mut at = 0;
            while at < seen.len() {
                for next in seen[at].successors() {
                    if !seen.contains(next) {
                        seen.push(*next);
                    }
                }
                at += 1;
            }
            assert!(seen.contains(&Null), "{start:?}");
        }
    }

    #[test]
    fn verbs_out_of_place_are_refused_in_qemus_words() {
        let e = JobVerb::Complete.check("resync", Running).unwrap_err();
        assert_eq!(e.message(), "Job 'resync' in state 'running' cannot accept command verb 'complete'");
        assert!(JobVerb::Cancel.check("resync", Pending).is_ok());
        assert!(JobVerb::Cancel.check("resync", Concluded).is_err());
    }
}
