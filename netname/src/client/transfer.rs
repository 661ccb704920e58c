//! Fetching a zone from its primary: SOA first, the whole zone (AXFR, RFC 5936) if it is newer.

use std::{net::SocketAddr, time::Duration};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{LowerName, RData, Record, RecordType},
};

use super::session::{Session, Step};
use crate::{
    Key, Result,
    zone::{Zone, records::Records, update::is_newer},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Brings the copy `zone` up to date with `primary`.
pub(crate) fn refresh(zone: &Zone, primary: SocketAddr, key: Option<&Key>) -> Result<()> {
    let text = zone.name().to_string();
    let step = Step {
        server: primary,
        step: "transfer",
        name: &text,
    };
    let mut session = Session::connect(primary, key, PATIENCE, step)?;
    let have = zone.snapshot();
    let soa = session
        .set(zone.name().as_name(), RecordType::SOA)?
        .unwrap_or_default();
    let Some(RData::SOA(soa)) = soa.first() else {
        return Err(step.nonsense("there is no SOA"));
    };
    let empty = have.records.soa(zone.origin()).is_none();
    if !empty && !is_newer(soa.serial, have.serial) {
        zone.renew();
        return Ok(());
    }
    let (serial, records) = fetch(&mut session, zone, step)?;
    let installed = zone.install(serial, records)?;
    tracing::info!(zone = %zone.name(), %primary, serial, installed, "zone transferred");
    Ok(())
}

/// All messages of a transfer. Nothing is used before the last one is vouched for.
fn fetch(session: &mut Session<'_>, zone: &Zone, step: Step<'_>) -> Result<(u32, Records)> {
    let mut message = Message::query();
    message.metadata.recursion_desired = false;
    message.add_query(Query::query(
        zone.name().as_name().clone(),
        RecordType::AXFR,
    ));
    let mut pending = session.send(message, step)?;
    let mut arrived = Arrived::default();
    while !arrived.complete() {
        let message = session.receive(&mut pending, step)?;
        match message.metadata.response_code {
            ResponseCode::NoError => {}
            code => return Err(step.refused(code)),
        }
        if message.answers.is_empty() {
            return Err(step.nonsense("a message without records"));
        }
        for record in message.answers {
            arrived
                .take(record, zone.origin())
                .map_err(|reason| step.nonsense(reason))?;
        }
    }
    pending.finish(step)?;
    arrived
        .finish(zone.origin())
        .ok_or_else(|| step.nonsense("the transfer has no SOA"))
}

#[derive(Default)]
struct Arrived {
    records: Records,
    first: Option<Record>,
    last: bool,
}

impl Arrived {
    fn complete(&self) -> bool {
        self.last
    }

    fn take(&mut self, record: Record, origin: &LowerName) -> Result<(), &'static str> {
        let is_soa = record.record_type() == RecordType::SOA;
        match &self.first {
            _ if self.last => Err("records after the final SOA"),
            None if !is_soa => Err("it does not begin with the SOA"),
            Some(first) if is_soa && first.data != record.data => Err("it ends with another SOA"),
            _ if !origin.zone_of(&LowerName::new(&record.name)) => Err("a record of another zone"),
            Some(_) if is_soa => {
                self.last = true;
                Ok(())
            }
            _ => {
                if is_soa {
                    self.first = Some(record.clone());
                }
                self.records.insert(record);
                Ok(())
            }
        }
    }

    fn finish(self, origin: &LowerName) -> Option<(u32, Records)> {
        let serial = self.records.soa(origin)?.serial;
        Some((serial, self.records))
    }
}
