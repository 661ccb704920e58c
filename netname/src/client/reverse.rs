//! Pointers from addresses back to names. They live in other zones, and one update changes one zone,
//! so they follow the commit and decide nothing. Several pods may have one address: only a pod's own
//! pointer is added or removed, never the set.
//!
//! A slow mover must not leave a pointer that a faster later one has already cleaned away: pointers
//! are made for what stands in the zone, and if that is something else afterwards, once more for that.

use std::net::IpAddr;

use hickory_proto::{
    op::ResponseCode,
    rr::{Name, RData, Record, rdata::PTR},
};

use super::{message::Update, updater::Updater};
use crate::{Error, PodName, Result, ZoneName, directory::Names};

/// As often as the pod may move on while its pointers are made.
const ROUNDS: usize = 8;

/// Points the pod's addresses back to it, and those of `before` that it no longer has to nothing.
pub(crate) fn update(updater: &Updater, pod: &PodName, before: &[IpAddr]) -> Result<()> {
    let names = updater.names(pod)?;
    let mut before = before.to_vec();
    let mut stands = updater.lookup(pod)?;
    for _ in 0..ROUNDS {
        let now = stands
            .as_ref()
            .map_or(&[][..], |entry| &entry.placement.addresses);
        for zone in &updater.authority().reverse {
            let old = before.iter().filter(|addr| !now.contains(addr));
            send(
                updater,
                zone,
                pod,
                pointers(zone, &names, old),
                pointers(zone, &names, now),
            )?;
        }
        let after = updater.lookup(pod)?;
        if after == stands {
            return Ok(());
        }
        before = now.to_vec();
        stands = after;
    }
    Err(Error::Unsteady {
        server: updater.authority().server,
        name: pod.to_string(),
    })
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
    pod: &PodName,
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
    let mut session = updater.session("point addresses to", pod)?;
    let text = zone.to_string();
    let step = session.step("update", &text);
    let answer = session.exchange(update.into_message(), step)?;
    match answer.metadata.response_code {
        ResponseCode::NoError => Ok(()),
        code => Err(step.refused(code)),
    }
}
