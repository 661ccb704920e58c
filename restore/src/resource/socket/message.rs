//! Messages with descriptors and credentials: peeked from a queue, sent into another.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use libc::SOL_SOCKET;
use nix::{
    cmsg_space,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrLike, UnixCredentials, recvmsg,
        sendmsg,
    },
};

use super::{int_option, options::SO_BUF_LOCK, set_int};
use crate::error::{Error, Result};

/// Most descriptors that one message carries (`SCM_MAX_FD`).
const MAX_FDS: usize = 253;

/// A message that was peeked.
pub(crate) struct Peeked<A> {
    /// Its bytes, as many as fitted.
    pub(crate) data: Vec<u8>,
    /// True when there was more of it.
    pub(crate) cut: bool,
    /// Duplicates of what is in flight with it.
    pub(crate) fds: Vec<OwnedFd>,
    /// Who sent it (pid as this host numbers it, uid, gid), where the receiver asked to know.
    pub(crate) creds: Option<(i32, u32, u32)>,
    /// The sender's address.
    pub(crate) from: Option<A>,
}

/// Peeks at what recvmsg(2) would give next.
pub(crate) fn peek<A: SockaddrLike>(fd: BorrowedFd<'_>, room: usize) -> nix::Result<Peeked<A>> {
    receive(fd, room, MsgFlags::MSG_PEEK)
}

/// What recvmsg(2) gives, without waiting.
pub(crate) fn receive<A: SockaddrLike>(
    fd: BorrowedFd<'_>,
    room: usize,
    flags: MsgFlags,
) -> nix::Result<Peeked<A>> {
    let mut data = vec![0; room];
    let mut control = cmsg_space!([i32; MAX_FDS], UnixCredentials);
    let flags = flags | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let mut slices = [IoSliceMut::new(&mut data)];
    let got = recvmsg::<A>(fd.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    let (mut fds, mut creds) = (Vec::new(), None);
    for message in got.cmsgs()? {
        match message {
            ControlMessageOwned::ScmRights(new) => fds.extend(new.into_iter().map(|fd| {
                // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
                unsafe { OwnedFd::from_raw_fd(fd) }
            })),
            ControlMessageOwned::ScmCredentials(c) => creds = Some((c.pid(), c.uid(), c.gid())),
            _ => {}
        }
    }
    // A connected stream's message has no address, and its length is 0.
    let (len, from) = (got.bytes, got.address.filter(|a| a.len() >= 2));
    let cut = got.flags.contains(MsgFlags::MSG_TRUNC);
    data.truncate(len);
    Ok(Peeked {
        data,
        cut,
        fds,
        creds,
        from,
    })
}

/// How many of the next `len` bytes of a stream come before the last piece of what was written.
///
/// A peek runs on to the first piece that carries descriptors, however little room it is given, and
/// does not tell where that piece begins. But it copies piece by piece and stops before one that it
/// cannot copy whole (`unix_stream_read_generic`): so the last byte's place is one that cannot be
/// written, and what is counted are the pieces before.
pub(crate) fn bytes_before_last(fd: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
    let mut data = vec![0u8; len - 1];
    let unwritable = std::ptr::without_provenance_mut(1);
    let mut pieces = [
        libc::iovec {
            iov_base: data.as_mut_ptr().cast(),
            iov_len: data.len(),
        },
        libc::iovec {
            iov_base: unwritable,
            iov_len: 1,
        },
    ];
    // SAFETY: the struct is plain data for which zero is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (pieces.as_mut_ptr(), pieces.len());
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the first piece is writable; to the other the kernel's copy fails, as is wanted.
    let n = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) };
    match intercept::sys::check(n as i64) {
        Ok(n) => Ok(n as usize),
        Err(e) if e.raw_os_error() == Some(libc::EFAULT) => Ok(0),
        Err(e) => Err(e),
    }
}

