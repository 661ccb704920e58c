//! `pod check --pod`, and the first step of every checkpoint: what cannot be carried, named before
//! anything is stopped.

use anyhow::{Context, Result};
use restore::check::{self, Report};
use restore::checkpoint::Subject;

use super::Supervised;
use crate::failure::Failure;
use crate::store::Phase;

/// So many obstacles are named in an error; `pod check` lists all.
const NAMED: usize = 8;

impl Supervised {
    /// Looks at the running pod.
    pub(super) fn check(&self) -> Result<Report> {
        let held_by = self.held_by()?;
        let facts = self.facts();
        let phase = facts.state.phase;
        anyhow::ensure!(
            phase == Phase::Running,
            Failure::new(format!("the pod is {phase}"))
                .hint("a paused pod is resumed first: pod resume")
        );
        let init = facts.state.init.context("the pod has no init")?;
        let streams = facts
            .streams
            .iter()
            .map(|(name, fd)| Ok(((*name).to_owned(), fd.try_clone()?)));
        let streams = streams
            .collect::<std::io::Result<_>>()
            .context("duplicate a stream")?;
        drop(facts);
        let subject = Subject {
            init,
            pids: &held_by,
            streams,
            own_shm: true,
            masks: self.config.mask.filters(),
        };
        Ok(check::check(&subject)?)
    }

    /// Proves that all of the pod can be carried.
    pub(super) fn check_fit(&self) -> Result<()> {
        let name = &self.config.name;
        match self.check()?.refusals {
            none if none.is_empty() => Ok(()),
            refusals => Err(refused(name, &refusals).into()),
        }
    }
}

/// What cannot be carried, as one failure.
pub(super) fn refused(name: &str, refusals: &[restore::Refusal]) -> Failure {
    let count = match refusals.len() {
        1 => "one thing".to_owned(),
        n => format!("{n} things"),
    };
    let mut failure = Failure::new(format!("pod {name} holds {count} that cannot be carried"));
    let named = refusals.iter().take(NAMED).map(ToString::to_string);
    failure.chain.extend(named);
    if refusals.len() > NAMED {
        failure
            .chain
            .push(format!("and {} more", refusals.len() - NAMED));
    }
    let all = format!("pod check --pod {name} lists all, with advice");
    failure.hint(match refusals {
        [one] => one.hint.clone(),
        _ => all,
    })
}
