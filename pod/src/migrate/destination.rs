//! The destination's end: answers questions, and takes a pod in.
//!
//! ```text
//!   Check ─▶ Lacks      Resolve ─▶ Decided      Settled ─▶ Done
//!
//!   Offer ─▶ admit ─▶ Missing ─▶ parts… ─▶ Restart ─▶ held ─▶ Commit ─▶ decide ─┬─ committed ─▶ run
//!              │                   │          │         │                       ├─ aborted ───▶ destroy
//!              └─ refused          └──────────┴────┬────┘                       └─ no answer ─▶ held on,
//!                                                  ▼                                  its supervisor asks
//!                         link lost, error, Abort: destroy
//! ```
//!
//! Who dies here leaves a journal; the held pod's supervisor, or the next agent, does what it says.

use anyhow::{Context, Result, anyhow, bail};

use super::authority::Verdict;
use super::error::LinkError;
use super::fault::{Faults, When};
use super::frame::Conn;
use super::journal::{Entry, Side};
use super::message::{Answer, HostContent, Needs, Offer, Part, Say, unexpected};
use super::phase::Phase;
use super::report::Clock;
use super::transfer::{Receiver, image_path};
use super::{Arrival, Host};
use crate::failure::Failure;

/// Mode of the image's files.
const PRIVATE: u32 = 0o600;

/// Answers a connection until it ends. The handshake is done.
///
/// # Errors
/// What broke the connection, or the arrival; a peer that could be told was told.
pub(crate) fn serve(conn: &mut Conn, host: &mut dyn Host, faults: &Faults) -> Result<()> {
    loop {
        let say = match conn.receive() {
            Err(LinkError::Closed) | Ok(Say::Bye) => return Ok(()),
            other => other?,
        };
        match answer(conn, host, faults, say) {
            Ok(()) => {}
            Err(Trouble::Refused(error)) => {
                refuse(conn, &error);
                return Err(error);
            }
            Err(Trouble::Undecided(error)) => {
                conn.cut();
                return Err(error);
            }
        }
    }
}

/// What kept a question from being answered.
enum Trouble {
    /// Nothing of a pod stands here: the source may be told so.
    Refused(anyhow::Error),
    /// After the commit was asked for: only the authority may be believed, so nothing is said.
    Undecided(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self::Refused(error.into())
    }
}

/// The last words on a connection: it stays open until the other side has had time to read them.
fn refuse(conn: &mut Conn, error: &anyhow::Error) {
    if conn.send(&Answer::Refused(Failure::of(error))).is_ok() {
        conn.drain();
    }
}

fn answer(conn: &mut Conn, host: &mut dyn Host, faults: &Faults, say: Say) -> Result<(), Trouble> {
    match say {
        Say::Check(needs) => Ok(check(conn, host, faults, &needs)?),
        Say::Offer(offer) => Taking::begin(conn, host, faults, &offer)?.take(),
        Say::Resolve(id) => {
            let verdict = host.resolve(&id)?;
            Ok(conn.send(&Answer::Decided(verdict))?)
        }
        Say::Settled(id) => {
            host.settled(&id)?;
            Ok(conn.send(&Answer::Done)?)
        }
        Say::Abort => Ok(conn.send(&Answer::Done)?),
        other => Err(unexpected("Check, Offer, Resolve or Settled", &other).into()),
    }
}

fn check(conn: &mut Conn, host: &mut dyn Host, faults: &Faults, needs: &Needs) -> Result<()> {
    faults.point(Side::Destination, When::Before, Phase::Check, conn)?;
    let lacks = host.lacks(needs)?;
    conn.send(&Answer::Lacks(lacks))?;
    faults.point(Side::Destination, When::After, Phase::Check, conn)
}

/// An arrival under way.
struct Taking<'a> {
    conn: &'a mut Conn,
    faults: &'a Faults,
    offer: &'a Offer,
    arrival: Box<dyn Arrival>,
    receiver: Receiver,
}

/// How the time before the commit ended.
enum Wish {
    Commit,
    Abort,
}

impl<'a> Taking<'a> {
    fn begin(
        conn: &'a mut Conn,
        host: &mut dyn Host,
        faults: &'a Faults,
        offer: &'a Offer,
    ) -> Result<Self> {
        faults.point(Side::Destination, When::Before, Phase::Prepare, conn)?;
        if let Some(lack) = host.lacks(&offer.needs)?.into_iter().next() {
            return Err(Failure::new(lack.what).hint(lack.hint).into());
        }
        let arrival = host.admit(offer, &conn.peer)?;
        Ok(Self {
            conn,
            faults,
            offer,
            arrival,
            receiver: Receiver::default(),
        })
    }

    fn take(mut self) -> Result<(), Trouble> {
        let span = tracing::info_span!("arrive", pod = %self.offer.pod, from = %self.conn.peer);
        let _entered = span.enter();
        match self.before_commit() {
            Ok(Wish::Commit) => self.commit().map_err(Trouble::Undecided),
            Ok(Wish::Abort) => {
                self.destroy()?;
                Ok(self.conn.send(&Answer::Done)?)
            }
            Err(error) => match self.destroy() {
                Ok(()) => Err(error.into()),
                Err(worse) => Err(worse.context(error).into()),
            },
        }
    }

