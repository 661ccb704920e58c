//! One error for each step that can fail, with the server, the name or the path it failed on.

use std::{io, net::SocketAddr, path::PathBuf};

use hickory_proto::{ProtoError, op::ResponseCode};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What failed, on what.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A pod name must be one DNS label.
    #[error("{name:?} is not a pod name: {reason}")]
    PodName {
        /// What was given.
        name: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// A service cannot be published as it is.
    #[error("service {name:?} on {proto}/{port}: {reason}")]
    Service {
        /// Name of the service.
        name: String,
        /// Transport.
        proto: crate::Proto,
        /// Port as the pod sees it.
        port: u16,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// A text is no domain name.
    #[error("{text:?} is not a domain name")]
    DomainName {
        /// What was given.
        text: String,
        /// Why the parser refused it.
        source: ProtoError,
    },
    /// A text is no epoch.
    #[error("{0:?} is not an epoch (want NUMBER.TOKEN)")]
    Epoch(String),
    /// A TSIG key cannot be used.
    #[error("TSIG key {key}: {reason}")]
    Key {
        /// Name of the key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The server's configuration contradicts itself.
    #[error("name server configuration: {0}")]
    Config(String),
    /// A listening address cannot be had.
    #[error("name server cannot listen on {proto} {addr}")]
    Bind {
        /// `udp` or `tcp`.
        proto: &'static str,
        /// The address.
        addr: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The server's sockets failed while it ran or stopped.
    #[error("name server stopped: {0}")]
    Serve(String),
    /// No connection: nothing was sent.
    #[error("cannot connect to name server {server} ({step} {name})")]
    Connect {
        /// The authority.
        server: SocketAddr,
        /// What was to be done.
        step: &'static str,
        /// On which name.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection broke or timed out after something may have been sent.
    #[error("name server {server} did not answer ({step} {name})")]
    NoAnswer {
        /// The authority.
        server: SocketAddr,
        /// What was to be done.
        step: &'static str,
        /// On which name.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The server answered with bytes that are no DNS message or not the answer to this question.
    #[error("name server {server} answered nonsense ({step} {name}): {reason}")]
    Answer {
        /// The authority.
        server: SocketAddr,
        /// What was to be done.
        step: &'static str,
        /// On which name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The server refused.
    #[error("name server {server} refused to {step} {name}: {code}")]
    Refused {
        /// The authority.
        server: SocketAddr,
        /// What was to be done.
        step: &'static str,
        /// On which name.
        name: String,
        /// Its response code.
        code: ResponseCode,
    },
    /// The server does not know the key (TSIG BADKEY).
    #[error("name server {server} does not know the TSIG key {key} ({step} {name})")]
    UnknownKey {
        /// The authority.
        server: SocketAddr,
        /// What was to be done.
        step: &'static str,
        /// On which name.
        name: String,
        /// Name of the key.
        key: String,
    },
    /// The server has another secret under this key's name (TSIG BADSIG).
    #[error("name server {server} has another secret for the TSIG key {key} ({step} {name})")]
    WrongKey {
        /// The authority.
        server: SocketAddr,
        /// What was to be done.
        step: &'static str,
        /// On which name.
        name: String,
        /// Name of the key.
        key: String,
    },
    /// The clocks of this host and of the server differ too much (TSIG BADTIME).
    #[error(
        "clock of this host and of name server {server} differ by {seconds} s, more than the {fudge} s allowed ({step} {name})"
    )]
    ClockSkew {
        /// The authority.
        server: SocketAddr,
        /// What was to be done.
        step: &'static str,
        /// On which name.
        name: String,
        /// Server's clock minus ours, in seconds.
        seconds: i64,
        /// Allowed difference in seconds.
        fudge: u16,
    },
    /// The answer is not signed with our key although the question was.
    #[error("answer of name server {server} is not authentic ({step} {name}): {reason}")]
    NotAuthentic {
        /// The authority.
        server: SocketAddr,
        /// What was to be done.
        step: &'static str,
        /// On which name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A message cannot be encoded.
    #[error("cannot encode the message to {step} {name}")]
    Encode {
        /// What was to be done.
        step: &'static str,
        /// On which name.
        name: String,
        /// What the encoder said.
        source: ProtoError,
    },
    /// The name changed under each of our attempts.
    #[error("{name} at name server {server} kept changing while it was read")]
    Unsteady {
        /// The authority.
        server: SocketAddr,
        /// The name.
        name: String,
    },
    /// What the zone holds for a pod is not what a pod publishes.
    #[error("records of {name} at name server {server}: {reason}")]
    Foreign {
        /// The authority.
        server: SocketAddr,
        /// The name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A step on the journal file failed.
    #[error("zone journal {path}: cannot {step}")]
    Journal {
        /// The file.
        path: PathBuf,
        /// What was done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The journal is damaged where no crash can have damaged it.
    #[error("zone journal {path} is damaged at byte {offset}: {reason}")]
    JournalDamaged {
        /// The file.
        path: PathBuf,
        /// Offset of the frame.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// Another server has the journal open.
    #[error("zone journal {path} is in use by another server")]
    JournalBusy {
        /// The lock file.
        path: PathBuf,
    },
    /// An earlier write failed and could not be taken back: the zone is read only until a restart.
    #[error("zone {zone} takes no updates since its journal failed")]
    Poisoned {
        /// The zone.
        zone: String,
    },
    /// The server holds no such zone.
    #[error("this server has no zone {0}")]
    NoSuchZone(String),
    /// A task of ours was cancelled or died.
    #[error("background task to {step} ended early")]
    Task {
        /// What it did.
        step: &'static str,
        /// Why.
        source: tokio::task::JoinError,
    },
}
