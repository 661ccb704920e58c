//! The zone as authority: the outcome of a move is the epoch that stands at the pod's name.
//!
//! ```text
//!                    UPDATE old → new     (the destination, at its own addresses)
//!   epoch `old` ───┤                                   whoever is second finds `old` gone
//!                    UPDATE old → back    (the source, where it was)
//! ```
//!
//! Only these two hold the epoch `old`. So when the source finds neither `old` nor `back`, the
//! destination has won, even if the pod has moved on since; when the destination finds neither `old` nor
//! `new`, the source has.

use anyhow::{Context, Result, anyhow};
use netname::{Change, Entry, Outcome, Placement, Updater};

use super::authority::{Authority, Fence, Unknown, Verdict};
use super::journal::Side;

/// Asks the zone's primary.
#[derive(Debug)]
pub(crate) struct Zone {
    updater: Updater,
    fence: Fence,
    side: Side,
    /// Where the pod is when it lives here; the source's is read from the zone.
    here: Option<Placement>,
}

impl Zone {
    /// The source's view: it can only take the move back.
    pub(crate) fn source(updater: Updater, fence: Fence) -> Self {
        Self {
            updater,
            fence,
            side: Side::Source,
            here: None,
        }
    }

    /// The destination's view: the pod will be found at `here`.
    pub(crate) fn destination(updater: Updater, fence: Fence, here: Placement) -> Self {
        Self {
            updater,
            fence,
            side: Side::Destination,
            here: Some(here),
        }
    }

    fn ask(&self, wanted: Verdict) -> Result<Verdict> {
        let change = match self.change(wanted)? {
            Ok(change) => change,
            Err(verdict) => return Ok(verdict),
        };
        match self.updater.make(change)? {
            Outcome::Committed { reverse } => {
                if let Some(error) = reverse {
                    tracing::warn!(%error, "reverse zone");
                }
                Ok(wanted)
            }
            Outcome::Lost { current } => self.judge(current),
            Outcome::Unknown { cause, .. } => Err(cause.into()),
        }
    }

    /// The update that makes `wanted` the outcome, or the outcome that stands already.
    fn change(&self, wanted: Verdict) -> Result<Result<Change, Verdict>> {
        let Fence {
            pod,
            old,
            new,
            back,
            ..
        } = &self.fence;
        let placement = match &self.here {
            Some(here) => here.clone(),
            None => match self.updater.lookup(pod)? {
                Some(entry) if entry.epoch == *old => entry.placement,
                found => return self.judge(found.map(|entry| entry.epoch)).map(Err),
            },
        };
        let epoch = match wanted {
            Verdict::Committed => *new,
            Verdict::Aborted => *back,
        };
        Ok(Ok(Change {
            pod: pod.clone(),
            from: Some(*old),
            to: Some(Entry { epoch, placement }),
        }))
    }

    fn judge(&self, current: Option<netname::Epoch>) -> Result<Verdict> {
        let Fence { pod, new, back, .. } = &self.fence;
        match (current, self.side) {
            (Some(epoch), _) if epoch == *new => Ok(Verdict::Committed),
            (Some(epoch), _) if epoch == *back => Ok(Verdict::Aborted),
            (Some(_), Side::Source) => Ok(Verdict::Committed),
            (Some(_), Side::Destination) => Ok(Verdict::Aborted),
            (None, _) => Err(anyhow!("the zone no longer holds {pod}")),
        }
    }
}

impl Authority for Zone {
    fn decide(&self, wanted: Verdict) -> Result<Verdict, Unknown> {
        let zone = format!(
            "the zone {} at {}",
            self.fence.zone,
            self.updater.authority().server
        );
        let asked = self
            .ask(wanted)
            .with_context(|| format!("epoch of {}", self.fence.pod));
        asked.map_err(|source| Unknown {
            authority: zone,
            source,
        })
    }
}
