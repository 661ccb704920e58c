//! Questions to a small zone.

use hickory_proto::rr::rdata::{A, CNAME, NS, SRV, TXT};

use super::*;

fn name(text: &str) -> Name {
    Name::from_ascii(format!("{text}.pod.internal.")).unwrap()
}

fn records() -> Records {
    let mut records = Records::default();
    let mut add = |owner: &str, data| records.insert(Record::from_rdata(name(owner), 5, data));
    add("web", RData::A(A::new(192, 0, 2, 1)));
    add("www", RData::CNAME(CNAME(name("web"))));
    add("loop", RData::CNAME(CNAME(name("loop2"))));
    add("loop2", RData::CNAME(CNAME(name("loop"))));
    add(
        "out",
        RData::CNAME(CNAME(Name::from_ascii("example.org.").unwrap())),
    );
    add("dangling", RData::CNAME(CNAME(name("none"))));
    add(
        "_redis._tcp.web",
        RData::SRV(SRV::new(0, 0, 6379, name("web"))),
    );
    add("*.wild", RData::TXT(TXT::new(vec!["any".to_owned()])));
    add(
        "deep.real.wild",
        RData::TXT(TXT::new(vec!["deep".to_owned()])),
    );
    add(
        "sub",
        RData::NS(NS(Name::from_ascii("ns.example.org.").unwrap())),
    );
    records
}

fn ask(owner: &str, rtype: RecordType) -> Result<Vec<String>, bool> {
    let origin = LowerName::new(&Name::from_ascii("pod.internal.").unwrap());
    match answer(&records(), &origin, &LowerName::new(&name(owner)), rtype) {
        Ok(found) => Ok(found
            .records
            .iter()
            .map(|r| format!("{} {}", r.name, r.record_type()))
            .collect()),
        Err(error) => Err(error.is_nx_domain()),
    }
}

const NO_DATA: Result<Vec<String>, bool> = Err(false);
const NO_NAME: Result<Vec<String>, bool> = Err(true);

fn yes(records: &[&str]) -> Result<Vec<String>, bool> {
    Ok(records.iter().map(ToString::to_string).collect())
}

#[test]
fn there_are_two_kinds_of_no() {
    assert_eq!(ask("web", RecordType::AAAA), NO_DATA);
    assert_eq!(ask("none", RecordType::A), NO_NAME);
    assert_eq!(
        ask("_tcp.web", RecordType::A),
        NO_DATA,
        "an empty name between others exists"
    );
    assert_eq!(ask("b.web", RecordType::A), NO_NAME);
}

#[test]
fn aliases_are_followed_within_the_zone_and_not_forever() {
    assert_eq!(
        ask("www", RecordType::A),
        yes(&["www.pod.internal. CNAME", "web.pod.internal. A"])
    );
    assert_eq!(
        ask("www", RecordType::CNAME),
        yes(&["www.pod.internal. CNAME"])
    );
    assert_eq!(ask("out", RecordType::A), yes(&["out.pod.internal. CNAME"]));
    assert_eq!(
        ask("dangling", RecordType::A),
        yes(&["dangling.pod.internal. CNAME"])
    );
    assert_eq!(ask("loop", RecordType::A).unwrap().len(), MAX_CHAIN);
}

#[test]
fn wildcards_answer_for_what_does_not_exist() {
    assert_eq!(
        ask("x.wild", RecordType::TXT),
        yes(&["x.wild.pod.internal. TXT"])
    );
    assert_eq!(
        ask("y.x.wild", RecordType::TXT),
        yes(&["y.x.wild.pod.internal. TXT"])
    );
    assert_eq!(ask("x.wild", RecordType::A), NO_DATA);
    assert_eq!(
        ask("real.wild", RecordType::TXT),
        NO_DATA,
        "it exists, empty"
    );
    assert_eq!(
        ask("x.real.wild", RecordType::TXT),
        NO_NAME,
        "its closest encloser has no wildcard"
    );
}

#[test]
fn a_delegation_is_a_referral() {
    assert_eq!(ask("x.sub", RecordType::A), yes(&["sub.pod.internal. NS"]));
}

#[test]
fn the_targets_address_comes_along() {
    let origin = LowerName::new(&Name::from_ascii("pod.internal.").unwrap());
    let found = answer(
        &records(),
        &origin,
        &LowerName::new(&name("_redis._tcp.web")),
        RecordType::SRV,
    )
    .unwrap();
    assert_eq!(
        found.additionals,
        vec![Record::from_rdata(
            name("web"),
            5,
            RData::A(A::new(192, 0, 2, 1))
        )]
    );
}
