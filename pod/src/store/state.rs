//! What has become of a pod.
//!
//! ```text
//!   created ─▶ starting ─▶ running ◀─▶ paused
//!                 │           │  ▲
//!                 ▼           │  └─ held (restored, not yet let run)
//!               failed        ▼
//!                          exited          lost: the state says alive, and nobody is
//!
//!   running ─▶ undecided: frozen, a move's outcome is unknown ─▶ running, or exited (it lives elsewhere)
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::process::Known;

/// A pod's state, as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) phase: Phase,
    /// The kernel's boot id at the time of writing.
    pub(crate) boot: String,
    /// Real process ids on this host; they mean nothing after it was left or rebooted.
    pub(crate) holder: Option<i32>,
    pub(crate) supervisor: Option<i32>,
    pub(crate) init: Option<i32>,
    /// The main program's pid as the pod sees it.
    pub(crate) main: Option<i32>,
    /// Seconds since the epoch.
    pub(crate) started: Option<u64>,
    pub(crate) finished: Option<u64>,
    pub(crate) exit: Option<Exit>,
    /// Why the pod failed or was lost.
    pub(crate) reason: Option<String>,
    /// Why it failed, as it is to be shown.
    pub(crate) failure: Option<Failure>,
    /// Names by kind, with what holds each: `kernel`, `notify` or `host`.
    pub(crate) names: BTreeMap<String, String>,
    pub(crate) address: Option<String>,
    pub(crate) made: Made,
}

/// How far a pod's life has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    Created,
    Starting,
    Running,
    Paused,
    /// Restored and not yet allowed to run.
    Held,
    /// A move was asked to commit and its outcome is unknown: frozen until the authority answers.
    Undecided,
    Exited,
    Failed,
    Lost,
}

impl Phase {
    /// Whether the phase is only true while a holder lives.
    pub(crate) fn needs_a_holder(self) -> bool {
        matches!(
            self,
            Self::Starting | Self::Running | Self::Paused | Self::Held | Self::Undecided
        )
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Held => "held",
            Self::Undecided => "undecided",
            Self::Exited => "exited",
            Self::Failed => "failed",
            Self::Lost => "lost",
        };
        f.pad(text)
    }
}

/// How the main program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Exit {
    Code(u8),
    Signal(i32),
}

impl Exit {
    /// From a status of wait(2).
    pub(crate) fn of(status: i32) -> Self {
        if libc::WIFSIGNALED(status) {
            Self::Signal(libc::WTERMSIG(status))
        } else {
            Self::Code((libc::WEXITSTATUS(status) & 0xff) as u8)
        }
    }

    /// As a shell reports it: 128 and the signal's number.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128_u8.saturating_add(signal as u8),
        }
    }
}

/// What a pod made on the host, to be released by [`crate::cleanup`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Made {
    /// Control group directories.
    pub(crate) cgroups: Vec<PathBuf>,
    /// Network devices on the host's side.
    #[serde(default)]
    pub(crate) links: Vec<String>,
    /// Images that are being written, by their temporary names.
    #[serde(default)]
    pub(crate) images: Vec<PathBuf>,
    /// Tables of nftables, family ip.
    #[serde(default)]
    pub(crate) tables: Vec<String>,
    /// An address of the root's private network.
    #[serde(default)]
    pub(crate) lease: bool,
    /// Programs that run for the pod.
    #[serde(default)]
    pub(crate) helpers: Vec<Known>,
}

/// Seconds since the epoch.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(path)
        .with_context(|| format!("read {path}"))?
        .trim()
        .to_owned())
}

impl State {
    /// A fresh state.
    pub(crate) fn new(phase: Phase) -> Result<Self> {
        Ok(Self {
            phase,
            boot: boot_id()?,
            holder: None,
            supervisor: None,
            init: None,
            main: None,
            started: None,
            finished: None,
            exit: None,
            reason: None,
            failure: None,
            names: BTreeMap::new(),
            address: None,
            made: Made::default(),
        })
    }

    /// The truth about a state that says alive when no holder is.
    pub(super) fn without_a_holder(mut self) -> Self {
        if !self.phase.needs_a_holder() {
            return self;
        }
        let rebooted = boot_id().is_ok_and(|boot| boot != self.boot);
        let reason = if rebooted {
            "the host was rebooted"
        } else {
            "its processes were killed from outside"
        };
        self.phase = Phase::Lost;
        self.reason = Some(reason.to_owned());
        (self.holder, self.supervisor, self.init) = (None, None, None);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reboot_is_told_from_a_crash() {
        let mut state = State::new(Phase::Running).unwrap();
        let crashed = state.clone().without_a_holder();
        assert_eq!(crashed.phase, Phase::Lost);
        assert!(crashed.reason.unwrap().contains("killed"));
        state.boot = "an earlier boot".to_owned();
        assert!(
            state
                .without_a_holder()
                .reason
                .unwrap()
                .contains("rebooted")
        );
    }

    #[test]
    fn an_exit_reads_as_in_a_shell() {
        assert_eq!(Exit::of(3 << 8), Exit::Code(3));
        assert_eq!(Exit::of(9).code(), 137);
    }
}
