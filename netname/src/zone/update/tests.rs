//! RFC 2136, rule by rule.

use hickory_proto::rr::{
    Name,
    rdata::{A, CNAME, NS, SOA, TXT},
};

use super::*;
use crate::zone::records::Records;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn origin() -> LowerName {
    LowerName::new(&name("pod.internal."))
}

fn record(owner: &str, data: RData) -> Record {
    Record::from_rdata(name(owner), 5, data)
}

fn a(owner: &str, last: u8) -> Record {
    record(owner, RData::A(A::new(192, 0, 2, last)))
}

fn txt(owner: &str, text: &str) -> Record {
    record(owner, RData::TXT(TXT::new(vec![text.to_owned()])))
}

fn ns(owner: &str, target: &str) -> Record {
    record(owner, RData::NS(NS(name(target))))
}

fn soa(serial: u32) -> Record {
    let soa = SOA::new(
        name("ns.pod.internal."),
        name("h.pod.internal."),
        serial,
        30,
        10,
        600,
        5,
    );
    record("pod.internal.", RData::SOA(soa))
}

fn cname(owner: &str, target: &str) -> Record {
    record(owner, RData::CNAME(CNAME(name(target))))
}

fn zone() -> Records {
    let mut records = Records::default();
    let seed = [
        soa(7),
        ns("pod.internal.", "ns.pod.internal."),
        a("web.pod.internal.", 1),
        a("web.pod.internal.", 2),
    ];
    for record in seed.into_iter().chain([
        txt("web.pod.internal.", "7"),
        cname("www.pod.internal.", "web.pod.internal."),
    ]) {
        records.insert(record);
    }
    records
}

/// As a prerequisite or deletion: class changed, TTL 0.
fn classed(mut record: Record, class: DNSClass) -> Record {
    (record.ttl, record.dns_class) = (0, class);
    record
}

fn bare(owner: &str, rtype: RecordType, class: DNSClass) -> Record {
    classed(
        Record::update0(name(owner), 0, rtype).into_record_of_rdata(),
        class,
    )
}

fn check(prerequisites: &[Record]) -> Result<(), ResponseCode> {
    check_prerequisites(&Draft::new(&zone()), &origin(), prerequisites)
}

fn after(changes: &[Record]) -> Records {
    let mut records = zone();
    prescan(&origin(), changes).unwrap();
    let mut draft = Draft::new(&records);
    for change in changes {
        apply(&mut draft, &origin(), change);
    }
    let changes = draft.into_changes();
    records.merge(changes);
    records
}

#[test]
fn prerequisites_tell_names_and_sets_apart() {
    use RecordType::{A, AAAA, ANY};
    let (web, none) = ("web.pod.internal.", "none.pod.internal.");
    assert_eq!(
        check(&[
            bare(web, ANY, DNSClass::ANY),
            bare(none, ANY, DNSClass::NONE)
        ]),
        Ok(())
    );
    assert_eq!(check(&[bare(none, ANY, DNSClass::ANY)]), Err(NXDomain));
    assert_eq!(check(&[bare(web, ANY, DNSClass::NONE)]), Err(YXDomain));
    assert_eq!(
        check(&[bare(web, A, DNSClass::ANY), bare(web, AAAA, DNSClass::NONE)]),
        Ok(())
    );
    assert_eq!(check(&[bare(web, AAAA, DNSClass::ANY)]), Err(NXRRSet));
    assert_eq!(check(&[bare(web, A, DNSClass::NONE)]), Err(YXRRSet));
    // Names above a pod's records have none themselves.
    assert_eq!(
        check(&[bare("b.none.pod.internal.", ANY, DNSClass::NONE)]),
        Ok(())
    );
}

#[test]
fn a_value_dependent_set_is_equal_or_not() {
    let want = |records: &[Record]| {
        let records: Vec<_> = records
            .iter()
            .cloned()
            .map(|r| classed(r, DNSClass::IN))
            .collect();
        check(&records)
    };
    let web = |last| a("WEB.pod.internal.", last);
    assert_eq!(want(&[web(2), web(1)]), Ok(()));
    assert_eq!(want(&[web(1)]), Err(NXRRSet), "a subset");
    assert_eq!(want(&[web(1), web(2), web(3)]), Err(NXRRSet), "a superset");
    assert_eq!(want(&[web(1), web(3)]), Err(NXRRSet));
    assert_eq!(want(&[a("none.pod.internal.", 1)]), Err(NXRRSet));
}

