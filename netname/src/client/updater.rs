//! Publishing pods: the operations a supervisor and an agent use.
//!
//! ```text
//!              publish (name unused)          move_to (epoch still 7.a)        withdraw (epoch still 8.b)
//!   no name ─────────────────────▶ 7.a ─────────────────────────▶ 8.b ─────────────────────────▶ no name
//!                                   └ each arrow is one UPDATE: all of it or nothing, one winner
//!
//!   outcome  Committed   the authority said so, or its zone shows it
//!            Lost        somebody else's change stands; ours does not
//!            Unknown     no answer yet: stay frozen, and ask again with `resolve`
//! ```
//! An error means that this change was not made and will not be: no connection, a refusal, a wrong key.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_proto::rr::{RData, RecordType};
use serde::{Deserialize, Serialize};

use super::{
    attempt::Attempt,
    reverse,
    session::{Session, Step},
};
use crate::{
    Entry, Epoch, Error, Key, Placement, PodName, Result, ZoneName,
    config::DEFAULT_TTL,
    directory::{Names, parse_epoch, parse_placement},
};

/// Reads of a pod's sets are repeated when the epoch changes in between, this often.
const READS: usize = 8;

/// Where names are published, and with which key.
#[derive(Clone, Debug)]
pub struct Authority {
    /// The primary name server.
    pub server: SocketAddr,
    /// The zone of the pods.
    pub zone: ZoneName,
    /// Reverse zones on the same server; addresses in none of them get no pointer.
    pub reverse: Vec<ZoneName>,
    /// Signs everything; without it only [`Updater::lookup`] can succeed.
    pub key: Option<Key>,
    /// Seconds for which others may keep what is published.
    pub ttl: u32,
    /// For one operation; at most a minute.
    pub patience: Duration,
}

impl Authority {
    /// `server` for the zone `pod.internal`, with a TTL and patience of 5 s.
    #[must_use]
    pub fn new(server: SocketAddr, key: Option<Key>) -> Self {
        let (zone, patience) = (ZoneName::default(), Duration::from_secs(5));
        Self {
            server,
            zone,
            reverse: Vec::new(),
            key,
            ttl: DEFAULT_TTL,
            patience,
        }
    }
}

/// A change that was sent, or is to be; it can be kept in a journal and resolved after a crash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Whose name.
    pub pod: PodName,
    /// The epoch that must stand in the zone; `None`: the name must be unused.
    pub from: Option<Epoch>,
    /// What then stands there; `None`: nothing.
    pub to: Option<Entry>,
}

/// How a change ended.
#[derive(Debug)]
pub enum Outcome {
    /// It stands in the zone.
    Committed {
        /// Pointers in a reverse zone that could not be brought up to date; they decide nothing.
        reverse: Option<Error>,
    },
    /// It does not stand in the zone and will not.
    Lost {
        /// What stands there instead; `None`: the name is unused.
        current: Option<Epoch>,
    },
    /// The authority did not answer. The change may or may not have been made.
    Unknown {
        /// To be given to [`Updater::resolve`].
        change: Change,
        /// Why there is no answer.
        cause: Error,
    },
}

/// What the zone says about a change that was sent earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It was made.
    Made,
    /// It was not made yet; a copy of the message may still be on its way.
    Open,
    /// Something else stands there.
    Overtaken(Option<Epoch>),
}

/// Changes and reads the directory. Blocking: to be used from plain threads.
#[derive(Clone, Debug)]
pub struct Updater {
    authority: Authority,
}

impl Updater {
    /// An updater for `authority`; connects when used.
    #[must_use]
    pub fn new(authority: Authority) -> Self {
        Self { authority }
    }

    /// The authority.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// What the authority says about a pod; `None`: the name is unused.
    ///
    /// # Errors
    /// The server cannot be reached or is no authority; the name belongs to something else.
    pub fn lookup(&self, pod: &PodName) -> Result<Option<Entry>> {
        let names = self.names(pod)?;
        let mut session = self.session("look up", pod)?;
        Ok(self.read(&mut session, &names)?.map(|found| found.entry))
    }

    /// Publishes a pod under a name that nobody uses, as `epoch` (see [`Epoch::first`]).
    pub fn publish(&self, pod: &PodName, epoch: &Epoch, placement: &Placement) -> Result<Outcome> {
        self.make(Change {
            pod: pod.clone(),
            from: None,
            to: Some(entry(epoch, placement)?),
        })
    }

    /// Publishes new addresses or services under the epoch held.
    pub fn refresh(&self, pod: &PodName, held: &Epoch, placement: &Placement) -> Result<Outcome> {
        self.make(Change {
            pod: pod.clone(),
            from: Some(*held),
            to: Some(entry(held, placement)?),
        })
    }

