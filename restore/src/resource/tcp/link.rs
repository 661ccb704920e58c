//! Who is at the far end of each connection, found when all of the pod's sockets were seen.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
};

use serde::{Deserialize, Serialize};

use super::{
    repair::{Connection, Info},
    state,
};
use crate::{
    capture::{Capture, Probe},
    error::{Error, Refusal, Result},
    image::{Image, Record},
    network::{LostConnections, NetMode},
    resource::socket::{local_address, remote_address},
    sockdiag::{SockDiags, TcpEntry},
};

/// Who is at the far end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Link {
    /// Another socket of the pod.
    Inside,
    /// A socket of the pod that its listener has not accepted yet.
    Waiting,
    /// Nobody any more: it was closed.
    Ghost,
    /// A host that reaches the pod at an address which moves with it.
    Outside,
    /// A host or process that will not find the pod again.
    Lost,
}

/// The links of all connections of an image, by their virtual ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Links(pub Vec<(SocketAddr, SocketAddr, Link)>);

impl Record for Links {
    const KIND: &'static str = "tcp-links";
    const VERSION: u16 = 1;
}

impl Links {
    /// The link of a connection.
    #[must_use]
    pub fn of(&self, local: SocketAddr, remote: SocketAddr) -> Option<Link> {
        let found = self.0.iter().find(|(l, r, _)| (*l, *r) == (local, remote));
        found.map(|(_, _, link)| *link)
    }

    /// Gives a connection up.
    pub(super) fn lose(&mut self, local: SocketAddr, remote: SocketAddr) {
        let found = self
            .0
            .iter_mut()
            .find(|(l, r, _)| (*l, *r) == (local, remote));
        if let Some((_, _, link)) = found {
            *link = Link::Lost;
        }
    }
}

/// Two ends, in the form in which a mapped address is what it maps to and scopes do not count.
type Pair = ((IpAddr, u16), (IpAddr, u16));

/// See [`Pair`].
pub(super) fn pair_of(local: SocketAddr, remote: SocketAddr) -> Pair {
    let end = |a: SocketAddr| (a.ip().to_canonical(), a.port());
    (end(local), end(remote))
}

fn mirrored((local, remote): Pair) -> Pair {
    (remote, local)
}

/// What was seen so far.
#[derive(Default)]
struct Seen {
    listeners: Vec<(SocketAddr, Refusal)>,
    connections: Vec<Connected>,
}

struct Connected {
    fd: OwnedFd,
    number: u32,
    virt: (SocketAddr, SocketAddr),
    real: Pair,
    place: Refusal,
}

fn place(probe: &Probe) -> Refusal {
    Refusal {
        pid: probe.pid,
        fd: probe.number,
        what: probe.link.display().to_string(),
        why: String::new(),
        hint: String::new(),
    }
}

fn seen<'c>(cx: &'c mut Capture<'_>) -> &'c mut Seen {
    let first = {
        let seen = cx.shared::<Seen>();
        seen.listeners.is_empty() && seen.connections.is_empty()
    };
    if first {
        cx.later(settle);
    }
    cx.shared::<Seen>()
}

/// Keeps a listener for later.
pub(super) fn note_listener(probe: &Probe, cx: &mut Capture<'_>) -> Result<()> {
    let local = local_address(probe.file.as_fd())?;
    seen(cx).listeners.push((local, place(probe)));
    Ok(())
}

/// Keeps a connection for later and numbers it.
pub(super) fn note_connection(
    probe: &Probe,
    local: SocketAddr,
    remote: SocketAddr,
    cx: &mut Capture<'_>,
) -> Result<u32> {
    let fd = probe.file.as_fd();
    let number = cx.number("tcp connection", &[probe.stat.st_dev, probe.stat.st_ino]);
    let own = fd.try_clone_to_owned();
    let connection = Connected {
        fd: own.map_err(|e| Error::kernel("dup", probe.name(), e))?,
        number,
        virt: (local, remote),
        real: pair_of(local_address(fd)?, remote_address(fd)?),
        place: place(probe),
    };
    seen(cx).connections.push(connection);
    Ok(number)
}

fn settle(cx: &mut Capture<'_>) -> Result<()> {
    let seen = std::mem::take(cx.shared::<Seen>());
    let entries = cx.shared::<SockDiags>().all_tcp()?;
    let ours: HashMap<Pair, usize> = seen
        .connections
        .iter()
        .enumerate()
        .map(|(i, c)| (c.real, i))
        .collect();
    let mut links = Links::default();
    for (at, own) in seen.connections.iter().enumerate() {
        let far = ours.get(&mirrored(own.real));
        match far {
            // The later of the two brings both.
            Some(far) if *far < at => capture_both(own, &seen.connections[*far], cx)?,
            Some(_) => {}
            None => capture_one(own, cx)?,
        }
        let link = match far {
            Some(_) => Link::Inside,
            None => far_end(own, &seen, &entries, cx)?,
        };
        if link == Link::Lost {
            refuse_lost(own, cx);
        }
        links.0.push((own.virt.0, own.virt.1, link));
    }
    refuse_strangers(&seen, &entries, &ours, cx);
    cx.writer.record(0, &links)
}

/// How often both ends are read again until they agree.
const ATTEMPTS: usize = 1000;

