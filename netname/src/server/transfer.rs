//! Sending a whole zone (AXFR, RFC 5936): as many messages as it takes, each signed and chained to the
//! one before (RFC 8945 section 5.3.1). An incremental request gets the whole zone, too (RFC 1995
//! section 2 allows it).

use hickory_proto::{
    ProtoError,
    op::{Metadata, ResponseCode},
    rr::{
        Record, RecordType,
        rdata::{TSIG, tsig::make_tsig_record},
    },
    serialize::binary::{BinEncodable, BinEncoder},
};
use hickory_server::{
    net::{NetError, xfer::Protocol},
    server::{Request, ResponseHandler, ResponseInfo},
    zone_handler::{MessageResponse, MessageResponseBuilder},
};

use super::{
    access::Access,
    front::{refuse, sent},
};
use crate::{Key, tsig::unix_now, zone::Zone};

/// Bytes of records in one message before names are compressed; far from the 64 KiB of a TCP message.
const BATCH: usize = 24 * 1024;

/// Answers an AXFR or IXFR request.
pub(crate) async fn send<R: ResponseHandler>(
    zone: &Zone,
    access: &Access,
    request: &Request,
    mut handle: R,
) -> ResponseInfo {
    let (holder, context) = access.authenticate(request, unix_now());
    let holder = match holder {
        Ok(holder) if holder.may_transfer() && request.protocol() != Protocol::Udp => holder,
        refused => {
            return refuse_signed(
                request,
                refused.err().unwrap_or(ResponseCode::Refused),
                context,
                handle,
            )
            .await;
        }
    };
    let Some(records) = whole(zone).filter(|_| zone.is_good()) else {
        return refuse_signed(request, ResponseCode::ServFail, context, handle).await;
    };
    let mac = request
        .signature
        .as_ref()
        .map_or_else(Vec::new, |record| record.data.mac.clone());
    let signer = Signer {
        key: holder.key.clone(),
        mac,
        first: true,
        id: request.metadata.id,
    };
    match stream(signer, request, &records, &mut handle).await {
        Ok(Some(info)) => info,
        Ok(None) => refuse(request, ResponseCode::ServFail, handle).await,
        Err(error) => sent(request, Err(error)),
    }
}

/// Sends all messages; tells of the last one.
async fn stream<R: ResponseHandler>(
    mut signer: Signer,
    request: &Request,
    records: &[Record],
    handle: &mut R,
) -> Result<Option<ResponseInfo>, NetError> {
    let mut info = None;
    for batch in batches(records) {
        let response = signer.sign(request, batch).map_err(NetError::from)?;
        info = Some(handle.send_response(response).await?);
    }
    Ok(info)
}

/// All records, the SOA first and last; `None` for a copy that never arrived.
fn whole(zone: &Zone) -> Option<Vec<Record>> {
    let snapshot = zone.snapshot();
    let soa = snapshot
        .records
        .get(zone.origin(), RecordType::SOA)?
        .records(zone.name().as_name())
        .next()?;
    let rest = snapshot
        .records
        .records()
        .filter(|record| record.record_type() != RecordType::SOA);
    Some(
        std::iter::once(soa.clone())
            .chain(rest)
            .chain(std::iter::once(soa.clone()))
            .collect(),
    )
}

/// Cuts `records` where a message is full.
fn batches(records: &[Record]) -> Vec<&[Record]> {
    let (mut cuts, mut size) = (vec![0], 0);
    for (at, record) in records.iter().enumerate() {
        let length = record.to_bytes().map_or(0, |bytes| bytes.len());
        if size > 0 && size + length > BATCH {
            cuts.push(at);
            size = 0;
        }
        size += length;
    }
    cuts.push(records.len());
    cuts.windows(2)
        .map(|cut| &records[cut[0]..cut[1]])
        .collect()
}

type Unsigned<'q, 'a> = MessageResponse<
    'q,
    'a,
    std::slice::Iter<'a, Record>,
    std::slice::Iter<'a, Record>,
    std::slice::Iter<'a, Record>,
    std::slice::Iter<'a, Record>,
>;

fn build<'q, 'a>(request: &'q Request, answers: &'a [Record]) -> Unsigned<'q, 'a> {
    let mut metadata = Metadata::response_from_request(&request.metadata);
    metadata.response_code = ResponseCode::NoError;
    metadata.authoritative = true;
    MessageResponseBuilder::new(&request.queries, None).build(metadata, answers, &[], &[], &[])
}

/// Carries the MAC from one message to the next.
struct Signer {
    key: Key,
    mac: Vec<u8>,
    first: bool,
    id: u16,
}

impl Signer {
    fn sign<'q, 'a>(
        &mut self,
        request: &'q Request,
        answers: &'a [Record],
    ) -> Result<Unsigned<'q, 'a>, ProtoError> {
        let mut bytes = Vec::new();
        build(request, answers).destructive_emit(&mut BinEncoder::new(&mut bytes))?;
        let stub = self.key.stub(self.id, unix_now());
        self.mac = self.key.mac(&self.to_be_signed(&bytes, &stub)?)?;
        self.first = false;
        let mut response = build(request, answers);
        let record = make_tsig_record(
            self.key.signer().signer_name().clone(),
            stub.set_mac(self.mac.clone()),
        );
        response.set_signature(Box::new(record));
        Ok(response)
    }

    /// The first message is signed with all TSIG variables, the others with the timers only.
    fn to_be_signed(&self, bytes: &[u8], stub: &TSIG) -> Result<Vec<u8>, ProtoError> {
        if self.first {
            return self
                .key
                .signer()
                .encode_response_tbs(&self.mac, bytes, stub);
        }
        let length = u16::try_from(self.mac.len()).map_err(|_| ProtoError::from("MAC too long"))?;
        let mut tbs = length.to_be_bytes().to_vec();
        tbs.extend(&self.mac);
        tbs.extend(bytes);
        tbs.extend(&stub.time.to_be_bytes()[2..]);
        tbs.extend(stub.fudge.to_be_bytes());
        Ok(tbs)
    }
}

async fn refuse_signed<R: ResponseHandler>(
    request: &Request,
    code: ResponseCode,
    context: Option<hickory_proto::rr::TSigResponseContext>,
    mut handle: R,
) -> ResponseInfo {
    let Some(context) = context else {
        return refuse(request, code, handle).await;
    };
    let build =
        || MessageResponseBuilder::new(&request.queries, None).error_msg(&request.metadata, code);
    let mut bytes = Vec::new();
    let signed = build()
        .destructive_emit(&mut BinEncoder::new(&mut bytes))
        .and_then(|_| context.sign(&bytes));
    match signed {
        Ok(signature) => {
            let mut response = build();
            response.set_signature(signature);
            sent(request, handle.send_response(response).await)
        }
        Err(_) => refuse(request, code, handle).await,
    }
}
