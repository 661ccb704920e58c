//! What a capture and a rebuild must know of the pod's network, from the caller.
//!
//! Records hold virtual endpoints. Who owns its address has nothing to translate; where
//! the host's address is shared, a table outside this crate says which real endpoint
//! stands for a virtual one, and is plugged in here.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Whose addresses the pod's sockets have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum NetMode {
    /// The pod's own (`--net own`, `--net private`): they move with it, and so do its connections.
    #[default]
    Owned,
    /// The host's (`--net shared`): a connection to the outside cannot move.
    Shared,
}

/// What to do with a connection that cannot move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum LostConnections {
    /// The capture is refused, naming them.
    #[default]
    Refuse,
    /// They come back as connections that were reset: what was received can still be read, then `ECONNRESET`.
    Reset,
}

/// Which real endpoint stands for a virtual one.
pub trait Endpoints {
    /// The virtual endpoint that a real one stands for.
    fn virt_of(&self, real: SocketAddr) -> SocketAddr;
    /// The real endpoint to bind for a virtual one; port 0 lets the kernel choose.
    fn real_for(&self, virt: SocketAddr) -> SocketAddr;
    /// Told of each endpoint that was bound in a rebuild.
    fn bound(&mut self, virt: SocketAddr, real: SocketAddr);
}

/// Real is virtual.
struct Identity;

impl Endpoints for Identity {
    fn virt_of(&self, real: SocketAddr) -> SocketAddr {
        real
    }

    fn real_for(&self, virt: SocketAddr) -> SocketAddr {
        virt
    }

    fn bound(&mut self, _virt: SocketAddr, _real: SocketAddr) {}
}

/// The network side of a capture or a rebuild.
pub struct Network {
    /// Whose addresses they are.
    pub mode: NetMode,
    /// What to do with connections that cannot move.
    pub lost: LostConnections,
    /// The table of endpoints.
    pub endpoints: Box<dyn Endpoints>,
}

impl Default for Network {
    /// Owned addresses, nothing lost silently, real is virtual.
    fn default() -> Self {
        Self {
            mode: NetMode::default(),
            lost: LostConnections::default(),
            endpoints: Box::new(Identity),
        }
    }
}