    /// Moves the name: from epoch `from`, which must still stand, to epoch `to` (see [`Epoch::next`])
    /// at `placement`, in one atomic update.
    pub fn move_to(
        &self,
        pod: &PodName,
        from: &Epoch,
        to: &Epoch,
        placement: &Placement,
    ) -> Result<Outcome> {
        self.make(Change {
            pod: pod.clone(),
            from: Some(*from),
            to: Some(entry(to, placement)?),
        })
    }

    /// Takes the pod's records away, if the epoch held still stands.
    pub fn withdraw(&self, pod: &PodName, held: &Epoch) -> Result<Outcome> {
        self.make(Change {
            pod: pod.clone(),
            from: Some(*held),
            to: None,
        })
    }

    /// Makes a change. Safe to call again with the same change, also after a crash: it is made once.
    pub fn make(&self, change: Change) -> Result<Outcome> {
        let span =
            tracing::info_span!("zone update", pod = %change.pod, server = %self.authority.server);
        let _entered = span.enter();
        let outcome = Attempt::new(self, change)?.run()?;
        tracing::debug!(?outcome, "done");
        Ok(outcome)
    }

    /// Finds out about a change whose outcome is unknown, and makes it if it was not made. Everything
    /// that keeps the authority from answering leaves it [`Outcome::Unknown`].
    #[must_use]
    pub fn resolve(&self, change: Change) -> Outcome {
        self.make(change.clone())
            .unwrap_or_else(|cause| Outcome::Unknown { change, cause })
    }

    /// Asks about a change without making it.
    pub fn standing(&self, change: &Change) -> Result<Standing> {
        let current = self.lookup(&change.pod)?.map(|entry| entry.epoch);
        Ok(match current {
            now if now == change.to.as_ref().map(|entry| entry.epoch) => Standing::Made,
            now if now == change.from => Standing::Open,
            now => Standing::Overtaken(now),
        })
    }

    /// Points the pod's addresses back to it in the reverse zones, and those of `before` that it no
    /// longer has to nothing. Each committed change does so by itself, after the commit and before it
    /// returns; who cannot wait then uses an authority without reverse zones and does it later.
    pub fn point_back(&self, pod: &PodName, before: &[IpAddr]) -> Result<()> {
        if self.authority.reverse.is_empty() {
            return Ok(());
        }
        reverse::update(self, pod, before)
    }

    pub(crate) fn names(&self, pod: &PodName) -> Result<Names> {
        Names::new(&self.authority.zone, pod)
    }

    pub(crate) fn session(&self, step: &'static str, pod: &PodName) -> Result<Session<'_>> {
        let Authority {
            server,
            ref key,
            patience,
            ..
        } = self.authority;
        Session::connect(
            server,
            key.as_ref(),
            patience,
            Step {
                server,
                step,
                name: pod.as_str(),
            },
        )
    }

    /// Reads all sets of a pod under one epoch.
    pub(crate) fn read(&self, session: &mut Session<'_>, names: &Names) -> Result<Option<Found>> {
        let text = names.host.to_ascii();
        let step = session.step("look up", &text);
        let foreign = |reason| Error::Foreign {
            server: step.server,
            name: text.clone(),
            reason,
        };
        for _ in 0..READS {
            let before = session.set(&names.host, RecordType::TXT)?;
            let mut addresses = session.set(&names.host, RecordType::A)?.unwrap_or_default();
            addresses.extend(
                session
                    .set(&names.host, RecordType::AAAA)?
                    .unwrap_or_default(),
            );
            let index = session
                .set(&names.index, RecordType::TXT)?
                .unwrap_or_default();
            if session.set(&names.host, RecordType::TXT)? != before {
                continue;
            }
            let Some(before) = before else {
                return if addresses.is_empty() {
                    Ok(None)
                } else {
                    Err(foreign("addresses without an epoch".to_owned()))
                };
            };
            let epoch = parse_epoch(&before).map_err(foreign)?;
            let placement = parse_placement(&addresses, &index).map_err(foreign)?;
            return Ok(Some(Found {
                entry: Entry { epoch, placement },
                index,
            }));
        }
        Err(Error::Unsteady {
            server: step.server,
            name: text,
        })
    }
}

/// A pod as it stands in the zone.
pub(crate) struct Found {
    pub(crate) entry: Entry,
    /// The set at `_endpoints` as it was read.
    pub(crate) index: Vec<RData>,
}

fn entry(epoch: &Epoch, placement: &Placement) -> Result<Entry> {
    Ok(Entry {
        epoch: *epoch,
        placement: placement.checked()?,
    })
}
