//! Unix sockets: streams, datagrams and records in sequence.
//!
//! Sockets get numbers of their own, by inode; a record says which number its peer has.
//! Who the peer is, and who waits in a listener's backlog, is asked of the kernel's
//! diagnosis. A pair comes back through socketpair(2) where both ends are nameless, and
//! through a real connection where one has a name, because the kernel hands a listener's
//! name down to what it accepts.
//!
//! ```text
//! listeners ─▶ pairs, datagram sockets ─▶ (connect) backlogs, queues, peers ─▶ shutdown, options
//! ```
//!
//! An end whose peer was closed gets a *ghost*: a peer of the builder's own that fills
//! the queue and is closed again.

mod name;
mod queue;
mod rebuild;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use nix::{
    poll::PollFlags,
    sys::socket::{SockType, UnixAddr},
};
use serde::{Deserialize, Serialize};

use self::{name::Name, queue::Message};
use super::{
    Room,
    socket::{self, Options, family_and_type},
};
use crate::{
    capture::{Capture, Probe},
    error::{Error, Refusal, Result},
    image::Record,
    sockdiag::{SockDiags, UnixInfo},
};

/// `TCP_ESTABLISHED` of net/tcp_states.h, which unix sockets use too.
const CONNECTED: u8 = 1;
/// `TCP_LISTEN`.
const LISTENING: u8 = 10;

/// A unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unix {
    /// Its number among the unix sockets of the image.
    number: u32,
    /// `SOCK_STREAM`, `SOCK_DGRAM` or `SOCK_SEQPACKET`.
    kind: i32,
    name: Option<Name>,
    role: Role,
    /// Directions shut down: 1 receiving, 2 sending.
    shutdown: u8,
    /// `ECONNRESET` waits to be read: the peer was closed with unread data.
    reset: bool,
    queue: Vec<Message>,
    options: Options,
}

/// How a unix socket stands to others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Role {
    /// To none.
    Alone,
    /// It listens; the numbers of those who wait to be accepted, first come first.
    Listener { backlog: u32, waiting: Vec<u32> },
    /// Its peer has this number.
    Connected(u32),
    /// Its peer has no descriptor: closed, or still in a listener's backlog. What name it had.
    Orphan(Option<Name>),
}

impl Record for Unix {
    const KIND: &'static str = "unix";
    const VERSION: u16 = 1;
}

/// Where a socket was seen, what it needs, to be looked at when all were seen.
struct Seen {
    place: Refusal,
    peer: Option<u32>,
    waiting: Vec<u32>,
    /// Somebody has not yet read what it wrote.
    unread_by_peer: bool,
}

/// All unix sockets of a capture, by inode.
#[derive(Default)]
struct AllSeen(HashMap<u32, Seen>);

impl AllSeen {
    /// Keeps a socket; true for the first.
    fn add(&mut self, inode: u32, seen: Seen) -> bool {
        self.0.insert(inode, seen);
        self.0.len() == 1
    }
}

impl Room for Unix {
    fn capture(probe: &Probe, cx: &mut Capture<'_>) -> Result<Option<Self>> {
        let Some((libc::AF_UNIX, kind)) = family_and_type(probe) else {
            return Ok(None);
        };
        let (fd, inode) = (probe.file.as_fd(), probe.stat.st_ino as u32);
        let info = cx.shared::<SockDiags>().of(fd)?.unix(inode)?;
        let info = info.ok_or_else(|| {
            Error::kernel(
                "unix_diag",
                probe.name(),
                std::io::Error::from_raw_os_error(libc::ENOENT),
            )
        })?;
        note(probe, &info, cx)?;
        let reset = socket::ready(fd, PollFlags::POLLIN)?.contains(PollFlags::POLLERR);
        if reset && kind != libc::SOCK_STREAM {
            let why =
                "an error of its peer waits to be read, and looking at its queue would take it";
            cx.refuse(probe, why, "try again in a moment");
            return Ok(None);
        }
        let queue = match info.state {
            LISTENING => Vec::new(),
            _ => capture_queue(probe, kind, &info, cx)?,
        };
        Ok(Some(Self {
            number: number(inode, cx),
            kind,
            name: Name::capture(fd)?,
            role: role(fd, kind, &info, cx),
            shutdown: info.shutdown & 3,
            reset,
            queue,
            options: Options::capture(probe, cx)?,
        }))
    }
}

fn number(inode: u32, cx: &mut Capture<'_>) -> u32 {
    cx.number("unix socket", &[inode.into()])
}

fn role(fd: BorrowedFd<'_>, kind: i32, info: &UnixInfo, cx: &mut Capture<'_>) -> Role {
    let peer_name = || {
        let address = nix::sys::socket::getpeername::<UnixAddr>(fd.as_raw_fd());
        address.ok().as_ref().and_then(Name::of)
    };
    match (info.state, info.peer) {
        (LISTENING, _) => {
            let waiting = info.waiting.iter().filter(|inode| **inode != 0);
            let waiting = waiting.map(|inode| number(*inode, cx)).collect();
            Role::Listener {
                backlog: info.backlog,
                waiting,
            }
        }
        (_, Some(inode)) if inode != 0 => Role::Connected(number(inode, cx)),
        (CONNECTED, _) if kind != libc::SOCK_DGRAM => Role::Orphan(peer_name()),
        (_, Some(_)) => Role::Orphan(peer_name()),
        _ => Role::Alone,
    }
}

