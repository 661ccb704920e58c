//! What a move did: how long the pod stood still and in which parts, how long all of it took, how many
//! bytes went over.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::phase::Phase;

/// How long the pod stood still, in parts. All times in microseconds, by the source's clock, except
/// `restart`, which the destination measures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Downtime {
    /// Until every thread stood still.
    pub(crate) freeze: u64,
    /// Its state was read.
    pub(crate) capture: u64,
    /// Its state went over.
    pub(crate) transfer: u64,
    /// It was rebuilt.
    pub(crate) restart: u64,
    /// The authority was asked.
    pub(crate) commit: u64,
    /// Until it ran again.
    pub(crate) run: u64,
}

impl Downtime {
    /// All of it, in microseconds.
    pub(crate) fn total(self) -> u64 {
        self.freeze + self.capture + self.transfer + self.restart + self.commit + self.run
    }

    /// The parts with their names, in their order.
    pub(crate) fn parts(self) -> [(&'static str, u64); 6] {
        [
            ("freeze", self.freeze),
            ("capture", self.capture),
            ("transfer", self.transfer),
            ("restart", self.restart),
            ("commit", self.commit),
            ("run", self.run),
        ]
    }
}

/// What went over, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bytes {
    /// The pod's state and layer.
    pub(crate) image: u64,
    /// Files the destination lacked.
    pub(crate) files: u64,
    /// Everything the connection carried to the destination.
    pub(crate) sent: u64,
    /// Everything it carried back.
    pub(crate) received: u64,
}

/// The report of a move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The pod's name.
    pub(crate) pod: String,
    /// Host names.
    pub(crate) from: String,
    pub(crate) to: String,
    /// `cold`, `precopy`…
    pub(crate) mode: String,
    pub(crate) downtime: Downtime,
    /// The same, all parts together, in microseconds.
    pub(crate) downtime_total: u64,
    /// From the check to the release, in microseconds.
    pub(crate) total: u64,
    pub(crate) bytes: Bytes,
    /// Whether the destination knows that the source has done its part, and has forgotten the decision.
    pub(crate) settled: bool,
}

/// What the user is told while it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Progress {
    /// A phase began.
    Phase(Phase),
    /// So many bytes of so many went over.
    Bytes { done: u64, of: u64 },
}

/// Measures the parts of a downtime.
#[derive(Debug)]
pub(crate) struct Clock {
    last: Instant,
}

impl Clock {
    /// Starts now.
    pub(crate) fn start() -> Self {
        Self {
            last: Instant::now(),
        }
    }

    /// Microseconds since the last lap.
    pub(crate) fn lap(&mut self) -> u64 {
        let now = Instant::now();
        micros(now.duration_since(std::mem::replace(&mut self.last, now)))
    }
}

/// A duration in microseconds.
pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_the_whole() {
        let downtime = Downtime {
            freeze: 1,
            capture: 2,
            transfer: 4,
            restart: 8,
            commit: 16,
            run: 32,
        };
        assert_eq!(downtime.total(), 63);
        assert_eq!(
            downtime.parts().iter().map(|(_, time)| time).sum::<u64>(),
            downtime.total()
        );
    }
}
