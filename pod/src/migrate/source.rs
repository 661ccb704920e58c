//! The source's end of a move: a state machine over the phases.
//!
//! ```text
//!   check ─▶ prepare ─▶ copy ─▶ freeze ─▶ last state ─▶ restart ─▶ commit ─▶ run ─▶ release ─▶ Moved
//!     │         │         │        │           │           │          │
//!     └─────────┴─────────┴────────┴─────┬─────┴───────────┘          ├─ aborted ─▶ undo
//!                                        ▼                            └─ no answer ─▶ ask the authority
//!                             undo: resume the pod, tell the                  │ does not answer
//!                             destination, journal: aborted                   ▼
//!                                                                     Undecided: stays frozen
//! ```
//!
//! Before the commit is asked for, nothing but this end decides, so every failure undoes. From then on
//! only the authority's word counts, and once it said *committed* nothing can fail the move any more:
//! what is left is to let go.

use std::path::Path;

use anyhow::{Context, Result, anyhow};

use super::authority::{Authority, Fence, Verdict};
use super::error::LinkError;
use super::fault::{Faults, When};
use super::frame::Conn;
use super::journal::{Begun, Entry, Journal, Side};
use super::message::{Answer, HostContent, HostFile, Needs, Offer, Part, Say, unexpected};
use super::phase::Phase;
use super::report::{Bytes, Clock, Downtime, Progress, Report};
use super::transfer::Sender;
use super::{Moving, SourcePod, Strategy};
use crate::failure::Failure;

/// What is to be moved, and where.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Number of the move, random.
    pub(crate) id: String,
    /// The pod's id.
    pub(crate) pod: String,
    /// Its configuration.
    pub(crate) config: serde_json::Value,
    /// The destination as the user named it.
    pub(crate) peer: String,
    /// What decides, where there is a zone.
    pub(crate) fence: Option<Fence>,
    /// Trouble on demand.
    pub(crate) faults: Faults,
}

/// How a move ended that did not fail.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The pod lives at the destination.
    Moved(Box<Report>),
    /// The outcome is not known: the pod stays frozen, and the journal says that it must be asked for.
    Undecided(anyhow::Error),
}

/// The machine.
pub(crate) struct Source<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) pod: &'a mut dyn SourcePod,
    pub(crate) conn: &'a mut Conn,
    pub(crate) strategy: &'a mut dyn Strategy,
    /// Who decides, where that is not the destination.
    pub(crate) authority: Option<&'a dyn Authority>,
    /// A directory for the journal and for images.
    pub(crate) dir: &'a Path,
    pub(crate) tell: &'a mut dyn FnMut(Progress),
}

/// A move under way.
struct Course<'a> {
    source: Source<'a>,
    journal: Journal,
    frozen: bool,
    whole: Clock,
    clock: Clock,
    downtime: Downtime,
    bytes: Bytes,
}

/// The journal's name in the directory of a move.
pub(crate) const JOURNAL: &str = "journal";

impl<'a> Source<'a> {
    /// Moves the pod.
    ///
    /// # Errors
    /// Whatever failed before the commit; the pod runs on here then, unharmed.
    pub(crate) fn run(self) -> Result<Ended> {
        let begun = Begun {
            id: self.plan.id.clone(),
            side: Side::Source,
            peer: self.plan.peer.clone(),
            fence: self.plan.fence.clone(),
        };
        let journal = Journal::begin(&self.dir.join(JOURNAL), begun)?;
        let course = Course {
            source: self,
            journal,
            frozen: false,
            whole: Clock::start(),
            clock: Clock::start(),
            downtime: Downtime::default(),
            bytes: Bytes::default(),
        };
        course.run()
    }
}

