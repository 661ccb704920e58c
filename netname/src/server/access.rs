//! Who asks, and what the key allows.

use hickory_proto::{
    op::ResponseCode::{self, NotAuth, NotZone, Refused},
    rr::{DNSClass, Name, RData, Record, TSigResponseContext, rdata::tsig::TsigError},
};
use hickory_server::server::Request;

use crate::{
    Key, Result, ZoneName,
    config::{Grant, KeyConfig},
    tsig::FUDGE,
};

/// The keys this server knows.
#[derive(Debug)]
pub(crate) struct Access {
    keys: Vec<Holder>,
}

/// A key and what it allows.
#[derive(Debug)]
pub(crate) struct Holder {
    pub(crate) key: Key,
    grants: Vec<Grant>,
    transfer: bool,
}

impl Access {
    pub(crate) fn new(configs: &[KeyConfig]) -> Result<Self> {
        let holder = |config: &KeyConfig| {
            Ok(Holder {
                key: config.key()?,
                grants: config.update.clone(),
                transfer: config.transfer,
            })
        };
        Ok(Self {
            keys: configs.iter().map(holder).collect::<Result<_>>()?,
        })
    }

    pub(crate) fn key(&self, name: &str) -> Option<&Key> {
        self.keys
            .iter()
            .map(|holder| &holder.key)
            .find(|key| key.name().eq_ignore_ascii_case(name.trim_end_matches('.')))
    }

    /// RFC 8945 section 5.2: key, then MAC, then time; the fudge is ours, not the sender's. The
    /// context signs the answer, or tells in it why the request is not believed.
    pub(crate) fn authenticate(
        &self,
        request: &Request,
        now: u64,
    ) -> (Result<&Holder, ResponseCode>, Option<TSigResponseContext>) {
        let Some(tsig) = &request.signature else {
            return (Err(Refused), None);
        };
        let id = request.metadata.id;
        let Some(holder) = self
            .keys
            .iter()
            .find(|holder| *holder.key.signer().signer_name() == tsig.name)
        else {
            return (
                Err(NotAuth),
                Some(TSigResponseContext::unknown_key(id, now, tsig.name.clone())),
            );
        };
        let signer = holder.key.signer().clone();
        // The library subtracts the fudge from the time and adds it again without looking.
        let sane = (u64::from(tsig.data.fudge)..u64::MAX / 2).contains(&tsig.data.time);
        if !sane
            || signer
                .verify_message_byte(request.as_slice(), None, true)
                .is_err()
        {
            return (
                Err(NotAuth),
                Some(TSigResponseContext::bad_signature(id, now, signer)),
            );
        }
        let late = now.abs_diff(tsig.data.time) > u64::from(FUDGE);
        let error = late.then_some(TsigError::BadTime);
        let context = TSigResponseContext::new(id, now, signer, tsig.data.mac.clone(), error);
        (if late { Err(NotAuth) } else { Ok(holder) }, Some(context))
    }
}

impl Holder {
    pub(crate) fn may_transfer(&self) -> bool {
        self.transfer
    }

    /// All changes must be within some grant.
    pub(crate) fn may_update(
        &self,
        zone: &ZoneName,
        updates: &[Record],
    ) -> Result<(), ResponseCode> {
        let allowed = |record: &Record| self.grants.iter().any(|grant| covers(grant, zone, record));
        if updates.iter().any(|record| !zone.holds(&record.name)) {
            return Err(NotZone);
        }
        if !self.grants.is_empty() && updates.iter().all(allowed) {
            Ok(())
        } else {
            Err(Refused)
        }
    }
}

fn covers(grant: &Grant, updated: &ZoneName, record: &Record) -> bool {
    let (pod, zone) = match grant {
        Grant::Subtree(name) => return name.holds(&record.name),
        Grant::Pod { pod, zone } => (pod, zone),
    };
    let Ok(host) = zone.child(pod.as_str()) else {
        return false;
    };
    let labels = relative(zone, &record.name);
    let own = host.zone_of(&record.name) || is_instance(pod.as_str(), &labels);
    own || is_pointer(record, |target| {
        let in_list = is_kind(&labels) && is_instance(pod.as_str(), &relative(zone, target));
        in_list || (updated != zone && *target == host)
    })
}

