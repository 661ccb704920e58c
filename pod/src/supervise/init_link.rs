//! The supervisor's side of its conversation with init: orders are numbered, answers find whoever asked.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};

use super::{Event, Supervised};
use crate::failure::Failure;
use crate::messages::{Answer, FromInit, Order, Outcome, ToInit};
use crate::store::Exit;
use crate::wire::Wire;

type Answered = (Outcome<Answer>, Vec<OwnedFd>);

/// Orders init about.
pub(super) struct InitLink {
    wire: Wire,
    next: AtomicU64,
    /// `None` once init is gone.
    waiting: Mutex<Option<BTreeMap<u64, SyncSender<Answered>>>>,
    process: OwnedFd,
}

impl InitLink {
    /// Over a socket to init and a pidfd for it.
    pub(super) fn new(wire: Wire, process: OwnedFd) -> Self {
        // An answer to a supervisor that died must not be taken for one of ours.
        let first = u64::from(std::process::id()) << 32;
        Self {
            wire,
            next: AtomicU64::new(first),
            waiting: Mutex::new(Some(BTreeMap::new())),
            process,
        }
    }

    /// A pidfd for init.
    pub(super) fn process(&self) -> &OwnedFd {
        &self.process
    }

    /// Gives an order and waits for the answer.
    pub(super) fn order(&self, body: ToInit, fds: &[OwnedFd]) -> Result<(Answer, Vec<OwnedFd>)> {
        self.order_as(self.number(), body, fds)
    }

    /// A number for an order; exits of the program it begins are reported under it.
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Gives an order with a number that was drawn before.
    pub(super) fn order_as(
        &self,
        number: u64,
        body: ToInit,
        fds: &[OwnedFd],
    ) -> Result<(Answer, Vec<OwnedFd>)> {
        let (sender, receiver) = sync_channel(1);
        let gone = || Failure::new("the pod's init is gone");
        self.waiting()
            .as_mut()
            .ok_or_else(gone)?
            .insert(number, sender);
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.wire
            .send(&Order { number, body }, &fds)
            .context("give init an order")?;
        let (outcome, fds) = receiver.recv().map_err(|_| gone())?;
        Ok((outcome?, fds))
    }

    fn waiting(&self) -> MutexGuard<'_, Option<BTreeMap<u64, SyncSender<Answered>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answered(&self, number: u64, answered: Answered) {
        let sender = self
            .waiting()
            .as_mut()
            .and_then(|waiting| waiting.remove(&number));
        if let Some(sender) = sender {
            // Whoever asked may have died of another error.
            let _ = sender.send(answered);
        }
    }

    /// Listens to init in a thread of its own.
    pub(super) fn listen(self: &Arc<Self>, supervised: &Arc<Supervised>) {
        let (link, supervised) = (Arc::clone(self), Arc::clone(supervised));
        std::thread::spawn(move || {
            while let Ok(Some((message, fds))) = link.wire.receive() {
                match message {
                    FromInit::Answer { number, outcome } => link.answered(number, (outcome, fds)),
                    FromInit::Exited {
                        order,
                        main,
                        status,
                    } => exited(&supervised, order, main, status),
                }
            }
            *link.waiting() = None;
            supervised.raise(Event::InitGone);
        });
    }
}

fn exited(supervised: &Supervised, order: u64, main: bool, status: i32) {
    if main {
        supervised.raise(Event::MainExited(status));
        return;
    }
    supervised.facts().programs.insert(order, Exit::of(status));
    supervised.changed.notify_all();
}
