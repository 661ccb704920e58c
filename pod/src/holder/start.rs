//! Starting our own processes by executing our own file again. Never a bare fork: the new process begins
//! with one thread, default signals and only the descriptors it is given.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::SigSet;

use crate::store::{Lock, Pod, Store};
use crate::sys::cloexec_from;
use crate::wire::Wire;

/// The descriptor a new process of ours finds its socket, or its lock, at.
pub(crate) const HANDED: RawFd = 3;

fn ourselves(store: &Store, role: &str, pod: &Pod, trace: File) -> Command {
    let arguments: [OsString; 4] = [
        "--root".into(),
        store.root().into(),
        role.into(),
        pod.id.clone().into(),
    ];
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("pod")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(trace);
    command.current_dir("/");
    command
}

/// Gives the child `fd` as [`HANDED`] and nothing else, with default signals.
fn hand_over(command: &mut Command, fd: RawFd, session: bool) {
    let prepare = move || -> std::io::Result<()> {
        if session {
            nix::unistd::setsid()?;
        }
        SigSet::empty().thread_set_mask()?;
        if fd == HANDED {
            // SAFETY: no memory is passed.
            Errno::result(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) })?;
        } else {
            // SAFETY: no memory is passed; the child owns its whole table.
            Errno::result(unsafe { libc::dup2(fd, HANDED) })?;
        }
        cloexec_from(HANDED as u32 + 1)?;
        Ok(())
    };
    // SAFETY: the closure makes system calls only.
    unsafe { command.pre_exec(prepare) };
}

fn trace_file(pod: &Pod) -> Result<File> {
    let path = pod.path("trace.log");
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path);
    file.with_context(|| format!("open {}", path.display()))
}

/// Starts a pod's holder in a session of its own. It takes over the pod's lock.
pub(crate) fn spawn(store: &Store, pod: &Pod, lock: Lock) -> Result<()> {
    let mut command = ourselves(store, "holder", pod, trace_file(pod)?);
    hand_over(&mut command, lock.as_raw_fd(), true);
    command.spawn().context("start the holder")?;
    drop(lock);
    Ok(())
}

/// Starts a supervisor. Returns its pid and our end of its socket.
pub(super) fn supervisor(store: &Store, pod: &Pod) -> Result<(i32, Wire)> {
    let (ours, theirs) = Wire::pair().context("socketpair")?;
    let mut command = ourselves(store, "supervise", pod, trace_file(pod)?);
    hand_over(
        &mut command,
        std::os::fd::AsFd::as_fd(&theirs).as_raw_fd(),
        false,
    );
    let child = command.spawn().context("execute /proc/self/exe")?;
    Ok((child.id() as i32, ours))
}
