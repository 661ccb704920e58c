//! Socket calls on duplicates of a pod's descriptors.
//!
//! Everything here works on the open file description the pod has too, so nothing here may
//! block and nothing changes a flag that the pod could see.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use libc::{c_int, sockaddr, socklen_t};

use crate::{
    names::address::{self, Address},
    sys,
};

/// `SO_COOKIE`: the socket's number in its net namespace, never used twice.
///
/// # Errors
/// `ENOTSOCK`.
pub fn cookie(fd: BorrowedFd<'_>) -> io::Result<u64> {
    sys::getsockopt(fd, libc::SOL_SOCKET, libc::SO_COOKIE, 0u64)
}

/// `SO_DOMAIN`: the address family, fixed when the socket was made.
///
/// # Errors
/// `ENOTSOCK`.
pub fn domain(fd: BorrowedFd<'_>) -> io::Result<c_int> {
    sys::getsockopt(fd, libc::SOL_SOCKET, libc::SO_DOMAIN, 0)
}

/// Whether it is a stream socket of IPv4 or IPv6, whose names we translate.
///
/// # Errors
/// `ENOTSOCK`.
pub fn is_inet_stream(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let kind: c_int = sys::getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, 0)?;
    Ok(kind == libc::SOCK_STREAM && matches!(domain(fd)?, libc::AF_INET | libc::AF_INET6))
}

/// A new stream socket, close-on-exec.
///
/// # Errors
/// What `socket` said.
pub fn stream(domain: c_int) -> io::Result<OwnedFd> {
    // SAFETY: plain values only.
    let r = unsafe { libc::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    let fd = sys::check(i64::from(r))? as c_int;
    // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `addr` in the form of the socket's own family: IPv4 is v4-mapped for an IPv6 socket.
///
/// # Errors
/// `ENOTSOCK`.
pub fn address_like(fd: BorrowedFd<'_>, addr: SocketAddr) -> io::Result<Address> {
    let mut address = Address::of(addr);
    if domain(fd)? == libc::AF_INET6 && addr.is_ipv4() {
        address = Address::of(([0; 8], 0).into());
        address.set(addr);
    }
    Ok(address)
}

/// `bind(2)`.
///
/// # Errors
/// What the kernel said.
pub fn bind(fd: BorrowedFd<'_>, address: &Address) -> io::Result<()> {
    let bytes = address.bytes();
    // SAFETY: pointer and length describe `bytes`.
    let r = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len() as socklen_t,
        )
    };
    sys::check(i64::from(r)).map(drop)
}

/// `listen(2)`.
///
/// # Errors
/// What the kernel said.
pub fn listen(fd: BorrowedFd<'_>, backlog: c_int) -> io::Result<()> {
    // SAFETY: plain values only.
    let r = unsafe { libc::listen(fd.as_raw_fd(), backlog) };
    sys::check(i64::from(r)).map(drop)
}

type Name = unsafe extern "C" fn(c_int, *mut sockaddr, *mut socklen_t) -> c_int;

fn name(call: Name, fd: BorrowedFd<'_>) -> io::Result<Address> {
    let mut bytes = [0u8; address::MAX];
    let mut len = bytes.len() as socklen_t;
    // SAFETY: `call` is getsockname or getpeername; pointer and length describe `bytes`.
    let r = unsafe { call(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), &raw mut len) };
    sys::check(i64::from(r))?;
    Ok(Address::new(&bytes[..(len as usize).min(bytes.len())]))
}

/// `getsockname(2)`.
///
/// # Errors
/// What the kernel said.
pub fn local(fd: BorrowedFd<'_>) -> io::Result<Address> {
    name(libc::getsockname, fd)
}

/// `getpeername(2)`.
///
/// # Errors
/// `ENOTCONN` without a peer; otherwise what the kernel said.
pub fn remote(fd: BorrowedFd<'_>) -> io::Result<Address> {
    name(libc::getpeername, fd)
}

/// Whether `ip` is an address of this host: an address one can bind to.
#[must_use]
pub fn is_local(ip: std::net::IpAddr) -> bool {
    ip.is_loopback() || std::net::UdpSocket::bind((ip, 0)).is_ok()
}
