//! The end of the far end's bytes, delivered anew.
//!
//! A connection whose far end will write no more, and does not know that it is talking to
//! a rebuilt socket, needs that far end's FIN once again.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::repair::Connection;
use crate::resource::socket::Injector;

/// How long our own kernel may take to deliver it, in milliseconds.
const PATIENCE: u16 = 2000;

/// Lets the connection of `fd` (ours at `local`, theirs at `remote`) receive its FIN.
pub(super) fn deliver(
    fd: BorrowedFd<'_>,
    local: SocketAddr,
    remote: SocketAddr,
    connection: &Connection,
) -> io::Result<()> {
    let (sequence, acknowledged) = (connection.received, connection.first_outgoing());
    Injector::new(local.ip())?.fin(remote, local, sequence, acknowledged)?;
    let ended = PollFlags::from_bits_retain(libc::POLLRDHUP);
    match poll(
        &mut [PollFd::new(fd.as_fd(), ended)],
        PollTimeout::from(PATIENCE),
    )? {
        0 => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the far end's FIN was not delivered",
        )),
        _ => Ok(()),
    }
}
