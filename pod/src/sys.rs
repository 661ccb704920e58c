//! System calls that neither `nix`, `libc` nor `intercept` wraps, each with its man page. Thin: numbers in, a
//! `Result` out.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

fn check(result: libc::c_long) -> nix::Result<libc::c_long> {
    if result < 0 {
        Err(Errno::last())
    } else {
        Ok(result)
    }
}

fn owned(result: libc::c_long) -> nix::Result<OwnedFd> {
    let fd = check(result)? as RawFd;
    // SAFETY: the call has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// close_range(2) with CLOSE_RANGE_CLOEXEC: every descriptor from `first` on is closed by the next exec.
pub(crate) fn cloexec_from(first: u32) -> nix::Result<()> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // SAFETY: no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) })
        .map(drop)
}

const OPEN_TREE_CLONE: u32 = 1;
const AT_RECURSIVE: u32 = 0x8000;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 4;

/// open_tree(2) with OPEN_TREE_CLONE: a detached copy of the mount (or mounts) at a path.
pub(crate) fn copy_mount(path: &CStr, recursive: bool) -> nix::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as u32 | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: path is a C string that outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// move_mount(2): attaches a detached mount at a path.
pub(crate) fn attach_mount(mount: BorrowedFd<'_>, path: &CStr) -> nix::Result<()> {
    // SAFETY: both strings are C strings that outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// fsopen(2), fsconfig(2), fsmount(2): a new, detached /proc for the calling process's pid namespace,
/// without set-user-ID, devices and programs.
pub(crate) fn new_proc() -> nix::Result<OwnedFd> {
    const FSOPEN_CLOEXEC: u32 = 1;
    const FSCONFIG_CMD_CREATE: u32 = 6;
    const FSMOUNT_CLOEXEC: u32 = 1;
    let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    // SAFETY: the name is a C string that outlives the call.
    let context =
        owned(unsafe { libc::syscall(libc::SYS_fsopen, c"proc".as_ptr(), FSOPEN_CLOEXEC) })?;
    let fd = context.as_raw_fd();
    // SAFETY: this command takes neither key nor value.
    check(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            fd,
            FSCONFIG_CMD_CREATE,
            0_usize,
            0_usize,
            0,
        )
    })?;
    // SAFETY: no memory is passed.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, attributes) })
}

/// mount_setattr(2): makes a mount and all below it read-only.
pub(crate) fn make_read_only(mount: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: all zeroes is a valid mount_attr.
    let mut attr: libc::mount_attr = unsafe { std::mem::zeroed() };
    attr.attr_set = libc::MOUNT_ATTR_RDONLY;
    // SAFETY: attr outlives the call and its size is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH as u32 | AT_RECURSIVE,
            &raw mut attr,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Runs a function in the network namespace of a process, on a thread of its own: setns(2) moves a thread.
pub(crate) fn in_network_of<T: Send>(
    pid: i32,
    body: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net"))?;
    let there = || {
        nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
        body()
    };
    let died = |_| Err(io::Error::other("the thread died"));
    std::thread::scope(|scope| scope.spawn(there).join().unwrap_or_else(died))
}

/// inotify(7): a descriptor that becomes readable when a file in a directory is written, made, renamed,
/// removed, or closed by a writer.
pub(crate) fn watch(directory: &CStr) -> nix::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let inotify =
        owned(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) }.into())?;
    let mask = libc::IN_MODIFY
        | libc::IN_CREATE
        | libc::IN_MOVED_TO
        | libc::IN_DELETE
        | libc::IN_CLOSE_WRITE;
    // SAFETY: directory is a C string that outlives the call.
    let added = unsafe { libc::inotify_add_watch(inotify.as_raw_fd(), directory.as_ptr(), mask) };
    check(added.into())?;
    Ok(inotify)
}

/// Empties a non-blocking descriptor whose contents do not matter (inotify, signalfd).
pub(crate) fn drain(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut buffer = [0_u8; 4096];
    loop {
        match nix::unistd::read(fd, &mut buffer) {
            Ok(0) | Err(Errno::EAGAIN) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}
