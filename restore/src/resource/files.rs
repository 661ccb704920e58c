//! The table of descriptors: slots that refer to descriptions.

use std::{
    fs,
    os::fd::{AsFd, BorrowedFd},
};

use intercept::sys;
use serde::{Deserialize, Serialize};

use super::ObjectId;
use crate::{
    capture::{Capture, Probe},
    error::{Error, Result},
    remote::Batch,
    restart::{Puppet, Site},
};

/// A descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Its number.
    pub fd: i32,
    /// The description it refers to.
    pub object: ObjectId,
    /// `FD_CLOEXEC`.
    pub cloexec: bool,
}

/// Captures all descriptors of process `pid`, known in the pod as `vpid`.
///
/// # Errors
/// The step that failed; what cannot be carried goes to [`Capture::refuse`].
pub fn capture(pid: i32, vpid: i32, cx: &mut Capture<'_>) -> Result<Vec<Slot>> {
    let pidfd =
        sys::pidfd_open(pid).map_err(|e| Error::kernel("pidfd_open", format!("task {pid}"), e))?;
    let mut slots = Vec::new();
    for fd in numbers(pid)? {
        slots.push(capture_one(pid, vpid, fd, pidfd.as_fd(), cx)?);
    }
    Ok(slots)
}

fn numbers(pid: i32) -> Result<Vec<i32>> {
    let path = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(&path).map_err(|e| Error::file("read", path, e))?;
    let mut all: Vec<i32> = entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect();
    all.sort_unstable();
    Ok(all)
}

fn capture_one(
    pid: i32,
    vpid: i32,
    fd: i32,
    pidfd: BorrowedFd<'_>,
    cx: &mut Capture<'_>,
) -> Result<Slot> {
    let what = || format!("descriptor {fd} of process {vpid}");
    let file = sys::pidfd_getfd(pidfd, fd).map_err(|e| Error::kernel("pidfd_getfd", what(), e))?;
    let object = cx.description(&Probe::new(vpid, Some(fd), file)?)?;
    Ok(Slot {
        fd,
        object,
        cloexec: is_cloexec(pid, fd)?,
    })
}

/// The flag is the slot's, not the description's: only the owner's fdinfo shows it.
fn is_cloexec(pid: i32, fd: i32) -> Result<bool> {
    let path = format!("/proc/{pid}/fdinfo/{fd}");
    let text = fs::read_to_string(&path).map_err(|e| Error::file("read", &path, e))?;
    let flags = text.lines().find_map(|l| l.strip_prefix("flags:"));
    let flags = flags.and_then(|f| i32::from_str_radix(f.trim(), 8).ok());
    let why = || Error::Proc {
        path: path.into(),
        why: "it has no flags".into(),
    };
    Ok(flags.ok_or_else(why)? & libc::O_CLOEXEC != 0)
}

/// Fills a puppet's slots.
///
/// # Errors
/// The call that failed in it.
pub fn rebuild(slots: &[Slot], puppet: &mut Puppet, site: &mut dyn Site) -> Result<()> {
    let objects: Vec<ObjectId> = slots.iter().map(|s| s.object).collect();
    let held = puppet.fetch(&objects, site)?;
    for chunk in slots.iter().zip(held).collect::<Vec<_>>().chunks(2000) {
        let mut batch = Batch::new();
        for (slot, held) in chunk {
            let flags = if slot.cloexec { libc::O_CLOEXEC } else { 0 };
            batch.call(
                "dup3",
                libc::SYS_dup3,
                &[*held as u64, slot.fd as u64, flags as u64],
            );
        }
        puppet.run(batch)?;
    }
    Ok(())
}
