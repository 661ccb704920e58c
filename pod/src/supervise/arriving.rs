//! A pod that arrives: rebuilt and held until the agent, or the journal of the move, says what becomes of it.
//!
//! ```text
//!   agent: Guard ─▶ held ─┬─ Go ─────▶ running
//!                         ├─ Vanish ─▶ gone
//!                         └─ hangs up ─▶ the journal: ask the authority ─▶ running, or gone
//! ```

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Event, Supervised, leaving, restart};
use crate::agent::arrival;
use crate::failure::Failure;
use crate::messages::Told;
use crate::migrate::journal::{Duty, Side};
use crate::migrate::settle::{Here, settle};
use crate::store::Phase;

/// Between two questions to an authority that did not answer.
const AGAIN: Duration = Duration::from_secs(2);

impl Supervised {
    /// Whether the pod is here because a move brings it, and its outcome is open.
    pub(super) fn arrives(&self) -> Result<bool> {
        let journal = leaving::journal(&self.pod)?;
        Ok(journal.is_some_and(|journal| {
            journal.begun().side == Side::Destination && journal.duty() != Duty::Nothing
        }))
    }

    /// Lets a held pod run.
    pub(super) fn let_run(&self) -> Result<()> {
        restart::release(self)?;
        self.change(|state| {
            state.phase = Phase::Running;
            state.started = Some(crate::store::now());
        })
    }

    /// Waits until the pod is rebuilt.
    pub(super) fn guard(&self) -> Result<Told> {
        let rebuilt = self.until(None, |state| match state.phase {
            Phase::Created | Phase::Starting => None,
            Phase::Held => Some(Ok(())),
            _ => Some(Err(state.failure.clone().unwrap_or_else(|| {
                Failure::new(format!("the pod is {}", state.phase))
            }))),
        });
        rebuilt.context("the pod was not rebuilt")??;
        Ok(Told::Done)
    }

    /// The commit was made.
    pub(super) fn go(&self) -> Result<Told> {
        if self.facts().state.phase == Phase::Held {
            self.let_run()?;
        }
        Ok(Told::Done)
    }

    /// The move was aborted.
    pub(super) fn vanish(&self) -> Result<Told> {
        let phase = self.facts().state.phase;
        anyhow::ensure!(
            phase == Phase::Held,
            Failure::new(format!("the pod is {phase}, and did not just arrive"))
        );
        self.raise(Event::Returned);
        Ok(Told::Done)
    }

    /// Whoever decided about the pod hung up. If he has not decided, the journal and the authority do.
    pub(super) fn unguarded(&self) {
        while self.facts().state.phase == Phase::Held {
            match self.settle_arrival() {
                Ok(()) => return,
                Err(error) => tracing::warn!(
                    error = format!("{error:#}"),
                    "a pod that arrived is still held"
                ),
            }
            std::thread::sleep(AGAIN);
        }
    }

    fn settle_arrival(&self) -> Result<()> {
        let mut journal = leaving::journal(&self.pod)?.context("the move has no journal")?;
        let authority = arrival::authority(&self.store, &self.pod, journal.begun())?;
        settle(&mut journal, &*authority, &mut Arrived(self))?;
        Ok(())
    }

    /// After the supervisor was restarted: a pod that was held died with the last one.
    pub(super) fn take_up_arrival(self: &Arc<Self>) -> Result<()> {
        anyhow::ensure!(
            !self.arrives()?,
            Failure::new("the supervisor died while the pod was held")
        );
        Ok(())
    }
}

struct Arrived<'a>(&'a Supervised);

impl Here for Arrived<'_> {
    fn live(&mut self) -> Result<()> {
        self.0.go().map(drop)
    }

    fn vanish(&mut self) -> Result<()> {
        self.0.vanish().map(drop)
    }
}
