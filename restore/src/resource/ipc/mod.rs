//! What lives in an IPC namespace: System V shared memory, semaphores and message queues,
//! POSIX message queues, and the limits of all these.
//!
//! Such objects belong to no process; ids and keys are names inside the namespace, so a
//! namespace of its own gives a pod the same ids everywhere (`/proc/sys/kernel/*_next_id`).
//! Capture looks through a thread of ours that enters the namespace; rebuild is done by the
//! builder, which lives in it, before memory that maps a segment. A segment that was marked
//! for removal is marked again at the end, when it is attached.

mod mqueue;
mod msg;
mod perm;
mod sem;
mod shm;

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    capture::Capture,
    error::{Error, Result},
    image::{Image, Record},
};

pub use self::mqueue::Mqueue;

/// Limits of the namespace that differ from a fresh one's: names below /proc/sys, values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Limits(Vec<(String, String)>);

impl Record for Limits {
    const KIND: &'static str = "ipc-limits";
    const VERSION: u16 = 1;
}

/// Limits that each namespace has for itself.
const LIMITS: [&str; 13] = [
    "kernel/shmmax",
    "kernel/shmall",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "fs/mqueue/queues_max",
    "fs/mqueue/msg_max",
    "fs/mqueue/msgsize_max",
    "fs/mqueue/msg_default",
    "fs/mqueue/msgsize_default",
];

/// All that was read inside the namespace.
struct Found {
    limits: Limits,
    segments: Vec<(i32, shm::Found)>,
    sets: Vec<(i32, sem::Set)>,
    queues: Vec<(i32, msg::Queue)>,
    posix: mqueue::Found,
}

/// Captures the IPC namespace of process `init`; a pod that uses the host's has nothing here.
///
/// # Errors
/// The call that failed. What cannot be carried goes to [`Capture::refuse_process`].
pub fn capture(init: i32, cx: &mut Capture<'_>) -> Result<()> {
    let _span = tracing::info_span!("capture ipc").entered();
    if namespace("/proc/thread-self")? == namespace(&format!("/proc/{init}"))? {
        return Ok(());
    }
    let found = inside(init, || {
        Ok(Found {
            limits: limits()?,
            segments: shm::look()?,
            sets: sem::look()?,
            queues: msg::look()?,
            posix: mqueue::look()?,
        })
    })?;
    record(found, init, cx)
}

fn record(found: Found, init: i32, cx: &mut Capture<'_>) -> Result<()> {
    cx.writer.record(0, &found.limits)?;
    if !found.sets.is_empty() {
        sem::refuse_undo(init, cx)?;
    }
    for (id, segment) in found.segments {
        segment.record(id, cx)?;
    }
    for (id, set) in &found.sets {
        cx.writer.record(*id as u32, set)?;
    }
    for (id, queue) in &found.queues {
        cx.writer.record(*id as u32, queue)?;
    }
    found.posix.record(cx)
}

/// Makes the objects of an image in the namespace of the calling process.
///
/// # Errors
/// An id that is taken, a limit that this host does not grant.
pub fn rebuild(image: &Image) -> Result<()> {
    let _span = tracing::info_span!("rebuild ipc").entered();
    for limits in image.all::<Limits>()?.values() {
        set_limits(limits)?;
    }
    shm::rebuild(image)?;
    sem::rebuild(image)?;
    msg::rebuild(image)?;
    mqueue::rebuild(image)
}

/// Marks segments for removal that were so marked, now that they are attached.
///
/// # Errors
/// What shmctl said.
pub fn settle(image: &Image) -> Result<()> {
    shm::mark_removed(image)
}

fn namespace(process: &str) -> Result<(u64, u64)> {
    let path = format!("{process}/ns/ipc");
    let stat = fs::metadata(&path).map_err(|e| Error::file("stat", path, e))?;
    Ok((stat.dev(), stat.ino()))
}

/// Runs `work` in a thread that has entered the IPC namespace of a process.
fn inside<T: Send>(pid: i32, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let path = format!("/proc/{pid}/ns/ipc");
    let ns = fs::File::open(&path).map_err(|e| Error::file("open", &path, e))?;
    let enter = || {
        nix::sched::setns(&ns, nix::sched::CloneFlags::CLONE_NEWIPC)
            .map_err(|e| Error::file("setns to", &path, e))?;
        work()
    };
    std::thread::scope(|s| s.spawn(enter).join()).unwrap_or_else(|_| {
        Err(Error::Builder(
            "the thread in the IPC namespace died".into(),
        ))
    })
}

fn sysctl(name: &str) -> std::path::PathBuf {
    Path::new("/proc/sys").join(name)
}

fn read_limit(name: &str) -> Result<Option<String>> {
    match fs::read_to_string(sysctl(name)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        // A kernel without that kind of object.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::file("read", sysctl(name), e)),
    }
}

fn limits() -> Result<Limits> {
    let mut all = Vec::new();
    for name in LIMITS {
        if let Some(value) = read_limit(name)? {
            all.push((name.to_owned(), value));
        }
    }
    Ok(Limits(all))
}

fn set_limits(limits: &Limits) -> Result<()> {
    for (name, value) in &limits.0 {
        if !LIMITS.contains(&name.as_str()) {
            return Err(Error::Unfit {
                object: format!("limit {name}"),
                why: "it is not one of an IPC namespace".into(),
            });
        }
        if read_limit(name)?.as_ref() != Some(value) {
            fs::write(sysctl(name), value).map_err(|e| Error::file("write", sysctl(name), e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
