//! A zone: records that readers see whole, and one writer at a time.
//!
//! ```text
//! UPDATE ──▶ writer lock ─▶ prerequisites ─▶ draft ─▶ serial+1 ─▶ journal, fsync ─▶ swap ─▶ answer
//! AXFR in ─▶ writer lock ─────────────────────────▶ journal (snapshot), fsync ─▶ swap
//! QUERY, AXFR out, in-process readers ─▶ the snapshot of this moment, never blocked by a sync
//! ```
//! One lock spans everything from the first prerequisite to the swap, so that of two racing updates
//! with the same prerequisite exactly one can win, and nobody reads what is not yet durable.

pub(crate) mod answer;
pub(crate) mod codec;
pub(crate) mod inside;
pub(crate) mod journal;
pub(crate) mod records;
pub(crate) mod update;

use std::{
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::ResponseCode::{self, NotAuth, ServFail},
    rr::{
        LowerName, RData, Record, RecordType,
        rdata::{NS, SOA},
    },
};
use tokio::sync::watch;

use self::{
    journal::Journal,
    records::{Changes, Draft, Records},
};
use crate::{Error, Result, ZoneName, config::Role};

/// A zone at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) serial: u32,
    pub(crate) records: Records,
}

/// A zone of this server.
#[derive(Debug)]
pub(crate) struct Zone {
    name: ZoneName,
    origin: LowerName,
    live: RwLock<Arc<Snapshot>>,
    writer: Mutex<Writer>,
    role: RwLock<Role>,
    /// A secondary's data is good until then (SOA EXPIRE); `None` while nothing was ever transferred.
    good_until: RwLock<Option<Instant>>,
    serial: watch::Sender<u32>,
}

#[derive(Debug)]
struct Writer {
    journal: Option<Journal>,
    poisoned: bool,
}

/// What a fresh zone starts with.
pub(crate) struct Seed<'a> {
    /// Host label of the name server in the zone, below `ns`.
    pub(crate) addresses: &'a [IpAddr],
    /// Seconds.
    pub(crate) ttl: u32,
}

impl Seed<'_> {
    /// SOA, NS and the name server's addresses. Retry and refresh are short: a secondary is told of
    /// changes by NOTIFY and polls only in case that is lost.
    fn records(&self, zone: &ZoneName, serial: u32) -> Result<Records> {
        let (ns, mail) = (zone.child("ns")?, zone.child("hostmaster")?);
        let apex = zone.as_name();
        let soa = SOA::new(ns.clone(), mail, serial, 30, 10, 604_800, self.ttl);
        let mut records = Records::default();
        records.insert(Record::from_rdata(apex.clone(), self.ttl, RData::SOA(soa)));
        records.insert(Record::from_rdata(
            apex.clone(),
            self.ttl,
            RData::NS(NS(ns.clone())),
        ));
        for addr in self.addresses {
            records.insert(Record::from_rdata(ns.clone(), self.ttl, RData::from(*addr)));
        }
        Ok(records)
    }
}

