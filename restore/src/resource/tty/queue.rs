//! What waits in a pair of a terminal, in both directions.
//!
//! A terminal's queues cannot be looked at, only read; so they are read and written again at
//! once, on the same pair, while everything that could see it stands still. Modes that would
//! change the bytes on their way (echo, signals, editing, output processing) are switched
//! off meanwhile. In canonical mode lines stay lines and an unfinished one unfinished.
//!
//! ```text
//! output:  slave ─▶ … ─▶ master     read at the master, written again at the slave
//! input:   master ─▶ … ─▶ slave     read at the slave, written again at the master
//! ```

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use nix::{poll::PollFlags, unistd::write};

use super::ioctl::{self, Termios};

/// Takes the input that waits for the slave; [`put_input`] puts it there again.
pub(super) fn take_input(slave: BorrowedFd<'_>, termios: &Termios) -> io::Result<Vec<u8>> {
    // Without ICANON the unfinished line can be read too.
    ioctl::set_termios(slave, &plain(termios, false))?;
    let taken = ioctl::drain(slave);
    ioctl::set_termios(slave, termios)?;
    taken
}

/// Puts input where it waits for the slave, without echo and without acting on any byte.
pub(super) fn put_input(
    master: BorrowedFd<'_>,
    slave: BorrowedFd<'_>,
    termios: &Termios,
    input: &[u8],
) -> io::Result<()> {
    if input.is_empty() {
        return Ok(());
    }
    let canonical = termios.local & libc::ICANON != 0;
    ioctl::set_termios(slave, &plain(termios, canonical))?;
    let done = write_all(master, input).and_then(|()| {
        let visible = if canonical {
            input
                .iter()
                .rposition(|b| *b == b'\n')
                .map_or(0, |at| at + 1)
        } else {
            input.len()
        };
        arrived(slave, visible)
    });
    ioctl::set_termios(slave, termios)?;
    done
}

/// Puts output where it waits for the master, byte for byte.
pub(super) fn put_output(
    slave: BorrowedFd<'_>,
    termios: &Termios,
    output: &[u8],
) -> io::Result<()> {
    if output.is_empty() {
        return Ok(());
    }
    // Only this: a change of ICANON would join the lines that wait as input.
    let mut plain = *termios;
    plain.output = 0;
    ioctl::set_termios(slave, &plain)?;
    let done = write_all(slave, output);
    ioctl::set_termios(slave, termios)?;
    done
}

/// Modes under which bytes pass unchanged; lines are kept apart where `canonical`.
fn plain(termios: &Termios, canonical: bool) -> Termios {
    let mut plain = *termios;
    (plain.input, plain.output) = (0, 0);
    plain.local = if canonical { libc::ICANON } else { 0 };
    plain.chars = [0; 19];
    plain.chars[libc::VMIN] = 1;
    plain
}

fn write_all(fd: BorrowedFd<'_>, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        if !ioctl::ready(fd, PollFlags::POLLOUT)?.contains(PollFlags::POLLOUT) {
            return Err(io::Error::other(
                "the terminal does not take its own data back",
            ));
        }
        data = &data[write(fd, data)?..];
    }
    Ok(())
}

/// The longest a kernel worker may take to move a few bytes.
const PATIENCE: Duration = Duration::from_secs(2);

/// Waits until a kernel worker has brought the bytes to the slave. The call that changes
/// modes next waits for the rest of the piece that is under way.
fn arrived(slave: BorrowedFd<'_>, visible: usize) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    // A poll that finds nothing to read waits for the worker itself.
    ioctl::ready(slave.as_fd(), PollFlags::POLLIN)?;
    while ioctl::waiting(slave)? < visible {
        if Instant::now() > deadline {
            return Err(io::Error::from(io::ErrorKind::TimedOut));
        }
        std::thread::yield_now();
    }
    Ok(())
}
