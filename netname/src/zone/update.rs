//! Dynamic update (RFC 2136 section 3) as pure functions over a draft: prerequisites, prescan, changes.
//!
//! Where RFC 2136 says "ignore", the change is ignored: a CNAME beside other data, other data beside a
//! CNAME, deletion of the apex's SOA or last NS.

use std::collections::BTreeMap;

use hickory_proto::{
    op::ResponseCode::{self, FormErr, NXDomain, NXRRSet, NotZone, Refused, YXDomain, YXRRSet},
    rr::{DNSClass, LowerName, RData, Record, RecordType, RrKey},
};

use super::records::{Draft, Rrset, soa_of};

/// Types that are questions or per-message data and never stored (RFC 6895 section 3.1).
fn is_meta(rtype: RecordType) -> bool {
    let code = u16::from(rtype);
    code == 0 || code == u16::from(RecordType::OPT) || (128..=255).contains(&code)
}

fn is_empty(record: &Record) -> bool {
    matches!(record.data, RData::Update0(_))
}

fn key_of(record: &Record) -> RrKey {
    RrKey::new(LowerName::new(&record.name), record.record_type())
}

fn same_set<'a>(have: &'a [RData], want: &[&'a RData]) -> bool {
    want.iter().all(|data| have.contains(data)) && have.iter().all(|data| want.contains(&data))
}

/// Section 3.2: all must hold. A value-dependent set must be equal, neither subset nor superset.
pub(crate) fn check_prerequisites(
    draft: &Draft<'_>,
    origin: &LowerName,
    prerequisites: &[Record],
) -> Result<(), ResponseCode> {
    let mut wanted: BTreeMap<RrKey, Vec<&RData>> = BTreeMap::new();
    for record in prerequisites {
        let key = key_of(record);
        if record.ttl != 0 {
            return Err(FormErr);
        }
        if !origin.zone_of(&key.name) {
            return Err(NotZone);
        }
        match record.dns_class {
            DNSClass::IN if !is_empty(record) && !is_meta(key.record_type) => {
                wanted.entry(key).or_default().push(&record.data);
            }
            DNSClass::ANY | DNSClass::NONE if is_empty(record) => {
                check_existence(draft, &key, record.dns_class)?;
            }
            _ => return Err(FormErr),
        }
    }
    let holds = |(key, want): (&RrKey, &Vec<&RData>)| {
        draft.get(key).is_some_and(|set| same_set(&set.data, want))
    };
    if wanted.iter().all(holds) {
        Ok(())
    } else {
        Err(NXRRSet)
    }
}

fn check_existence(draft: &Draft<'_>, key: &RrKey, class: DNSClass) -> Result<(), ResponseCode> {
    let whole_name = key.record_type == RecordType::ANY;
    if is_meta(key.record_type) && !whole_name {
        return Err(FormErr);
    }
    let exists = if whole_name {
        !draft.types(&key.name).is_empty()
    } else {
        draft.get(key).is_some()
    };
    match (class, exists, whole_name) {
        (DNSClass::ANY, false, true) => Err(NXDomain),
        (DNSClass::ANY, false, false) => Err(NXRRSet),
        (DNSClass::NONE, true, true) => Err(YXDomain),
        (DNSClass::NONE, true, false) => Err(YXRRSet),
        _ => Ok(()),
    }
}

/// Section 3.4.1: nothing is changed unless each change is well formed. Delegations are refused: this
/// server answers for whole zones only.
pub(crate) fn prescan(origin: &LowerName, updates: &[Record]) -> Result<(), ResponseCode> {
    for record in updates {
        let key = key_of(record);
        if !origin.zone_of(&key.name) {
            return Err(NotZone);
        }
        let meta = is_meta(key.record_type);
        let well_formed = match record.dns_class {
            DNSClass::IN => !meta && !is_empty(record),
            DNSClass::ANY => {
                record.ttl == 0 && is_empty(record) && (!meta || key.record_type == RecordType::ANY)
            }
            DNSClass::NONE => record.ttl == 0 && !meta && !is_empty(record),
            _ => false,
        };
        if !well_formed {
            return Err(FormErr);
        }
        if record.dns_class == DNSClass::IN
            && key.record_type == RecordType::NS
            && key.name != *origin
        {
            return Err(Refused);
        }
    }
    Ok(())
}

