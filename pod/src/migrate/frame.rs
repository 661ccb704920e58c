//! The protocol of a move on the wire: one codec for every way in (ssh's standard streams, mutual TLS,
//! a socket).
//!
//! ```text
//!   preface:  "podmove\n"                       so that a login banner is told from a peer
//!   frame:    length u32 │ tag u8 │ body        little endian, `length` counts the body
//!   tag:      0 message (CBOR, at most 16 MiB)  1 data (at most 1 MiB)  2 alive (no body)
//!
//!   source                                     destination
//!     │ preface, Hello{oldest, newest}  ◀──▶     │  both speak min(newest), or say why not
//!     │ Needs ──────────────────────────────▶    │  check
//!     │                  ◀─────────────── Lacks  │
//!     │ Offer (manifest, fence) ────────────▶    │  prepare: name taken, directory made, journal begun
//!     │                  ◀───────────── Missing  │
//!     │ Part, data…, Sum  (files it lacks) ─▶    │
//!     │ freeze; Part, data…, Sum (image) ───▶    │  last state
//!     │                  ◀── Received (credit)   │
//!     │ Restart ────────────────────────────▶    │  restart held
//!     │                  ◀──────────────── Held  │
//!     │ Commit ─────────────────────────────▶    │  one durable write by one authority
//!     │                  ◀─────────── Committed  │
//!     │                  ◀───────────── Running  │  run
//!     │ release; Settled ───────────────────▶    │  the decision may be forgotten
//!     │
//!     │ Resolve (on a new connection) ──────▶    │
//!     │                  ◀───── Decided(verdict) │
//! ```
//!
//! Any answer may be `Refused`. Whoever works for long sends `alive` frames meanwhile, so that silence
//! always means trouble. What arrives is an allegation: lengths are bounded before anything is
//! allocated, and whoever breaks the rules gets an error and nothing else.
//!
//! Versions: a program speaks every version from [`OLDEST`] to [`NEWEST`]; a new message or field raises
//! `NEWEST`, and `OLDEST` follows when hosts that old are no longer expected in one cluster.

use std::io::{Read, Write};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::LinkError;

/// The oldest version of the protocol that is understood.
pub(crate) const OLDEST: u32 = 1;
/// The version that is spoken when both sides know it.
pub(crate) const NEWEST: u32 = 1;

const PREFACE: &[u8; 8] = b"podmove\n";
const MESSAGE: u8 = 0;
const DATA: u8 = 1;
const ALIVE: u8 = 2;
/// No message is longer than this, in bytes.
const MESSAGE_MAX: usize = 16 << 20;
/// No data frame is longer than this, in bytes.
pub(crate) const DATA_MAX: usize = 1 << 20;
/// How often somebody who works says that he lives.
const BEAT: Duration = Duration::from_secs(1);
/// How much of a stranger's text is shown.
const SHOWN: usize = 200;

/// A connection's bytes.
pub(crate) trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A connection that was closed.
struct Cut;

impl Read for Cut {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Ok(0)
    }
}

impl Write for Cut {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The first message of each side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    oldest: u32,
    newest: u32,
    /// Version of the program, for people.
    program: String,
    /// Host name, for people.
    pub(crate) host: String,
}

impl Hello {
    fn ours() -> Self {
        let host = nix::unistd::gethostname().map(|h| h.to_string_lossy().into_owned());
        Self {
            oldest: OLDEST,
            newest: NEWEST,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            host: host.unwrap_or_default(),
        }
    }
}

/// One end of a connection.
pub(crate) struct Conn {
    stream: Box<dyn Stream>,
    sent: u64,
    received: u64,
    /// What the other side said of itself; set by [`Conn::handshake`].
    pub(crate) peer: String,
}

impl Conn {
    /// A connection on which nothing was said yet.
    pub(crate) fn new(stream: impl Stream + 'static) -> Self {
        Self {
            stream: Box::new(stream),
            sent: 0,
            received: 0,
            peer: String::new(),
        }
    }

