//! What all sockets have in common: their options, and messages with descriptors.
//!
//! `options` is a table of what getsockopt(2) tells and setsockopt(2) takes; a room for a
//! kind of socket keeps one [`Options`] in its record, applies the early part before it
//! binds and the late part when queues are filled. `message` peeks and sends.

pub(crate) mod message;
mod options;

pub use options::Options;

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType};

use crate::{
    capture::Probe,
    error::{Error, Result},
};

/// An `int` option; `None` where the socket does not know it.
pub(crate) fn int_option(fd: BorrowedFd<'_>, level: i32, name: i32) -> Option<i32> {
    intercept::sys::getsockopt(fd, level, name, 0).ok()
}

/// Sets an `int` option.
pub(crate) fn set_int(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
    value: i32,
) -> std::io::Result<()> {
    intercept::sys::setsockopt(fd, level, name, &value)
}

/// The address family and type of a probe that is a socket.
pub(crate) fn family_and_type(probe: &Probe) -> Option<(i32, i32)> {
    use std::os::fd::AsFd;
    if probe.file_type() != libc::S_IFSOCK {
        return None;
    }
    let fd = probe.file.as_fd();
    let family = int_option(fd, libc::SOL_SOCKET, libc::SO_DOMAIN)?;
    Some((family, int_option(fd, libc::SOL_SOCKET, libc::SO_TYPE)?))
}

/// What poll(2) shows at once, without consuming anything.
pub(crate) fn ready(fd: BorrowedFd<'_>, events: PollFlags) -> Result<PollFlags> {
    let mut fds = [PollFd::new(fd, events)];
    poll(&mut fds, PollTimeout::ZERO)
        .map_err(|e| Error::kernel("poll", format!("socket {}", fd.as_raw_fd()), e))?;
    Ok(fds[0].revents().unwrap_or(PollFlags::empty()))
}

/// A new socket, blocking, closed on exec.
pub(crate) fn new_socket(family: AddressFamily, kind: SockType) -> Result<OwnedFd> {
    nix::sys::socket::socket(family, kind, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|e| Error::kernel("socket", format!("{family:?} {kind:?}"), e))
}
