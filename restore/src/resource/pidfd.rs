//! pidfd_open(2): a process, by its virtual pid.
//!
//! It is made when the process tree exists. A process that is gone and reaped has no pid any
//! more; what such a pidfd can still do is be readable, so one of a short-lived child is made.

use std::os::fd::{FromRawFd, OwnedFd};

use intercept::sys;
use serde::{Deserialize, Serialize};

use super::{Description, Order, Room};
use crate::{
    builder::Builder,
    capture::{Capture, Probe},
    error::{Error, Result},
    image::Record,
};

/// A pidfd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pidfd {
    /// The process (or thread), `None` when it is gone and reaped.
    pid: Option<i32>,
    /// `PIDFD_THREAD`: it names a thread.
    thread: bool,
}

impl Record for Pidfd {
    const KIND: &'static str = "pidfd";
    const VERSION: u16 = 1;
}

/// `PIDFD_THREAD` of linux/pidfd.h.
const PIDFD_THREAD: i32 = libc::O_EXCL;

impl Room for Pidfd {
    fn capture(probe: &Probe, cx: &mut Capture<'_>) -> Result<Option<Self>> {
        let Some(pid) = probe.field("Pid:") else {
            return Ok(None);
        };
        let thread = probe.flags & PIDFD_THREAD != 0;
        let real: i32 = pid.parse().map_err(|_| probe.unreadable("not a pid"))?;
        // 0 is a process that our own pid namespace does not know: it cannot be the pod's.
        let pid = if real == -1 {
            None
        } else {
            cx.virtual_pid(real)
        };
        if real != -1 && pid.is_none() {
            let hint = "close it before the checkpoint";
            cx.refuse(probe, "a pidfd of a process outside the pod", hint);
            return Ok(None);
        }
        Ok(Some(Self { pid, thread }))
    }
}

impl Description for Pidfd {
    fn order(&self) -> Order {
        Order::Tree
    }

    fn rebuild(&self, builder: &mut Builder<'_>) -> Result<OwnedFd> {
        let Some(pid) = self.pid else {
            return of_the_dead();
        };
        open(builder.real_pid(pid), self.thread)
            .map_err(|e| Error::kernel("pidfd_open", format!("process {pid}"), e))
    }
}

fn open(pid: i32, thread: bool) -> std::io::Result<OwnedFd> {
    let flags = if thread { PIDFD_THREAD } else { 0 };
    // SAFETY: plain values only.
    let fd = sys::check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) })?;
    // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn of_the_dead() -> Result<OwnedFd> {
    let failed = |step, e| Error::kernel(step, "pidfd of a process that is gone", e);
    // SAFETY: the child does nothing but exit.
    let child = unsafe { sys::clone3(sys::Clone3::default()) }.map_err(|e| failed("clone3", e))?;
    if child == 0 {
        // SAFETY: ends this child at once.
        unsafe { libc::_exit(0) }
    }
    let fd = open(child, false).map_err(|e| failed("pidfd_open", e));
    // SAFETY: waits for our own child; its status is not asked for.
    let r = unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    sys::check(r.into()).map_err(|e| failed("waitpid", e))?;
    fd
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, os::fd::AsFd};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::{
        image::Image,
        testing::{capture, capture_with},
    };

    fn readable(fd: &OwnedFd) -> bool {
        poll(
            &mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)],
            PollTimeout::ZERO,
        )
        .unwrap()
            == 1
    }

    #[test]
    fn a_pidfd_finds_its_process_under_its_new_number() {
        let mut old = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut new = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let dead = of_the_dead().unwrap();
        let (old_pid, new_pid) = (old.id() as i32, new.id() as i32);
        let dir = tempfile::tempdir().unwrap();
        let live = open(old_pid, false).unwrap();
        let fds = [live.as_fd(), dead.as_fd()];
        let known = |cx: &mut Capture<'_>| cx.set_pids(HashMap::from([(old_pid, 7)]));
        let (ids, refused) = capture_with(dir.path(), &fds, known).unwrap();
        assert_eq!(refused, []);
        let image = Image::open(&dir.path().join("image")).unwrap();
        let mut builder = Builder::new(&image, HashMap::new());
        builder.make().unwrap();
        assert!(builder.object(ids[0]).is_err(), "the tree is not there yet");
        builder.set_pids(HashMap::from([(7, new_pid)]));
        builder.link().unwrap();
        let fd = |id| builder.object(id).unwrap().try_clone_to_owned().unwrap();
        let (live, dead) = (fd(ids[0]), fd(ids[1]));
        assert!(readable(&dead));
        let probe = Probe::new(1, None, live.try_clone().unwrap()).unwrap();
        assert_eq!(probe.field("Pid:").unwrap().parse(), Ok(new_pid));
        assert!(!readable(&live));
        for child in [&mut old, &mut new] {
            drop(child.stdin.take());
            child.wait().unwrap();
        }
        assert!(readable(&live));
    }

    #[test]
    fn a_process_outside_the_pod_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let fd = open(std::process::id() as i32, false).unwrap();
        let (_, refused) = capture(dir.path(), &[fd.as_fd()]).unwrap();
        assert!(refused[0].why.contains("outside the pod"), "{refused:?}");
    }
}