    /// Says hello and listens to the other side's.
    pub(crate) fn handshake(&mut self) -> Result<(), LinkError> {
        match self.write(PREFACE).and_then(|()| self.send(&Hello::ours())) {
            // Who goes at once may have said why.
            Ok(()) | Err(LinkError::Closed) => {}
            Err(error) => return Err(error),
        }
        let mut preface = [0; PREFACE.len()];
        self.read(&mut preface)?;
        if preface != *PREFACE {
            return Err(self.foreign(&preface));
        }
        let theirs: Hello = self.receive()?;
        let common = theirs.newest.min(NEWEST);
        if common < theirs.oldest.max(OLDEST) {
            let Hello {
                oldest,
                newest,
                program,
                ..
            } = theirs;
            return Err(LinkError::Version {
                program,
                oldest,
                newest,
            });
        }
        self.peer = theirs.host;
        Ok(())
    }

    /// The text of somebody who is no peer: most often a login banner or an error of the remote shell.
    fn foreign(&mut self, begin: &[u8]) -> LinkError {
        let mut text = begin.to_vec();
        let mut byte = [0];
        while text.len() < SHOWN && !text.contains(&b'\n') && self.read(&mut byte).is_ok() {
            text.push(byte[0]);
        }
        let line = text.split(|b| *b == b'\n').next().unwrap_or_default();
        LinkError::Foreign(String::from_utf8_lossy(line).escape_debug().to_string())
    }

