//! Locks that say who is alive: flock(2) on a file.
//!
//! The lock belongs to the open file description, so it can be handed to another process by inheritance,
//! and the kernel drops it when the last copy is closed, however its owner ends. Owners open the file for
//! writing, those who only look open it for reading: whoever watches with inotify sees `IN_CLOSE_WRITE`
//! at the owner's end, and is not woken by other lookers.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;

/// A lock, held until it and every inherited copy of it are closed.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl AsRawFd for Lock {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn flock(file: &File, how: i32) -> nix::Result<()> {
    loop {
        // SAFETY: no memory is passed.
        match Errno::result(unsafe { libc::flock(file.as_raw_fd(), how) }) {
            Err(Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

impl Lock {
    /// Waits for the lock and takes it.
    pub(crate) fn exclusive(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path);
        let file = file.with_context(|| format!("open {}", path.display()))?;
        flock(&file, libc::LOCK_EX).with_context(|| format!("lock {}", path.display()))?;
        Ok(Self { file })
    }

    /// Whether somebody holds the lock. A file that does not exist is not locked.
    pub(crate) fn is_taken(path: &Path) -> Result<bool> {
        let Some(file) = look(path)? else {
            return Ok(false);
        };
        match flock(&file, libc::LOCK_SH | libc::LOCK_NB) {
            Ok(()) => Ok(false),
            Err(Errno::EWOULDBLOCK) => Ok(true),
            Err(e) => Err(e).with_context(|| format!("look at the lock {}", path.display())),
        }
    }

    /// Waits until nobody holds the lock.
    pub(crate) fn await_free(path: &Path) -> Result<()> {
        let Some(file) = look(path)? else {
            return Ok(());
        };
        flock(&file, libc::LOCK_SH).with_context(|| format!("wait for the lock {}", path.display()))
    }
}

fn look(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("open {}", path.display())),
    }
}
