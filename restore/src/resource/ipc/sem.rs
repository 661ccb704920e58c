//! System V semaphores: the values of each set.
//!
//! What a process would undo at its end (SEM_UNDO) cannot be read from outside; that it has
//! such a list can, and then the pod is refused: without it, a lock held by a process that
//! dies would stay held for ever.

use std::io;

use intercept::sys::{self, Kcmp};
use serde::{Deserialize, Serialize};

use super::perm::{Perm, make, rows};
use crate::{
    capture::Capture,
    error::{Error, Result},
    image::{Image, Record},
};

/// A set of semaphores. Its number is its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Set {
    perm: Perm,
    values: Vec<u16>,
}

impl Record for Set {
    const KIND: &'static str = "sem";
    const VERSION: u16 = 1;
}

/// Looks at all sets of the calling thread's namespace.
pub(super) fn look() -> Result<Vec<(i32, Set)>> {
    let mut all = Vec::new();
    for row in rows("sem")? {
        let (id, perm) = (row.id(), row.perm(4));
        let mut values = vec![0u16; row.column(3) as usize];
        // SAFETY: room for all values of the set, whose size does not change.
        let r = unsafe { libc::semctl(id, 0, libc::GETALL, values.as_mut_ptr()) };
        sys::check(r.into()).map_err(|e| Error::kernel("semctl GETALL", format!("sem {id}"), e))?;
        all.push((id, Set { perm, values }));
    }
    Ok(all)
}

/// Refuses processes that have a list of what to undo: init, which is ours, has none.
pub(super) fn refuse_undo(init: i32, cx: &mut Capture<'_>) -> Result<()> {
    let mut holders = Vec::new();
    for (real, virtual_pid) in cx.pids() {
        match sys::kcmp(real, init, Kcmp::SysvSem, 0, 0) {
            Ok(order) if order.is_eq() => {}
            Ok(_) => holders.push(virtual_pid),
            // It has ended and waits to be reaped: it has undone everything.
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
            Err(e) => return Err(Error::kernel("kcmp", format!("process {virtual_pid}"), e)),
        }
    }
    for pid in holders {
        let why = "the kernel does not tell what it would undo at its end";
        cx.refuse_process(
            pid,
            "a semaphore operation with SEM_UNDO",
            why,
            "end that process first",
        );
    }
    Ok(())
}

/// Makes all sets of an image.
pub(super) fn rebuild(image: &Image) -> Result<()> {
    for (id, set) in image.all::<Set>()? {
        let id = id as i32;
        let flags = libc::IPC_CREAT | libc::IPC_EXCL | (set.perm.mode & 0o777) as i32;
        // SAFETY: plain values only.
        make("sem", id, &set.perm, || unsafe {
            libc::semget(set.perm.key, set.values.len() as i32, flags)
        })?;
        set.set(id)
            .map_err(|e| Error::kernel("semctl", format!("sem {id}"), e))?;
    }
    Ok(())
}

impl Set {
    fn set(&self, id: i32) -> io::Result<()> {
        // SAFETY: one value for each semaphore of the set just made.
        let r = unsafe { libc::semctl(id, 0, libc::SETALL, self.values.as_ptr()) };
        sys::check(r.into())?;
        // SAFETY: plain data for which zero is a valid value.
        let mut status: libc::semid_ds = unsafe { std::mem::zeroed() };
        status.sem_perm.uid = self.perm.owner.0;
        status.sem_perm.gid = self.perm.owner.1;
        status.sem_perm.mode = (self.perm.mode & 0o777) as _;
        // SAFETY: `status` outlives the call.
        let r = unsafe { libc::semctl(id, 0, libc::IPC_SET, &raw mut status) };
        sys::check(r.into()).map(drop)
    }
}
