//! What this host can do, each found by doing it.

use anyhow::Result;
use serde::Serialize;

use super::{UNFIT, probe};
use crate::cli::Format;
use crate::output;

/// What becomes of pods where a feature is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Without {
    /// Pods do not run, or are not put to sleep or woken.
    Fails,
    /// Something else takes its place.
    Falls,
}

/// A feature of a kernel or of this user's rights, and what its absence means.
struct Feature {
    name: &'static str,
    probe: fn() -> probe::Outcome,
    without: Without,
    then: &'static str,
}

/// What the probing of a feature brought.
#[derive(Debug, Serialize)]
struct Found {
    feature: &'static str,
    present: bool,
    /// What the kernel said where it is not.
    said: Option<String>,
    without: Without,
    then: &'static str,
}

const fn needed(name: &'static str, probe: fn() -> probe::Outcome, then: &'static str) -> Feature {
    let without = Without::Fails;
    Feature {
        name,
        probe,
        without,
        then,
    }
}

const fn useful(name: &'static str, probe: fn() -> probe::Outcome, then: &'static str) -> Feature {
    let without = Without::Falls;
    Feature {
        name,
        probe,
        without,
        then,
    }
}

const FEATURES: &[Feature] = &[
    needed("ptrace", probe::ptrace, "no checkpoint and no restore"),
    needed(
        "pidfd_getfd",
        probe::pidfd_getfd,
        "no checkpoint (Linux 5.6)",
    ),
    needed("kcmp", probe::kcmp, "no checkpoint (CONFIG_KCMP)"),
    needed(
        "seccomp",
        probe::seccomp,
        "--names notify and --net shared do not work",
    ),
    needed(
        "user notification",
        probe::user_notification,
        "--names notify and --net shared do not work (Linux 5.0)",
    ),
    useful(
        "mount namespaces",
        || probe::namespace(libc::CLONE_NEWNS),
        "--fs host only",
    ),
    useful(
        "pid namespaces",
        || probe::namespace(libc::CLONE_NEWPID),
        "process ids are held by --names notify",
    ),
    useful(
        "ipc namespaces",
        || probe::namespace(libc::CLONE_NEWIPC),
        "System V ids are held by --names notify",
    ),
    useful(
        "uts namespaces",
        || probe::namespace(libc::CLONE_NEWUTS),
        "host names are held by --names notify",
    ),
    useful(
        "net namespaces",
        || probe::namespace(libc::CLONE_NEWNET),
        "--net shared only",
    ),
    useful(
        "time namespaces",
        || probe::namespace(libc::CLONE_NEWTIME),
        "clocks jump when a pod wakes (Linux 5.6)",
    ),
    useful(
        "user namespaces",
        || probe::namespace(libc::CLONE_NEWUSER),
        "users other than root run pods with --names notify",
    ),
    useful(
        "overlay mounts",
        probe::overlay,
        "--fs host only: writes go to the host's files",
    ),
    useful(
        "clone3 with a wanted pid",
        probe::wanted_pid,
        "restored pids are held by --names notify (Linux 5.5)",
    ),
    useful(
        "PAGEMAP_SCAN",
        probe::pagemap_scan,
        "memory is scanned entry by entry, more slowly (Linux 6.7)",
    ),
    useful(
        "map_files",
        probe::map_files,
        "mapped files are found by their names",
    ),
    useful(
        "PR_SET_MM_MAP",
        probe::set_mm_map,
        "a restored program's argv, heap and /proc/PID/exe are not set (CONFIG_CHECKPOINT_RESTORE)",
    ),
    useful(
        "timers with a wanted id",
        probe::timer_ids,
        "POSIX timers are made until the id comes (Linux 6.15)",
    ),
    useful(
        "userfaultfd, asynchronous",
        probe::write_protect,
        "memory is copied while the pod stands still (Linux 6.7)",
    ),
    useful(
        "TCP_REPAIR",
        probe::tcp_repair,
        "TCP connections are not carried (CAP_NET_ADMIN)",
    ),
    useful(
        "cgroup 2",
        probe::cgroup,
        "no pod pause, no --memory and --pids limits",
    ),
];

/// Runs the command for this host.
pub(super) fn check(format: Format) -> Result<u8> {
    let found: Vec<Found> = FEATURES.iter().map(Feature::found).collect();
    match format {
        Format::Json => output::json(&found)?,
        Format::Table => {
            let rows: Vec<_> = found.iter().map(Found::row).collect();
            output::table(["FEATURE", "HERE", "OTHERWISE"], &rows)?;
        }
    }
    let unfit = found
        .iter()
        .any(|f| !f.present && f.without == Without::Fails);
    Ok(if unfit { UNFIT } else { 0 })
}

impl Feature {
    fn found(&self) -> Found {
        let outcome = (self.probe)();
        Found {
            feature: self.name,
            present: outcome.is_ok(),
            said: outcome.err().map(|e| e.to_string()),
            without: self.without,
            then: self.then,
        }
    }
}

impl Found {
    fn row(&self) -> [String; 3] {
        let here = match (&self.said, self.without) {
            (None, _) => "yes".to_owned(),
            (Some(said), Without::Fails) => format!("MISSING ({said})"),
            (Some(said), Without::Falls) => format!("no ({said})"),
        };
        let otherwise = if self.present {
            String::new()
        } else {
            self.then.to_owned()
        };
        [self.feature.to_owned(), here, otherwise]
    }
}
