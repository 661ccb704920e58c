//! Telling secondaries of changes (RFC 1996): over UDP, again and again until acknowledged or
//! overtaken by the next change. What gets lost here is found by the secondary's own polling.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{Record, RecordType},
};
use tokio::{net::UdpSocket, task::JoinSet};

use crate::zone::Zone;

/// Waits for an acknowledgement, the longest first wait last (RFC 1996 section 3.6).
const WAITS: [Duration; 5] = [
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(9),
    Duration::from_secs(27),
];

/// Runs for the life of the server: tells of the state at start and of each change after it.
pub(crate) async fn tell(zone: Arc<Zone>) {
    let mut serial = zone.watch();
    let mut told = JoinSet::new();
    loop {
        serial.mark_unchanged();
        told.abort_all();
        for target in zone.role().notify() {
            told.spawn(tell_one(zone.clone(), *target));
        }
        while told.try_join_next().is_some() {}
        if serial.changed().await.is_err() {
            return;
        }
    }
}

async fn tell_one(zone: Arc<Zone>, target: SocketAddr) {
    let Some(message) = notification(&zone) else {
        return;
    };
    for wait in WAITS {
        match tokio::time::timeout(wait, exchange(&message, target)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                tracing::debug!(zone = %zone.name(), %target, %error, "notification not sent");
                tokio::time::sleep(wait).await;
            }
            Err(_) => {
                tracing::debug!(zone = %zone.name(), %target, "notification not acknowledged");
            }
        }
    }
    tracing::warn!(zone = %zone.name(), %target, "secondary does not acknowledge notifications");
}

fn notification(zone: &Zone) -> Option<Message> {
    let snapshot = zone.snapshot();
    let soa = snapshot.records.get(zone.origin(), RecordType::SOA)?;
    let apex = zone.name().as_name();
    let mut message = Message::query();
    message.metadata.op_code = OpCode::Notify;
    message.metadata.authoritative = true;
    message.add_query(Query::query(apex.clone(), RecordType::SOA));
    message.add_answers(soa.records(apex).collect::<Vec<Record>>());
    Some(message)
}

async fn exchange(message: &Message, target: SocketAddr) -> std::io::Result<()> {
    let any: SocketAddr = if target.is_ipv4() {
        ([0; 4], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(target).await?;
    socket
        .send(&message.to_vec().map_err(std::io::Error::other)?)
        .await?;
    let mut buffer = [0; 1500];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let acknowledged = Message::from_vec(&buffer[..length]).is_ok_and(|answer| {
            answer.metadata.id == message.metadata.id
                && answer.metadata.message_type == MessageType::Response
        });
        if acknowledged {
            return Ok(());
        }
    }
}
