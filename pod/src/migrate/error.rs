//! What can go wrong between the two hosts of a move.

use std::io;
use std::time::Duration;

use crate::failure::Failure;

/// The connection, or what came over it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// The other end is gone.
    #[error("the other side closed the connection")]
    Closed,
    /// Nothing came, not even a sign of life.
    #[error("the other side has been silent for {} s", .0.as_secs())]
    Silent(Duration),
    /// A step on the connection failed.
    #[error("{step} the connection: {source}")]
    Io {
        /// `read from` or `write to`.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The first bytes were not the protocol's.
    #[error("the other side does not speak pod's protocol; it said {0:?}")]
    Foreign(String),
    /// No version in common.
    #[error(
        "pod {program} on the other side speaks versions {oldest} to {newest} of the protocol, this one {} to {}",
        super::frame::OLDEST,
        super::frame::NEWEST
    )]
    Version {
        /// Its program's version.
        program: String,
        /// The oldest it understands.
        oldest: u32,
        /// The newest it understands.
        newest: u32,
    },
    /// A frame of another sort than the one that must come now.
    #[error("a frame of type {tag} came where one of type {wanted} must come")]
    Tag {
        /// What had to come.
        wanted: u8,
        /// What came.
        tag: u8,
    },
    /// A frame that no peer sends.
    #[error("a frame of {0} bytes is too long")]
    TooLong(usize),
    /// A message that cannot be encoded.
    #[error("encode a message: {0}")]
    Encode(String),
    /// A message that does not decode.
    #[error("a message does not decode: {0}")]
    Decode(String),
    /// A message that has no place here.
    #[error("the other side said {got} where {wanted} had to come")]
    Unexpected {
        /// What had to come.
        wanted: &'static str,
        /// What came.
        got: String,
    },
    /// Content that is not what was announced.
    #[error("{what} arrived damaged: {why}")]
    Content {
        /// Of what.
        what: String,
        /// How it differs.
        why: String,
    },
    /// The other side says no.
    #[error("the other host refused")]
    Refused(#[source] Failure),
}

impl LinkError {
    /// An I/O error of a step on the connection.
    pub(crate) fn of(step: &'static str) -> impl Fn(io::Error) -> Self {
        use io::ErrorKind as Kind;
        move |source| match source.kind() {
            Kind::UnexpectedEof | Kind::BrokenPipe | Kind::ConnectionReset | Kind::NotConnected => {
                Self::Closed
            }
            Kind::TimedOut => Self::Silent(super::link::SILENCE),
            _ => Self::Io { step, source },
        }
    }
}
