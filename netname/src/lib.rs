//! Names on the network: an authoritative DNS server and a client for dynamic updates.
//!
//! A pod's name is the one thing its clients keep while the pod moves. It stands in a DNS zone, with
//! an *epoch* beside it: each move is one atomic update (RFC 2136) whose prerequisite is the old
//! epoch, so that of two hosts that both want to move a pod one wins, and a host that was away cannot
//! point the name back. That update is the commit point of a migration. The zone is also the
//! directory: it tells the real endpoint of each endpoint that a pod sees.
//!
//! ```text
//!   source ─┐  UPDATE if epoch = 7.a             ┌─▶ journal, fsync
//!           ├─▶ primary (serve) ─ one writer ────┤
//!   dest. ──┘      │ NOTIFY, AXFR                └─▶ answers
//!                  ▼
//!            secondary on each host (serve) ─▶ pods, supervisors, clients
//! ```
//!
//! * [`serve`] runs a server: zones, keys, forwarding; [`ZoneView`] reads it in its own process.
//! * [`Updater`] publishes, moves, withdraws and looks up, from plain threads against any server that
//!   speaks RFC 2136 with TSIG (this one, BIND, Knot, PowerDNS); [`AsyncUpdater`] does so from tokio.
//!
//! Nothing here prints; hickory's catalog logs a line at `warn` for each answer, and quieting the
//! target `hickory_server::zone_handler::catalog` is the program's business.

mod client;
mod config;
mod directory;
mod error;
mod name;
mod nonblocking;
mod server;
mod tsig;
mod zone;

pub use crate::{
    client::updater::{Authority, Change, Outcome, Standing, Updater},
    config::{DEFAULT_TTL, Grant, KeyConfig, Role, ServerConfig, ZoneConfig},
    directory::{Entry, Placement},
    error::{Error, Result},
    name::{Epoch, PodName, Proto, Service, ZoneName},
    nonblocking::AsyncUpdater,
    server::{Server, ZoneView, serve},
    tsig::Key,
};
