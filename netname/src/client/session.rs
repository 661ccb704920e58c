//! One TCP connection to a name server: questions go out signed, answers are believed only if they
//! are the server's.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::tsig::TsigError},
};

use super::MAX_PATIENCE;
use crate::{
    Error, Key, Result,
    tsig::{Chain, Doubt, FUDGE, unix_now},
};

/// A connection, good until its deadline.
pub(crate) struct Session<'a> {
    stream: TcpStream,
    server: SocketAddr,
    key: Option<&'a Key>,
    deadline: Instant,
}

/// What is being done, for errors.
#[derive(Clone, Copy)]
pub(crate) struct Step<'a> {
    pub(crate) server: SocketAddr,
    pub(crate) step: &'static str,
    pub(crate) name: &'a str,
}

impl Step<'_> {
    fn no_answer(self, source: io::Error) -> Error {
        Error::NoAnswer {
            server: self.server,
            step: self.step,
            name: self.name.to_owned(),
            source,
        }
    }

    pub(crate) fn nonsense(self, reason: impl Into<String>) -> Error {
        Error::Answer {
            server: self.server,
            step: self.step,
            name: self.name.to_owned(),
            reason: reason.into(),
        }
    }

    pub(crate) fn refused(self, code: ResponseCode) -> Error {
        Error::Refused {
            server: self.server,
            step: self.step,
            name: self.name.to_owned(),
            code,
        }
    }

    fn encode(self, source: hickory_proto::ProtoError) -> Error {
        Error::Encode {
            step: self.step,
            name: self.name.to_owned(),
            source,
        }
    }

    fn doubt(self, doubt: Doubt) -> Error {
        match doubt {
            Doubt::Skew(seconds) => self.skew(seconds),
            Doubt::NotAuthentic(reason) => Error::NotAuthentic {
                server: self.server,
                step: self.step,
                name: self.name.to_owned(),
                reason,
            },
        }
    }

    fn skew(self, seconds: i64) -> Error {
        Error::ClockSkew {
            server: self.server,
            step: self.step,
            name: self.name.to_owned(),
            seconds,
            fudge: FUDGE,
        }
    }
}

/// The answers to one question that are still to come.
pub(crate) struct Pending {
    id: u16,
    op_code: OpCode,
    asked: u64,
    chain: Option<Chain>,
}

impl<'a> Session<'a> {
    /// Connects. An error means that nothing was sent.
    pub(crate) fn connect(
        server: SocketAddr,
        key: Option<&'a Key>,
        patience: Duration,
        step: Step<'_>,
    ) -> Result<Self> {
        let patience = patience.clamp(Duration::from_millis(1), MAX_PATIENCE);
        let fault = |source| Error::Connect {
            server,
            step: step.step,
            name: step.name.to_owned(),
            source,
        };
        let deadline = Instant::now() + patience;
        let stream = TcpStream::connect_timeout(&server, patience).map_err(fault)?;
        // Questions are small and each waits for its answer.
        stream.set_nodelay(true).map_err(fault)?;
        Ok(Self {
            stream,
            server,
            key,
            deadline,
        })
    }

    pub(crate) fn step<'s>(&self, step: &'static str, name: &'s str) -> Step<'s> {
        Step {
            server: self.server,
            step,
            name,
        }
    }

