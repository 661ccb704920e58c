//! One notified call, as its handler sees it.
//!
//! A handler ends in an [`Outcome`] or in one of two classes of failure: an errno that the
//! caller gets, or a fault of ours. A pointer from the pod is an allegation: what it points
//! at is read once, copied, bounded, and used only while the kernel says that the call is
//! still the same ([`Listener::is_valid`]); the task behind a number could be another.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, FromRawFd, OwnedFd, RawFd},
};

use libc::{c_int, pid_t};
use nix::{
    sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev},
    unistd::Pid,
};

use crate::{
    detour::Detour,
    listener::{Listener, Notification, Reply},
    names::address::{self, Address},
    sys,
};

/// How a call goes on.
pub(crate) enum Outcome {
    /// It is answered.
    Reply(Reply),
    /// The task runs it on a detour.
    Detour(Box<Detour>),
}

/// Why a handler did not come to an outcome.
#[derive(Debug)]
pub(crate) enum Fail {
    /// The call fails in the caller.
    Errno(c_int),
    /// The caller died or was interrupted: nobody waits for an answer.
    Gone,
    /// We failed.
    Fault(Fault),
}

/// What can go wrong on our side while a call is served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// `pidfd_open`.
    #[error("pidfd of task {tid}: {source}")]
    Pidfd { tid: pid_t, source: io::Error },
    /// `pidfd_getfd`.
    #[error("descriptor {fd} of task {tid}: {source}")]
    Getfd {
        tid: pid_t,
        fd: RawFd,
        source: io::Error,
    },
    /// `process_vm_readv` or `process_vm_writev`.
    #[error("memory of task {tid} at {addr:#x}: {source}")]
    Memory {
        tid: pid_t,
        addr: u64,
        source: io::Error,
    },
    /// `/proc/TID/...`.
    #[error("/proc/{tid}/{what}: {source}")]
    Proc {
        tid: pid_t,
        what: &'static str,
        source: io::Error,
    },
    /// `sock_diag`.
    #[error("sock_diag for port {port}: {source}")]
    Diag { port: u16, source: io::Error },
    /// A notified call without a handler: table and dispatch disagree.
    #[error("no handler for syscall {0}")]
    Unhandled(i64),
}

/// What handlers return.
pub(crate) type Served<T = Outcome> = Result<T, Fail>;

/// An errno of the kernel becomes the caller's.
pub(crate) fn errno(e: &io::Error) -> Fail {
    Fail::Errno(e.raw_os_error().unwrap_or(libc::EIO))
}

/// The call, with access to its task's descriptors and memory.
pub(crate) struct Call<'a> {
    pub(crate) n: Notification,
    pub(crate) listener: &'a Listener,
}

