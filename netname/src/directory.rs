//! How a pod stands in the zone. The zone is also the directory: for each listening endpoint that
//! a pod sees it tells the real endpoint.
//!
//! ```text
//! web.ZONE                    TXT "8.3f9a…"                        the epoch, alone in its set
//! web.ZONE                    A, AAAA                              where the pod is now
//! _endpoints.web.ZONE         TXT "tcp/6379" "name=redis" "at=192.0.2.7:16379"
//!                             TXT "virtual=10.77.0.3"              the address the pod itself sees
//! _redis._tcp.web.ZONE        SRV 0 0 16379 web.ZONE               RFC 2782
//! _redis._tcp.ZONE            PTR web._redis._tcp.ZONE             DNS-SD (RFC 6763): browse,
//! web._redis._tcp.ZONE        SRV …, TXT "port=6379"               then resolve
//! 7.2.0.192.in-addr.arpa      PTR web.ZONE
//! ```
//! The epoch is a set of its own, so that "the epoch is still mine" is one value-dependent
//! prerequisite. All names of services follow from the set at `_endpoints`, so that with that set as
//! second prerequisite one update removes exactly what the last one published.

use std::{collections::BTreeSet, net::IpAddr};

use hickory_proto::rr::{
    Name, RData, Record, RecordType,
    rdata::{PTR, SRV, TXT},
};
use serde::{Deserialize, Serialize};

use crate::{Epoch, PodName, Proto, Result, Service, ZoneName};

/// Where a pod can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Real addresses of the pod on its host.
    pub addresses: Vec<IpAddr>,
    /// The address the pod itself sees, where that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_address: Option<IpAddr>,
    /// Endpoints it listens on.
    #[serde(default)]
    pub services: Vec<Service>,
}

/// What the zone says about a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// In whose hands the pod is.
    pub epoch: Epoch,
    /// Where it is.
    #[serde(flatten)]
    pub placement: Placement,
}

impl Placement {
    /// Sorted and without repetitions, or the fault.
    pub(crate) fn checked(&self) -> Result<Self> {
        let mut seen = BTreeSet::new();
        for service in &self.services {
            service.check()?;
            if !seen.insert((service.proto, service.port)) {
                return Err(service.fault("this endpoint is listed twice"));
            }
        }
        let mut placement = self.clone();
        placement.addresses.sort();
        placement.addresses.dedup();
        placement.services.sort();
        Ok(placement)
    }

    /// The real endpoint of a virtual one.
    #[must_use]
    pub fn real(&self, proto: Proto, port: u16) -> Option<std::net::SocketAddr> {
        let service = self
            .services
            .iter()
            .find(|service| service.proto == proto && service.port == port)?;
        service
            .at
            .or_else(|| Some((*self.addresses.first()?, port).into()))
    }
}

/// The names under which a pod publishes.
pub(crate) struct Names {
    zone: ZoneName,
    pod: PodName,
    /// `web.ZONE`.
    pub(crate) host: Name,
    /// `_endpoints.web.ZONE`.
    pub(crate) index: Name,
}

impl Names {
    pub(crate) fn new(zone: &ZoneName, pod: &PodName) -> Result<Self> {
        let (host, index) = (
            zone.child(pod.as_str())?,
            zone.child(&format!("_endpoints.{pod}"))?,
        );
        Ok(Self {
            zone: zone.clone(),
            pod: pod.clone(),
            host,
            index,
        })
    }

    fn of(&self, service: &Service) -> Result<ServiceNames> {
        let kind = format!("_{}._{}", service.name, service.proto);
        Ok(ServiceNames {
            direct: self.zone.child(&format!("{kind}.{}", self.pod))?,
            instance: self.zone.child(&format!("{}.{kind}", self.pod))?,
            kind: self.zone.child(&kind)?,
        })
    }

