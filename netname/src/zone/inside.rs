//! The zone as pods see it: virtual addresses and ports in the place of the real ones, because the
//! virtual endpoint is what a pod connects to and keeps while both ends move.

use std::sync::{Arc, Mutex, PoisonError};

use hickory_proto::rr::{LowerName, Name, RData, Record, RecordType, RrKey, rdata::SRV};

use super::{
    Snapshot,
    records::{Changes, Records, Rrset},
};
use crate::{
    Placement, PodName, Service, ZoneName,
    directory::{Names, parse_placement},
};

/// Makes the view once for each state of the zone.
#[derive(Debug, Default)]
pub(crate) struct Inside {
    made: Mutex<Option<(u32, Arc<Records>)>>,
}

impl Inside {
    pub(crate) fn records(&self, snapshot: &Snapshot, zone: &ZoneName) -> Arc<Records> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        match &*made {
            Some((serial, records)) if *serial == snapshot.serial => records.clone(),
            _ => {
                let records = Arc::new(view(&snapshot.records, zone));
                *made = Some((snapshot.serial, records.clone()));
                records
            }
        }
    }
}

fn view(records: &Records, zone: &ZoneName) -> Records {
    let mut inside = records.clone();
    for (pod, placement) in placements(records, zone) {
        inside.merge(translated(records, zone, &pod, &placement).unwrap_or_default());
    }
    inside
}

/// All pods that see another address than the host's.
fn placements(records: &Records, zone: &ZoneName) -> Vec<(PodName, Placement)> {
    let read = |(key, set): (&RrKey, &Arc<Rrset>)| {
        let name = Name::from(&key.name);
        let mut labels = name.iter();
        let indexed = key.record_type == RecordType::TXT && labels.next() == Some(b"_endpoints");
        let label = labels.next().filter(|_| indexed && zone.holds(&name))?;
        let pod = PodName::new(std::str::from_utf8(label).ok()?).ok()?;
        let placement = parse_placement(&[], &set.data).ok()?;
        placement
            .virtual_address
            .is_some()
            .then_some((pod, placement))
    };
    records.iter().filter_map(read).collect()
}

fn translated(
    records: &Records,
    zone: &ZoneName,
    pod: &PodName,
    placement: &Placement,
) -> Option<Changes> {
    let names = Names::new(zone, pod).ok()?;
    let host = LowerName::new(&names.host);
    let ttl = records.get(&host, RecordType::TXT)?.ttl;
    let address = Record::from_rdata(
        names.host.clone(),
        ttl,
        RData::from(placement.virtual_address?),
    );
    let mut changes = Changes::new();
    for rtype in [RecordType::A, RecordType::AAAA] {
        let data = (address.record_type() == rtype).then(|| vec![address.data.clone()]);
        let set = data.map(|data| Arc::new(Rrset { ttl, data }));
        changes.insert(RrKey::new(host.clone(), rtype), set);
    }
    for service in &placement.services {
        let ports = placement
            .services
            .iter()
            .filter(|other| same_name(service, other));
        let srv = |service: &Service| RData::SRV(SRV::new(0, 0, service.port, names.host.clone()));
        let set = Arc::new(Rrset {
            ttl,
            data: ports.map(srv).collect(),
        });
        for name in names.service_owners(service).ok()? {
            changes.insert(
                RrKey::new(LowerName::new(&name), RecordType::SRV),
                Some(set.clone()),
            );
        }
    }
    Some(changes)
}

fn same_name(one: &Service, other: &Service) -> bool {
    (one.proto, &one.name) == (other.proto, &other.name)
}