/// Section 3.4.2: one change.
pub(crate) fn apply(draft: &mut Draft<'_>, origin: &LowerName, record: &Record) {
    let key = key_of(record);
    match record.dns_class {
        DNSClass::IN => add(draft, origin, key, record),
        DNSClass::ANY if key.record_type == RecordType::ANY => {
            for record_type in draft.types(&key.name) {
                delete_set(
                    draft,
                    origin,
                    RrKey {
                        record_type,
                        ..key.clone()
                    },
                );
            }
        }
        DNSClass::ANY => delete_set(draft, origin, key),
        _ => delete_record(draft, origin, key, &record.data),
    }
}

fn add(draft: &mut Draft<'_>, origin: &LowerName, key: RrKey, record: &Record) {
    if !may_add(draft, origin, &key, &record.data) {
        return;
    }
    let single = matches!(key.record_type, RecordType::CNAME | RecordType::SOA);
    let mut data = if single {
        Vec::new()
    } else {
        draft
            .get(&key)
            .map_or_else(Vec::new, |set| set.data.clone())
    };
    if !data.contains(&record.data) {
        data.push(record.data.clone());
    }
    draft.put(
        key,
        Some(Rrset {
            ttl: record.ttl,
            data,
        }),
    );
}

fn may_add(draft: &Draft<'_>, origin: &LowerName, key: &RrKey, data: &RData) -> bool {
    let others = || {
        draft
            .types(&key.name)
            .into_iter()
            .filter(|t| *t != key.record_type && !t.is_dnssec())
    };
    match data {
        RData::SOA(new) => {
            let old = draft
                .get(key)
                .and_then(|set| soa_of(set))
                .map(|soa| soa.serial);
            key.name == *origin && old.is_some_and(|old| is_newer(new.serial, old))
        }
        RData::CNAME(_) => others().next().is_none(),
        _ => others().all(|t| t != RecordType::CNAME),
    }
}

fn delete_set(draft: &mut Draft<'_>, origin: &LowerName, key: RrKey) {
    let apex = key.name == *origin && matches!(key.record_type, RecordType::SOA | RecordType::NS);
    if !apex {
        draft.put(key, None);
    }
}

fn delete_record(draft: &mut Draft<'_>, origin: &LowerName, key: RrKey, data: &RData) {
    let Some(set) = draft.get(&key) else { return };
    let mut set = set.as_ref().clone();
    set.data.retain(|have| have != data);
    let last_ns = key.record_type == RecordType::NS && key.name == *origin && set.data.is_empty();
    if key.record_type != RecordType::SOA && !last_ns {
        draft.put(key, Some(set));
    }
}

/// Sets the serial of the zone's SOA.
pub(crate) fn set_serial(draft: &mut Draft<'_>, origin: &LowerName, serial: u32) {
    let key = RrKey::new(origin.clone(), RecordType::SOA);
    let Some(set) = draft.get(&key) else { return };
    let mut set = set.as_ref().clone();
    for data in &mut set.data {
        if let RData::SOA(soa) = data {
            soa.serial = serial;
        }
    }
    draft.put(key, Some(set));
}

/// Serial number arithmetic (RFC 1982 section 3.2).
pub(crate) fn is_newer(new: u32, old: u32) -> bool {
    let ahead = new.wrapping_sub(old);
    ahead != 0 && ahead < 1 << 31
}

/// The serial after `serial`; never 0, which some servers take for "none".
pub(crate) fn next_serial(serial: u32) -> u32 {
    serial.wrapping_add(1).max(1)
}

#[cfg(test)]
mod tests;
