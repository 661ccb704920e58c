//! What the zone answers to a question: exact names, CNAME chains, wildcards, referrals, and the two
//! kinds of "no" (RFC 1034 section 4.3.2, RFC 2308, RFC 4592).

use std::sync::Arc;

use async_trait::async_trait;
use hickory_proto::{
    op::ResponseCode,
    rr::{LowerName, Name, RData, Record, RecordType, TSigResponseContext},
};
use hickory_server::{
    dnssec::NxProofKind,
    server::{Request, RequestInfo},
    zone_handler::{
        AuthLookup, AxfrPolicy, LookupControlFlow, LookupError, LookupOptions, LookupRecords,
        Nsec3QueryInfo, ZoneHandler, ZoneType,
    },
};

use super::{Zone, inside::Inside, records::Records};
use crate::{config::Role, server::access::Access, tsig::unix_now};

/// A chain of CNAMEs longer than this is cut.
const MAX_CHAIN: usize = 8;

/// The records that answer a question.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) records: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
}

/// Looks `name` up in the zone `origin`.
pub(crate) fn answer(
    records: &Records,
    origin: &LowerName,
    name: &LowerName,
    rtype: RecordType,
) -> Result<Answer, LookupError> {
    let mut found = Answer::default();
    let mut next = name.clone();
    for _ in 0..MAX_CHAIN {
        match step(records, origin, &next, rtype) {
            Step::Alias(record, target) => {
                found.records.push(*record);
                next = target;
            }
            Step::Records(more) => {
                found.records.extend(more);
                break;
            }
            Step::Nothing if found.records.is_empty() => return Err(LookupError::NameExists),
            Step::NoName if found.records.is_empty() => return Err(ResponseCode::NXDomain.into()),
            Step::Nothing | Step::NoName | Step::Elsewhere => break,
        }
    }
    found.additionals = additionals(records, &found.records);
    Ok(found)
}

enum Step {
    Records(Vec<Record>),
    Alias(Box<Record>, LowerName),
    Nothing,
    NoName,
    Elsewhere,
}

fn step(records: &Records, origin: &LowerName, name: &LowerName, rtype: RecordType) -> Step {
    if !origin.zone_of(name) {
        return Step::Elsewhere;
    }
    if let Some(referral) = referral(records, origin, name, rtype) {
        return Step::Records(referral);
    }
    if records.exists(name) {
        return at(records, name, &Name::from(name), rtype);
    }
    match wildcard(records, origin, name) {
        Some(source) => at(records, &source, &Name::from(name), rtype),
        None => Step::NoName,
    }
}

/// What the sets at `source` say, under the owner name `owner`.
fn at(records: &Records, source: &LowerName, owner: &Name, rtype: RecordType) -> Step {
    if rtype == RecordType::ANY {
        let all: Vec<Record> = records
            .at(source)
            .flat_map(|(_, set)| set.records(owner))
            .collect();
        return if all.is_empty() {
            Step::Nothing
        } else {
            Step::Records(all)
        };
    }
    if let Some(set) = records.get(source, rtype) {
        return Step::Records(set.records(owner).collect());
    }
    let alias = records
        .get(source, RecordType::CNAME)
        .and_then(|set| set.records(owner).next());
    match alias {
        Some(record) => match &record.data {
            RData::CNAME(target) => {
                let target = LowerName::new(&target.0);
                Step::Alias(Box::new(record), target)
            }
            _ => Step::Nothing,
        },
        None => Step::Nothing,
    }
}

/// The wildcard below the closest encloser of a name that does not exist (RFC 4592 section 3.3.1).
fn wildcard(records: &Records, origin: &LowerName, name: &LowerName) -> Option<LowerName> {
    let mut encloser = name.base_name();
    while !records.exists(&encloser) && encloser != *origin {
        encloser = encloser.base_name();
    }
    let source = LowerName::new(&Name::from(&encloser).prepend_label("*").ok()?);
    records.exists(&source).then_some(source)
}

/// NS records between the apex and `name` (a secondary may be given some): the answer is there.
fn referral(
    records: &Records,
    origin: &LowerName,
    name: &LowerName,
    rtype: RecordType,
) -> Option<Vec<Record>> {
    let mut cut = name.clone();
    let mut found = None;
    while cut != *origin && !cut.is_root() {
        if let Some(set) = records.get(&cut, RecordType::NS) {
            found = Some(set.records(&Name::from(&cut)).collect());
        }
        cut = cut.base_name();
    }
    found.filter(|_| rtype != RecordType::NS && rtype != RecordType::ANY)
}

