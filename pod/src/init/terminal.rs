//! Terminals from the pod's own devpts.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open as open_file};
use nix::sys::stat::Mode;

/// A new terminal: master and slave, close-on-exec, with rows and columns.
pub(super) fn open(window: Option<(u16, u16)>) -> Result<(OwnedFd, OwnedFd)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master =
        open_file("/dev/ptmx", flags, Mode::empty()).context("open /dev/ptmx in the pod")?;
    let unlocked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int, which outlives the call.
    Errno::result(unsafe {
        libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked)
    })
    .context("unlock the terminal")?;
    let mut number: libc::c_uint = 0;
    // SAFETY: TIOCGPTN writes one unsigned int, which outlives the call.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw mut number) })
        .context("number of the terminal")?;
    let path = format!("/dev/pts/{number}");
    let slave = open_file(path.as_str(), flags, Mode::empty())
        .with_context(|| format!("open {path} in the pod"))?;
    if let Some((rows, columns)) = window {
        crate::terminal::set_size(master.as_fd(), rows, columns).context("size the terminal")?;
    }
    Ok((master, slave))
}

/// Makes a terminal the controlling one of the calling session leader.
pub(super) fn control(slave: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: TIOCSCTTY takes a plain number.
    Errno::result(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) })
        .map(drop)
        .context("take the terminal")
}