impl Call<'_> {
    /// An argument that is an `int`: the kernel looks at its low half only.
    pub(crate) fn int(&self, i: usize) -> c_int {
        self.n.args[i] as c_int
    }

    fn still(&self) -> Served<()> {
        if self.listener.is_valid(self.n.id) {
            Ok(())
        } else {
            Err(Fail::Gone)
        }
    }

    /// A duplicate of the caller's descriptor; a bad number is the caller's `EBADF`.
    pub(crate) fn fd(&self, fd: RawFd) -> Served<OwnedFd> {
        let tid = self.n.tid;
        let pidfd =
            thread_pidfd(tid).map_err(|source| Fail::Fault(Fault::Pidfd { tid, source }))?;
        self.still()?;
        sys::pidfd_getfd(pidfd.as_fd(), fd).map_err(|source| match source.raw_os_error() {
            Some(libc::EBADF) => Fail::Errno(libc::EBADF),
            Some(libc::ESRCH) => Fail::Gone,
            _ => Fail::Fault(Fault::Getfd { tid, fd, source }),
        })
    }

    fn memory(&self, addr: u64, len: usize, moved: nix::Result<usize>) -> Served<()> {
        let tid = self.n.tid;
        match moved {
            Ok(n) if n == len => Ok(()),
            Ok(_) | Err(nix::Error::EFAULT) => Err(Fail::Errno(libc::EFAULT)),
            Err(nix::Error::ESRCH) => Err(Fail::Gone),
            Err(e) => Err(Fail::Fault(Fault::Memory {
                tid,
                addr,
                source: e.into(),
            })),
        }
    }

    /// Reads the caller's memory, once.
    pub(crate) fn read(&self, addr: u64, buf: &mut [u8]) -> Served<()> {
        let len = buf.len();
        if len == 0 {
            return Ok(());
        }
        let remote = [RemoteIoVec {
            base: addr as usize,
            len,
        }];
        let local = &mut [IoSliceMut::new(buf)];
        let moved = process_vm_readv(Pid::from_raw(self.n.tid), local, &remote);
        self.memory(addr, len, moved)?;
        self.still()
    }

    /// Writes the caller's memory where the caller could.
    pub(crate) fn write(&self, addr: u64, data: &[u8]) -> Served<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.still()?;
        let remote = [RemoteIoVec {
            base: addr as usize,
            len: data.len(),
        }];
        let local = &[IoSlice::new(data)];
        let moved = process_vm_writev(Pid::from_raw(self.n.tid), local, &remote);
        self.memory(addr, data.len(), moved)
    }

    /// Reads a sockaddr the way `move_addr_to_kernel` of `net/socket.c` does.
    pub(crate) fn read_address(&self, addr: u64, len: c_int) -> Served<Address> {
        let len = usize::try_from(len)
            .ok()
            .filter(|l| *l <= address::MAX)
            .ok_or(Fail::Errno(libc::EINVAL))?;
        let mut buf = [0u8; address::MAX];
        self.read(addr, &mut buf[..len])?;
        Ok(Address::new(&buf[..len]))
    }

    /// Writes a sockaddr and its length the way `move_addr_to_user` of `net/socket.c` does.
    pub(crate) fn write_address(&self, address: &Address, at: u64, len_at: u64) -> Served<()> {
        let mut len = [0u8; 4];
        self.read(len_at, &mut len)?;
        let room =
            usize::try_from(i32::from_ne_bytes(len)).map_err(|_| Fail::Errno(libc::EINVAL))?;
        let bytes = address.bytes();
        self.write(at, &bytes[..room.min(bytes.len())])?;
        self.write(len_at, &(bytes.len() as u32).to_ne_bytes())
    }

    /// Whether the caller holds a capability over the namespaces that are ours, too.
    pub(crate) fn capable(&self, capability: u32) -> Served<bool> {
        let tid = self.n.tid;
        let proc = |what| move |source| Fail::Fault(Fault::Proc { tid, what, source });
        let link = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/user"));
        if link(&tid.to_string()).map_err(proc("ns/user"))?
            != link("self").map_err(proc("ns/user"))?
        {
            return Ok(false);
        }
        let status =
            std::fs::read_to_string(format!("/proc/{tid}/status")).map_err(proc("status"))?;
        self.still()?;
        let effective = status
            .lines()
            .find_map(|l| l.strip_prefix("CapEff:"))
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .unwrap_or(0);
        Ok(effective >> capability & 1 == 1)
    }
}

/// `PIDFD_THREAD` of `linux/pidfd.h` (Linux 6.9).
const PIDFD_THREAD: c_int = libc::O_EXCL;

/// A pidfd for a thread; before Linux 6.9 for its process, whose descriptors threads share.
fn thread_pidfd(tid: pid_t) -> io::Result<OwnedFd> {
    // SAFETY: plain values only.
    let r = unsafe { libc::syscall(libc::SYS_pidfd_open, tid, PIDFD_THREAD) };
    match sys::check(r) {
        // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
        Ok(fd) => Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => sys::pidfd_open(process_of(tid)?),
        Err(e) => Err(e),
    }
}

/// The process a thread belongs to.
pub(crate) fn process_of(tid: pid_t) -> io::Result<pid_t> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status"))?;
    status
        .lines()
        .find_map(|l| l.strip_prefix("Tgid:"))
        .and_then(|n| n.trim().parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}
