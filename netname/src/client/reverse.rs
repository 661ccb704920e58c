//! Pointers from addresses back to names. They live in other zones, and one update changes one zone,
//! so they follow the commit and decide nothing. Several pods may have one address: only a pod's own
//! pointer is added or removed, never the set.
//!
//! A slow mover must not leave a pointer that a faster later one has already cleaned away: after
//! adding, the epoch is read again, and if it is no longer this one, what was added is removed.

use std::net::IpAddr;

use hickory_proto::{
    op::ResponseCode,
    rr::{Name, RData, Record, rdata::PTR},
};

use super::{
    message::Update,
    updater::{Change, Updater},
};
use crate::{Result, ZoneName, directory::Names};

/// Removes pointers from `before` and adds those to the new addresses.
pub(crate) fn update(updater: &Updater, change: &Change, before: &[IpAddr]) -> Result<()> {
    if updater.authority().reverse.is_empty() {
        return Ok(());
    }
    let names = updater.names(&change.pod)?;
    let after = change
        .to
        .as_ref()
        .map_or(&[][..], |entry| &entry.placement.addresses);
    for zone in &updater.authority().reverse {
        let old = before.iter().filter(|addr| !after.contains(addr));
        send(
            updater,
            zone,
            change,
            pointers(zone, &names, old),
            pointers(zone, &names, after),
        )?;
    }
    let current = updater.lookup(&change.pod)?;
    let overtaken = change.to.is_some()
        && current.as_ref().map(|entry| entry.epoch) != change.to.as_ref().map(|entry| entry.epoch);
    if overtaken {
        let stands = current.map_or_else(Vec::new, |entry| entry.placement.addresses);
        for zone in &updater.authority().reverse {
            let stale = after.iter().filter(|addr| !stands.contains(addr));
            send(
                updater,
                zone,
                change,
                pointers(zone, &names, stale),
                Vec::new(),
            )?;
        }
    }
    Ok(())
}

fn pointers<'a>(
    zone: &ZoneName,
    names: &Names,
    addresses: impl IntoIterator<Item = &'a IpAddr>,
) -> Vec<Record> {
    let owners = addresses
        .into_iter()
        .map(|addr| Name::from(*addr))
        .filter(|name| zone.holds(name));
    owners
        .map(|owner| Record::from_rdata(owner, 0, RData::PTR(PTR(names.host.clone()))))
        .collect()
}

fn send(
    updater: &Updater,
    zone: &ZoneName,
    change: &Change,
    remove: Vec<Record>,
    add: Vec<Record>,
) -> Result<()> {
    if remove.is_empty() && add.is_empty() {
        return Ok(());
    }
    let ttl = updater.authority().ttl;
    let update = remove.into_iter().fold(Update::of(zone), Update::delete);
    let update = update.add(add.into_iter().map(|mut record| {
        record.ttl = ttl;
        record
    }));
    let mut session = updater.session("point addresses to", &change.pod)?;
    let text = zone.to_string();
    let step = session.step("update", &text);
    let answer = session.exchange(update.into_message(), step)?;
    match answer.metadata.response_code {
        ResponseCode::NoError => Ok(()),
        code => Err(step.refused(code)),
    }
}
