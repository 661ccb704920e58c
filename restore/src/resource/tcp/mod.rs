//! TCP sockets: listeners, connections, and those that are neither yet or any more.
//!
//! A connection is read in *repair* mode (`TCP_REPAIR`, `net/ipv4/tcp.c`): queues,
//! sequence numbers, window, options. What else must be known shows only when all of the
//! pod's sockets were seen: who is at the far end. So each connection gets a *link*:
//!
//! ```text
//! inside    both ends are of the pod        both are made anew, as one
//! waiting   the far end is not accepted     a real handshake with the listener, sent again
//! ghost     the far end was closed          made with a far end of our own, which is closed again
//! outside   the pod's address moves along   made anew under the same addresses
//! lost      the address stays behind        what was received, then ECONNRESET
//! ```
//!
//! The two ends of a connection inside the pod are read together, at the very end of the
//! capture: the programs stand still, but their kernel goes on to carry what was sent.
//!
//! The records hold virtual endpoints; the table of endpoints says what to bind here.

mod fin;
mod link;
mod rebuild;
mod release;
mod repair;
#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use libc::IPPROTO_TCP;
use nix::{
    errno::Errno,
    poll::PollFlags,
    sys::socket::{AddressFamily, MsgFlags, recv},
};
use serde::{Deserialize, Serialize};

pub use self::link::{Link, Links, lost};
use super::{
    Room,
    socket::{self, Options, family_and_type, int_option, remote_address},
};
use crate::{
    capture::{Capture, Probe},
    error::{Error, Result},
    image::{Image, Record},
    sockdiag::SockDiags,
};

/// States of net/tcp_states.h.
mod state {
    pub(super) const ESTABLISHED: u8 = 1;
    pub(super) const SYN_SENT: u8 = 2;
    pub(super) const SYN_RECV: u8 = 3;
    pub(super) const FIN_WAIT1: u8 = 4;
    pub(super) const FIN_WAIT2: u8 = 5;
    pub(super) const CLOSE: u8 = 7;
    pub(super) const CLOSE_WAIT: u8 = 8;
    pub(super) const LAST_ACK: u8 = 9;
    pub(super) const LISTEN: u8 = 10;
    pub(super) const CLOSING: u8 = 11;
    pub(super) const NEW_SYN_RECV: u8 = 12;
}

/// Which protocol layers its bytes (linux/tcp.h); empty for plain TCP.
const TCP_ULP: i32 = 31;

/// A TCP socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tcp {
    /// `AF_INET` or `AF_INET6`.
    family: i32,
    /// Its virtual endpoint; port 0 where it is not bound.
    local: SocketAddr,
    state: State,
    options: Options,
}

/// What a TCP socket is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    /// Nothing yet.
    Unconnected,
    /// Accepting.
    Listener { backlog: u32 },
    /// Waiting for an answer from this virtual endpoint.
    Connecting(SocketAddr),
    /// Talking to this virtual endpoint, in one or both directions: the number of the record of its inside.
    Connected(SocketAddr, u32),
    /// Done: what can still be read, and the error that waits.
    Ended {
        #[serde(with = "serde_bytes")]
        unread: Vec<u8>,
        error: Option<EndedBy>,
    },
}

/// Why a connection ended, where the program has not been told yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum EndedBy {
    /// Nobody listened.
    Refused,
    /// The far end reset it.
    Reset,
}

impl Record for Tcp {
    const KIND: &'static str = "tcp";
    const VERSION: u16 = 1;
}

impl Room for Tcp {
    fn capture(probe: &Probe, cx: &mut Capture<'_>) -> Result<Option<Self>> {
        let Some((family @ (libc::AF_INET | libc::AF_INET6), libc::SOCK_STREAM)) =
            family_and_type(probe)
        else {
            return Ok(None);
        };
        let fd = probe.file.as_fd();
        if int_option(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL) != Some(IPPROTO_TCP) {
            return Ok(None);
        }
        let ulp: [u8; 16] =
            intercept::sys::getsockopt(fd, IPPROTO_TCP, TCP_ULP, [0; 16]).unwrap_or_default();
        if ulp[0] != 0 {
            let why = "the kernel encrypts its bytes (TCP_ULP), and the keys cannot be read back";
            cx.refuse(probe, why, "turn kernel TLS off in the program");
            return Ok(None);
        }
        let options = Options::capture(probe, cx)?;
        let local = cx.network.local(fd)?;
        let Some(state) = capture_state(probe, local, cx)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            family,
            local,
            state,
            options,
        }))
    }
}

