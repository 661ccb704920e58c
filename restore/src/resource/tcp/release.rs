//! Releasing connections: out of repair mode, the rest of the queues sent, closed halves
//! closed again, far ends of our own sent away.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use libc::SOL_SOCKET;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::socket::{AddressFamily, Shutdown, SockType, SockaddrStorage, connect, shutdown},
};

use super::{
    EndedBy, State, Tcp, fin,
    link::Link,
    rebuild::{self, Ends, failed, real_ends, sockets},
    repair::{self, Connection},
};
use crate::{
    builder::Builder,
    error::{Error, Result},
    resource::{
        ObjectId,
        socket::{
            local_address,
            message::{Direction, LargeBuffer},
            new_socket,
        },
    },
};

impl Tcp {
    /// Releases a connection that needs no more than what is here, and finishes it.
    pub(super) fn join(
        &self,
        fd: BorrowedFd<'_>,
        remote: SocketAddr,
        connection: &Connection,
        builder: &mut Builder<'_>,
    ) -> Result<()> {
        let ends = (self.local, remote);
        match sockets(builder)?
            .links
            .of(ends.0, ends.1)
            .unwrap_or(Link::Outside)
        {
            Link::Outside => return Ok(()),
            Link::Inside => {
                let Some((far_id, far)) = self.release_both(fd, &ends, builder)? else {
                    return Ok(());
                };
                self.close_half(fd, connection, &ends)?;
                if let State::Connected(_, number) = &far.state {
                    let theirs = rebuild::connection(*number, builder)?;
                    far.close_half(builder.object(far_id)?, &theirs, &ends)?;
                }
                far.options.apply_late(builder.object(far_id)?)?;
            }
            Link::Waiting => {
                let real = builder.network.real_of(remote);
                handshake(fd, real, connection).map_err(failed(&ends))?;
                self.close_half(fd, connection, &ends)?;
            }
            Link::Ghost if !sockets(builder)?.ghosts.contains_key(&real_ends(fd)?) => {
                let plan = take_plan(fd, builder)?;
                return self.settle_alone(fd, plan.as_ref().unwrap_or(connection), &ends);
            }
            Link::Ghost => {
                builder.network.connected(ends, real_ends(fd)?);
                let ghost = self.release_with_ghost(fd, &ends, builder)?;
                self.close_half(fd, connection, &ends)?;
                drop(ghost);
            }
            Link::Lost => {
                let ghost = self.release_with_ghost(fd, &ends, builder)?;
                if connection.fin_received {
                    close_writing(ghost.as_fd(), &ends)?;
                }
                self.close_half(fd, connection, &ends)?;
                reset(ghost, &ends)?;
            }
        }
        self.options.apply_late(fd)
    }

    /// Releases an end whose far end is not ours.
    pub(super) fn settle_alone(
        &self,
        fd: BorrowedFd<'_>,
        own: &Connection,
        ends: &Ends,
    ) -> Result<()> {
        release(fd, own, ends)?;
        if own.fin_received {
            let (local, remote) = real_ends(fd)?;
            fin::deliver(fd, local, remote, own).map_err(failed(ends))?;
        }
        self.close_half(fd, own, ends)?;
        self.options.apply_late(fd)
    }

    /// Releases both ends; the second to be asked finds it done.
    fn release_both(
        &self,
        fd: BorrowedFd<'_>,
        ends: &Ends,
        builder: &mut Builder<'_>,
    ) -> Result<Option<(ObjectId, Self)>> {
        let Some(own) = take_plan(fd, builder)? else {
            return Ok(None);
        };
        let missing = || Error::NoRecord {
            kind: format!("TCP socket {}", ends.1),
            id: 0,
        };
        let (far_id, far) = sockets(builder)?.far(*ends).ok_or_else(missing)?;
        let far_fd = builder
            .object(far_id)?
            .try_clone_to_owned()
            .map_err(failed(ends))?;
        let theirs = take_plan(far_fd.as_fd(), builder)?.ok_or_else(missing)?;
        let (real, far_real) = (real_ends(fd)?, real_ends(far_fd.as_fd())?);
        builder.network.connected(*ends, real);
        if let State::Connected(remote, _) = &far.state {
            builder.network.connected((far.local, *remote), far_real);
        }
        release(fd, &own, ends)?;
        release(far_fd.as_fd(), &theirs, ends)?;
        Ok(Some((far_id, far)))
    }