/// Reads both ends at rest: no byte is acknowledged at one that the other did not have when it was read.
fn capture_both(a: &Connected, b: &Connected, cx: &mut Capture<'_>) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let (Some(first), Some(second)) = (read(a, cx)?, read(b, cx)?) else {
            return Ok(());
        };
        if first.meets(&second) && second.meets(&first) {
            cx.writer.record(a.number, &first)?;
            return cx.writer.record(b.number, &second);
        }
        std::thread::yield_now();
    }
    refuse(cx, &a.place, "its bytes do not come to rest".into());
    Ok(())
}

fn capture_one(own: &Connected, cx: &mut Capture<'_>) -> Result<()> {
    match read(own, cx)? {
        Some(connection) => cx.writer.record(own.number, &connection),
        None => Ok(()),
    }
}

/// Reads one end; `None` when it was refused.
fn read(own: &Connected, cx: &mut Capture<'_>) -> Result<Option<Connection>> {
    let info = Info::of(own.fd.as_fd())?;
    if info.state() == state::CLOSE {
        refuse(cx, &own.place, "its far end closed it a moment ago".into());
        return Ok(None);
    }
    match Connection::capture(own.fd.as_fd(), &info) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let why = "reading a connection needs CAP_NET_ADMIN over its network".into();
            let hint = "run the pod with --net private or --net none".into();
            cx.refuse_as(Refusal {
                why,
                hint,
                ..own.place.clone()
            });
            Ok(None)
        }
        read => read
            .map(Some)
            .map_err(|e| Error::kernel("TCP_REPAIR", own.place.what.clone(), e)),
    }
}

fn far_end(
    own: &Connected,
    seen: &Seen,
    entries: &[TcpEntry],
    cx: &mut Capture<'_>,
) -> Result<Link> {
    let far = entries
        .iter()
        .find(|e| pair_of(e.local, e.remote) == mirrored(own.real));
    let ((near_ip, _), (far_ip, _)) = own.real;
    Ok(match far {
        None if far_ip.is_loopback() || far_ip == near_ip => Link::Ghost,
        None if cx.network.mode == NetMode::Owned => Link::Outside,
        Some(e) if e.inode == 0 && waits(e) && seen.listeners.iter().any(|(l, _)| takes(*l, e)) => {
            if Info::of(own.fd.as_fd())?.acknowledged() {
                refuse(
                    cx,
                    &own.place,
                    "what it wrote lies where only accept can reach it".into(),
                );
            }
            Link::Waiting
        }
        Some(e) if e.inode == 0 && !waits(e) => {
            // The FIN itself counts as one.
            if e.unsent > 1 {
                let why = format!(
                    "{} was closed and still has {} bytes to send",
                    e.local, e.unsent
                );
                refuse(cx, &own.place, why);
            }
            Link::Ghost
        }
        _ => Link::Lost,
    })
}

/// True for a connection that waits to be accepted.
fn waits(entry: &TcpEntry) -> bool {
    let waiting = [
        state::ESTABLISHED,
        state::CLOSE_WAIT,
        state::SYN_RECV,
        state::NEW_SYN_RECV,
    ];
    waiting.contains(&entry.state)
}

/// True when a connection came in through this listener.
fn takes(listener: SocketAddr, entry: &TcpEntry) -> bool {
    let (ip, own) = (
        listener.ip().to_canonical(),
        entry.local.ip().to_canonical(),
    );
    listener.port() == entry.local.port() && (ip.is_unspecified() || ip == own)
}

fn refuse(cx: &mut Capture<'_>, place: &Refusal, why: String) {
    let hint = "try again in a moment".into();
    cx.refuse_as(Refusal {
        why,
        hint,
        ..place.clone()
    });
}

fn refuse_lost(own: &Connected, cx: &mut Capture<'_>) {
    if cx.network.lost == LostConnections::Reset {
        return;
    }
    let (local, remote) = own.virt;
    let why =
        format!("the connection {local} to {remote} leaves the pod, and its address does not move");
    let hint = "let it be reset (--on-lost-connection reset), or close it first".into();
    cx.refuse_as(Refusal {
        why,
        hint,
        ..own.place.clone()
    });
}

/// Clients from elsewhere that wait to be accepted: nothing of ours could carry them.
fn refuse_strangers(
    seen: &Seen,
    entries: &[TcpEntry],
    ours: &HashMap<Pair, usize>,
    cx: &mut Capture<'_>,
) {
    if cx.network.lost == LostConnections::Reset {
        return;
    }
    for entry in entries.iter().filter(|e| e.inode == 0 && waits(e)) {
        let stranger = !ours.contains_key(&mirrored(pair_of(entry.local, entry.remote)));
        if let Some((_, place)) = seen
            .listeners
            .iter()
            .find(|(l, _)| stranger && takes(*l, entry))
        {
            refuse(cx, place, format!("{} waits to be accepted", entry.remote));
        }
    }
}

/// The connections of an image that come back as reset, by their virtual ends.
///
/// # Errors
/// [`crate::Error::Image`] when the record does not decode.
pub fn lost(image: &Image) -> Result<Vec<(SocketAddr, SocketAddr)>> {
    let links = image.all::<Links>()?.remove(&0).unwrap_or_default();
    let lost = links
        .0
        .into_iter()
        .filter(|(_, _, link)| *link == Link::Lost);
    Ok(lost.map(|(local, remote, _)| (local, remote)).collect())
}
