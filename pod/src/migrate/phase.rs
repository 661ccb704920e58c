//! The phases of a move, in their order, each with what holds when it fails.
//!
//! ```text
//!   check → prepare → copy → freeze → last state → restart held → commit → run → release
//!   ╰───────────── the pod runs on at the source ─────────────╯  ╰ asks ╯ ╰ it runs at the
//!                                                                          destination ───╯
//! ```

use serde::{Deserialize, Serialize};

/// A phase of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// The destination says what it lacks.
    Check,
    /// The destination takes the name, makes the pod's directory and gets the files it lacks.
    Prepare,
    /// Copy rounds while the pod runs, in the modes that have them.
    Copy,
    /// The pod stops.
    Freeze,
    /// Its last state is captured and sent.
    LastState,
    /// The destination rebuilds it, and does not let it run.
    Restart,
    /// One durable write by one authority.
    Commit,
    /// The destination lets it run.
    Run,
    /// The source removes what stands there.
    Release,
}

impl Phase {
    /// All phases, in their order.
    pub(crate) const ALL: [Self; 9] = [
        Self::Check,
        Self::Prepare,
        Self::Copy,
        Self::Freeze,
        Self::LastState,
        Self::Restart,
        Self::Commit,
        Self::Run,
        Self::Release,
    ];

    /// Its name, for people, journals and fault injection.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Prepare => "prepare",
            Self::Copy => "copy",
            Self::Freeze => "freeze",
            Self::LastState => "last-state",
            Self::Restart => "restart",
            Self::Commit => "commit",
            Self::Run => "run",
            Self::Release => "release",
        }
    }

    /// What holds when the phase fails.
    pub(crate) fn guarantee(self) -> &'static str {
        match self {
            Self::Check => "nothing was touched; the pod runs here",
            Self::Prepare | Self::Copy => "the pod was never stopped and runs here",
            Self::Freeze | Self::LastState | Self::Restart => "the pod runs on here, unharmed",
            Self::Commit => "the pod stays frozen here until the authority says where it lives",
            Self::Run | Self::Release => "the pod lives at the destination and nowhere else",
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_complete_and_in_order() {
        assert!(Phase::ALL.is_sorted());
        assert_eq!(
            (Phase::ALL[0], Phase::ALL[8]),
            (Phase::Check, Phase::Release)
        );
        let names: std::collections::BTreeSet<_> =
            Phase::ALL.iter().map(|phase| phase.name()).collect();
        assert_eq!(names.len(), Phase::ALL.len());
    }
}