/// Sends a message with descriptors, and as somebody else where the kernel allows it.
pub(crate) fn send<A: SockaddrLike>(
    fd: BorrowedFd<'_>,
    data: &[u8],
    fds: &[BorrowedFd<'_>],
    creds: Option<(i32, u32, u32)>,
    to: Option<&A>,
) -> nix::Result<usize> {
    let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let who = creds.map(|(pid, uid, gid)| UnixCredentials::from(libc::ucred { pid, uid, gid }));
    let mut control = Vec::new();
    if !raw.is_empty() {
        control.push(ControlMessage::ScmRights(&raw));
    }
    if let Some(who) = &who {
        control.push(ControlMessage::ScmCredentials(who));
    }
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg(fd.as_raw_fd(), &[IoSlice::new(data)], &control, flags, to)
}

/// `SO_PEEK_OFF` set for a while; what the program had set comes back on every path.
pub(crate) struct PeekOffset<'f> {
    fd: BorrowedFd<'f>,
    before: i32,
}

impl<'f> PeekOffset<'f> {
    /// Lets the next peek begin at the front of the queue.
    pub(crate) fn new(fd: BorrowedFd<'f>) -> Result<Self> {
        let before = int_option(fd, SOL_SOCKET, libc::SO_PEEK_OFF).unwrap_or(-1);
        let guard = Self { fd, before };
        guard.seek(0)?;
        Ok(guard)
    }

    /// Lets the next peek begin `at` bytes behind the front.
    pub(crate) fn seek(&self, at: usize) -> Result<()> {
        let failed = |e| Error::kernel("setsockopt SO_PEEK_OFF", "a socket", e);
        set_int(self.fd, SOL_SOCKET, libc::SO_PEEK_OFF, at as i32).map_err(failed)
    }
}

impl Drop for PeekOffset<'_> {
    fn drop(&mut self) {
        if let Err(e) = set_int(self.fd, SOL_SOCKET, libc::SO_PEEK_OFF, self.before) {
            tracing::error!("SO_PEEK_OFF could not be set back: {e}");
        }
    }
}

/// Which of a socket's two buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Send,
    Receive,
}

impl Direction {
    fn options(self) -> (i32, i32) {
        match self {
            Self::Send => (libc::SO_SNDBUF, libc::SO_SNDBUFFORCE),
            Self::Receive => (libc::SO_RCVBUF, libc::SO_RCVBUFFORCE),
        }
    }
}

/// A buffer made large for a while.
pub(crate) struct LargeBuffer {
    fd: OwnedFd,
    direction: Direction,
    before: i32,
    locked: i32,
}

impl LargeBuffer {
    /// Makes room for so many bytes in so many messages.
    pub(crate) fn new(
        fd: BorrowedFd<'_>,
        direction: Direction,
        bytes: usize,
        messages: usize,
    ) -> Result<Self> {
        let owned = fd.try_clone_to_owned();
        let owned = owned.map_err(|e| Error::kernel("dup", "a socket", e))?;
        let get = |name| int_option(fd, SOL_SOCKET, name).unwrap_or_default();
        let buffer = Self {
            fd: owned,
            direction,
            before: get(direction.options().0),
            locked: get(SO_BUF_LOCK),
        };
        // Each message costs its bookkeeping too (`sk_buff` and page fragments, below 4 KiB).
        let want = (bytes * 2 + messages * 4096).min(1 << 29) as i32;
        if want > buffer.before / 2 {
            buffer
                .resize(want)
                .map_err(|e| Error::kernel("setsockopt SO_SNDBUF", "a socket", e))?;
        }
        Ok(buffer)
    }

    fn resize(&self, half: i32) -> io::Result<()> {
        let (name, forced) = self.direction.options();
        set_int(self.fd.as_fd(), SOL_SOCKET, forced, half)
            .or_else(|_| set_int(self.fd.as_fd(), SOL_SOCKET, name, half))
    }
}

impl Drop for LargeBuffer {
    fn drop(&mut self) {
        let fd = self.fd.as_fd();
        if int_option(fd, SOL_SOCKET, self.direction.options().0) == Some(self.before) {
            return;
        }
        let back = self.resize(self.before / 2);
        let back = back.and_then(|()| set_int(fd, SOL_SOCKET, SO_BUF_LOCK, self.locked));
        if let Err(e) = back {
            tracing::error!("a buffer's size could not be set back: {e}");
        }
    }
}