    fn remaining(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            Err(io::ErrorKind::TimedOut.into())
        } else {
            Ok(left)
        }
    }

    /// Signs and sends. An error after the connection stood may hide a message that arrived.
    pub(crate) fn send(&mut self, mut message: Message, step: Step<'_>) -> Result<Pending> {
        let asked = unix_now();
        let chain = self
            .key
            .map(|key| key.sign_request(&mut message, asked))
            .transpose()
            .map_err(|e| step.encode(e))?;
        let bytes = message.to_vec().map_err(|e| step.encode(e))?;
        let length = u16::try_from(bytes.len())
            .map_err(|_| step.encode("message longer than 64 KiB".into()))?;
        let framed = [&length.to_be_bytes()[..], &bytes].concat();
        self.write(&framed).map_err(|e| step.no_answer(e))?;
        Ok(Pending {
            id: message.metadata.id,
            op_code: message.metadata.op_code,
            asked,
            chain,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let left = self.remaining()?;
        self.stream.set_write_timeout(Some(left))?;
        self.stream.write_all(bytes)
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            let left = self.remaining()?;
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut buffer[filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(more) => filled += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn read_message(&mut self) -> io::Result<Vec<u8>> {
        let mut length = [0; 2];
        self.read(&mut length)?;
        let mut bytes = vec![0; u16::from_be_bytes(length).into()];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    /// The next message that answers `pending`.
    pub(crate) fn receive(&mut self, pending: &mut Pending, step: Step<'_>) -> Result<Message> {
        let bytes = self.read_message().map_err(|e| step.no_answer(e))?;
        let message = Message::from_vec(&bytes).map_err(|e| step.nonsense(e.to_string()))?;
        let meta = &message.metadata;
        if meta.id != pending.id
            || meta.message_type != MessageType::Response
            || meta.op_code != pending.op_code
        {
            return Err(step.nonsense("it answers another question"));
        }
        if let (Some(chain), Some(key)) = (&mut pending.chain, self.key) {
            if let Some(error) = told_by_tsig(&message, key, pending.asked, step) {
                return Err(error);
            }
            match chain.accept(&bytes, &message) {
                Ok(()) => {}
                // A server that does not get as far as the key cannot sign its refusal.
                Err(_) if message.signature().is_none() && is_refusal(meta.response_code) => {
                    return Err(step.refused(meta.response_code));
                }
                Err(doubt) => return Err(step.doubt(doubt)),
            }
        }
        Ok(message)
    }

    /// One question, one answer, fully signed.
    pub(crate) fn exchange(&mut self, message: Message, step: Step<'_>) -> Result<Message> {
        let mut pending = self.send(message, step)?;
        let answer = self.receive(&mut pending, step)?;
        pending.finish(step)?;
        Ok(answer)
    }

    /// The set of `name` and `rtype` at the authority: `None` where there is no such set.
    pub(crate) fn set(&mut self, name: &Name, rtype: RecordType) -> Result<Option<Vec<RData>>> {
        let text = name.to_ascii();
        let step = self.step("look up", &text);
        let mut message = Message::query();
        message.metadata.recursion_desired = false;
        message.add_query(Query::query(name.clone(), rtype));
        let answer = self.exchange(message, step)?;
        match answer.metadata.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain if !answer.metadata.authoritative => {
                Err(step.nonsense("the server is not an authority for this name"))
            }
            ResponseCode::NoError | ResponseCode::NXDomain => {
                let here = |record: &Record| record.name == *name && record.record_type() == rtype;
                let data: Vec<RData> = answer
                    .answers
                    .iter()
                    .filter(|r| here(r))
                    .map(|r| r.data.clone())
                    .collect();
                Ok((!data.is_empty()).then_some(data))
            }
            code => Err(step.refused(code)),
        }
    }
}

impl Pending {
    /// After the last message.
    pub(crate) fn finish(&self, step: Step<'_>) -> Result<()> {
        self.chain.as_ref().map_or(Ok(()), |chain| {
            chain.finish().map_err(|doubt| step.doubt(doubt))
        })
    }
}

fn is_refusal(code: ResponseCode) -> bool {
    use ResponseCode::{FormErr, NotAuth, NotImp, NotZone, Refused, ServFail};
    matches!(
        code,
        FormErr | NotAuth | NotImp | NotZone | Refused | ServFail
    )
}

/// The reasons for which a server does not believe us (RFC 8945 section 5.2); two of them it cannot
/// sign, and a forged one does no more harm than a cut connection.
fn told_by_tsig(message: &Message, key: &Key, asked: u64, step: Step<'_>) -> Option<Error> {
    let tsig = &message.signature()?.data;
    let Step {
        server,
        step: what,
        name,
    } = step;
    match tsig.error? {
        TsigError::BadKey => Some(Error::UnknownKey {
            server,
            step: what,
            name: name.to_owned(),
            key: key.name(),
        }),
        TsigError::BadSig => Some(Error::WrongKey {
            server,
            step: what,
            name: name.to_owned(),
            key: key.name(),
        }),
        TsigError::BadTime => {
            Some(step.skew(server_clock(&tsig.other, tsig.time).saturating_sub_unsigned(asked)))
        }
        other => Some(step.nonsense(format!("TSIG error {}", u16::from(other)))),
    }
}

/// The server's clock in a BADTIME answer: six bytes in "other data" (RFC 8945 section 5.2.3), else
/// the time of its signature.
fn server_clock(other: &[u8], time: u64) -> i64 {
    let told = <[u8; 6]>::try_from(other)
        .ok()
        .map(|b| u64::from_be_bytes([0, 0, b[0], b[1], b[2], b[3], b[4], b[5]]));
    i64::try_from(told.unwrap_or(time)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KeyConfig, ServerConfig, ZoneConfig, ZoneName, serve};

    const LATE: u64 = 4000;

    /// A question signed by a host whose clock is `LATE` seconds behind.
    fn ask_late(server: SocketAddr, key: &Key) -> Error {
        let step = Step {
            server,
            step: "look up",
            name: "web",
        };
        let mut session =
            Session::connect(server, Some(key), Duration::from_secs(20), step).unwrap();
        let mut message = Message::query();
        message.add_query(Query::query(
            ZoneName::default().as_name().clone(),
            RecordType::SOA,
        ));
        let asked = unix_now() - LATE;
        let chain = key.sign_request(&mut message, asked).unwrap();
        let bytes = message.to_vec().unwrap();
        session
            .write(
                &[
                    &u16::try_from(bytes.len()).unwrap().to_be_bytes()[..],
                    &bytes,
                ]
                .concat(),
            )
            .unwrap();
        let (id, op_code) = (message.metadata.id, message.metadata.op_code);
        session
            .receive(
                &mut Pending {
                    id,
                    op_code,
                    asked,
                    chain: Some(chain),
                },
                step,
            )
            .unwrap_err()
    }

    #[tokio::test]
    async fn clocks_that_differ_are_named() {
        let key = Key::generate("agent").unwrap();
        let config = ServerConfig {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            zones: vec![ZoneConfig::primary(ZoneName::default())],
            keys: vec![KeyConfig::new(&key)],
            ..ServerConfig::default()
        };
        let server = serve(config).await.unwrap();
        let addr = server.addresses()[0];
        let error = tokio::task::spawn_blocking(move || ask_late(addr, &key))
            .await
            .unwrap();
        let Error::ClockSkew {
            server: told,
            seconds,
            ..
        } = &error
        else {
            panic!("{error}")
        };
        assert_eq!(*told, addr);
        assert!(seconds.abs_diff(4000) < 600, "{seconds}");
        assert!(error.to_string().contains("clock of this host"), "{error}");
        server.stop().await.unwrap();
    }

    #[test]
    fn the_servers_clock_is_in_the_other_data() {
        assert_eq!(server_clock(&[0, 0, 0x65, 0, 0, 1], 7), 0x6500_0001);
        assert_eq!(server_clock(&[], 7), 7);
    }
}