    /// Bytes sent and received so far.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.sent, self.received)
    }

    /// Sends a message.
    pub(crate) fn send<T: Serialize>(&mut self, message: &T) -> Result<(), LinkError> {
        let mut body = Vec::new();
        ciborium::into_writer(message, &mut body).map_err(|e| LinkError::Encode(e.to_string()))?;
        if body.len() > MESSAGE_MAX {
            return Err(LinkError::TooLong(body.len()));
        }
        self.frame(MESSAGE, &body)?;
        self.stream.flush().map_err(LinkError::of("write to"))
    }

    /// Sends one piece of content, at most [`DATA_MAX`] bytes.
    pub(crate) fn send_data(&mut self, data: &[u8]) -> Result<(), LinkError> {
        if data.len() > DATA_MAX {
            return Err(LinkError::TooLong(data.len()));
        }
        self.frame(DATA, data)
    }

    /// Receives a message.
    pub(crate) fn receive<T: DeserializeOwned>(&mut self) -> Result<T, LinkError> {
        let body = self.body(MESSAGE, MESSAGE_MAX)?;
        ciborium::from_reader(body.as_slice()).map_err(|e| LinkError::Decode(e.to_string()))
    }

    /// Receives one piece of content.
    pub(crate) fn receive_data(&mut self) -> Result<Vec<u8>, LinkError> {
        self.body(DATA, DATA_MAX)
    }

    /// Reads and forgets whatever comes, until the other side closes: it must be able to read our last
    /// words before the connection goes away under it.
    pub(crate) fn drain(&mut self) {
        let mut buffer = vec![0; 64 << 10];
        while matches!(self.stream.read(&mut buffer), Ok(n) if n > 0) {}
    }

    /// Closes the connection; whoever uses it next finds it closed.
    pub(crate) fn cut(&mut self) {
        self.stream = Box::new(Cut);
    }

    /// Does something that takes long and tells the other side meanwhile that we live.
    pub(crate) fn while_alive<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let (done, over) = channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                while matches!(over.recv_timeout(BEAT), Err(RecvTimeoutError::Timeout)) {
                    let beat = self.frame(ALIVE, &[]);
                    // A broken connection is reported by whoever uses it next.
                    if beat.is_err() || self.stream.flush().is_err() {
                        return;
                    }
                }
            });
            let value = work();
            drop(done);
            value
        })
    }

    fn frame(&mut self, tag: u8, body: &[u8]) -> Result<(), LinkError> {
        let mut header = [0; 5];
        header[..4].copy_from_slice(&(body.len() as u32).to_le_bytes());
        header[4] = tag;
        self.write(&header)?;
        self.write(body)
    }

    fn body(&mut self, wanted: u8, most: usize) -> Result<Vec<u8>, LinkError> {
        loop {
            let mut header = [0; 5];
            self.read(&mut header)?;
            let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
            match header[4] {
                ALIVE if length == 0 => {}
                tag if tag != wanted => return Err(LinkError::Tag { wanted, tag }),
                _ if length > most => return Err(LinkError::TooLong(length)),
                _ => return self.bounded(length),
            }
        }
    }

    /// Memory is taken as bytes arrive, never on the word of a header.
    fn bounded(&mut self, length: usize) -> Result<Vec<u8>, LinkError> {
        let mut body = Vec::new();
        while body.len() < length {
            let begin = body.len();
            body.resize(length.min(begin + DATA_MAX), 0);
            self.read(&mut body[begin..])?;
        }
        Ok(body)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        self.stream
            .write_all(bytes)
            .map_err(LinkError::of("write to"))?;
        self.sent += bytes.len() as u64;
        Ok(())
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), LinkError> {
        self.stream
            .read_exact(bytes)
            .map_err(LinkError::of("read from"))?;
        self.received += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn pair() -> (Conn, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Conn::new(ours), theirs)
    }

    fn said(bytes: &[u8]) -> Conn {
        let (conn, mut theirs) = pair();
        theirs.write_all(bytes).unwrap();
        conn
    }

    #[test]
    fn both_sides_agree_on_a_version() {
        let (mut a, theirs) = pair();
        let peer = std::thread::spawn(move || {
            let mut b = Conn::new(theirs);
            b.handshake().map(|()| b.bytes())
        });
        a.handshake().unwrap();
        assert_eq!(peer.join().unwrap().unwrap(), a.bytes());
    }

    #[test]
    fn a_banner_is_shown() {
        let error = said(b"Welcome to example!\nmore").handshake().unwrap_err();
        assert!(
            matches!(&error, LinkError::Foreign(text) if text == "Welcome to example!"),
            "{error}"
        );
    }

    #[test]
    fn a_newer_peer_is_named() {
        let (mut a, theirs) = pair();
        let mut b = Conn::new(theirs);
        b.write(PREFACE).unwrap();
        let hello = Hello {
            oldest: NEWEST + 1,
            newest: NEWEST + 2,
            program: "9.9".into(),
            host: String::new(),
        };
        b.send(&hello).unwrap();
        assert!(
            matches!(a.handshake(), Err(LinkError::Version { newest, .. }) if newest == NEWEST + 2)
        );
    }

    #[test]
    fn hostile_frames_are_errors() {
        let huge = [0xff, 0xff, 0xff, 0xff, MESSAGE];
        assert!(matches!(
            said(&huge).receive::<String>(),
            Err(LinkError::TooLong(_))
        ));
        assert!(matches!(
            said(&[1, 0, 0, 0, 9, 0]).receive::<String>(),
            Err(LinkError::Tag { tag: 9, .. })
        ));
        assert!(matches!(
            said(&[1, 0, 0, 0, ALIVE, 0]).receive::<String>(),
            Err(LinkError::Tag { .. })
        ));
        assert!(matches!(
            said(&[2, 0, 0, 0, MESSAGE, 0xff, 0xff]).receive::<String>(),
            Err(LinkError::Decode(_))
        ));
        assert!(matches!(
            said(&[9, 0, 0, 0, MESSAGE, 0x61]).receive::<String>(),
            Err(LinkError::Closed)
        ));
        // A CBOR text that says it is 2^60 bytes long, in a frame of nine.
        let liar = [9, 0, 0, 0, MESSAGE, 0x7b, 0x10, 0, 0, 0, 0, 0, 0, 0];
        assert!(matches!(
            said(&liar).receive::<String>(),
            Err(LinkError::Decode(_))
        ));
    }

    #[test]
    fn signs_of_life_are_passed_over() {
        let (mut a, theirs) = pair();
        let mut b = Conn::new(theirs);
        let value = a.while_alive(|| {
            b.frame(ALIVE, &[]).unwrap();
            b.frame(ALIVE, &[]).unwrap();
            7
        });
        b.send_data(b"content").unwrap();
        assert_eq!(
            (value, a.receive_data().unwrap().as_slice()),
            (7, b"content".as_slice())
        );
    }
}
