//! The tables of names.
//!
//! Plain data: virtual names go into a checkpoint as they are, and the real names they
//! stand for on this host are skipped by serialization and bound anew at restart.

use serde::{Deserialize, Serialize};

use crate::table::Plan;

pub mod address;
pub mod endpoints;
pub mod pids;

pub use endpoints::Endpoints;
pub use pids::Pids;

/// All names of one pod.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Tables {
    /// What is intercepted on this host; a restart decides anew.
    #[serde(skip)]
    pub plan: Plan,
    /// Processes, threads, groups, sessions.
    pub pids: Pids,
    /// Addresses of sockets.
    pub endpoints: Endpoints,
}
