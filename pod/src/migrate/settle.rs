//! Bringing a move to its end that its own end did not see: after a crash, or when the authority could
//! not be asked. Whoever finds the journal does its duty; doing it twice does no harm.

use std::sync::{Mutex, PoisonError};

use anyhow::{Result, anyhow};

use super::authority::{Authority, Unknown, Verdict};
use super::frame::Conn;
use super::journal::{Duty, Entry, Journal, Side};
use super::message::{Answer, Say, unexpected};

/// One end's pod, as far as the outcome of a move goes.
pub(crate) trait Here {
    /// The pod lives here: let it run.
    fn live(&mut self) -> Result<()>;
    /// It lives at the other end: remove what stands here.
    fn vanish(&mut self) -> Result<()>;
}

/// Does what a journal asks for.
///
/// # Errors
/// [`Unknown`] inside when the authority does not answer: the pod must stand still, and this is to be
/// called again. Else what failed; it is also to be called again.
pub(crate) fn settle(
    journal: &mut Journal,
    authority: &dyn Authority,
    here: &mut dyn Here,
) -> Result<Option<Verdict>> {
    let side = journal.begun().side;
    let mut duty = journal.duty();
    if duty == Duty::Ask {
        let verdict = authority.decide(wish(side))?;
        tracing::info!(?verdict, ?side, "the authority has answered");
        journal.write(Entry::Decided(verdict))?;
        duty = journal.duty();
    }
    let verdict = match duty {
        Duty::Nothing | Duty::Ask => return Ok(None),
        Duty::Resume | Duty::Destroy => Verdict::Aborted,
        Duty::Release | Duty::Run => Verdict::Committed,
    };
    if journal.outcome().is_none() {
        journal.write(Entry::Decided(verdict))?;
    }
    match duty {
        Duty::Resume | Duty::Run => here.live()?,
        _ => here.vanish()?,
    }
    journal.write(Entry::Done)?;
    Ok(Some(verdict))
}

/// What an end that was asked to commit, and heard no more, asks the authority for.
fn wish(side: Side) -> Verdict {
    match side {
        Side::Source => Verdict::Aborted,
        Side::Destination => Verdict::Committed,
    }
}

/// The destination as authority, asked over a new connection.
pub(crate) struct Peer {
    conn: Mutex<Conn>,
    id: String,
}

impl Peer {
    /// Will ask about the move `id`; the handshake is done.
    pub(crate) fn new(conn: Conn, id: String) -> Self {
        Self {
            conn: Mutex::new(conn),
            id,
        }
    }

    /// The outcome is journalled here: the destination need not keep it.
    pub(crate) fn settled(&self) {
        let mut conn = self.conn.lock().unwrap_or_else(PoisonError::into_inner);
        let told = conn
            .ask(&Say::Settled(self.id.clone()))
            .and_then(|_| conn.send(&Say::Bye));
        tracing::debug!(?told, "the destination was told that the outcome is known");
    }
}

impl Authority for Peer {
    /// Only `aborted` can be asked for; the destination commits by itself.
    fn decide(&self, _: Verdict) -> Result<Verdict, Unknown> {
        let mut conn = self.conn.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = match conn.ask(&Say::Resolve(self.id.clone())) {
            Ok(Answer::Decided(verdict)) => return Ok(verdict),
            Ok(other) => unexpected("Decided", &other),
            Err(error) => error,
        };
        Err(Unknown {
            authority: format!("the destination {}", conn.peer),
            source: answer.into(),
        })
    }
}

/// An authority that cannot be asked from here.
#[derive(Debug)]
pub(crate) struct Unreachable(pub(crate) String);

impl Authority for Unreachable {
    fn decide(&self, _: Verdict) -> Result<Verdict, Unknown> {
        Err(Unknown {
            authority: self.0.clone(),
            source: anyhow!("it can only be asked with pod migrate --resolve"),
        })
    }
}
