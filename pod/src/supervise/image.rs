//! What an image says of the pod itself, beside what `restore` says of its processes.

use anyhow::{Context, Result};
use restore::image::Record;
use serde::{Deserialize, Serialize};

use crate::store::Config;

/// The pod of an image: record 0 of its kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    /// What it was run with.
    pub(crate) config: Config,
    /// The main program, by its pid in the pod.
    pub(crate) main: i32,
    /// CLOCK_MONOTONIC and CLOCK_BOOTTIME as the pod saw them, in nanoseconds.
    pub(crate) clocks: (i64, i64),
}

impl Record for PodRecord {
    const KIND: &'static str = "pod";
    const VERSION: u16 = 1;
}

/// This host's CLOCK_MONOTONIC and CLOCK_BOOTTIME, in nanoseconds.
pub(crate) fn clocks() -> Result<(i64, i64)> {
    let read = |clock| -> Result<i64> {
        let now = nix::time::clock_gettime(clock).context("clock_gettime")?;
        Ok(now.tv_sec() * 1_000_000_000 + now.tv_nsec())
    };
    Ok((
        read(nix::time::ClockId::CLOCK_MONOTONIC)?,
        read(nix::time::ClockId::CLOCK_BOOTTIME)?,
    ))
}

/// How far a pod's clocks are ahead of this host's: `timens_offsets` of a task in its time namespace.
pub(crate) fn offsets_of(pid: i32) -> Result<(i64, i64)> {
    let path = format!("/proc/{pid}/timens_offsets");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let offset = |clock: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(clock));
        let mut words = line.unwrap_or_default().split_whitespace();
        let mut next = || words.next().and_then(|word| word.parse::<i64>().ok());
        next().zip(next()).map(|(s, ns)| s * 1_000_000_000 + ns)
    };
    let both = offset("monotonic").zip(offset("boottime"));
    both.with_context(|| format!("{path} does not read as expected"))
}
