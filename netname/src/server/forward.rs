//! Names of others: asked of the configured resolvers, so that this server can be a pod's only one.

use std::{io, net::SocketAddr, time::Duration};

use hickory_proto::op::{Edns, Message, MessageType, ResponseCode};
use hickory_server::{
    net::xfer::Protocol,
    server::{Request, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::front::{refuse, response_edns, sent};

/// How long one resolver may take; programs wait 5 s for an answer (resolv.conf(5)).
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks resolvers in their order.
pub(crate) struct Forwarder {
    resolvers: Vec<SocketAddr>,
}

impl Forwarder {
    pub(crate) fn new(resolvers: &[SocketAddr]) -> Self {
        Self {
            resolvers: resolvers.to_vec(),
        }
    }

    /// Answers a question about a name that is in no zone of ours.
    pub(crate) async fn answer<R: ResponseHandler>(
        &self,
        request: &Request,
        mut handle: R,
    ) -> ResponseInfo {
        let may = request.metadata.recursion_desired && request.signature.is_none();
        if self.resolvers.is_empty() || !may {
            return refuse(request, ResponseCode::Refused, handle).await;
        }
        let Some(reply) = self.ask(request).await else {
            return refuse(request, ResponseCode::ServFail, handle).await;
        };
        let edns = response_edns(request).map(|edns| merge(edns, reply.edns.as_ref()));
        let mut metadata = reply.metadata;
        metadata.id = request.metadata.id;
        metadata.recursion_available = true;
        let response = MessageResponseBuilder::new(&request.queries, edns.as_ref()).build(
            metadata,
            &reply.answers,
            &reply.authorities,
            &[],
            &reply.additionals,
        );
        sent(request, handle.send_response(response).await)
    }

    async fn ask(&self, request: &Request) -> Option<Message> {
        for resolver in &self.resolvers {
            match timeout(PATIENCE, ask_one(request, *resolver)).await {
                Ok(Ok(reply)) => return Some(reply),
                Ok(Err(error)) => tracing::debug!(%resolver, %error, "resolver failed"),
                Err(_) => tracing::debug!(%resolver, "resolver did not answer"),
            }
        }
        None
    }
}

fn merge(mut ours: Edns, theirs: Option<&Edns>) -> Edns {
    if let Some(theirs) = theirs {
        ours.set_rcode_high(theirs.rcode_high());
    }
    ours
}

/// One resolver: as the client asked, and over TCP when UDP does not hold the answer.
async fn ask_one(request: &Request, resolver: SocketAddr) -> io::Result<Message> {
    let mut question = request.as_slice().to_vec();
    // An id of our own: whoever guesses answers must not learn it from his own question.
    let id = crate::name::random_token().to_be_bytes();
    question[..2].copy_from_slice(&id[..2]);
    if request.protocol() == Protocol::Udp {
        let reply = ask_udp(&question, resolver).await?;
        if !reply.metadata.truncation {
            return Ok(reply);
        }
    }
    ask_tcp(&question, resolver).await
}

async fn ask_udp(question: &[u8], resolver: SocketAddr) -> io::Result<Message> {
    let any: SocketAddr = if resolver.is_ipv4() {
        ([0; 4], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(reply) = matching(question, &buffer[..length]) {
            return Ok(reply);
        }
    }
}

async fn ask_tcp(question: &[u8], resolver: SocketAddr) -> io::Result<Message> {
    let mut stream = TcpStream::connect(resolver).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes(), question].concat())
        .await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    matching(question, &reply).ok_or_else(|| io::Error::other("the answer is for another question"))
}

/// The reply, if it answers this question.
fn matching(question: &[u8], reply: &[u8]) -> Option<Message> {
    let (asked, reply) = (
        Message::from_vec(question).ok()?,
        Message::from_vec(reply).ok()?,
    );
    let fits = reply.metadata.id == asked.metadata.id
        && reply.metadata.message_type == MessageType::Response
        && reply.queries == asked.queries;
    fits.then_some(reply)
}