    /// All records of a pod at `epoch`.
    pub(crate) fn records(
        &self,
        epoch: &Epoch,
        placement: &Placement,
        ttl: u32,
    ) -> Result<Vec<Record>> {
        let mut records = vec![Record::from_rdata(
            self.host.clone(),
            ttl,
            epoch_data(epoch),
        )];
        let address =
            |addr: &IpAddr| Record::from_rdata(self.host.clone(), ttl, RData::from(*addr));
        records.extend(placement.addresses.iter().map(address));
        let index = |data| Record::from_rdata(self.index.clone(), ttl, data);
        records.extend(index_data(placement).into_iter().map(index));
        for service in &placement.services {
            records.extend(self.service_records(service, ttl)?);
        }
        Ok(records)
    }

    fn service_records(&self, service: &Service, ttl: u32) -> Result<[Record; 4]> {
        let names = self.of(service)?;
        let srv = || RData::SRV(SRV::new(0, 0, service.real_port(), self.host.clone()));
        let txt = RData::TXT(TXT::new(vec![format!("port={}", service.port)]));
        Ok([
            Record::from_rdata(names.direct, ttl, srv()),
            Record::from_rdata(names.instance.clone(), ttl, srv()),
            Record::from_rdata(names.instance.clone(), ttl, txt),
            Record::from_rdata(names.kind, ttl, RData::PTR(PTR(names.instance))),
        ])
    }

    /// Owners of the SRV sets of a service.
    pub(crate) fn service_owners(&self, service: &Service) -> Result<[Name; 2]> {
        let names = self.of(service)?;
        Ok([names.direct, names.instance])
    }

    /// Sets that hold nothing but this pod's own records, given the services it has.
    pub(crate) fn own_sets(&self, services: &[Service]) -> Result<BTreeSet<(Name, RecordType)>> {
        let mut sets = BTreeSet::new();
        for rtype in [RecordType::A, RecordType::AAAA, RecordType::TXT] {
            sets.insert((self.host.clone(), rtype));
        }
        sets.insert((self.index.clone(), RecordType::TXT));
        for service in services {
            let names = self.of(service)?;
            sets.insert((names.direct, RecordType::SRV));
            sets.insert((names.instance.clone(), RecordType::SRV));
            sets.insert((names.instance, RecordType::TXT));
        }
        Ok(sets)
    }

    /// This pod's records in sets shared with other pods.
    pub(crate) fn shared_records(&self, services: &[Service]) -> Result<Vec<Record>> {
        let pointer = |service| {
            let names = self.of(service)?;
            Ok(Record::from_rdata(
                names.kind,
                0,
                RData::PTR(PTR(names.instance)),
            ))
        };
        services.iter().map(pointer).collect()
    }
}

struct ServiceNames {
    direct: Name,
    instance: Name,
    kind: Name,
}

/// The record data that holds `epoch`.
pub(crate) fn epoch_data(epoch: &Epoch) -> RData {
    RData::TXT(TXT::new(vec![epoch.to_string()]))
}

/// The set at `_endpoints`.
fn index_data(placement: &Placement) -> Vec<RData> {
    let text = |strings| RData::TXT(TXT::new(strings));
    let address = placement
        .virtual_address
        .iter()
        .map(|addr| text(vec![format!("virtual={addr}")]));
    let service = |service: &Service| {
        let mut strings = vec![
            format!("{}/{}", service.proto, service.port),
            format!("name={}", service.name),
        ];
        strings.extend(service.at.map(|at| format!("at={at}")));
        text(strings)
    };
    address
        .chain(placement.services.iter().map(service))
        .collect()
}

fn strings(data: &RData) -> Option<Vec<&str>> {
    let RData::TXT(txt) = data else { return None };
    txt.txt_data
        .iter()
        .map(|bytes| std::str::from_utf8(bytes).ok())
        .collect()
}

/// The epoch in the TXT set of a pod's name; `Err` tells what else is there.
pub(crate) fn parse_epoch(set: &[RData]) -> Result<Epoch, String> {
    let [data] = set else {
        return Err(format!(
            "{} TXT records where one epoch should be",
            set.len()
        ));
    };
    let texts = strings(data).unwrap_or_default();
    let [text] = texts[..] else {
        return Err(format!("TXT {data} is no epoch"));
    };
    text.parse().map_err(|e: crate::Error| e.to_string())
}

