//! Starting the pod's init in namespaces of its own.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use intercept::sys::{Clone3, clone3, pidfd_open};
use intercept::table::Backing;
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::unistd::pipe2;

use super::names;

use crate::failure::Hinted;
use crate::holder::HANDED;
use crate::store::{Config, Net};
use crate::userns;
use crate::wire::Wire;

/// A fresh init: it waits for its `Setup`.
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) wire: Wire,
}

/// The namespaces a pod has of its own.
pub(super) fn namespaces(config: &Config) -> CloneFlags {
    let plan = names::plan(config);
    let mut flags = CloneFlags::CLONE_NEWNS;
    for (backing, namespace) in [
        (plan.pids, CloneFlags::CLONE_NEWPID),
        (plan.ipc, CloneFlags::CLONE_NEWIPC),
        (plan.hosts, CloneFlags::CLONE_NEWUTS),
    ] {
        flags.set(namespace, backing == Backing::Kernel);
    }
    if userns::needed() {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    if config.net != Net::Shared {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    flags
}

/// Clones a child into new namespaces and executes our own file there as `pod init`.
pub(super) fn start(namespaces: CloneFlags) -> Result<Process> {
    let (ours, theirs) = Wire::pair().context("socketpair")?;
    let program = File::open("/proc/self/exe").context("open /proc/self/exe")?;
    let argv = [CString::new("pod-init")?, CString::new("init")?];
    let (ready, tell) = pipe2(OFlag::O_CLOEXEC).context("pipe")?;
    let flags = namespaces.bits() as u64;
    let how = Clone3 {
        flags,
        set_tid: None,
    };
    // SAFETY: the supervisor has one thread yet, so its child may do anything.
    let pid = unsafe { clone3(how) }.hinted(
        "make the pod's namespaces",
        "this needs root, or unprivileged user namespaces allowed by the host",
    )?;
    if pid == 0 {
        drop(tell);
        await_end(&ready);
        become_init(&program, theirs.as_fd().as_raw_fd(), &argv);
    }
    // Not waited for yet, so the pid cannot be another's.
    let pidfd = pidfd_open(pid).context("open a pidfd for init")?;
    if namespaces.contains(CloneFlags::CLONE_NEWUSER) {
        userns::map(pid).context("give the pod's user namespace its ids")?;
    }
    drop(tell);
    Ok(Process {
        pid,
        pidfd,
        wire: ours,
    })
}

/// Waits until the parent has closed the pipe: an exec without ids would lose every capability.
fn await_end(pipe: &OwnedFd) {
    let mut byte = [0];
    while nix::unistd::read(pipe, &mut byte).is_ok_and(|length| length > 0) {}
}

fn become_init(program: &File, socket: i32, argv: &[CString]) -> ! {
    // The socket is closed with this failed child, which is how the supervisor learns of it.
    // SAFETY: no memory is passed; descriptor HANDED of this child is free or its copy of the socket.
    let handed = unsafe {
        if socket == HANDED {
            libc::fcntl(socket, libc::F_SETFD, 0)
        } else {
            libc::dup2(socket, HANDED)
        }
    };
    if handed >= 0 {
        let empty: [CString; 0] = [];
        let _ = nix::unistd::fexecve(program, argv, &empty);
    }
    // SAFETY: no memory is passed; nothing of the supervisor's may run at this exit.
    unsafe { libc::_exit(125) }
}
