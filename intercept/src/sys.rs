//! Raw calls that `nix` lacks.
//!
//! One thin function for each call, named after it, with its man page or kernel
//! source. Nothing here decides anything: a call either returns what the kernel
//! returned or the `errno` it set.

use std::{
    io,
    mem::size_of,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use libc::{c_int, c_long, c_void, pid_t};

/// Turns the kernel's `-1` convention into a `Result`.
///
/// # Errors
/// The calling thread's `errno`, when `r` is negative.
pub fn check(r: c_long) -> io::Result<c_long> {
    if r < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(r)
    }
}

fn owned(r: c_long) -> io::Result<OwnedFd> {
    let fd = check(r)? as RawFd;
    // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `pidfd_open(2)`. With `thread` the descriptor may name a single thread (`PIDFD_THREAD`, Linux 6.9).
///
/// # Errors
/// `ESRCH` when there is no such process; otherwise see the man page.
pub fn pidfd_open(pid: pid_t) -> io::Result<OwnedFd> {
    // SAFETY: plain values only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// `pidfd_getfd(2)`: a duplicate of descriptor `fd` of the process behind `pidfd`.
///
/// The duplicate shares the open file description, `O_NONBLOCK` and offset included.
///
/// # Errors
/// `EBADF` when the process has no such descriptor, `EPERM` without ptrace access.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: plain values only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })
}

/// `pidfd_send_signal(2)` without a siginfo.
///
/// # Errors
/// `ESRCH` when the process is gone.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: c_int) -> io::Result<()> {
    let none = std::ptr::null::<c_void>();
    // SAFETY: a null siginfo is allowed by the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            none,
            0,
        )
    })
    .map(drop)
}

/// What two tasks may share, for [`kcmp`] (`linux/kcmp.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Kcmp {
    /// Open file descriptions; the indices are descriptors.
    File = 0,
    /// Address spaces.
    Vm = 1,
    /// Descriptor tables.
    Files = 2,
    /// Root, working directory and umask.
    Fs = 3,
    /// Signal dispositions.
    Sighand = 4,
    /// I/O contexts.
    Io = 5,
    /// System V semaphore undo lists.
    SysvSem = 6,
}

/// `kcmp(2)`: the order of two kernel objects, `Equal` when they are one.
///
/// # Errors
/// `EPERM` without ptrace access to both, `EBADF` for a missing descriptor.
pub fn kcmp(a: pid_t, b: pid_t, what: Kcmp, ia: u64, ib: u64) -> io::Result<std::cmp::Ordering> {
    // SAFETY: plain values only.
    let r = check(unsafe { libc::syscall(libc::SYS_kcmp, a, b, what as c_int, ia, ib) })?;
    Ok(match r {
        0 => std::cmp::Ordering::Equal,
        1 => std::cmp::Ordering::Less,
        // 3 means "different, order unknown"; any fixed answer keeps a search correct for equality.
        _ => std::cmp::Ordering::Greater,
    })
}

/// `kcmp(2)` with `KCMP_EPOLL_TFD`: is descriptor `fd` of `owner` the target that epoll
/// descriptor `epfd` of `pid` knows under `tfd` (its `toff`-th registration of that number)?
///
/// # Errors
/// `ENOENT` when there is no such registration.
pub fn kcmp_epoll(
    pid: pid_t,
    owner: pid_t,
    fd: RawFd,
    epfd: RawFd,
    tfd: u32,
    toff: u32,
) -> io::Result<bool> {
    let slot = [epfd as u32, tfd, toff];
    // SAFETY: `slot` has the layout of struct kcmp_epoll_slot and outlives the call.
    let r = unsafe { libc::syscall(libc::SYS_kcmp, owner, pid, 7, fd as u64, slot.as_ptr()) };
    check(r).map(|r| r == 0)
}

/// A task's argument for [`clone3`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Clone3 {
    /// `CLONE_*` flags.
    pub flags: u64,
    /// The pid that the child shall have in the innermost pid namespace.
    pub set_tid: Option<pid_t>,
}

/// `clone3(2)` in the manner of fork: returns 0 in the child.
///
/// # Safety
/// As for `fork`: the child of a multi-threaded process may call async-signal-safe
/// functions only, until it executes another program or exits.
///
/// # Errors
/// `EEXIST` when the wanted pid is taken, `EPERM` without `CAP_CHECKPOINT_RESTORE` over the pid namespace.
pub unsafe fn clone3(how: Clone3) -> io::Result<pid_t> {
    let tids = [how.set_tid.unwrap_or(0)];
    // SAFETY: the struct is plain data for which zero is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = how.flags;
    args.exit_signal = libc::SIGCHLD as u64;
    if how.set_tid.is_some() {
        args.set_tid = tids.as_ptr() as u64;
        args.set_tid_size = 1;
    }
    // SAFETY: `args` and `tids` outlive the call; no CLONE_VM without a stack, the flags are fork-like by contract.
    let r = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const args,
            size_of::<libc::clone_args>(),
        )
    };
    check(r).map(|r| r as pid_t)
}

