//! Looking at processes through /proc.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;

use intercept::sys::{pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// Every living descendant of a process, in no order. Complete when orphans cannot leave the tree: under an
/// init (or subreaper) they become its children.
pub(crate) fn descendants(pid: i32) -> BTreeSet<i32> {
    let mut found = BTreeSet::new();
    let mut ahead = vec![pid];
    while let Some(pid) = ahead.pop() {
        ahead.extend(
            children(pid)
                .into_iter()
                .filter(|child| found.insert(*child)),
        );
    }
    found
}

fn children(pid: i32) -> Vec<i32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let mut children = Vec::new();
    for task in tasks.flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.extend(
            text.split_ascii_whitespace()
                .filter_map(|pid| pid.parse::<i32>().ok()),
        );
    }
    children
}

/// A process's command line, or its name in brackets when it has none.
pub(crate) fn command_line(pid: i32) -> String {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&raw)
        .trim_end_matches('\0')
        .replace('\0', " ");
    if !text.is_empty() {
        return text;
    }
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("[{}]", name.trim_end())
}

/// A process that can be told from a later one with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    pid: i32,
    /// Field 22 of proc_pid_stat(5), clock ticks after boot.
    start: u64,
}

impl Known {
    /// A living process.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let start = stat
            .rsplit(')')
            .next()?
            .split_ascii_whitespace()
            .nth(19)?
            .parse()
            .ok()?;
        Some(Self { pid, start })
    }

    /// Kills it, if it still is the same.
    pub(crate) fn end(self) {
        let Ok(process) = pidfd_open(self.pid) else {
            return;
        };
        // The pidfd was there before the look: the process looked at is the one that is signalled.
        if Self::of(self.pid) == Some(self)
            && pidfd_send_signal(process.as_fd(), libc::SIGKILL).is_err()
        {
            tracing::debug!(pid = self.pid, "ended by itself");
        }
    }
}