/// The clock, so that secondaries of a zone whose state was lost see that it is newer.
fn first_serial() -> u32 {
    u32::try_from(crate::tsig::unix_now() & u64::from(u32::MAX))
        .unwrap_or(1)
        .max(1)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Zone {
    /// Opens the zone: from its journal under `state`, or with the seed of a new primary, or empty.
    pub(crate) fn open(
        name: &ZoneName,
        role: Role,
        state: Option<&Path>,
        seed: &Seed<'_>,
    ) -> Result<Self> {
        let primary = matches!(role, Role::Primary { .. });
        let first = if primary {
            let serial = first_serial();
            (serial, seed.records(name, serial)?)
        } else {
            (0, Records::default())
        };
        let (writer, serial, records) = Writer::open(name, state, first)?;
        let zone = Self {
            name: name.clone(),
            origin: name.lower(),
            live: RwLock::new(Arc::new(Snapshot { serial, records })),
            writer: Mutex::new(writer),
            role: RwLock::new(role),
            good_until: RwLock::new(None),
            serial: watch::Sender::new(serial),
        };
        if primary && zone.snapshot().records.soa(&zone.origin).is_none() {
            // Was a secondary that never transferred anything before it became the primary.
            let serial = first_serial();
            zone.install(serial, seed.records(name, serial)?)?;
        }
        zone.renew();
        Ok(zone)
    }

    pub(crate) fn name(&self) -> &ZoneName {
        &self.name
    }

    pub(crate) fn origin(&self) -> &LowerName {
        &self.origin
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.live
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Tells each new serial.
    pub(crate) fn watch(&self) -> watch::Receiver<u32> {
        self.serial.subscribe()
    }

    pub(crate) fn role(&self) -> Role {
        self.role
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Changes the role. Waits for the update in progress, so that none is answered under the old role
    /// after this returns.
    pub(crate) fn set_role(&self, role: Role) {
        let _writer = locked(&self.writer);
        *self.role.write().unwrap_or_else(PoisonError::into_inner) = role;
        self.serial.send_modify(|_| ());
    }

    /// Whether questions may be answered: a secondary's copy must not have expired.
    pub(crate) fn is_good(&self) -> bool {
        let good_until = *self
            .good_until
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        matches!(self.role(), Role::Primary { .. })
            || good_until.is_some_and(|until| Instant::now() < until)
    }

    /// The copy was just found to be the primary's: it is good for another EXPIRE.
    pub(crate) fn renew(&self) {
        let snapshot = self.snapshot();
        let expire = snapshot
            .records
            .soa(&self.origin)
            .map(|soa| u64::from(soa.expire.unsigned_abs()));
        let until =
            expire.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
        *self
            .good_until
            .write()
            .unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// One dynamic update (RFC 2136 section 3), durable when this returns. Blocks on the disk.
    pub(crate) fn update(
        &self,
        prerequisites: &[Record],
        updates: &[Record],
    ) -> Result<(), ResponseCode> {
        let mut writer = locked(&self.writer);
        if !matches!(self.role(), Role::Primary { .. }) {
            return Err(NotAuth);
        }
        let base = self.snapshot();
        let mut draft = Draft::new(&base.records);
        update::check_prerequisites(&draft, &self.origin, prerequisites)?;
        update::prescan(&self.origin, updates)?;
        for record in updates {
            update::apply(&mut draft, &self.origin, record);
        }
        if draft.is_empty() {
            return Ok(());
        }
        let serial = self.next_serial(&base, &mut draft);
        writer.commit(&self.name, serial, &draft.into_changes(), |changes| {
            drop(base);
            self.merge(serial, changes)
        })
    }

    /// The serial that the update itself sets (RFC 2136 section 3.4.2.2), else the next one.
    fn next_serial(&self, base: &Snapshot, draft: &mut Draft<'_>) -> u32 {
        let key = hickory_proto::rr::RrKey::new(self.origin.clone(), RecordType::SOA);
        let set = draft
            .get(&key)
            .and_then(|set| records::soa_of(set))
            .map(|soa| soa.serial);
        match set {
            Some(serial) if update::is_newer(serial, base.serial) => serial,
            _ => {
                let serial = update::next_serial(base.serial);
                update::set_serial(draft, &self.origin, serial);
                serial
            }
        }
    }

    fn merge(&self, serial: u32, changes: Changes) -> Arc<Snapshot> {
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        let snapshot = Arc::make_mut(&mut live);
        snapshot.records.merge(changes);
        snapshot.serial = serial;
        self.serial.send_replace(serial);
        Arc::clone(&live)
    }

    /// Puts a transferred zone in the place of this one, durable when this returns. `false`: this
    /// server became the zone's primary in the meantime, and its own records stand.
    pub(crate) fn install(&self, serial: u32, records: Records) -> Result<bool> {
        let mut writer = locked(&self.writer);
        let primary = matches!(self.role(), Role::Primary { .. });
        if primary && self.snapshot().records.soa(&self.origin).is_some() {
            return Ok(false);
        }
        if let Some(journal) = &mut writer.journal {
            journal.compact(serial, &records)?;
        }
        *self.live.write().unwrap_or_else(PoisonError::into_inner) =
            Arc::new(Snapshot { serial, records });
        self.serial.send_replace(serial);
        drop(writer);
        self.renew();
        Ok(true)
    }

    /// Waits for the commit in progress and gives the journal back; no commit follows.
    pub(crate) fn close(&self) {
        let mut writer = locked(&self.writer);
        writer.poisoned = true;
        writer.journal = None;
    }
}

impl Writer {
    /// Replays the zone's journal, or starts one with `first`.
    fn open(
        zone: &ZoneName,
        state: Option<&Path>,
        (serial, seed): (u32, Records),
    ) -> Result<(Self, u32, Records)> {
        let Some(dir) = state else {
            return Ok((
                Self {
                    journal: None,
                    poisoned: false,
                },
                serial,
                seed,
            ));
        };
        let (journal, serial, records) =
            Journal::open(&dir.join(format!("{zone}.journal")), serial, seed)?;
        Ok((
            Self {
                journal: Some(journal),
                poisoned: false,
            },
            serial,
            records,
        ))
    }

    fn commit(
        &mut self,
        zone: &ZoneName,
        serial: u32,
        changes: &Changes,
        merge: impl FnOnce(Changes) -> Arc<Snapshot>,
    ) -> Result<(), ResponseCode> {
        self.log(zone, serial, changes).map_err(|error| {
            tracing::error!(%zone, serial, %error, source = ?std::error::Error::source(&error), "update is not durable");
            ServFail
        })?;
        let merged = merge(changes.clone());
        if let Some(journal) = self
            .journal
            .as_mut()
            .filter(|journal| journal.wants_compaction())
        {
            // The journal is whole without it: a failure only leaves it long.
            if let Err(error) = journal.compact(serial, &merged.records) {
                tracing::warn!(%zone, %error, "journal not compacted");
            }
        }
        Ok(())
    }

    fn log(&mut self, zone: &ZoneName, serial: u32, changes: &Changes) -> Result<()> {
        if self.poisoned {
            return Err(Error::Poisoned {
                zone: zone.to_string(),
            });
        }
        let Some(journal) = &mut self.journal else {
            return Ok(());
        };
        journal
            .append(serial, changes)
            .map_err(|(error, recovered)| {
                self.poisoned = !recovered.0;
                error
            })
    }
}