/// One region that [`pagemap_scan`] reports (`struct page_region`).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageRegion {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// `PAGE_IS_*` bits that hold for all of it.
    pub categories: u64,
}

/// Argument of [`pagemap_scan`] (`struct pm_scan_arg`, Documentation/admin-guide/mm/pagemap.rst).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct PagemapScan {
    /// Size of this struct, in bytes; filled in by [`pagemap_scan`].
    pub size: u64,
    /// `PM_SCAN_*`.
    pub flags: u64,
    /// First address to look at.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Where the walk ended (out).
    pub walk_end: u64,
    /// Where regions go; filled in by [`pagemap_scan`].
    pub vec: u64,
    /// How many have room; filled in by [`pagemap_scan`].
    pub vec_len: u64,
    /// Stop after so many pages; 0 for no limit.
    pub max_pages: u64,
    /// Categories whose meaning is inverted.
    pub category_inverted: u64,
    /// All of these must hold.
    pub category_mask: u64,
    /// At least one of these must hold.
    pub category_anyof_mask: u64,
    /// What to report.
    pub return_mask: u64,
}

/// `PAGE_IS_*` categories of `linux/fs.h`.
pub mod page_is {
    /// Write-protect tracking is possible there.
    pub const WPALLOWED: u64 = 1;
    /// Written since it was protected.
    pub const WRITTEN: u64 = 1 << 1;
    /// Backed by a file (or shared memory), not anonymous.
    pub const FILE: u64 = 1 << 2;
    /// In memory.
    pub const PRESENT: u64 = 1 << 3;
    /// Swapped out.
    pub const SWAPPED: u64 = 1 << 4;
    /// The shared zero page.
    pub const PFNZERO: u64 = 1 << 5;
    /// Part of a huge page.
    pub const HUGE: u64 = 1 << 6;
}

/// `ioctl(PAGEMAP_SCAN)` on an open `/proc/PID/pagemap` (Linux 6.7): how many regions were stored.
///
/// # Errors
/// `ENOTTY` on kernels without it.
pub fn pagemap_scan(
    pagemap: BorrowedFd<'_>,
    arg: &mut PagemapScan,
    out: &mut [PageRegion],
) -> io::Result<usize> {
    const PAGEMAP_SCAN: u64 = 0xc060_6610;
    arg.size = size_of::<PagemapScan>() as u64;
    arg.vec = out.as_mut_ptr() as u64;
    arg.vec_len = out.len() as u64;
    // SAFETY: `arg` has the kernel's layout, and `vec`/`vec_len` describe `out`, borrowed for the call.
    let r = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut *arg) };
    check(c_long::from(r)).map(|n| n as usize)
}

/// `memfd_create(2)`, close-on-exec.
///
/// # Errors
/// See the man page.
pub fn memfd_create(name: &std::ffi::CStr, flags: u32) -> io::Result<OwnedFd> {
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    owned(c_long::from(unsafe {
        libc::memfd_create(name.as_ptr(), flags | libc::MFD_CLOEXEC)
    }))
}

/// `getsockopt(2)` into a plain value; the length the kernel reports is not looked at.
///
/// # Errors
/// See the man page of the option.
pub fn getsockopt<T: Copy>(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    mut value: T,
) -> io::Result<T> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is a Copy place of `len` bytes that the kernel may fill.
    let r = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    check(c_long::from(r)).map(|_| value)
}

/// `setsockopt(2)` from a plain value.
///
/// # Errors
/// See the man page of the option.
pub fn setsockopt<T: Copy>(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &T,
) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is readable for `len` bytes.
    let r =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const *value).cast(), len) };
    check(c_long::from(r)).map(drop)
}

/// `ioctl(2)` that stores one `int` (`FIONREAD`, `SIOCOUTQ`…).
///
/// # Errors
/// See the man page of the request.
pub fn ioctl_get_int(fd: BorrowedFd<'_>, request: u64) -> io::Result<c_int> {
    let mut value: c_int = 0;
    // SAFETY: the caller names a request that stores one int, and `value` is one.
    let r = unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut value) };
    check(c_long::from(r)).map(|_| value)
}

/// Installs a seccomp filter on the calling thread (`seccomp(2)`, `SECCOMP_SET_MODE_FILTER`).
///
/// With `SECCOMP_FILTER_FLAG_NEW_LISTENER` among `flags` the answer is the listener.
///
/// # Errors
/// `EBUSY` when the chain has a listener already, `EACCES` without no_new_privs or `CAP_SYS_ADMIN`.
pub fn seccomp_set_filter(
    program: &[libc::sock_filter],
    flags: u64,
) -> io::Result<Option<OwnedFd>> {
    let prog = libc::sock_fprog {
        len: u16::try_from(program.len())
            .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `prog` describes `program`, which outlives the call and is only read.
    let r = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const prog,
        )
    };
    if flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER == 0 {
        return check(r).map(|_| None);
    }
    owned(r).map(Some)
}