fn capture_state(probe: &Probe, local: SocketAddr, cx: &mut Capture<'_>) -> Result<Option<State>> {
    let fd = probe.file.as_fd();
    cx.shared::<SockDiags>().of(fd)?;
    let info = repair::Info::of(fd)?;
    Ok(Some(match info.state() {
        state::LISTEN => {
            link::note_listener(probe, cx)?;
            State::Listener {
                backlog: info.backlog(),
            }
        }
        state::SYN_SENT => {
            let all = cx.shared::<SockDiags>().all_tcp()?;
            let own = all.iter().find(|e| u64::from(e.inode) == probe.stat.st_ino);
            let gone = std::io::Error::from_raw_os_error(libc::ENOENT);
            let own = own.ok_or_else(|| Error::kernel("inet_diag", probe.name(), gone))?;
            State::Connecting(cx.network.remote(fd, own.remote)?)
        }
        state::SYN_RECV => {
            cx.refuse(probe, "its handshake is under way", "try again in a moment");
            return Ok(None);
        }
        state::CLOSE => capture_closed(fd, &info)?,
        _ => {
            let remote = cx.network.remote(fd, remote_address(fd)?)?;
            let number = link::note_connection(probe, local, remote, cx)?;
            State::Connected(remote, number)
        }
    }))
}

fn capture_closed(fd: BorrowedFd<'_>, info: &repair::Info) -> Result<State> {
    let unread =
        repair::peek_unread(fd).map_err(|e| Error::kernel("recv MSG_PEEK", "a socket", e))?;
    // Reading from a socket with an error takes the error away, so it is not asked then.
    if socket::ready(fd, PollFlags::POLLIN)?.contains(PollFlags::POLLERR) {
        let error = if info.handshaken() {
            EndedBy::Reset
        } else {
            EndedBy::Refused
        };
        return Ok(State::Ended {
            unread,
            error: Some(error),
        });
    }
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match recv(std::os::fd::AsRawFd::as_raw_fd(&fd), &mut [0; 1], flags) {
        Err(Errno::ENOTCONN) => Ok(State::Unconnected),
        _ => Ok(State::Ended {
            unread,
            error: None,
        }),
    }
}

impl Tcp {
    fn address_family(&self) -> AddressFamily {
        match self.family {
            libc::AF_INET6 => AddressFamily::Inet6,
            _ => AddressFamily::Inet,
        }
    }
}

/// The virtual endpoints that an image listens on: what must be free before a pod moves here.
///
/// # Errors
/// [`Error::Image`] when a record does not decode.
pub fn listening(image: &Image) -> Result<Vec<SocketAddr>> {
    let all = image.all::<Tcp>()?;
    let listens = |t: &Tcp| matches!(t.state, State::Listener { .. });
    Ok(all.into_values().filter(listens).map(|t| t.local).collect())
}

/// The connections of a capture, held for the time when the captured pod ends.
pub struct Connections(Vec<OwnedFd>);

impl Connections {
    /// Those that a capture has seen.
    ///
    /// # Errors
    /// [`Error::Kernel`] when there is no descriptor left.
    pub fn of(cx: &Capture<'_>) -> Result<Self> {
        let is_tcp = |fd| int_option(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL) == Some(IPPROTO_TCP);
        let all = cx.descriptions().map(|(fd, _)| fd).filter(|fd| is_tcp(*fd));
        let all = all
            .map(|fd| fd.try_clone_to_owned())
            .collect::<std::io::Result<_>>();
        all.map(Self)
            .map_err(|e| Error::kernel("dup", "a connection", e))
    }

    /// Makes their end silent: closed from now on, they send nothing.
    ///
    /// For a pod that lives on elsewhere: a FIN or a reset of the old sockets would end the
    /// connections of the new ones. There is no way back for the frozen program after this.
    ///
    /// # Errors
    /// [`Error::Kernel`] of the first socket that refused.
    pub fn silence(&self) -> Result<()> {
        let silence = |fd: &OwnedFd| repair::silence(fd.as_fd());
        let done = self.0.iter().try_for_each(silence);
        done.map_err(|e| Error::kernel("TCP_REPAIR", "a connection", e))
    }
}
