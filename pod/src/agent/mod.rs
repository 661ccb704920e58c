//! The agent: what a host does for the others.
//!
//! ```text
//!   pod agent --listen ADDR ─┬─ a worker for each connection (`--stdio` with the socket, over TLS)
//!                            └─ the name server (`name-server`), a process of its own
//!   ssh HOST pod agent --stdio ── a worker, without TLS: ssh has seen to that
//!
//!   ROOT/agent/config.toml   who we are, where the zone is, how names are published
//!             ca.pem         the cluster's certificate authority      ca.key    on the first host only
//!             host.pem       our certificate                          host.key
//!             secret         what a joining host must know            on the first host only
//! ```
//!
//! `agent init` makes a cluster, `agent join` brings a host into it. Each worker is a process, watched by
//! the one that started it: when it dies, what it left half-done is put right at once.

pub(crate) mod arrival;
pub(crate) mod cluster;
pub(crate) mod config;
pub(crate) mod host;
pub(crate) mod identity;
pub(crate) mod listen;
pub(crate) mod name_server;
pub(crate) mod sweep;
pub(crate) mod token;
pub(crate) mod worker;
