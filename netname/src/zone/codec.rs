//! How sets of records are written in the journal: names and record data in DNS wire format, each
//! in a buffer of its own, so that no compression pointer reaches across.

use std::sync::Arc;

use hickory_proto::{
    ProtoError,
    rr::{LowerName, Name, Record, RecordType, RrKey},
    serialize::binary::{BinDecodable, BinDecoder, BinEncodable},
};

use super::records::{Changes, Records, Rrset};

const SNAPSHOT: u8 = 1;
const CHANGES: u8 = 2;

/// What a frame holds.
pub(crate) enum Payload {
    /// The whole zone.
    Snapshot(Changes),
    /// Sets that differ from before.
    Changes(Changes),
}

pub(crate) fn encode_snapshot(serial: u32, records: &Records) -> Result<Vec<u8>, ProtoError> {
    let mut out = head(SNAPSHOT, serial);
    for (key, set) in records.iter() {
        encode_set(&mut out, key, Some(set))?;
    }
    Ok(out)
}

pub(crate) fn encode_changes(serial: u32, changes: &Changes) -> Result<Vec<u8>, ProtoError> {
    let mut out = head(CHANGES, serial);
    for (key, set) in changes {
        encode_set(&mut out, key, set.as_deref())?;
    }
    Ok(out)
}

fn head(kind: u8, serial: u32) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend(serial.to_be_bytes());
    out
}

fn too_long(_: std::num::TryFromIntError) -> ProtoError {
    ProtoError::from("set of records too large for the journal")
}

fn encode_set(out: &mut Vec<u8>, key: &RrKey, set: Option<&Rrset>) -> Result<(), ProtoError> {
    let name = Name::from(&key.name);
    out.extend(name.to_bytes()?);
    out.extend(u16::from(key.record_type).to_be_bytes());
    out.extend(set.map_or(0, |set| set.ttl).to_be_bytes());
    let count = u16::try_from(set.map_or(0, |set| set.data.len())).map_err(too_long)?;
    out.extend(count.to_be_bytes());
    for record in set.iter().flat_map(|set| set.records(&name)) {
        let bytes = record.to_bytes()?;
        out.extend(u16::try_from(bytes.len()).map_err(too_long)?.to_be_bytes());
        out.extend(bytes);
    }
    Ok(())
}

pub(crate) fn decode(payload: &[u8]) -> Result<(u32, Payload), ProtoError> {
    let mut decoder = BinDecoder::new(payload);
    let kind = decoder.read_u8()?.unverified();
    let serial = decoder.read_u32()?.unverified();
    let mut changes = Changes::new();
    while !decoder.is_empty() {
        let (key, set) = decode_set(&mut decoder)?;
        changes.insert(key, set.map(Arc::new));
    }
    match kind {
        SNAPSHOT => Ok((serial, Payload::Snapshot(changes))),
        CHANGES => Ok((serial, Payload::Changes(changes))),
        _ => Err(ProtoError::from("unknown kind of frame")),
    }
}

fn decode_set(decoder: &mut BinDecoder<'_>) -> Result<(RrKey, Option<Rrset>), ProtoError> {
    let name = LowerName::new(&Name::read(decoder)?);
    let record_type = RecordType::from(decoder.read_u16()?.unverified());
    let ttl = decoder.read_u32()?.unverified();
    let count = decoder.read_u16()?.unverified();
    let mut data = Vec::with_capacity(count.into());
    for _ in 0..count {
        let length = decoder.read_u16()?.unverified();
        let bytes = decoder.read_slice(length.into())?.unverified();
        data.push(Record::from_bytes(bytes)?.data);
    }
    Ok((
        RrKey::new(name, record_type),
        (count > 0).then_some(Rrset { ttl, data }),
    ))
}