impl Course<'_> {
    fn run(mut self) -> Result<Ended> {
        let span = tracing::info_span!("migrate", pod = %self.source.plan.pod, to = %self.source.plan.peer);
        let _entered = span.enter();
        if let Err(error) = self
            .before_commit()
            .and_then(|()| self.point_of_no_return())
        {
            return Err(self.undo(error));
        }
        match self.commit() {
            Ok(Verdict::Committed) => self.finish().map(|report| Ended::Moved(Box::new(report))),
            Ok(Verdict::Aborted) => Err(self.undo(anyhow!("the move was aborted at the commit"))),
            Err(cause) => Ok(Ended::Undecided(cause)),
        }
    }

    fn before_commit(&mut self) -> Result<()> {
        let needs = self.phase(Phase::Check, Self::check)?;
        self.phase(Phase::Prepare, |course| course.prepare(needs))?;
        self.phase(Phase::Copy, Self::copy)?;
        self.clock.lap();
        self.phase(Phase::Freeze, Self::freeze)?;
        self.phase(Phase::LastState, Self::last_state)?;
        self.phase(Phase::Restart, Self::restart)
    }

    /// The pod stands still whatever becomes of this process, and the journal says: ask.
    fn point_of_no_return(&mut self) -> Result<()> {
        self.source.pod.pin().context("keep the pod frozen")?;
        self.journal.write(Entry::Entered(Phase::Commit))
    }

    /// One phase with its entry in the journal.
    fn phase<T>(&mut self, phase: Phase, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.journal.write(Entry::Entered(phase))?;
        self.work(phase, work)
    }

    /// The work of one phase between its points of failure.
    fn work<T>(&mut self, phase: Phase, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let span = tracing::info_span!("phase", %phase);
        let _entered = span.enter();
        (self.source.tell)(Progress::Phase(phase));
        let whole = |course: &mut Self| -> Result<T> {
            course.point(When::Before, phase)?;
            let value = work(course)?;
            course.point(When::After, phase)?;
            Ok(value)
        };
        whole(self).with_context(|| format!("{phase} failed: {}", phase.guarantee()))
    }

    fn point(&mut self, when: When, phase: Phase) -> Result<()> {
        self.source
            .plan
            .faults
            .point(Side::Source, when, phase, self.source.conn)
    }

    fn check(&mut self) -> Result<Needs> {
        let needs = self.source.pod.needs()?;
        match self.source.conn.ask(&Say::Check(needs.clone()))? {
            Answer::Lacks(lacks) if lacks.is_empty() => Ok(needs),
            Answer::Lacks(lacks) => {
                let what: Vec<_> = lacks.iter().map(|lack| lack.what.as_str()).collect();
                let failure = Failure::new(format!(
                    "{} cannot take the pod: {}",
                    self.source.plan.peer,
                    what.join("; ")
                ));
                Err(failure.hint(lacks[0].hint.clone()).into())
            }
            other => Err(unexpected("Lacks", &other).into()),
        }
    }

    fn prepare(&mut self, needs: Needs) -> Result<()> {
        let pod = &mut *self.source.pod;
        let manifest = self.source.conn.while_alive(|| pod.manifest())?;
        let plan = self.source.plan;
        let offer = Offer {
            id: plan.id.clone(),
            pod: plan.pod.clone(),
            config: plan.config.clone(),
            needs,
            fence: plan.fence.clone(),
            manifest: manifest.clone(),
        };
        match self.source.conn.ask(&Say::Offer(Box::new(offer)))? {
            Answer::Missing(missing) => self.send_files(&manifest, &missing),
            other => Err(unexpected("Missing", &other).into()),
        }
    }

    fn send_files(&mut self, manifest: &[HostFile], missing: &[u32]) -> Result<()> {
        let Source {
            conn, pod, tell, ..
        } = &mut self.source;
        let files = missing.iter().map(|number| {
            let file = manifest.get(*number as usize);
            file.map(|file| (*number, file))
                .with_context(|| format!("the manifest has no file {number}"))
        });
        let files = files.collect::<Result<Vec<_>>>()?;
        let of = files.iter().map(|(_, file)| file.length()).sum();
        let mut progress = |done| tell(Progress::Bytes { done, of });
        let mut sender = Sender::new(conn, &mut progress);
        for (number, file) in files {
            if let HostContent::File { length, .. } = file.content {
                sender.part(Part::File(number), pod.open(file)?, length)?;
            }
        }
        self.bytes.files = sender.finish()?;
        Ok(())
    }

    fn moving<T>(
        &mut self,
        work: impl FnOnce(&mut dyn Strategy, &mut Moving<'_>) -> Result<T>,
    ) -> Result<T> {
        let Source {
            conn,
            pod,
            strategy,
            dir,
            tell,
            ..
        } = &mut self.source;
        let mut moving = Moving {
            pod: &mut **pod,
            conn,
            dir,
            tell: &mut **tell,
            bytes: 0,
        };
        let value = work(&mut **strategy, &mut moving);
        self.bytes.image += moving.bytes;
        value
    }

    fn copy(&mut self) -> Result<()> {
        self.moving(|strategy, moving| strategy.copy(moving))
    }

    fn freeze(&mut self) -> Result<()> {
        self.frozen = true;
        let pod = &mut *self.source.pod;
        self.source.conn.while_alive(|| pod.freeze())?;
        self.downtime.freeze = self.clock.lap();
        Ok(())
    }

    fn last_state(&mut self) -> Result<()> {
        self.downtime.capture = self.moving(|strategy, moving| strategy.last_state(moving))?;
        Ok(())
    }

    /// What is neither capture nor the destination's own work was the way over.
    fn restart(&mut self) -> Result<()> {
        let took = match self.source.conn.ask(&Say::Restart)? {
            Answer::Held { took } => took,
            other => return Err(unexpected("Held", &other).into()),
        };
        let since_freeze = self.clock.lap();
        self.downtime.restart = took;
        self.downtime.transfer = since_freeze.saturating_sub(took + self.downtime.capture);
        Ok(())
    }

    /// Asks for the commit. An error is: not known.
    fn commit(&mut self) -> Result<Verdict> {
        let asked = self.work(Phase::Commit, |course| {
            match course.source.conn.ask(&Say::Commit) {
                Ok(Answer::Decided(verdict)) => Ok(verdict),
                Ok(Answer::Undecided(failure)) => Err(failure.into()),
                // It has destroyed what it held, so it has not committed and never will.
                Err(LinkError::Refused(_)) if course.source.authority.is_none() => {
                    Ok(Verdict::Aborted)
                }
                Ok(other) => Err(unexpected("Decided", &other).into()),
                Err(error) => Err(error.into()),
            }
        });
        let verdict = match (asked, self.source.authority) {
            (Ok(verdict), _) => verdict,
            (Err(error), None) => return Err(error),
            (Err(error), Some(authority)) => {
                tracing::warn!(error = format!("{error:#}"), "asking the authority");
                authority.decide(Verdict::Aborted)?
            }
        };
        self.downtime.commit = self.clock.lap();
        Ok(verdict)
    }

    /// The pod lives at the destination. Whatever fails now is done again by who reads the journal.
    fn finish(mut self) -> Result<Report> {
        self.journal.write(Entry::Decided(Verdict::Committed))?;
        if let Err(error) = self.phase(Phase::Run, Self::await_run) {
            tracing::warn!(
                error = format!("{error:#}"),
                "the destination did not say that the pod runs"
            );
        }
        let to = if self.source.conn.peer.is_empty() {
            &self.source.plan.peer
        } else {
            &self.source.conn.peer
        };
        let to = to.clone();
        self.phase(Phase::Release, |course| course.source.pod.release(&to))?;
        self.journal.write(Entry::Done)?;
        let settled = self.settle();
        Ok(self.report(to, settled))
    }

    fn await_run(&mut self) -> Result<()> {
        match self.source.conn.answer()? {
            Answer::Running => {}
            other => return Err(unexpected("Running", &other).into()),
        }
        self.downtime.run = self.clock.lap();
        Ok(())
    }

    /// The destination need not keep the decision. Unheard, it keeps a few bytes until somebody tells it.
    fn settle(&mut self) -> bool {
        let id = self.source.plan.id.clone();
        let settled = self.source.conn.ask(&Say::Settled(id));
        let settled = settled.and_then(|_| self.source.conn.send(&Say::Bye));
        if let Err(error) = &settled {
            tracing::debug!(%error, "the destination was not told");
        }
        settled.is_ok()
    }

    fn report(&mut self, to: String, settled: bool) -> Report {
        let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
        let name = self
            .source
            .plan
            .config
            .get("name")
            .and_then(|name| name.as_str());
        (self.bytes.sent, self.bytes.received) = self.source.conn.bytes();
        Report {
            pod: name.unwrap_or(&self.source.plan.pod).to_owned(),
            from: host.unwrap_or_default(),
            to,
            mode: self.source.strategy.name().to_owned(),
            downtime: self.downtime,
            downtime_total: self.downtime.total(),
            total: self.whole.lap(),
            bytes: self.bytes,
            settled,
        }
    }

    /// Everything as before; returns the error with what came of undoing.
    fn undo(mut self, error: anyhow::Error) -> anyhow::Error {
        let resumed = if self.frozen {
            self.source.pod.resume()
        } else {
            Ok(())
        };
        let noted = resumed
            .context("resume the pod")
            .and_then(|()| self.journal.write(Entry::Decided(Verdict::Aborted)))
            .and_then(|()| self.journal.write(Entry::Done));
        self.give_up(&error);
        match noted {
            Ok(()) => error,
            Err(worse) => worse.context(error),
        }
    }

    /// Tells the destination, if it can be told and does not know: whoever hears nothing more gives up too.
    fn give_up(&mut self, error: &anyhow::Error) {
        if error.chain().any(<dyn std::error::Error>::is::<LinkError>) {
            self.source.conn.cut();
            return;
        }
        let told = self.source.conn.ask(&Say::Abort);
        tracing::debug!(?told, "the destination was told to give up");
    }
}
