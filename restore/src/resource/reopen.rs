//! A second description of a file that has one already, through /proc/self/fd.
//!
//! Opening that name makes a new open file description of the same inode, with an access
//! mode of its own; for pipes it works in either direction.

use std::{
    fs::OpenOptions,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
};

/// Opens the file behind `fd` again; of `flags`, what an open does once is left out.
///
/// # Errors
/// What open(2) says: `ENXIO` for sockets, `EACCES` where the mode of the inode forbids it.
pub(crate) fn reopen(fd: impl AsFd, flags: i32) -> io::Result<OwnedFd> {
    let once = libc::O_ACCMODE | libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_NOFOLLOW;
    let access = flags & libc::O_ACCMODE;
    OpenOptions::new()
        .read(access != libc::O_WRONLY)
        .write(access != libc::O_RDONLY)
        .custom_flags(flags & !once | libc::O_CLOEXEC | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
        .map(OwnedFd::from)
}
