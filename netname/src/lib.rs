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
//! ```no_run
//! use netname::{Authority, Epoch, Key, Outcome, Placement, PodName, Updater};
//! # fn main() -> netname::Result<()> {
//! let key = Key::new("agent", "3sXh0o0dJkqk1l2m3n4o5p6q7r8s9t0u1v2w3x4y5z4=")?;
//! let updater = Updater::new(Authority::new("192.0.2.1:53".parse().unwrap(), Some(key)));
//! let (pod, held) = (PodName::new("web")?, Epoch::first());
//! let here = Placement { addresses: vec!["192.0.2.7".parse().unwrap()], ..Placement::default() };
//! updater.publish(&pod, &held, &here)?;
//! let there = Placement { addresses: vec!["192.0.2.8".parse().unwrap()], ..Placement::default() };
//! match updater.move_to(&pod, &held, &held.next(), &there)? {
//!     Outcome::Committed { .. } => {} // run it there
//!     Outcome::Lost { current } => {} // it belongs to `current`: run it neither here nor there
//!     Outcome::Unknown { change, .. } => drop(updater.resolve(change)), // stay frozen, ask again
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Nothing here prints. hickory logs through `tracing`: a line at `warn` for each answer under
//! `hickory_server::zone_handler::catalog` and one at `info` for each request under
//! `hickory_server::server`; quieting them is the program's business.
//!
//! BIND since 9.18.28 takes at most 100 records of one type at one name: where more pods than that
//! offer the same service, its zone needs `max-records-per-type 0;`, or publishing fails.

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
