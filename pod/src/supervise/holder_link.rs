//! The supervisor's side of its conversation with the holder.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use anyhow::{Context, Result};

use super::{Event, Supervised};
use crate::messages::{FromHolder, ToHolder};
use crate::wire::Wire;

/// Descriptors an earlier supervisor left with the holder, by name.
pub(super) type Kept = BTreeMap<String, OwnedFd>;

/// Sends to the holder.
pub(super) struct HolderLink {
    wire: Wire,
    finished: Mutex<bool>,
    told: Condvar,
}

/// Receives what the holder kept, and whether this is the pod's first supervisor.
pub(super) fn greet(wire: &Wire) -> Result<(Kept, bool)> {
    let mut kept = BTreeMap::new();
    loop {
        let (message, fds) = wire.receive()?.context("the holder is gone")?;
        match message {
            FromHolder::Kept { name } => kept.extend(fds.into_iter().next().map(|fd| (name, fd))),
            FromHolder::Begin { first } => return Ok((kept, first)),
            FromHolder::Finished => {}
        }
    }
}

/// Listens to the holder in a thread of its own. Without a holder the pod cannot go on.
pub(super) fn listen(supervised: &Arc<Supervised>, wire: Wire) {
    let supervised = Arc::clone(supervised);
    std::thread::spawn(move || {
        while let Ok(Some((message, _))) = wire.receive::<FromHolder>() {
            if matches!(message, FromHolder::Finished) {
                supervised.holder.set_finished();
            }
        }
        supervised.holder.set_finished();
        supervised.raise(Event::HolderGone);
    });
}

impl HolderLink {
    pub(super) fn new(wire: Wire) -> Self {
        Self {
            wire,
            finished: Mutex::new(false),
            told: Condvar::new(),
        }
    }

    fn tell(&self, message: &ToHolder, fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.wire.send(message, fds).context("tell the holder")
    }

    /// Has a descriptor kept for the next supervisor.
    pub(super) fn keep(&self, name: &str, fd: &impl AsFd) -> Result<()> {
        self.tell(
            &ToHolder::Keep {
                name: name.to_owned(),
            },
            &[fd.as_fd()],
        )
    }

    /// Has a kept descriptor closed.
    pub(super) fn drop_kept(&self, name: &str) -> Result<()> {
        self.tell(
            &ToHolder::Drop {
                name: name.to_owned(),
            },
            &[],
        )
    }

    /// Has what comes from a descriptor written to the log.
    pub(super) fn pump(&self, source: &impl AsFd, terminal: bool, error: bool) -> Result<()> {
        self.tell(&ToHolder::Pump { terminal, error }, &[source.as_fd()])
    }

    /// Says which process is init.
    pub(super) fn init(&self, pid: i32) -> Result<()> {
        self.tell(&ToHolder::Init { pid }, &[])
    }

    /// Ends the log; returns when it is complete or the holder is gone.
    pub(super) fn finish(&self) -> Result<()> {
        self.tell(&ToHolder::Finish, &[])?;
        let mut finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        while !*finished {
            finished = self
                .told
                .wait(finished)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn set_finished(&self) {
        *self.finished.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.told.notify_all();
    }
}
