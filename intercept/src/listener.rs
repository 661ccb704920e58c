//! The listener: receives notified calls and sends answers (`seccomp_unotify(2)`).
//!
//! ```text
//!   task: syscall ──▶ RECV ──▶ (read its memory, ID_VALID) ──▶ SEND value | errno | CONTINUE
//!                                                        └──▶ ADDFD|SEND descriptor
//! ```
//!
//! `ENOENT` from RECV, SEND or ADDFD means that the task died or was interrupted: that is
//! no error of ours, the call is simply gone.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use libc::{c_int, pid_t, seccomp_notif, seccomp_notif_addfd, seccomp_notif_resp};

use crate::sys;

/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP` (Linux 6.6): wake on the caller's CPU.
const SYNC_WAKE_UP: u64 = 1;

/// A notified call.
#[derive(Debug, Clone, Copy)]
pub struct Notification {
    /// Identifies the call until it is answered.
    pub id: u64,
    /// The calling thread, in our pid namespace.
    pub tid: pid_t,
    /// Syscall number.
    pub nr: i64,
    /// Raw arguments.
    pub args: [u64; 6],
    /// Address after the `syscall` instruction.
    pub ip: u64,
}

/// What the supervisor answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// The call returns this value.
    Value(i64),
    /// The call fails with this errno.
    Errno(c_int),
    /// The kernel runs the call as if nobody had looked at it.
    Continue,
    /// The call is interrupted (−512) and runs again; only useful with an interrupt pending.
    Restart,
}

/// The kernel's internal `ERESTARTSYS` (`include/linux/errno.h`).
pub const ERESTARTSYS: c_int = 512;

/// The supervisor's end of an interception filter.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
}

/// Result of an exchange about a call that may be gone already.
pub type Gone<T> = io::Result<Option<T>>;

fn unless_gone<T>(result: io::Result<T>) -> Gone<T> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

impl Listener {
    /// Wraps a listener and asks for synchronous wake-ups where the kernel has them.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        // SAFETY: the request takes a plain value. Its failure (before Linux 6.6) costs speed only.
        unsafe {
            libc::ioctl(
                fd.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS,
                SYNC_WAKE_UP,
            );
        }
        Self { fd }
    }

    fn ioctl<T>(&self, request: libc::Ioctl, arg: &mut T) -> io::Result<c_int> {
        loop {
            // SAFETY: every caller passes the structure that the request is defined for.
            let r = unsafe { libc::ioctl(self.fd.as_raw_fd(), request, &raw mut *arg) };
            match sys::check(i64::from(r)) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map(|r| r as c_int),
            }
        }
    }

    /// Receives one call (`SECCOMP_IOCTL_NOTIF_RECV`); blocks while there is none.
    ///
    /// # Errors
    /// Anything but `ENOENT`, which is `None`.
    pub fn recv(&self) -> Gone<Notification> {
        // The kernel refuses a buffer that is not zeroed.
        let mut raw = MaybeUninit::<seccomp_notif>::zeroed();
        let received = self.ioctl(libc::SECCOMP_IOCTL_NOTIF_RECV, &mut raw);
        Ok(unless_gone(received)?.map(|_| {
            // SAFETY: plain integers, zeroed before and filled by the kernel.
            let n = unsafe { raw.assume_init() };
            Notification {
                id: n.id,
                tid: n.pid as pid_t,
                nr: i64::from(n.data.nr),
                args: n.data.args,
                ip: n.data.instruction_pointer,
            }
        }))
    }

    /// Answers a call (`SECCOMP_IOCTL_NOTIF_SEND`).
    ///
    /// # Errors
    /// Anything but `ENOENT`, which is `None`.
    pub fn send(&self, id: u64, reply: Reply) -> Gone<()> {
        let (val, error, flags) = match reply {
            Reply::Value(v) => (v, 0, 0),
            Reply::Errno(e) => (0, -e, 0),
            Reply::Restart => (0, -ERESTARTSYS, 0),
            Reply::Continue => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
        };
        let mut raw = seccomp_notif_resp {
            id,
            val,
            error,
            flags,
        };
        unless_gone(self.ioctl(libc::SECCOMP_IOCTL_NOTIF_SEND, &mut raw)).map(|o| o.map(drop))
    }

    /// Puts a duplicate of `fd` into the task and lets the call return its number there
    /// (`SECCOMP_IOCTL_NOTIF_ADDFD` with `SECCOMP_ADDFD_FLAG_SEND`, Linux 5.14).
    ///
    /// # Errors
    /// `EMFILE` of the task; anything but `ENOENT`, which is `None`.
    pub fn send_fd(&self, id: u64, fd: BorrowedFd<'_>, cloexec: bool) -> Gone<RawFd> {
        let mut raw = seccomp_notif_addfd {
            id,
            flags: libc::SECCOMP_ADDFD_FLAG_SEND as u32,
            srcfd: fd.as_raw_fd() as u32,
            newfd: 0,
            newfd_flags: if cloexec { libc::O_CLOEXEC as u32 } else { 0 },
        };
        unless_gone(self.ioctl(libc::SECCOMP_IOCTL_NOTIF_ADDFD, &mut raw))
    }

    /// Whether the call still waits for us: what was read of the task before belongs to it then
    /// (`SECCOMP_IOCTL_NOTIF_ID_VALID`).
    #[must_use]
    pub fn is_valid(&self, mut id: u64) -> bool {
        self.ioctl(libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &mut id)
            .is_ok()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
