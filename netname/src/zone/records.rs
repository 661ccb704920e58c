//! The records of a zone, and a draft of changes over them. The draft is what makes an update atomic:
//! prerequisites and changes see base and draft as one, and nothing is seen by readers before the
//! draft is in the journal and merged whole.

use std::{collections::BTreeMap, sync::Arc};

use hickory_proto::rr::{LowerName, Name, RData, Record, RecordType, RrKey, rdata::SOA};

/// All records of one name and type: they share the time to live (RFC 2181 section 5.2).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rrset {
    /// Seconds.
    pub(crate) ttl: u32,
    /// Never empty in a zone.
    pub(crate) data: Vec<RData>,
}

impl Rrset {
    /// The records under the owner name `name`.
    pub(crate) fn records<'a>(&'a self, name: &'a Name) -> impl Iterator<Item = Record> + 'a {
        self.data
            .iter()
            .map(|data| Record::from_rdata(name.clone(), self.ttl, data.clone()))
    }
}

/// Changed sets; `None` is a set that is gone.
pub(crate) type Changes = BTreeMap<RrKey, Option<Arc<Rrset>>>;

/// The records of a zone.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Records {
    sets: BTreeMap<RrKey, Arc<Rrset>>,
}

fn first_key(name: &LowerName) -> RrKey {
    RrKey::new(name.clone(), RecordType::Unknown(0))
}

impl Records {
    pub(crate) fn get(&self, name: &LowerName, rtype: RecordType) -> Option<&Arc<Rrset>> {
        self.sets.get(&RrKey::new(name.clone(), rtype))
    }

    /// All sets of `name`.
    pub(crate) fn at<'a>(
        &'a self,
        name: &'a LowerName,
    ) -> impl Iterator<Item = (&'a RrKey, &'a Arc<Rrset>)> {
        self.sets
            .range(first_key(name)..)
            .take_while(move |(key, _)| key.name == *name)
    }

    /// Whether `name` or a name below it has records; canonical order puts those right behind it.
    pub(crate) fn exists(&self, name: &LowerName) -> bool {
        self.sets
            .range(first_key(name)..)
            .next()
            .is_some_and(|(key, _)| name.zone_of(&key.name))
    }

    /// All sets in canonical order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&RrKey, &Arc<Rrset>)> {
        self.sets.iter()
    }

    /// All records in canonical order.
    pub(crate) fn records(&self) -> impl Iterator<Item = Record> + '_ {
        self.sets
            .iter()
            .flat_map(|(key, set)| set.records(&key.name))
    }

    pub(crate) fn len(&self) -> usize {
        self.sets.len()
    }

    /// Adds a record as it comes from a transfer or a zone's seed: no rules applied.
    pub(crate) fn insert(&mut self, record: Record) {
        let key = RrKey::new(LowerName::new(&record.name), record.record_type());
        let set = self.sets.entry(key).or_insert_with(|| {
            Arc::new(Rrset {
                ttl: record.ttl,
                data: Vec::new(),
            })
        });
        let set = Arc::make_mut(set);
        if !set.data.contains(&record.data) {
            set.data.push(record.data);
        }
    }

    /// Merges `changes`.
    pub(crate) fn merge(&mut self, changes: Changes) {
        for (key, set) in changes {
            match set {
                Some(set) => drop(self.sets.insert(key, set)),
                None => drop(self.sets.remove(&key)),
            }
        }
    }

    /// The SOA of the zone `origin`.
    pub(crate) fn soa(&self, origin: &LowerName) -> Option<&SOA> {
        soa_of(self.get(origin, RecordType::SOA)?)
    }
}

pub(crate) fn soa_of(set: &Rrset) -> Option<&SOA> {
    set.data.iter().find_map(|data| {
        if let RData::SOA(soa) = data {
            Some(soa)
        } else {
            None
        }
    })
}

/// Changes over a base that stays as it is.
pub(crate) struct Draft<'a> {
    base: &'a Records,
    changes: Changes,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(base: &'a Records) -> Self {
        Self {
            base,
            changes: Changes::new(),
        }
    }

    pub(crate) fn get(&self, key: &RrKey) -> Option<&Arc<Rrset>> {
        match self.changes.get(key) {
            Some(changed) => changed.as_ref(),
            None => self.base.sets.get(key),
        }
    }

    /// Types of the sets that `name` has.
    pub(crate) fn types(&self, name: &LowerName) -> Vec<RecordType> {
        let here = |key: &&RrKey| key.name == *name;
        let mut keys: Vec<&RrKey> = self.base.at(name).map(|(key, _)| key).collect();
        keys.extend(
            self.changes
                .range(first_key(name)..)
                .map(|(key, _)| key)
                .take_while(here),
        );
        keys.sort();
        keys.dedup();
        keys.into_iter()
            .filter(|key| self.get(key).is_some())
            .map(|key| key.record_type)
            .collect()
    }

    /// Puts `set` in the place of what is there; an empty or equal one changes accordingly little.
    pub(crate) fn put(&mut self, key: RrKey, set: Option<Rrset>) {
        let set = set.filter(|set| !set.data.is_empty());
        if self.get(&key).map(AsRef::as_ref) != set.as_ref() {
            self.changes.insert(key, set.map(Arc::new));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.changes
            .iter()
            .all(|(key, set)| self.base.sets.get(key) == set.as_ref())
    }

    pub(crate) fn into_changes(self) -> Changes {
        self.changes
    }
}