    fn release_with_ghost(
        &self,
        fd: BorrowedFd<'_>,
        ends: &Ends,
        builder: &mut Builder<'_>,
    ) -> Result<OwnedFd> {
        let missing = || Error::NoRecord {
            kind: format!("TCP socket {}", ends.1),
            id: 0,
        };
        let real = real_ends(fd)?;
        let ghost = sockets(builder)?.ghosts.remove(&real).ok_or_else(missing)?;
        let own = take_plan(fd, builder)?.ok_or_else(missing)?;
        release(ghost.as_fd(), &own.mirror(), ends)?;
        release(fd, &own, ends)?;
        Ok(ghost)
    }

    /// Says again that this end writes no more.
    fn close_half(&self, fd: BorrowedFd<'_>, connection: &Connection, ends: &Ends) -> Result<()> {
        match connection.fin_sent {
            true => close_writing(fd, ends),
            false => Ok(()),
        }
    }

    /// Ends a connection the way the captured one had ended.
    pub(super) fn end(
        &self,
        fd: BorrowedFd<'_>,
        error: Option<EndedBy>,
        builder: &mut Builder<'_>,
    ) -> Result<()> {
        let ends = (self.local, self.loopback());
        match error {
            Some(EndedBy::Refused) => be_refused(fd, self.loopback()).map_err(failed(&ends))?,
            Some(EndedBy::Reset) => reset(self.release_with_ghost(fd, &ends, builder)?, &ends)?,
            None => {
                let ghost = self.release_with_ghost(fd, &ends, builder)?;
                close_writing(ghost.as_fd(), &ends)?;
                close_writing(fd, &ends)?;
            }
        }
        self.options.apply_late(fd)
    }
}

fn take_plan(fd: BorrowedFd<'_>, builder: &mut Builder<'_>) -> Result<Option<Connection>> {
    // Whoever was reset or refused meanwhile has no far end any more, and no plan either.
    let Ok(ends) = real_ends(fd) else {
        return Ok(None);
    };
    Ok(sockets(builder)?.plans.remove(&ends))
}

fn release(fd: BorrowedFd<'_>, connection: &Connection, ends: &Ends) -> Result<()> {
    let outgoing = connection.outgoing.len();
    let _send = LargeBuffer::new(fd, Direction::Send, outgoing, outgoing / 4096 + 1)?;
    connection.release(fd).map_err(failed(ends))
}

fn close_writing(fd: BorrowedFd<'_>, ends: &Ends) -> Result<()> {
    match shutdown(fd.as_raw_fd(), Shutdown::Write) {
        // It was reset already: then there is nothing left to close.
        Ok(()) | Err(nix::errno::Errno::ENOTCONN) => Ok(()),
        Err(e) => Err(failed(ends)(e.into())),
    }
}

/// Closes a far end of our own with a reset.
fn reset(ghost: OwnedFd, ends: &Ends) -> Result<()> {
    let at_once = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    intercept::sys::setsockopt(ghost.as_fd(), SOL_SOCKET, libc::SO_LINGER, &at_once)
        .map_err(failed(ends))?;
    drop(ghost);
    Ok(())
}

/// Connects for real and sends again all that was ever sent.
fn handshake(fd: BorrowedFd<'_>, remote: SocketAddr, connection: &Connection) -> io::Result<()> {
    connect(fd.as_raw_fd(), &SockaddrStorage::from(remote))?;
    repair::send_all(fd, &connection.outgoing)
}

/// Begins to connect and does not wait.
pub(super) fn begin_connect(fd: BorrowedFd<'_>, remote: SocketAddr) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    let begun = connect(fd.as_raw_fd(), &SockaddrStorage::from(remote));
    fcntl(fd, FcntlArg::F_SETFL(flags))?;
    match begun {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Connects to a port where nobody listens: the refusal then waits to be read.
fn be_refused(fd: BorrowedFd<'_>, loopback: SocketAddr) -> io::Result<()> {
    let family = if loopback.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let deaf = new_socket(family, SockType::Stream).map_err(io::Error::other)?;
    nix::sys::socket::bind(deaf.as_raw_fd(), &SockaddrStorage::from(loopback))?;
    let to = local_address(deaf.as_fd()).map_err(io::Error::other)?;
    begin_connect(fd, to)
}
