//! Making one change, until the authority says what came of it.
//!
//! ```text
//!  read ── epoch is `to` ──────────────▶ Committed
//!   │ ├─── epoch is neither ─ UPDATE of nothing if epoch is `from` ─ it is not ─▶ Lost
//!   │ └─── epoch is `from`
//!   │          ▼
//!   │      UPDATE if epoch and endpoints are as read ─ NOERROR ─▶ Committed
//!   │          ├─ a prerequisite failed ─▶ read again (at most 8 times)
//!   │          ├─ refused ──────────────▶ error
//!   └──────────┴─ no answer ────────────▶ read again over a new connection; no answer: Unknown
//! ```
//! Sending the update again is harmless: whichever copy comes second finds its prerequisite gone, and
//! the token in the epoch tells that the first one was ours. A loss is confirmed by an update without
//! changes, because a server that is no longer the primary may still show an old epoch.

use hickory_proto::{
    op::ResponseCode::{NXDomain, NXRRSet, NoError, ServFail, YXDomain, YXRRSet},
    rr::RecordType,
};

use super::{
    message::Update,
    session::Session,
    updater::{Change, Found, Outcome, Updater},
};
use crate::{
    Entry, Epoch, Error, Result,
    directory::{Names, epoch_data},
};

const ROUNDS: usize = 8;

/// A change on its way.
pub(crate) struct Attempt<'a> {
    updater: &'a Updater,
    change: Change,
    names: Names,
    /// Some update was sent whose answer never came.
    in_doubt: bool,
    /// Addresses that stood there when it was sent.
    before: Vec<std::net::IpAddr>,
}

/// What one round found.
enum Round {
    Done(Outcome),
    Again,
    NoAnswer(Error),
}

impl<'a> Attempt<'a> {
    pub(crate) fn new(updater: &'a Updater, change: Change) -> Result<Self> {
        let names = updater.names(&change.pod)?;
        Ok(Self {
            updater,
            change,
            names,
            in_doubt: false,
            before: Vec::new(),
        })
    }

    pub(crate) fn run(mut self) -> Result<Outcome> {
        let mut cause = None;
        for _ in 0..ROUNDS {
            match self.round()? {
                Round::Done(outcome) => return Ok(outcome),
                Round::Again => {}
                // The second silence in a row is an answer of its own.
                Round::NoAnswer(error) if cause.is_some() => return Ok(self.unknown(error)),
                Round::NoAnswer(error) => cause = Some(error),
            }
        }
        match cause {
            Some(error) => Ok(self.unknown(error)),
            None => Err(Error::Unsteady {
                server: self.updater.authority().server,
                name: self.change.pod.to_string(),
            }),
        }
    }

    fn unknown(self, cause: Error) -> Outcome {
        Outcome::Unknown {
            change: self.change,
            cause,
        }
    }

    fn round(&mut self) -> Result<Round> {
        match self.try_round() {
            Ok(round) => Ok(round),
            // Nothing was ever sent: the change was certainly not made.
            Err(error) if !self.in_doubt => Err(error),
            Err(error) => Ok(Round::NoAnswer(error)),
        }
    }

    fn try_round(&mut self) -> Result<Round> {
        let mut session = self.updater.session("update", &self.change.pod)?;
        let found = self.updater.read(&mut session, &self.names)?;
        let current = found.as_ref().map(|found| found.entry.epoch);
        match self.judge(current, found.as_ref()) {
            Some(lost @ Outcome::Lost { .. }) => return self.confirm(&mut session, lost),
            Some(outcome) => return Ok(Round::Done(outcome)),
            None => {}
        }
        self.before = found
            .as_ref()
            .map_or_else(Vec::new, |found| found.entry.placement.addresses.clone());
        let update = self.update(found.as_ref())?;
        self.send(&mut session, update)
    }

    /// What `current` says about the change; `None`: it can be made.
    fn judge(&self, current: Option<Epoch>, found: Option<&Found>) -> Option<Outcome> {
        let to = self.change.to.as_ref();
        let to_epoch = to.map(|entry| entry.epoch);
        let moves = to_epoch != self.change.from;
        if current == to_epoch && (moves || self.in_doubt && found.map(|found| &found.entry) == to)
        {
            return Some(self.committed());
        }
        (current != self.change.from).then_some(Outcome::Lost { current })
    }

    /// Asks the primary whether the prerequisite is false indeed.
    fn confirm(&self, session: &mut Session<'_>, lost: Outcome) -> Result<Round> {
        let update = Update::of(&self.updater.authority().zone);
        let update = match &self.change.from {
            Some(from) => update.if_set(&self.names.host, RecordType::TXT, &[epoch_data(from)]),
            None => update.if_unused(&self.names.host),
        };
        let zone = update.zone().to_string();
        let step = session.step("check the epoch in", &zone);
        match session
            .exchange(update.into_message(), step)?
            .metadata
            .response_code
        {
            NXRRSet | YXDomain => Ok(Round::Done(lost)),
            NoError => Ok(Round::Again),
            code => Err(step.refused(code)),
        }
    }

    fn committed(&self) -> Outcome {
        Outcome::Committed {
            reverse: self
                .updater
                .point_back(&self.change.pod, &self.before)
                .err(),
        }
    }

    /// One update that changes all of the pod's records or none.
    fn update(&self, found: Option<&Found>) -> Result<Update> {
        let authority = self.updater.authority();
        let mut update = Update::of(&authority.zone);
        if let Some(found) = found {
            let epoch = [epoch_data(&found.entry.epoch)];
            update = update.if_set(&self.names.host, RecordType::TXT, &epoch);
            update = update.if_set(&self.names.index, RecordType::TXT, &found.index);
            let services = &found.entry.placement.services;
            for (name, rtype) in self.names.own_sets(services)? {
                update = update.delete_set(&name, rtype);
            }
            update = self
                .names
                .shared_records(services)?
                .into_iter()
                .fold(update, Update::delete);
        } else {
            update = update.if_unused(&self.names.host);
        }
        let records = |to: &Entry| self.names.records(&to.epoch, &to.placement, authority.ttl);
        Ok(update.add(
            self.change
                .to
                .as_ref()
                .map(records)
                .transpose()?
                .unwrap_or_default(),
        ))
    }

    fn send(&mut self, session: &mut Session<'_>, update: Update) -> Result<Round> {
        let zone = update.zone().to_string();
        let step = session.step("update", &zone);
        let code = match session.exchange(update.into_message(), step) {
            Ok(answer) => answer.metadata.response_code,
            Err(Error::Refused { code, .. }) => code,
            Err(
                error
                @ (Error::NoAnswer { .. } | Error::Answer { .. } | Error::NotAuthentic { .. }),
            ) => {
                return Ok(self.doubt(error));
            }
            Err(error) => return Err(error),
        };
        match code {
            NoError => Ok(Round::Done(self.committed())),
            NXRRSet | YXRRSet | NXDomain | YXDomain => Ok(Round::Again),
            // The server may have failed before or after the change was made.
            ServFail => Ok(self.doubt(step.refused(code))),
            code => Err(step.refused(code)),
        }
    }

    fn doubt(&mut self, error: Error) -> Round {
        tracing::warn!(%error, "outcome of the update unknown, asking the zone");
        self.in_doubt = true;
        Round::NoAnswer(error)
    }
}
