//! The tables of names.
//!
//! Plain data: virtual names go into a checkpoint as they are, and the real names they
//! stand for on this host are skipped by serialization and bound anew at restart.

use serde::{Deserialize, Serialize};

use crate::table::{Backing, Plan};

pub mod address;
pub mod endpoints;
pub mod hosts;
pub mod ipc;
pub mod pids;

pub use endpoints::Endpoints;
pub use hosts::Hosts;
pub use ipc::Ipc;
pub use pids::Pids;

/// All names of one pod.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Tables {
    /// What is intercepted on this host; a restart decides anew.
    #[serde(skip)]
    pub plan: Plan,
    /// Processes, threads, groups, sessions.
    pub pids: Pids,
    /// System V ids and keys.
    pub ipc: Ipc,
    /// Host and domain name.
    pub hosts: Hosts,
    /// Addresses of sockets.
    pub endpoints: Endpoints,
}

impl Tables {
    /// A pid that the kernel tells in passing, as the pod knows it; 0 for one outside.
    #[must_use]
    pub fn pid_told(&self, real: i32) -> i32 {
        match self.plan.pids {
            Backing::Kernel => real,
            Backing::Notify => self.pids.virt(real).unwrap_or(0),
        }
    }
}
