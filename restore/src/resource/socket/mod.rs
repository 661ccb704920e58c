//! What all sockets have in common: their options, and messages with descriptors.
//!
//! `options` is a table of what getsockopt(2) tells and setsockopt(2) takes; a room for a
//! kind of socket keeps one [`Options`] in its record, applies the early part before it
//! binds and the late part when queues are filled. `message` peeks and sends.

pub(crate) mod message;
mod options;
mod raw;

pub use options::Options;
pub(crate) use raw::Injector;

use std::{
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage};

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

/// A socket's own address.
pub(crate) fn local_address(fd: BorrowedFd<'_>) -> Result<SocketAddr> {
    let address = nix::sys::socket::getsockname::<SockaddrStorage>(fd.as_raw_fd());
    inet(address, "getsockname")
}

/// The address of a socket's peer.
pub(crate) fn remote_address(fd: BorrowedFd<'_>) -> Result<SocketAddr> {
    let address = nix::sys::socket::getpeername::<SockaddrStorage>(fd.as_raw_fd());
    inet(address, "getpeername")
}

fn inet(address: nix::Result<SockaddrStorage>, step: &'static str) -> Result<SocketAddr> {
    let failed = |e| Error::kernel(step, "an internet socket", e);
    let address = address.map_err(failed)?;
    inet_address(&address).ok_or_else(|| failed(nix::errno::Errno::EAFNOSUPPORT))
}

/// An internet address as the standard library has it.
pub(crate) fn inet_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address
        .as_sockaddr_in()
        .map(|a| SocketAddr::V4((*a).into()));
    v4.or_else(|| {
        address
            .as_sockaddr_in6()
            .map(|a| SocketAddr::V6((*a).into()))
    })
}

/// Takes a datagram socket's peer away (`AF_UNSPEC`, connect(2)).
pub(crate) fn disconnect(fd: BorrowedFd<'_>) -> Result<()> {
    let nobody = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as u16,
        sa_data: [0; 14],
    };
    // SAFETY: `nobody` is a sockaddr that outlives the call.
    let r = unsafe { libc::connect(fd.as_raw_fd(), &raw const nobody, 16) };
    intercept::sys::check(r.into())
        .map(drop)
        .map_err(|e| Error::kernel("connect AF_UNSPEC", "a socket", e))
}
