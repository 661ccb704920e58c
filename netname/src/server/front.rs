//! The front door: every request comes here first. Questions and updates for our zones go on to
//! hickory's catalog; transfers, notifications and everybody else's names are handled in this crate,
//! because the catalog cannot send more than one message, knows no NOTIFY, and would take an update
//! of a name below a zone for one of the zone.

use std::sync::Arc;

use async_trait::async_trait;
use hickory_proto::{
    op::{Edns, Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode},
    rr::{LowerName, RecordType},
};
use hickory_server::{
    net::runtime::Time,
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::{Catalog, MessageResponseBuilder},
};

use super::{access::Access, forward::Forwarder, held::Held, transfer};
use crate::zone::{answer::Handler, inside::Inside};

/// Handles all requests of a server.
pub(crate) struct Front {
    catalog: Catalog,
    zones: Vec<Arc<Held>>,
    access: Arc<Access>,
    forwarder: Forwarder,
}

impl Front {
    /// `inside`: for the addresses where pods ask.
    pub(crate) fn new(
        zones: &[Arc<Held>],
        access: &Arc<Access>,
        forwarder: Forwarder,
        inside: bool,
    ) -> Self {
        let mut catalog = Catalog::new();
        for held in zones {
            let handler = Handler {
                zone: held.zone.clone(),
                access: access.clone(),
                inside: inside.then(Inside::default),
            };
            catalog.upsert(held.zone.origin().clone(), vec![Arc::new(handler)]);
        }
        Self {
            catalog,
            zones: zones.to_vec(),
            access: access.clone(),
            forwarder,
        }
    }

    /// The zone named exactly so.
    fn exact(&self, name: &LowerName) -> Option<&Arc<Held>> {
        self.zones.iter().find(|held| held.zone.origin() == name)
    }

    /// The zone with the longest name that holds `name`.
    fn around(&self, name: &LowerName) -> Option<&Arc<Held>> {
        let holds = |held: &&Arc<Held>| held.zone.origin().zone_of(name);
        self.zones
            .iter()
            .filter(holds)
            .max_by_key(|held| held.zone.origin().num_labels())
    }

    async fn query<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        handle: R,
    ) -> ResponseInfo {
        let Ok(info) = request.request_info() else {
            return refuse(request, ResponseCode::FormErr, handle).await;
        };
        if matches!(info.query.query_type(), RecordType::AXFR | RecordType::IXFR) {
            return match self.exact(info.query.name()) {
                Some(held) => transfer::send(&held.zone, &self.access, request, handle).await,
                None => refuse(request, ResponseCode::NotAuth, handle).await,
            };
        }
        match self.around(info.query.name()) {
            Some(held) if held.zone.is_good() => {
                self.catalog.handle_request::<R, T>(request, handle).await
            }
            Some(_) => refuse(request, ResponseCode::ServFail, handle).await,
            None => self.forwarder.answer(request, handle).await,
        }
    }

    async fn update<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        handle: R,
    ) -> ResponseInfo {
        let Ok(info) = request.request_info() else {
            return refuse(request, ResponseCode::FormErr, handle).await;
        };
        if info.query.query_type() != RecordType::SOA {
            return refuse(request, ResponseCode::FormErr, handle).await;
        }
        match self.exact(info.query.name()) {
            Some(held) if held.is_primary() => {
                self.catalog.handle_request::<R, T>(request, handle).await
            }
            _ => refuse(request, ResponseCode::NotAuth, handle).await,
        }
    }

    /// RFC 1996: a hint to look at the primary, believed from the primary's address only. It carries
    /// no data that is used, so that a forged one costs one SOA question.
    async fn notify<R: ResponseHandler>(&self, request: &Request, handle: R) -> ResponseInfo {
        let Ok(info) = request.request_info() else {
            return refuse(request, ResponseCode::FormErr, handle).await;
        };
        let code = match self.exact(info.query.name()) {
            None => ResponseCode::NotAuth,
            Some(held) if held.poke_from(info.src.ip()) => ResponseCode::NoError,
            Some(_) => ResponseCode::Refused,
        };
        refuse(request, code, handle).await
    }
}

#[async_trait]
impl RequestHandler for Front {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        handle: R,
    ) -> ResponseInfo {
        let Metadata {
            message_type,
            op_code,
            ..
        } = request.metadata;
        match (message_type, op_code) {
            // Answering an answer would let two servers talk forever.
            (MessageType::Response, _) => nothing_sent(request),
            (_, OpCode::Query) => self.query::<R, T>(request, handle).await,
            (_, OpCode::Update) => self.update::<R, T>(request, handle).await,
            (_, OpCode::Notify) => self.notify(request, handle).await,
            _ => refuse(request, ResponseCode::NotImp, handle).await,
        }
    }
}

fn nothing_sent(request: &Request) -> ResponseInfo {
    Header {
        metadata: Metadata::response_from_request(&request.metadata),
        counts: HeaderCounts::default(),
    }
    .into()
}

/// The EDNS of an answer: only where the question had it (RFC 6891 section 7).
pub(crate) fn response_edns(request: &Request) -> Option<Edns> {
    let asked = request.edns.as_ref()?;
    let mut edns = Edns::new();
    edns.set_max_payload(asked.max_payload().max(512));
    edns.set_dnssec_ok(asked.flags().dnssec_ok);
    Some(edns)
}

/// An answer without records.
pub(crate) async fn refuse<R: ResponseHandler>(
    request: &Request,
    code: ResponseCode,
    mut handle: R,
) -> ResponseInfo {
    let edns = response_edns(request);
    let response = MessageResponseBuilder::new(&request.queries, edns.as_ref())
        .error_msg(&request.metadata, code);
    sent(request, handle.send_response(response).await)
}

/// What the library wants to know of a response, sent or not.
pub(crate) fn sent(
    request: &Request,
    result: Result<ResponseInfo, hickory_server::net::NetError>,
) -> ResponseInfo {
    result.unwrap_or_else(|error| {
        tracing::debug!(%error, to = %request.src(), "answer not sent");
        nothing_sent(request)
    })
}