/// Labels of `name` in front of `zone`; empty outside of it.
fn relative(zone: &ZoneName, name: &Name) -> Vec<String> {
    if !zone.holds(name) {
        return Vec::new();
    }
    let count = usize::from(name.num_labels() - zone.as_name().num_labels());
    name.iter()
        .take(count)
        .map(|label| String::from_utf8_lossy(label).to_ascii_lowercase())
        .collect()
}

/// `web._redis._tcp`.
fn is_instance(pod: &str, labels: &[String]) -> bool {
    labels.len() == 3 && labels[0] == pod && is_kind(&labels[1..])
}

/// `_redis._tcp`.
fn is_kind(labels: &[String]) -> bool {
    labels.len() == 2 && labels[0].starts_with('_') && matches!(labels[1].as_str(), "_tcp" | "_udp")
}

/// One pointer added or removed (never a whole set, which others share) with such a target.
fn is_pointer(record: &Record, target: impl Fn(&Name) -> bool) -> bool {
    let single = matches!(record.dns_class, DNSClass::IN | DNSClass::NONE);
    matches!(&record.data, RData::PTR(ptr) if single && target(&ptr.0))
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{RecordType, rdata::PTR};

    use super::*;
    use crate::{Epoch, Placement, PodName, Proto, Service, directory::Names};

    fn holder(grant: Grant) -> Holder {
        Holder {
            key: Key::generate("k").unwrap(),
            grants: vec![grant],
            transfer: false,
        }
    }

    fn delete(name: &Name, rtype: RecordType) -> Record {
        let mut record = Record::update0(name.clone(), 0, rtype).into_record_of_rdata();
        record.dns_class = DNSClass::ANY;
        record
    }

    #[test]
    fn a_pod_grant_covers_what_a_pod_publishes_and_no_more() {
        let zone = ZoneName::default();
        let holder_of = |pod| {
            holder(Grant::Pod {
                pod: PodName::new(pod).unwrap(),
                zone: zone.clone(),
            })
        };
        let names = Names::new(&zone, &PodName::new("web").unwrap()).unwrap();
        let services = vec![Service::new(Proto::Tcp, 80, "http").unwrap()];
        let placement = Placement {
            addresses: vec!["192.0.2.1".parse().unwrap()],
            services,
            ..Placement::default()
        };
        let mut changes = names.records(&Epoch::first(), &placement, 5).unwrap();
        changes.extend(
            names
                .own_sets(&placement.services)
                .unwrap()
                .iter()
                .map(|(name, rtype)| delete(name, *rtype)),
        );
        assert!(holder_of("web").may_update(&zone, &changes).is_ok());
        for change in changes {
            assert!(
                holder_of("we")
                    .may_update(&zone, std::slice::from_ref(&change))
                    .is_err(),
                "{change}"
            );
        }
        let list = delete(&zone.child("_http._tcp").unwrap(), RecordType::PTR);
        assert!(holder_of("web").may_update(&zone, &[list]).is_err());
    }

    #[test]
    fn reverse_pointers_must_point_to_the_pod() {
        let (zone, reverse) = (ZoneName::default(), ZoneName::new("in-addr.arpa").unwrap());
        let holder = holder(Grant::Pod {
            pod: PodName::new("web").unwrap(),
            zone: zone.clone(),
        });
        let pointer = |target: &str| {
            let data = RData::PTR(PTR(zone.child(target).unwrap()));
            Record::from_rdata(
                Name::from_ascii("1.2.0.192.in-addr.arpa.").unwrap(),
                5,
                data,
            )
        };
        assert!(holder.may_update(&reverse, &[pointer("web")]).is_ok());
        assert!(holder.may_update(&reverse, &[pointer("db")]).is_err());
        assert!(
            holder
                .may_update(&reverse, &[pointer("web"), pointer("db")])
                .is_err()
        );
    }

    #[test]
    fn subtrees_do_not_leak_to_their_neighbours() {
        let holder = holder(Grant::Subtree(ZoneName::new("a.pod.internal").unwrap()));
        let at = |name: &str| [delete(&Name::from_ascii(name).unwrap(), RecordType::A)];
        assert!(
            holder
                .may_update(&ZoneName::default(), &at("x.a.pod.internal."))
                .is_ok()
        );
        for outside in ["xa.pod.internal.", "pod.internal.", "b.pod.internal."] {
            assert!(
                holder
                    .may_update(&ZoneName::default(), &at(outside))
                    .is_err(),
                "{outside}"
            );
        }
    }
}
