//! ioctl_tty(2) as functions.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

use intercept::sys;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

/// `struct termios2` of asm-generic/termbits.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Termios {
    pub(super) input: u32,
    pub(super) output: u32,
    control: u32,
    pub(super) local: u32,
    line: u8,
    pub(super) chars: [u8; 19],
    speeds: [u32; 2],
}

/// `struct winsize`: rows, columns, and both in pixels.
pub(super) type Size = [u16; 4];

const TCGETS2: u64 = 0x802c_542a;
const TCSETS2: u64 = 0x402c_542b;
const TIOCGPTN: u64 = 0x8004_5430;
const TIOCSPTLCK: u64 = 0x4004_5431;
const TIOCGDEV: u64 = 0x8004_5432;
const TIOCGPKT: u64 = 0x8004_5438;
const TIOCGPTLCK: u64 = 0x8004_5439;
const TIOCGEXCL: u64 = 0x8004_5440;
const TIOCGPTPEER: u64 = 0x5441;

fn get<T: Default>(fd: impl AsFd, request: u64) -> io::Result<T> {
    let mut value = T::default();
    // SAFETY: the requests used here store one value of the type that the caller names.
    let r = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, &raw mut value) };
    sys::check(r.into()).map(|_| value)
}

fn set<T>(fd: impl AsFd, request: u64, value: &T) -> io::Result<()> {
    // SAFETY: the requests used here read one value of the type that the caller names.
    let r = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, std::ptr::from_ref(value)) };
    sys::check(r.into()).map(drop)
}

/// The number of a master's pair; `ENOTTY` for all other files.
pub(super) fn index(master: impl AsFd) -> io::Result<u32> {
    get(master, TIOCGPTN)
}

/// The device behind a terminal, in the kernel's 32-bit form: (major, minor).
pub(super) fn device(terminal: impl AsFd) -> io::Result<(u32, u32)> {
    let device: u32 = get(terminal, TIOCGDEV)?;
    Ok((libc::major(device.into()), libc::minor(device.into())))
}

pub(super) fn termios(terminal: impl AsFd) -> io::Result<Termios> {
    get(terminal, TCGETS2)
}

/// Sets modes at once, without waiting or flushing.
pub(super) fn set_termios(terminal: impl AsFd, termios: &Termios) -> io::Result<()> {
    set(terminal, TCSETS2, termios)
}

pub(super) fn size(terminal: impl AsFd) -> io::Result<Size> {
    get(terminal, libc::TIOCGWINSZ)
}

pub(super) fn set_size(terminal: impl AsFd, size: Size) -> io::Result<()> {
    set(terminal, libc::TIOCSWINSZ, &size)
}

pub(super) fn is_locked(master: impl AsFd) -> io::Result<bool> {
    get::<i32>(master, TIOCGPTLCK).map(|v| v != 0)
}

pub(super) fn lock(master: impl AsFd, locked: bool) -> io::Result<()> {
    set(master, TIOCSPTLCK, &i32::from(locked))
}

pub(super) fn is_packet(master: impl AsFd) -> io::Result<bool> {
    get::<i32>(master, TIOCGPKT).map(|v| v != 0)
}

pub(super) fn set_packet(master: impl AsFd, packet: bool) -> io::Result<()> {
    set(master, libc::TIOCPKT, &i32::from(packet))
}

pub(super) fn is_exclusive(terminal: impl AsFd) -> io::Result<bool> {
    get::<i32>(terminal, TIOCGEXCL).map(|v| v != 0)
}

pub(super) fn set_exclusive(terminal: impl AsFd) -> io::Result<()> {
    set(terminal, libc::TIOCEXCL, &0)
}

/// Bytes that a read would find.
pub(super) fn waiting(terminal: impl AsFd) -> io::Result<usize> {
    sys::ioctl_get_int(terminal.as_fd(), libc::FIONREAD).map(|n| n as usize)
}

/// Opens a master's slave, whatever its name here.
pub(super) fn slave_of(master: impl AsFd, flags: i32) -> io::Result<OwnedFd> {
    let flags = flags & (libc::O_ACCMODE | libc::O_NONBLOCK) | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the request takes open flags by value.
    let r = unsafe { libc::ioctl(master.as_fd().as_raw_fd(), TIOCGPTPEER, flags) };
    let fd = sys::check(r.into())? as i32;
    // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What a poll that does not wait says of `events` and of a hang-up.
pub(super) fn ready(fd: impl AsFd, events: PollFlags) -> io::Result<PollFlags> {
    let mut fds = [PollFd::new(fd.as_fd(), events)];
    poll(&mut fds, PollTimeout::ZERO)?;
    Ok(fds[0].revents().unwrap_or(PollFlags::empty()))
}

/// Reads all there is; never waits.
pub(super) fn drain(fd: impl AsFd) -> io::Result<Vec<u8>> {
    let (mut all, mut buf) = (Vec::new(), [0; 4096]);
    while ready(&fd, PollFlags::POLLIN)?.contains(PollFlags::POLLIN) {
        match nix::unistd::read(&fd, &mut buf) {
            // EIO is a master's end of file.
            Ok(0) | Err(nix::Error::EIO) => break,
            n => all.extend_from_slice(&buf[..n?]),
        }
    }
    Ok(all)
}
