//! Trouble on demand, so that every phase's guarantee can be tested on the real thing.
//!
//! `POD_FAULT=SIDE:PHASE:KIND[,…]` in the environment of `pod migrate` (the source) or of the
//! destination's `pod agent`. SIDE is `source` or `destination`; PHASE is a phase's name, or `after-`
//! and a name for the moment the phase's work is done; KIND is
//!
//! | kind | what happens |
//! |---|---|
//! | `kill` | the process that works is killed with SIGKILL |
//! | `error` | the phase fails |
//! | `disconnect` | the connection is cut |
//! | `stall` | the side falls silent until the other one goes away |

use std::str::FromStr;

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, raise};

use super::frame::Conn;
use super::journal::Side;
use super::phase::Phase;

/// Name of the environment variable.
pub(crate) const VARIABLE: &str = "POD_FAULT";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Kill,
    Error,
    Disconnect,
    Stall,
}

/// Before or after a phase's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// The phase begins.
    Before,
    /// Its work is done.
    After,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fault {
    side: Side,
    when: When,
    phase: Phase,
    kind: Kind,
}

/// The faults asked for; nearly always none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults(Vec<Fault>);

impl FromStr for Fault {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let [side, phase, kind] = parts[..] else {
            bail!("{text:?} is not SIDE:PHASE:KIND")
        };
        let side = match side {
            "source" => Side::Source,
            "destination" => Side::Destination,
            _ => bail!("{side:?} is not a side of a move"),
        };
        let (when, name) = match phase.strip_prefix("after-") {
            Some(name) => (When::After, name),
            None => (When::Before, phase),
        };
        let Some(phase) = Phase::ALL.into_iter().find(|phase| phase.name() == name) else {
            bail!("{name:?} is not a phase of a move");
        };
        let kind = match kind {
            "kill" => Kind::Kill,
            "error" => Kind::Error,
            "disconnect" => Kind::Disconnect,
            "stall" => Kind::Stall,
            _ => bail!("{kind:?} is not a kind of fault"),
        };
        Ok(Self {
            side,
            when,
            phase,
            kind,
        })
    }
}

impl FromStr for Faults {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        text.split(',')
            .filter(|part| !part.is_empty())
            .map(str::parse)
            .collect::<Result<_>>()
            .map(Self)
    }
}

impl Faults {
    /// The faults of this process's environment.
    ///
    /// # Errors
    /// When the variable is set to something else.
    pub(crate) fn from_env() -> Result<Self> {
        std::env::var(VARIABLE).unwrap_or_default().parse()
    }

    /// A point where trouble may come.
    ///
    /// # Errors
    /// The fault that was asked for here.
    pub(crate) fn point(
        &self,
        side: Side,
        when: When,
        phase: Phase,
        conn: &mut Conn,
    ) -> Result<()> {
        let here = |fault: &&Fault| (fault.side, fault.when, fault.phase) == (side, when, phase);
        let Some(fault) = self.0.iter().find(here) else {
            return Ok(());
        };
        tracing::warn!(?fault, "fault injected");
        match fault.kind {
            Kind::Kill => raise(Signal::SIGKILL)?,
            Kind::Disconnect => conn.cut(),
            Kind::Stall => conn.drain(),
            Kind::Error => {}
        }
        bail!("fault injected at {phase}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_named_by_side_phase_and_kind() {
        let faults: Faults = "source:freeze:error,destination:after-commit:disconnect"
            .parse()
            .unwrap();
        assert_eq!(faults.0[0].phase, Phase::Freeze);
        assert_eq!(
            (faults.0[1].when, faults.0[1].phase),
            (When::After, Phase::Commit)
        );
        for bad in [
            "source",
            "here:freeze:kill",
            "source:nap:kill",
            "source:freeze:sing",
        ] {
            assert!(bad.parse::<Faults>().is_err(), "{bad}");
        }
        assert_eq!("".parse::<Faults>().unwrap(), Faults::default());
    }
}
