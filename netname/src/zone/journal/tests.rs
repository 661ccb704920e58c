//! A journal that is torn, damaged, compacted and shared.

use std::sync::Arc;

use hickory_proto::rr::{LowerName, Name, RData, Record, RecordType, RrKey, rdata::TXT};

use super::*;
use crate::zone::records::Rrset;

fn text(value: usize) -> RData {
    RData::TXT(TXT::new(vec![format!("value {value}")]))
}

fn key() -> RrKey {
    RrKey::new(
        LowerName::new(&Name::from_ascii("web.pod.internal.").unwrap()),
        RecordType::TXT,
    )
}

fn change(value: usize) -> Changes {
    let set = (!value.is_multiple_of(3)).then(|| {
        Arc::new(Rrset {
            ttl: 5,
            data: vec![text(value)],
        })
    });
    Changes::from([(key(), set)])
}

fn seed() -> Records {
    let mut records = Records::default();
    records.insert(Record::from_rdata(
        Name::from_ascii("db.pod.internal.").unwrap(),
        5,
        text(0),
    ));
    records
}

fn open(path: &Path) -> Result<(Journal, u32, Records)> {
    Journal::open(path, 1, seed())
}

/// A journal with a snapshot and five changes, and the offsets at which its frames end.
fn written(path: &Path) -> (Vec<usize>, Vec<Records>) {
    let (mut journal, _, mut records) = open(path).unwrap();
    let (mut ends, mut states) = (
        vec![usize::try_from(journal.end).unwrap()],
        vec![records.clone()],
    );
    for value in 1..=5 {
        journal
            .append(1 + u32::try_from(value).unwrap(), &change(value))
            .unwrap();
        records.merge(change(value));
        ends.push(usize::try_from(journal.end).unwrap());
        states.push(records.clone());
    }
    (ends, states)
}

#[test]
fn torn_at_every_byte_the_last_whole_frame_stands() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("zone.journal");
    let (ends, states) = written(&path);
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), ends[5]);
    for cut in ends[0]..=bytes.len() {
        fs::write(&path, &bytes[..cut]).unwrap();
        let whole = ends.iter().rposition(|end| *end <= cut).unwrap();
        let (mut journal, serial, records) = open(&path).unwrap();
        assert_eq!(
            (serial as usize, &records),
            (1 + whole, &states[whole]),
            "cut at {cut}"
        );
        assert_eq!(fs::metadata(&path).unwrap().len(), ends[whole] as u64);
        // What is written after the cut is found again.
        journal.append(99, &change(1)).unwrap();
        drop(journal);
        let (_, serial, records) = open(&path).unwrap();
        assert_eq!(serial, 99);
        assert_eq!(
            records.get(&key().name, key().record_type).unwrap().data,
            vec![text(1)]
        );
    }
}

#[test]
fn blocks_that_never_reached_the_disk_are_torn_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("zone.journal");
    let (ends, states) = written(&path);
    let bytes = fs::read(&path).unwrap();
    for zeroed in ends[4]..bytes.len() {
        let mut hole = bytes.clone();
        hole[zeroed..].fill(0);
        fs::write(&path, &hole).unwrap();
        match open(&path) {
            Ok((_, serial, records)) => {
                assert_eq!((serial, &records), (5, &states[4]), "zeroed from {zeroed}");
            }
            // The head's length survived in part: no way to tell, so nothing is guessed.
            Err(Error::JournalDamaged { offset, .. }) => {
                assert!(
                    offset == ends[4] as u64 && zeroed < ends[4] + 8,
                    "zeroed from {zeroed}"
                );
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn damage_before_the_end_is_an_error_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("zone.journal");
    let (ends, _) = written(&path);
    let bytes = fs::read(&path).unwrap();
    for at in 0..ends[4] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        fs::write(&path, &damaged).unwrap();
        let error = open(&path).unwrap_err();
        assert!(
            matches!(error, Error::JournalDamaged { .. }),
            "byte {at}: {error}"
        );
        assert_eq!(fs::read(&path).unwrap(), damaged, "the evidence is kept");
    }
    fs::write(&path, &bytes[..ends[0] - 1]).unwrap();
    assert!(
        matches!(open(&path).unwrap_err(), Error::JournalDamaged { .. }),
        "half a snapshot"
    );
}

#[test]
fn compaction_keeps_the_content_and_shortens_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("zone.journal");
    let (mut journal, _, mut records) = open(&path).unwrap();
    let mut count = 0_u32;
    while !journal.wants_compaction() {
        count += 1;
        journal.append(count, &change(count as usize)).unwrap();
        records.merge(change(count as usize));
    }
    let long = fs::metadata(&path).unwrap().len();
    journal.compact(count, &records).unwrap();
    journal.append(count + 1, &change(1)).unwrap();
    records.merge(change(1));
    drop(journal);
    assert!(fs::metadata(&path).unwrap().len() < long / 10);
    let (_, serial, replayed) = open(&path).unwrap();
    assert_eq!((serial, replayed), (count + 1, records));
    let files: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(files.len(), 2, "journal and lock only: {files:?}");
}

#[test]
fn two_servers_cannot_share_a_journal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("zone.journal");
    let first = open(&path).unwrap();
    assert!(matches!(
        open(&path).unwrap_err(),
        Error::JournalBusy { .. }
    ));
    drop(first);
    open(&path).unwrap();
}

#[test]
fn a_full_disk_is_told_and_whether_the_file_is_as_before() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("zone.journal");
    let (mut journal, ..) = open(&path).unwrap();
    journal.file = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (error, recovered) = journal.append(2, &change(1)).unwrap_err();
    assert!(!recovered.0, "a device cannot be cut");
    let Error::Journal {
        path: told,
        step: "append an update",
        source,
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!((told, source.kind()), (path, io::ErrorKind::StorageFull));
}