#[test]
fn malformed_prerequisites_and_changes_are_told_apart_from_false_ones() {
    let web = "web.pod.internal.";
    assert_eq!(check(&[a(web, 1)]), Err(FormErr), "a TTL");
    assert_eq!(
        check(&[classed(a("web.example.", 1), DNSClass::IN)]),
        Err(NotZone)
    );
    assert_eq!(
        check(&[classed(a(web, 1), DNSClass::ANY)]),
        Err(FormErr),
        "data where none may be"
    );
    assert_eq!(
        check(&[bare(web, RecordType::A, DNSClass::IN)]),
        Err(FormErr),
        "no data"
    );
    assert_eq!(
        check(&[bare(web, RecordType::A, DNSClass::CH)]),
        Err(FormErr)
    );
    let scan = |record: Record| prescan(&origin(), &[record]);
    assert_eq!(scan(a("web.example.", 1)), Err(NotZone));
    assert_eq!(scan(bare(web, RecordType::A, DNSClass::IN)), Err(FormErr));
    assert_eq!(
        scan(bare(web, RecordType::AXFR, DNSClass::ANY)),
        Err(FormErr)
    );
    assert_eq!(
        scan(bare(web, RecordType::ANY, DNSClass::NONE)),
        Err(FormErr)
    );
    assert_eq!(scan(classed(a(web, 1), DNSClass::CH)), Err(FormErr));
    assert_eq!(scan(ns(web, "ns.example.")), Err(Refused), "a delegation");
    assert_eq!(scan(bare(web, RecordType::ANY, DNSClass::ANY)), Ok(()));
}

#[test]
fn the_apex_keeps_its_soa_and_its_last_ns() {
    let apex = "pod.internal.";
    let kept = [
        bare(apex, RecordType::ANY, DNSClass::ANY),
        bare(apex, RecordType::SOA, DNSClass::ANY),
        bare(apex, RecordType::NS, DNSClass::ANY),
        classed(soa(7), DNSClass::NONE),
        classed(ns(apex, "ns.pod.internal."), DNSClass::NONE),
    ];
    for change in kept {
        assert_eq!(after(std::slice::from_ref(&change)), zone(), "{change}");
    }
    let swap = [
        ns(apex, "ns2.pod.internal."),
        classed(ns(apex, "ns.pod.internal."), DNSClass::NONE),
    ];
    let left = after(&swap)
        .get(&origin(), RecordType::NS)
        .unwrap()
        .data
        .clone();
    assert_eq!(left, vec![RData::NS(NS(name("ns2.pod.internal.")))]);
}

#[test]
fn a_cname_is_alone() {
    assert_eq!(
        after(&[cname("web.pod.internal.", "x.pod.internal.")]),
        zone()
    );
    assert_eq!(after(&[a("www.pod.internal.", 9)]), zone());
    let www = LowerName::new(&name("www.pod.internal."));
    let replaced = after(&[cname("www.pod.internal.", "x.pod.internal.")]);
    assert_eq!(
        replaced.get(&www, RecordType::CNAME).unwrap().data,
        vec![RData::CNAME(CNAME(name("x.pod.internal.")))]
    );
}

#[test]
fn changes_are_applied_in_their_order_and_repeat_nothing() {
    let web = "web.pod.internal.";
    let moved = after(&[
        bare(web, RecordType::A, DNSClass::ANY),
        a(web, 9),
        a(web, 9),
    ]);
    let set = moved
        .get(&LowerName::new(&name(web)), RecordType::A)
        .unwrap();
    assert_eq!(set.data, vec![RData::A(A::new(192, 0, 2, 9))]);
    let gone = after(&[a(web, 9), bare(web, RecordType::ANY, DNSClass::ANY)]);
    assert!(!gone.exists(&LowerName::new(&name(web))));
    let one_less = after(&[
        classed(a(web, 1), DNSClass::NONE),
        classed(a(web, 77), DNSClass::NONE),
    ]);
    assert_eq!(
        one_less
            .get(&LowerName::new(&name(web)), RecordType::A)
            .unwrap()
            .data
            .len(),
        1
    );
    let mut slow = a(web, 1);
    slow.ttl = 60;
    assert_eq!(
        after(&[slow])
            .get(&LowerName::new(&name(web)), RecordType::A)
            .unwrap()
            .ttl,
        60
    );
}

#[test]
fn a_soa_is_taken_only_if_newer() {
    let serial = |records: &Records| records.soa(&origin()).unwrap().serial;
    assert_eq!(serial(&after(&[soa(9)])), 9);
    assert_eq!(serial(&after(&[soa(7)])), 7);
    assert_eq!(serial(&after(&[soa(6)])), 7);
}

#[test]
fn serials_wrap_around() {
    assert!(is_newer(1, u32::MAX) && !is_newer(u32::MAX, 1) && !is_newer(5, 5));
    assert_eq!((next_serial(u32::MAX), next_serial(4)), (1, 5));
}