/// The placement from the sets of a pod's names.
pub(crate) fn parse_placement(addresses: &[RData], index: &[RData]) -> Result<Placement, String> {
    let mut placement = Placement {
        addresses: addresses.iter().filter_map(address_of).collect(),
        ..Placement::default()
    };
    for data in index {
        let texts = strings(data).unwrap_or_default();
        parse_index(&texts, &mut placement).ok_or_else(|| format!("TXT {data} is no endpoint"))?;
    }
    placement.addresses.sort();
    placement.services.sort();
    Ok(placement)
}

fn address_of(data: &RData) -> Option<IpAddr> {
    match data {
        RData::A(a) => Some(a.0.into()),
        RData::AAAA(aaaa) => Some(aaaa.0.into()),
        _ => None,
    }
}

fn parse_index(texts: &[&str], placement: &mut Placement) -> Option<()> {
    let value = |key: &str| texts.iter().find_map(|text| text.strip_prefix(key));
    if let Some(addr) = value("virtual=") {
        placement.virtual_address = Some(addr.parse().ok()?);
        return Some(());
    }
    let (proto, port) = texts.first()?.split_once('/')?;
    let service = Service {
        proto: proto.parse().ok()?,
        port: port.parse().ok()?,
        name: value("name=")?.to_owned(),
        at: value("at=").map(str::parse).transpose().ok()?,
    };
    service.check().ok()?;
    placement.services.push(service);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placement() -> Placement {
        Placement {
            addresses: vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
            virtual_address: Some("10.77.0.3".parse().unwrap()),
            services: vec![
                Service::new(Proto::Tcp, 6379, "redis")
                    .unwrap()
                    .at("192.0.2.7:16379".parse().unwrap()),
                Service::new(Proto::Udp, 53, "domain").unwrap(),
            ],
        }
    }

    fn set(records: &[Record], name: &Name, rtypes: &[RecordType]) -> Vec<RData> {
        let here = |r: &&Record| r.name == *name && rtypes.contains(&r.record_type());
        records
            .iter()
            .filter(here)
            .map(|r| r.data.clone())
            .collect()
    }

    #[test]
    fn a_pod_reads_back_from_its_records() {
        let names = Names::new(&ZoneName::default(), &PodName::new("web").unwrap()).unwrap();
        let epoch = Epoch::first();
        let records = names.records(&epoch, &placement(), 5).unwrap();
        let addresses = set(&records, &names.host, &[RecordType::A, RecordType::AAAA]);
        let index = set(&records, &names.index, &[RecordType::TXT]);
        assert_eq!(
            parse_epoch(&set(&records, &names.host, &[RecordType::TXT])).unwrap(),
            epoch
        );
        assert_eq!(
            parse_placement(&addresses, &index).unwrap(),
            placement().checked().unwrap()
        );
    }

    #[test]
    fn every_record_is_in_a_set_that_goes_or_shared() {
        let names = Names::new(&ZoneName::default(), &PodName::new("web").unwrap()).unwrap();
        let placement = placement();
        let own = names.own_sets(&placement.services).unwrap();
        let shared = names.shared_records(&placement.services).unwrap();
        for record in names.records(&Epoch::first(), &placement, 5).unwrap() {
            let in_own = own.contains(&(record.name.clone(), record.record_type()));
            let in_shared = shared
                .iter()
                .any(|s| s.name == record.name && s.data == record.data);
            assert!(in_own != in_shared, "{record}");
        }
    }

    #[test]
    fn virtual_endpoints_are_translated() {
        let placement = placement();
        assert_eq!(
            placement.real(Proto::Tcp, 6379),
            Some("192.0.2.7:16379".parse().unwrap())
        );
        assert_eq!(
            placement.real(Proto::Udp, 53),
            Some("192.0.2.7:53".parse().unwrap())
        );
        assert_eq!(placement.real(Proto::Tcp, 80), None);
    }

    #[test]
    fn repeated_endpoints_are_refused() {
        let mut twice = placement();
        twice
            .services
            .push(Service::new(Proto::Tcp, 6379, "other").unwrap());
        assert!(twice.checked().is_err());
    }
}