/// Addresses of the targets named in `answers`, which a client will ask for next.
fn additionals(records: &Records, answers: &[Record]) -> Vec<Record> {
    let mut more = Vec::new();
    for answer in answers {
        let target = match &answer.data {
            RData::SRV(srv) => &srv.target,
            RData::NS(ns) => &ns.0,
            _ => continue,
        };
        let name = LowerName::new(target);
        for rtype in [RecordType::A, RecordType::AAAA] {
            more.extend(
                records
                    .get(&name, rtype)
                    .into_iter()
                    .flat_map(|set| set.records(target)),
            );
        }
    }
    more.dedup();
    more
}

/// A zone as hickory's catalog sees it: it turns questions into lookups and updates into commits.
pub(crate) struct Handler {
    pub(crate) zone: Arc<Zone>,
    pub(crate) access: Arc<Access>,
    /// Where pods ask.
    pub(crate) inside: Option<Inside>,
}

impl Handler {
    fn find(&self, name: &LowerName, rtype: RecordType) -> LookupControlFlow<AuthLookup> {
        if !self.zone.is_good() {
            // hickory turns other errors into "no such record": a stale copy must not say that.
            return LookupControlFlow::Break(Err(ResponseCode::Refused.into()));
        }
        let snapshot = self.zone.snapshot();
        let origin = self.zone.origin();
        let found = match &self.inside {
            Some(inside) => answer(
                &inside.records(&snapshot, self.zone.name()),
                origin,
                name,
                rtype,
            ),
            None => answer(&snapshot.records, origin, name, rtype),
        };
        let found = found.map(|found| {
            let more = LookupRecords::Section(found.additionals);
            AuthLookup::answers(LookupRecords::Section(found.records), Some(more))
        });
        LookupControlFlow::Break(found)
    }
}

#[async_trait]
impl ZoneHandler for Handler {
    fn zone_type(&self) -> ZoneType {
        match self.zone.role() {
            Role::Primary { .. } => ZoneType::Primary,
            Role::Secondary { .. } => ZoneType::Secondary,
        }
    }

    fn axfr_policy(&self) -> AxfrPolicy {
        AxfrPolicy::AllowSigned
    }

    fn origin(&self) -> &LowerName {
        self.zone.origin()
    }

    fn nx_proof_kind(&self) -> Option<&NxProofKind> {
        None
    }

    /// The commit runs on a thread of its own: it blocks on the disk, and it is not undone when the
    /// client hangs up.
    async fn update(
        &self,
        request: &Request,
        now: u64,
    ) -> (Result<bool, ResponseCode>, Option<TSigResponseContext>) {
        let (key, context) = self.access.authenticate(request, now);
        let allowed = key.and_then(|key| key.may_update(self.zone.name(), &request.authorities));
        if let Err(code) = allowed {
            return (Err(code), context);
        }
        let (zone, prerequisites, updates) = (
            self.zone.clone(),
            request.answers.clone(),
            request.authorities.clone(),
        );
        let commit = tokio::task::spawn_blocking(move || zone.update(&prerequisites, &updates));
        let result = commit.await.unwrap_or(Err(ResponseCode::ServFail));
        (result.map(|()| true), context)
    }

    async fn lookup(
        &self,
        name: &LowerName,
        rtype: RecordType,
        _: Option<&RequestInfo<'_>>,
        _: LookupOptions,
    ) -> LookupControlFlow<AuthLookup> {
        self.find(name, rtype)
    }

    async fn search(
        &self,
        request: &Request,
        _: LookupOptions,
    ) -> (LookupControlFlow<AuthLookup>, Option<TSigResponseContext>) {
        let Ok(info) = request.request_info() else {
            return (
                LookupControlFlow::Break(Err(ResponseCode::FormErr.into())),
                None,
            );
        };
        let found = || self.find(info.query.name(), info.query.query_type());
        if request.signature.is_none() {
            return (found(), None);
        }
        match self.access.authenticate(request, unix_now()) {
            (Ok(_), context) => (found(), context),
            (Err(code), context) => (LookupControlFlow::Break(Err(code.into())), context),
        }
    }

    async fn nsec_records(&self, _: &LowerName, _: LookupOptions) -> LookupControlFlow<AuthLookup> {
        LookupControlFlow::Break(Ok(AuthLookup::default()))
    }

    async fn nsec3_records(
        &self,
        _: Nsec3QueryInfo<'_>,
        _: LookupOptions,
    ) -> LookupControlFlow<AuthLookup> {
        LookupControlFlow::Break(Ok(AuthLookup::default()))
    }
}

#[cfg(test)]
mod tests;
