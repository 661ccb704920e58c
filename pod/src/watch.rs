//! Waiting for something to happen to a pod: its log grew, its supervisor or its state was renewed, its
//! holder ended.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::store::Pod;
use crate::sys;

/// Changes of a pod's directory. What happens after it was made is not missed.
#[derive(Debug)]
pub(crate) struct Watch {
    inotify: OwnedFd,
}

impl Watch {
    /// Watches a pod's directory.
    pub(crate) fn pod(pod: &Pod) -> Result<Self> {
        let path = CString::new(pod.dir.as_os_str().as_bytes())
            .context("the root has a NUL in its path")?;
        let inotify = sys::watch(&path).with_context(|| format!("watch {}", pod.dir.display()))?;
        Ok(Self { inotify })
    }

    /// Returns when something has happened since the last time.
    pub(crate) fn wait(&self) -> Result<()> {
        let mut fds = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e).context("wait for the pod"),
        }
        self.drain()
    }

    /// Forgets what has happened so far.
    pub(crate) fn drain(&self) -> Result<()> {
        sys::drain(self.inotify.as_fd()).context("read inotify")
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}
