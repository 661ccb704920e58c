//! Who holds the pod's process numbers: the kernel's pid namespace, or our table.
//!
//! A checkpoint asks for virtual numbers, a restart binds them anew. Neither knows which of the two
//! holds them, so an image that was taken under one is woken under the other.

use std::collections::HashMap;
use std::sync::PoisonError;

use anyhow::{Context, Result};
use intercept::engine::{Shared, Trusted};
use intercept::names::Tables;
use intercept::names::pids::stat;
use intercept::table::Backing;
use restore::checkpoint::{KernelPids, Pids};
use restore::network::{LostConnections, Made, NetMode, Network};

use super::{Supervised, names};

/// The number that stands for init, and for what is outside the pod.
const INIT: i32 = 1;

/// The holder of a pod's process numbers.
#[derive(Clone)]
pub(super) struct HeldBy {
    backing: Backing,
    tables: Shared,
    /// Processes of ours in the pod, whose calls pass untouched.
    pub(super) trusted: Trusted,
}

impl Supervised {
    /// Who holds this pod's numbers.
    pub(super) fn held_by(&self) -> Result<HeldBy> {
        let names = self.names.get().context("the pod has no names yet")?;
        Ok(HeldBy {
            backing: names::plan(&self.config).pids,
            tables: names.tables.clone(),
            trusted: names.trusted.clone(),
        })
    }
}

impl HeldBy {
    fn with<T>(&self, work: impl FnOnce(&mut intercept::names::Pids) -> T) -> T {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut tables.pids)
    }

    /// The tables as they are now, for the image: virtual names only.
    pub(super) fn tables(&self) -> Tables {
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.clone()
    }

    /// Whose addresses the pod's sockets have, for a capture or a rebuild.
    pub(super) fn network(&self) -> Network {
        let tables = self.tables();
        let mode = match tables.plan.endpoints {
            true => NetMode::Shared,
            false => NetMode::Owned,
        };
        Network::new(mode, LostConnections::Reset, tables.endpoints)
    }

    /// Notes the endpoints that a rebuild bound.
    pub(super) fn bound(&self, made: &[Made]) {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        for made in made {
            made.tell(&mut tables.endpoints);
        }
    }

    /// The pid to ask the kernel for; `None` where it may give any.
    pub(super) fn wanted(&self, virtual_pid: i32) -> Option<i32> {
        (self.backing == Backing::Kernel).then_some(virtual_pid)
    }

    /// Notes which task stands for a number.
    pub(super) fn bind(&self, virtual_pid: i32, real: i32) {
        if self.backing == Backing::Notify {
            self.with(|pids| pids.bind(virtual_pid, real));
        }
    }

    /// The number by which a call that is not translated reaches a task.
    pub(super) fn inner(&self, virtual_pid: i32) -> i32 {
        match self.backing {
            Backing::Kernel => virtual_pid,
            Backing::Notify => self
                .with(|pids| pids.real(virtual_pid))
                .unwrap_or(virtual_pid),
        }
    }

    /// The pod's number for a task by init's (init's calls are not translated).
    pub(super) fn of_init(&self, told: i32) -> i32 {
        match self.backing {
            Backing::Kernel => told,
            Backing::Notify => self.with(|pids| pids.virt_or_new(told)),
        }
    }

    /// Init's number for a task of the pod; `None` when a table holds the numbers and has none such.
    pub(super) fn for_init(&self, virtual_pid: i32) -> Option<i32> {
        match self.backing {
            Backing::Kernel => Some(virtual_pid),
            Backing::Notify => self.with(|pids| pids.real(virtual_pid)),
        }
    }

    /// Numbers that stand for another here, by virtual number.
    pub(super) fn differing(&self) -> HashMap<i32, i32> {
        match self.backing {
            Backing::Kernel => HashMap::new(),
            Backing::Notify => self.with(|pids| pids.all().collect()),
        }
    }
}

impl Pids for HeldBy {
    fn virtual_of(&self, real: i32) -> Option<i32> {
        match self.backing {
            Backing::Kernel => KernelPids.virtual_of(real),
            Backing::Notify => Some(self.with(|pids| pids.virt_or_new(real))),
        }
    }

    fn group_of(&self, real: i32) -> i32 {
        match self.backing {
            Backing::Kernel => KernelPids.group_of(real),
            Backing::Notify => self.standing_for(stat(real).map(|s| s.pgrp)),
        }
    }

    fn session_of(&self, real: i32) -> i32 {
        match self.backing {
            Backing::Kernel => KernelPids.session_of(real),
            Backing::Notify => self.standing_for(stat(real).map(|s| s.session)),
        }
    }
}

impl HeldBy {
    fn standing_for(&self, real: Option<i32>) -> i32 {
        let virt = real.and_then(|real| self.with(|pids| pids.virt(real)));
        virt.unwrap_or(INIT)
    }
}