fn note(probe: &Probe, info: &UnixInfo, cx: &mut Capture<'_>) -> Result<()> {
    let unread = intercept::sys::ioctl_get_int(probe.file.as_fd(), libc::TIOCOUTQ);
    let unread = unread.map_err(|e| Error::kernel("ioctl SIOCOUTQ", probe.name(), e))?;
    let seen = Seen {
        place: Refusal {
            pid: probe.pid,
            fd: probe.number,
            what: probe.link.display().to_string(),
            why: String::new(),
            hint: String::new(),
        },
        peer: info
            .peer
            .filter(|inode| *inode != 0 && info.state != LISTENING),
        waiting: info.waiting.clone(),
        unread_by_peer: unread > 0,
    };
    if cx.shared::<AllSeen>().add(probe.stat.st_ino as u32, seen) {
        cx.later(settle);
    }
    Ok(())
}

fn capture_queue(
    probe: &Probe,
    kind: i32,
    info: &UnixInfo,
    cx: &mut Capture<'_>,
) -> Result<Vec<Message>> {
    let fd = probe.file.as_fd();
    let inq = || {
        intercept::sys::ioctl_get_int(fd, libc::FIONREAD)
            .map(|n| n as usize)
            .map_err(|e| Error::kernel("ioctl SIOCINQ", probe.name(), e))
    };
    match kind {
        libc::SOCK_STREAM => queue::peek_stream(probe, fd, inq()?, cx),
        libc::SOCK_SEQPACKET if info.state != CONNECTED => Ok(Vec::new()),
        libc::SOCK_SEQPACKET => {
            let ends = if info.shutdown & 1 != 0 {
                Some(inq()?)
            } else {
                None
            };
            queue::peek_datagrams(probe, fd, ends, cx)
        }
        _ => queue::peek_datagrams(probe, fd, None, cx),
    }
}

/// Refuses connections to sockets that are not of the pod, when all of the pod's were seen.
fn settle(cx: &mut Capture<'_>) -> Result<()> {
    let all = std::mem::take(&mut cx.shared::<AllSeen>().0);
    let mut refused: Vec<_> = all
        .values()
        .filter_map(|seen| outside_peer(seen, &all))
        .collect();
    refused.extend(all.values().flat_map(|seen| unfit_backlog(seen, &all)));
    refused.sort_by_key(|r| (r.pid, r.fd));
    for refusal in refused {
        cx.refuse_as(refusal);
    }
    Ok(())
}

fn refusal(place: &Refusal, why: String, hint: &str) -> Refusal {
    Refusal {
        why,
        hint: hint.into(),
        ..place.clone()
    }
}

fn outside_peer(seen: &Seen, all: &HashMap<u32, Seen>) -> Option<Refusal> {
    let peer = seen.peer.filter(|peer| !all.contains_key(peer))?;
    let why = format!("it is connected to {}, outside of the pod", owner(peer));
    Some(refusal(
        &seen.place,
        why,
        "close the connection, or run both ends in one pod",
    ))
}

fn unfit_backlog(seen: &Seen, all: &HashMap<u32, Seen>) -> Vec<Refusal> {
    let again = "try again in a moment";
    let unfit = |inode: &u32| match (*inode, all.get(inode)) {
        (0, _) => {
            let why = "a client connected and closed again before it was accepted".to_owned();
            Some(refusal(&seen.place, why, again))
        }
        (inode, None) => {
            let why = format!("{}, outside of the pod, waits to be accepted", owner(inode));
            Some(refusal(&seen.place, why, again))
        }
        (_, Some(client)) if client.unread_by_peer => {
            let why = "what it wrote lies where only accept can reach it".to_owned();
            Some(refusal(&client.place, why, again))
        }
        _ => None,
    };
    seen.waiting.iter().filter_map(unfit).collect()
}

/// Which process holds a socket, as this host names it; the first found.
fn owner(inode: u32) -> String {
    let link = format!("socket:[{inode}]");
    let holds = |pid: &str| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten();
        let mut links = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
        links.any(|l| l.as_os_str() == link.as_str())
    };
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids = pids
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|b| b.is_ascii_digit()));
    let Some(pid) = pids.find(|pid| holds(pid)) else {
        return "a socket that no process holds".into();
    };
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("process {pid} of this host ({})", comm.trim_end())
}

impl Unix {
    fn sock_type(&self) -> SockType {
        match self.kind {
            libc::SOCK_DGRAM => SockType::Datagram,
            libc::SOCK_SEQPACKET => SockType::SeqPacket,
            _ => SockType::Stream,
        }
    }

    fn is_datagram(&self) -> bool {
        self.kind == libc::SOCK_DGRAM
    }
}

/// Numbers of sockets, for marks.
type Numbers = HashSet<u32>;