    fn before_commit(&mut self) -> Result<Wish> {
        self.enter(Phase::Prepare)?;
        let arrival = &mut *self.arrival;
        let missing = self
            .conn
            .while_alive(|| arrival.missing(&self.offer.manifest))?;
        self.conn.send(&Answer::Missing(missing))?;
        self.point(When::After, Phase::Prepare)?;
        let mut in_image = false;
        loop {
            match self.conn.receive()? {
                Say::Part { part, length } => {
                    let image = matches!(part, Part::Image(_));
                    if image && !std::mem::replace(&mut in_image, true) {
                        self.phase(Phase::LastState)?;
                    }
                    self.part(part, length)?;
                }
                Say::Restart => {
                    tracing::info!(bytes = self.receiver.received(), "all content arrived");
                    self.point(When::After, Phase::LastState)?;
                    return self.restart();
                }
                Say::Abort => return Ok(Wish::Abort),
                other => return Err(unexpected("Part, Restart or Abort", &other).into()),
            }
        }
    }

    fn enter(&mut self, phase: Phase) -> Result<()> {
        tracing::info!(%phase);
        self.arrival.journal().write(Entry::Entered(phase))
    }

    fn point(&mut self, when: When, phase: Phase) -> Result<()> {
        self.faults.point(Side::Destination, when, phase, self.conn)
    }

    fn phase(&mut self, phase: Phase) -> Result<()> {
        self.enter(phase)?;
        self.point(When::Before, phase)
    }

    fn part(&mut self, part: Part, length: u64) -> Result<()> {
        match part {
            Part::Image(name) => {
                let path = image_path(&self.arrival.image(), &name)?;
                self.receiver.part(self.conn, length, &path, PRIVATE)?;
            }
            Part::File(number) => self.host_file(number, length)?,
        }
        Ok(())
    }

    fn host_file(&mut self, number: u32, length: u64) -> Result<()> {
        let file = self
            .offer
            .manifest
            .get(number as usize)
            .with_context(|| format!("the manifest has no file {number}"))?;
        let HostContent::File {
            length: wanted,
            blake3,
        } = file.content
        else {
            bail!("{} is no regular file", file.path.display());
        };
        let path = self.arrival.place(number, file)?;
        let sum = self.receiver.part(self.conn, length, &path, PRIVATE)?;
        if (length, sum) != (wanted, blake3) {
            let what = file.path.display().to_string();
            return Err(LinkError::Content {
                what,
                why: "it changed after the manifest was made".into(),
            }
            .into());
        }
        Ok(())
    }

    fn restart(&mut self) -> Result<Wish> {
        self.phase(Phase::Restart)?;
        let mut clock = Clock::start();
        let arrival = &mut *self.arrival;
        self.conn.while_alive(|| arrival.restart())?;
        let took = clock.lap();
        self.point(When::After, Phase::Restart)?;
        self.conn.send(&Answer::Held { took })?;
        match self.conn.receive()? {
            Say::Commit => Ok(Wish::Commit),
            Say::Abort => Ok(Wish::Abort),
            other => Err(unexpected("Commit or Abort", &other).into()),
        }
    }

    /// From here on the journal says: ask. Leaving without an outcome leaves the question to the supervisor.
    fn commit(mut self) -> Result<()> {
        self.phase(Phase::Commit)?;
        let authority = self.arrival.authority();
        let decided = self
            .conn
            .while_alive(|| authority.decide(Verdict::Committed));
        self.point(When::After, Phase::Commit)?;
        match decided {
            Ok(Verdict::Committed) => self.run(),
            Ok(Verdict::Aborted) => {
                self.destroy()?;
                Ok(self.conn.send(&Answer::Decided(Verdict::Aborted))?)
            }
            Err(unknown) => {
                let unknown = anyhow!(unknown);
                self.conn.send(&Answer::Undecided(Failure::of(&unknown)))?;
                Err(unknown)
            }
        }
    }

    fn run(mut self) -> Result<()> {
        self.arrival
            .journal()
            .write(Entry::Decided(Verdict::Committed))?;
        // Even when the source does not hear it: it can ask, and the pod must run.
        let heard = self.conn.send(&Answer::Decided(Verdict::Committed));
        self.point(When::Before, Phase::Run)?;
        self.enter(Phase::Run)?;
        self.arrival.run()?;
        self.arrival.journal().write(Entry::Done)?;
        self.point(When::After, Phase::Run)?;
        heard?;
        Ok(self.conn.send(&Answer::Running)?)
    }

    fn destroy(&mut self) -> Result<()> {
        // Where even this cannot be written (a full disk), the journal says the same without it.
        if let Err(error) = self
            .arrival
            .journal()
            .write(Entry::Decided(Verdict::Aborted))
        {
            tracing::warn!(error = format!("{error:#}"), "journal");
        }
        self.arrival.destroy()
    }
}
