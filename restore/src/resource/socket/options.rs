//! Socket options as data: what is read from one socket and set on another.
//!
//! A value is set only where the new socket's differs, so that an automatic value stays
//! automatic. Some must stand before the socket is bound (`SO_REUSEADDR`, `IPV6_V6ONLY`),
//! the rest comes last: a time-out, a filter or a small buffer would hinder the rebuild.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP, SOL_SOCKET};
use serde::{Deserialize, Serialize};

use super::{int_option, set_int};
use crate::{
    capture::{Capture, Probe},
    error::{Error, Result},
};

/// Options that must stand before bind(2), as (level, name).
const EARLY: &[(i32, i32)] = &[
    (SOL_SOCKET, libc::SO_REUSEADDR),
    (SOL_SOCKET, libc::SO_REUSEPORT),
    (SOL_SOCKET, libc::SO_BINDTODEVICE),
    (IPPROTO_IPV6, libc::IPV6_V6ONLY),
    (IPPROTO_IP, libc::IP_FREEBIND),
    (IPPROTO_IP, libc::IP_TRANSPARENT),
    (IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT),
    (IPPROTO_IPV6, libc::IPV6_FREEBIND),
    (IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
    (IPPROTO_TCP, libc::TCP_FASTOPEN),
    (IPPROTO_TCP, libc::TCP_SAVE_SYN),
    (IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
];

/// Options that can wait until the socket is complete, in the order in which they are set:
/// `IP_TOS` changes the priority, buffers unlock what `SO_BUF_LOCK` (72) then locks.
const LATE: &[(i32, i32)] = &[
    (SOL_SOCKET, libc::SO_REUSEADDR),
    (SOL_SOCKET, libc::SO_KEEPALIVE),
    (SOL_SOCKET, libc::SO_BROADCAST),
    (SOL_SOCKET, libc::SO_DONTROUTE),
    (SOL_SOCKET, libc::SO_OOBINLINE),
    (SOL_SOCKET, libc::SO_LINGER),
    (SOL_SOCKET, libc::SO_RCVTIMEO),
    (SOL_SOCKET, libc::SO_SNDTIMEO),
    (SOL_SOCKET, libc::SO_RCVLOWAT),
    (SOL_SOCKET, libc::SO_PASSCRED),
    (SOL_SOCKET, libc::SO_PASSSEC),
    (SOL_SOCKET, SO_PASSPIDFD),
    (SOL_SOCKET, SO_PASSRIGHTS),
    (SOL_SOCKET, libc::SO_TIMESTAMP),
    (SOL_SOCKET, libc::SO_TIMESTAMPNS),
    (SOL_SOCKET, libc::SO_TIMESTAMPING),
    (SOL_SOCKET, libc::SO_RXQ_OVFL),
    (SOL_SOCKET, libc::SO_SELECT_ERR_QUEUE),
    (SOL_SOCKET, libc::SO_BUSY_POLL),
    (SOL_SOCKET, libc::SO_MAX_PACING_RATE),
    (SOL_SOCKET, libc::SO_ZEROCOPY),
    (SOL_SOCKET, libc::SO_MARK),
    (IPPROTO_IP, libc::IP_TOS),
    (IPPROTO_IP, libc::IP_TTL),
    (IPPROTO_IP, libc::IP_RECVOPTS),
    (IPPROTO_IP, libc::IP_RETOPTS),
    (IPPROTO_IP, libc::IP_PKTINFO),
    (IPPROTO_IP, libc::IP_MTU_DISCOVER),
    (IPPROTO_IP, libc::IP_RECVERR),
    (IPPROTO_IP, libc::IP_RECVTTL),
    (IPPROTO_IP, libc::IP_RECVTOS),
    (IPPROTO_IP, libc::IP_ORIGDSTADDR),
    (IPPROTO_IP, libc::IP_MINTTL),
    (IPPROTO_IP, libc::IP_MULTICAST_TTL),
    (IPPROTO_IP, libc::IP_MULTICAST_LOOP),
    (IPPROTO_IP, libc::IP_MULTICAST_ALL),
    (IPPROTO_IPV6, libc::IPV6_TCLASS),
    (IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    (IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS),
    (IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP),
    (IPPROTO_IPV6, libc::IPV6_MULTICAST_ALL),
    (IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    (IPPROTO_IPV6, libc::IPV6_RECVERR),
    (IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    (IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT),
    (IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
    (IPPROTO_TCP, libc::TCP_NODELAY),
    (IPPROTO_TCP, libc::TCP_CORK),
    (IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (IPPROTO_TCP, libc::TCP_KEEPCNT),
    (IPPROTO_TCP, libc::TCP_SYNCNT),
    (IPPROTO_TCP, libc::TCP_LINGER2),
    (IPPROTO_TCP, libc::TCP_CONGESTION),
    (IPPROTO_TCP, libc::TCP_THIN_LINEAR_TIMEOUTS),
    (IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT),
    (IPPROTO_TCP, TCP_INQ),
    (IPPROTO_UDP, libc::UDP_SEGMENT),
    (IPPROTO_UDP, libc::UDP_GRO),
    (SOL_SOCKET, libc::SO_PRIORITY),
    (SOL_SOCKET, libc::SO_PEEK_OFF),
];

/// Options that a stream can be asked for, but not told.
const DATAGRAM_ONLY: &[(i32, i32)] = &[
    (IPPROTO_IP, libc::IP_MULTICAST_TTL),
    (IPPROTO_IP, libc::IP_MULTICAST_LOOP),
    (IPPROTO_IP, libc::IP_MULTICAST_ALL),
    (IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS),
    (IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP),
    (IPPROTO_IPV6, libc::IPV6_MULTICAST_ALL),
];

/// Linux 6.5, asm-generic/socket.h.
const SO_PASSPIDFD: i32 = 76;
/// Linux 6.16, asm-generic/socket.h.
const SO_PASSRIGHTS: i32 = 83;
/// Linux 5.14, asm-generic/socket.h: which buffer sizes the program chose itself.
pub(super) const SO_BUF_LOCK: i32 = 72;
/// linux/tcp.h: how much is unread, told with each message.
const TCP_INQ: i32 = 36;

/// The options of one socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    values: Vec<OptionValue>,
    /// Bytes of the send and the receive buffer, as getsockopt(2) tells them.
    buffers: (i32, i32),
    /// `SO_BUF_LOCK`.
    locked: i32,
    /// The classic filter on what is received.
    filter: Vec<Instruction>,
    /// `SO_LOCK_FILTER`.
    filter_locked: bool,
}

/// One option's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct OptionValue {
    level: i32,
    name: i32,
    #[serde(with = "serde_bytes")]
    value: Vec<u8>,
}

/// A `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Instruction(u16, u8, u8, u32);

impl Options {
    /// Reads all options of a socket; what cannot be read back is refused.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the filter cannot be read.
    pub fn capture(probe: &Probe, cx: &mut Capture<'_>) -> Result<Self> {
        let fd = probe.file.as_fd();
        let stream = int_option(fd, SOL_SOCKET, libc::SO_TYPE) == Some(libc::SOCK_STREAM);
        let both = EARLY.iter().chain(&LATE[1..]);
        let both = both.filter(|o| !stream || !DATAGRAM_ONLY.contains(o));
        let values = both.filter_map(|&(level, name)| {
            let value = get(fd, level, name).ok()?;
            Some(OptionValue { level, name, value })
        });
        let int = |name| int_option(fd, SOL_SOCKET, name).unwrap_or_default();
        let filter = match read_filter(fd) {
            Ok(filter) => filter,
            Err(e) if e.raw_os_error() == Some(libc::EACCES) => {
                let why = "it has an eBPF filter, which cannot be read back";
                cx.refuse(probe, why, "detach the filter before the checkpoint");
                Vec::new()
            }
            Err(e) => return Err(Error::kernel("getsockopt SO_GET_FILTER", probe.name(), e)),
        };
        Ok(Self {
            values: values.collect(),
            buffers: (int(libc::SO_SNDBUF), int(libc::SO_RCVBUF)),
            locked: int(SO_BUF_LOCK),
            filter,
            filter_locked: int(libc::SO_LOCK_FILTER) != 0,
        })
    }

    /// The value of an `int` option, where the socket had it.
    #[must_use]
    pub fn int(&self, level: i32, name: i32) -> Option<i32> {
        let value = self.value(level, name)?.get(..4)?;
        Some(i32::from_ne_bytes(value.try_into().ok()?))
    }

    fn value(&self, level: i32, name: i32) -> Option<&[u8]> {
        let found = self
            .values
            .iter()
            .find(|v| (v.level, v.name) == (level, name));
        found.map(|v| v.value.as_slice())
    }

    /// Sets what must stand before the socket is bound.
    ///
    /// # Errors
    /// [`Error::Kernel`] with the option this host refuses.
    pub fn apply_early(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.apply(fd, EARLY)
    }

    /// Sets the rest, when the socket is complete.
    ///
    /// # Errors
    /// [`Error::Kernel`] with the option this host refuses.
    pub fn apply_late(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.apply(fd, LATE)?;
        self.apply_buffers(fd)
            .map_err(|e| Error::kernel("setsockopt SO_SNDBUF", "a socket", e))?;
        self.apply_filter(fd)
            .map_err(|e| Error::kernel("setsockopt SO_ATTACH_FILTER", "a socket", e))
    }

    /// Makes both buffers as large as they were, so that the queues fit in.
    ///
    /// # Errors
    /// What the kernel says to a size the host does not allow.
    pub fn apply_buffers(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let pairs = [
            (libc::SO_SNDBUF, libc::SO_SNDBUFFORCE, self.buffers.0),
            (libc::SO_RCVBUF, libc::SO_RCVBUFFORCE, self.buffers.1),
        ];
        for (name, forced, size) in pairs {
            if int_option(fd, SOL_SOCKET, name) != Some(size) {
                // The kernel doubles what it is told; unprivileged, its limit holds.
                set_int(fd, SOL_SOCKET, forced, size / 2)
                    .or_else(|_| set_int(fd, SOL_SOCKET, name, size / 2))?;
            }
        }
        if int_option(fd, SOL_SOCKET, SO_BUF_LOCK).is_some_and(|l| l != self.locked) {
            set_int(fd, SOL_SOCKET, SO_BUF_LOCK, self.locked)?;
        }
        Ok(())
    }

    fn apply(&self, fd: BorrowedFd<'_>, which: &[(i32, i32)]) -> Result<()> {
        for &(level, name) in which {
            let Some(value) = self.value(level, name) else {
                continue;
            };
            if get(fd, level, name).is_ok_and(|has| has == value) {
                continue;
            }
            set(fd, level, name, value).map_err(|e| {
                Error::kernel("setsockopt", format!("option {name} of level {level}"), e)
            })?;
        }
        Ok(())
    }

    fn apply_filter(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        if !self.filter.is_empty() {
            let mut code: Vec<_> = self.filter.iter().map(|i| native(*i)).collect();
            let len = u16::try_from(code.len()).map_err(io::Error::other)?;
            let filter = code.as_mut_ptr();
            let program = libc::sock_fprog { len, filter };
            intercept::sys::setsockopt(fd, SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        }
        if self.filter_locked {
            set_int(fd, SOL_SOCKET, libc::SO_LOCK_FILTER, 1)?;
        }
        Ok(())
    }
}

fn native(i: Instruction) -> libc::sock_filter {
    let Instruction(code, jt, jf, k) = i;
    libc::sock_filter { code, jt, jf, k }
}

fn get(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<Vec<u8>> {
    let mut value = vec![0; 64];
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: `value` is writable for `len` bytes.
    let r = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    intercept::sys::check(r.into())?;
    value.truncate(len as usize);
    Ok(value)
}

fn set(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let len = value.len() as libc::socklen_t;
    // SAFETY: `value` is readable for `len` bytes.
    let r = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    intercept::sys::check(r.into()).map(drop)
}

/// The classic filter of a socket; here the kernel counts instructions, not bytes (socket(7)).
fn read_filter(fd: BorrowedFd<'_>) -> io::Result<Vec<Instruction>> {
    let mut len: libc::socklen_t = 0;
    let mut code = Vec::<libc::sock_filter>::new();
    for _ in 0..2 {
        // SAFETY: `code` has room for `len` instructions, and with 0 only their number is answered.
        let r = unsafe {
            libc::getsockopt(
                fd.as_raw_fd(),
                SOL_SOCKET,
                libc::SO_GET_FILTER,
                code.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        intercept::sys::check(r.into())?;
        code.resize(len as usize, native(Instruction(0, 0, 0, 0)));
    }
    Ok(code
        .iter()
        .map(|i| Instruction(i.code, i.jt, i.jf, i.k))
        .collect())
}
