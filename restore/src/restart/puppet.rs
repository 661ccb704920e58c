//! A task that is being rebuilt: it stands still except when a batch of ours runs in it.
//!
//! A puppet's descriptors while it is being rebuilt:
//!
//! ```text
//! 0 …            free; final slots are put here at the end
//! feed           the socket on which the builder sends descriptors
//! feed + 1 …     objects fetched so far, kept out of the way of the final slots
//! ```

use std::collections::BTreeMap;

use intercept::tracee::{Running, Stopped};

use super::Site;
use crate::{
    error::{Error, Result},
    remote::{Batch, Results, Scope},
    resource::ObjectId,
};

/// The builder's name for the image's file of pages, among the numbers of descriptions.
pub const PAGES_OBJECT: ObjectId = ObjectId::MAX;

/// So many descriptors fit into one message (`SCM_MAX_FD` is 253).
const AT_ONCE: usize = 200;

/// A task that is being rebuilt.
pub struct Puppet {
    scope: Option<Scope>,
    feed: i32,
    held: BTreeMap<ObjectId, i32>,
}

impl Puppet {
    /// A stopped task that has the stub, with its feed at this number.
    ///
    /// # Errors
    /// The task is gone.
    pub fn new(task: Stopped, feed: i32) -> Result<Self> {
        Ok(Self {
            scope: Some(Scope::with_stub(task)?),
            feed,
            held: BTreeMap::new(),
        })
    }

    /// A child forked from this puppet: it has what its parent held.
    ///
    /// # Errors
    /// The task is gone.
    pub fn forked(&self, task: Stopped) -> Result<Self> {
        Ok(Self {
            scope: Some(Scope::with_stub(task)?),
            feed: self.feed,
            held: self.held.clone(),
        })
    }

    /// The feed's number.
    #[must_use]
    pub fn feed(&self) -> i32 {
        self.feed
    }

    fn take(&mut self) -> Result<Scope> {
        // The scope is missing only after a batch failed, when the whole restart is being given up.
        self.scope
            .take()
            .ok_or_else(|| Error::Builder("a task is used after it failed".into()))
    }

    /// The task itself.
    ///
    /// # Errors
    /// A batch has failed in it before.
    pub fn task(&self) -> Result<&Stopped> {
        let lost = || Error::Builder("a task is used after it failed".into());
        self.scope.as_ref().map(Scope::task).ok_or_else(lost)
    }

    /// Runs a batch in it.
    ///
    /// # Errors
    /// The call that failed.
    pub fn run(&mut self, batch: Batch) -> Result<Results> {
        if batch.is_empty() {
            return Ok(batch.nothing());
        }
        let (results, scope) = self.take()?.run(batch)?;
        self.scope = Some(scope);
        Ok(results)
    }

    /// Runs a batch whose last call is clone or clone3, and returns the child, stopped at its birth.
    ///
    /// # Errors
    /// The call that failed; `EEXIST` when the wanted pid is taken.
    pub fn fork(&mut self, batch: Batch) -> Result<Stopped> {
        let (child, scope) = self.take()?.fork(batch)?;
        self.scope = Some(scope);
        Ok(Running::attached(child).wait_stopped()?)
    }

    /// Gets descriptions from the builder; returns their numbers in the task, in the order asked for.
    ///
    /// # Errors
    /// The builder does not have one, or the task has no room for it.
    pub fn fetch(&mut self, ids: &[ObjectId], site: &mut dyn Site) -> Result<Vec<i32>> {
        let mut missing: Vec<ObjectId> = ids
            .iter()
            .copied()
            .filter(|id| !self.held.contains_key(id))
            .collect();
        missing.sort_unstable();
        missing.dedup();
        for chunk in missing.chunks(AT_ONCE) {
            site.give(chunk)?;
            self.receive(chunk)?;
        }
        Ok(ids.iter().map(|id| self.held[id]).collect())
    }

    fn receive(&mut self, ids: &[ObjectId]) -> Result<()> {
        let numbers = self.receive_message(ids.len())?;
        let mut batch = Batch::new();
        let base = self.feed as u64 + 1;
        let moved: Vec<_> = numbers
            .iter()
            .map(|fd| {
                let args = [*fd as u64, libc::F_DUPFD_CLOEXEC as u64, base];
                let moved = batch.call("fcntl F_DUPFD_CLOEXEC", libc::SYS_fcntl, &args);
                batch.call("close", libc::SYS_close, &[*fd as u64]);
                moved
            })
            .collect();
        let results = self.run(batch)?;
        for (id, call) in ids.iter().zip(moved) {
            self.held.insert(*id, results.value(call) as i32);
        }
        Ok(())
    }

    /// `recvmsg` of one byte with `count` descriptors.
    fn receive_message(&mut self, count: usize) -> Result<Vec<i32>> {
        let mut batch = Batch::new();
        let byte = batch.out(1);
        let iov = batch.words(&[byte.addr, 1]);
        let control_len = 16 + (count * 4).next_multiple_of(8);
        let control = batch.out(control_len);
        let header = batch.words(&[0, 0, iov, 1, control.addr, control_len as u64, 0]);
        let args = [self.feed as u64, header, libc::MSG_CMSG_CLOEXEC as u64];
        batch.call("recvmsg", libc::SYS_recvmsg, &args);
        let results = self.run(batch)?;
        let fds = results.bytes(control)[16..].chunks_exact(4);
        let fds = fds.map(|b| i32::from_ne_bytes(b.try_into().unwrap_or_default()));
        Ok(fds.take(count).collect())
    }

    /// Closes all that was fetched and the feed, at the end.
    pub fn close_held(&mut self, batch: &mut Batch) {
        batch.call(
            "close_range",
            libc::SYS_close_range,
            &[self.feed as u64, u64::from(u32::MAX), 0],
        );
        self.held.clear();
    }

    /// Ends the puppet's life as a puppet: the stopped task, for its last touches.
    ///
    /// # Errors
    /// A batch has failed in it before.
    pub fn into_task(mut self) -> Result<Stopped> {
        Ok(self.take()?.into_task())
    }
}
