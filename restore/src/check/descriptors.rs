//! Descriptors: which room each would go to, told from its link and status alone.

use std::{
    fs, io,
    net::IpAddr,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::PathBuf,
};

use intercept::sys;
use nix::sys::socket::{SockaddrStorage, getpeername, getsockname};

use super::{Looked, Note, Reason, Report};
use crate::resource::{device, has_room, regular, socket::int_option};

/// A descriptor as /proc shows it.
pub(super) struct Seen {
    pub(super) link: PathBuf,
    mode: u32,
    rdev: u64,
    identity: (u64, u64),
}

impl Seen {
    pub(super) fn of(pid: i32, fd: i32) -> io::Result<Self> {
        let path = format!("/proc/{pid}/fd/{fd}");
        let stat = fs::metadata(&path)?;
        let link = fs::read_link(&path)?;
        Ok(Self {
            link,
            mode: stat.mode(),
            rdev: stat.rdev(),
            identity: (stat.dev(), stat.ino()),
        })
    }

    fn begins(&self, with: &str) -> bool {
        self.link.to_string_lossy().starts_with(with)
    }
}

const NO_ROOM: &str = "no room for this kind of descriptor";
const CLOSE: &str = "close it before the checkpoint";

/// Looks at all descriptors of a process.
pub(super) fn check(process: Looked, streams: &[(u64, u64)], report: &mut Report) {
    let Ok(entries) = fs::read_dir(format!("/proc/{}/fd", process.real)) else {
        return;
    };
    let numbers = entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok());
    let pidfd = sys::pidfd_open(process.real);
    for fd in numbers {
        let Ok(seen) = Seen::of(process.real, fd) else {
            continue;
        };
        if streams.contains(&seen.identity) {
            continue;
        }
        let socket = (seen.mode & libc::S_IFMT == libc::S_IFSOCK).then_some(pidfd.as_ref());
        let socket = socket.and_then(|p| sys::pidfd_getfd(p.ok()?.as_fd(), fd).ok());
        if let Err(reason) = room(&seen, socket.as_ref()) {
            report.refuse(
                process.virt,
                Some(fd),
                shown(&seen, socket.as_ref()),
                reason,
            );
        } else if let Some(note) = socket.and_then(|s| connection(process, fd, s.as_fd())) {
            report.notes.push(note);
        }
    }
}

/// The room that would take a descriptor, or why none does.
pub(super) fn room(seen: &Seen, socket: Option<&OwnedFd>) -> Result<&'static str, Reason> {
    let kind = match seen.mode & libc::S_IFMT {
        _ if seen.begins("anon_inode:") => anonymous(seen),
        libc::S_IFREG if seen.begins("/memfd:") => Some("memfd"),
        libc::S_IFREG if seen.begins(device::SECRET) => None,
        libc::S_IFREG | libc::S_IFDIR => seen.link.is_absolute().then_some("regular"),
        libc::S_IFCHR => character(seen.rdev),
        libc::S_IFIFO => Some("pipe"),
        libc::S_IFSOCK => return socket.map_or(Ok("socket"), |s| socket_room(s.as_fd())),
        _ => None,
    };
    let kind = kind.filter(|kind| has_room(kind));
    kind.ok_or_else(|| match device::reason(&seen.link) {
        Some((why, hint)) => Reason::new(why, hint),
        None => Reason::new(NO_ROOM, CLOSE),
    })
}

fn anonymous(seen: &Seen) -> Option<&'static str> {
    const KINDS: [(&str, &str); 6] = [
        ("anon_inode:[eventpoll]", "epoll"),
        ("anon_inode:[eventfd]", "eventfd"),
        ("anon_inode:[timerfd]", "timerfd"),
        ("anon_inode:[signalfd]", "signalfd"),
        ("anon_inode:inotify", "inotify"),
        ("anon_inode:[pidfd]", "pidfd"),
    ];
    let kind = KINDS
        .iter()
        .find(|(link, _)| seen.link.as_os_str() == *link);
    kind.map(|(_, kind)| *kind)
}

/// Major numbers of Documentation/admin-guide/devices.txt: 5 /dev/tty and ptmx, 136 to 143 pts.
fn character(device: u64) -> Option<&'static str> {
    match (libc::major(device), libc::minor(device)) {
        (5, 0 | 2) | (136..=143, _) => Some("tty"),
        _ if regular::is_plain_device(device) => Some("regular"),
        _ => None,
    }
}

/// A socket by family, type and protocol; the first line that matches counts.
type Line = (i32, Option<i32>, Option<i32>, &'static str, &'static str);

const SOCKETS: &[Line] = &[
    (libc::AF_UNIX, None, None, "unix", "a unix socket"),
    (
        libc::AF_INET,
        Some(libc::SOCK_STREAM),
        Some(libc::IPPROTO_TCP),
        "tcp",
        "a TCP socket",
    ),
    (
        libc::AF_INET6,
        Some(libc::SOCK_STREAM),
        Some(libc::IPPROTO_TCP),
        "tcp",
        "a TCP socket",
    ),
    (
        libc::AF_INET,
        Some(libc::SOCK_DGRAM),
        Some(libc::IPPROTO_UDP),
        "udp",
        "a UDP socket",
    ),
    (
        libc::AF_INET6,
        Some(libc::SOCK_DGRAM),
        Some(libc::IPPROTO_UDP),
        "udp",
        "a UDP socket",
    ),
    (
        libc::AF_INET,
        None,
        Some(libc::IPPROTO_SCTP),
        "sctp",
        "an SCTP socket",
    ),
    (
        libc::AF_INET6,
        None,
        Some(libc::IPPROTO_SCTP),
        "sctp",
        "an SCTP socket",
    ),
    (
        libc::AF_INET,
        None,
        Some(libc::IPPROTO_MPTCP),
        "mptcp",
        "a multipath TCP socket",
    ),
    (
        libc::AF_INET6,
        None,
        Some(libc::IPPROTO_MPTCP),
        "mptcp",
        "a multipath TCP socket",
    ),
    (
        libc::AF_INET,
        Some(libc::SOCK_RAW),
        None,
        "raw",
        "a raw socket",
    ),
    (
        libc::AF_INET6,
        Some(libc::SOCK_RAW),
        None,
        "raw",
        "a raw socket",
    ),
    (
        libc::AF_INET,
        None,
        None,
        "inet",
        "an IPv4 socket of a rare protocol",
    ),
    (
        libc::AF_INET6,
        None,
        None,
        "inet",
        "an IPv6 socket of a rare protocol",
    ),
    (libc::AF_NETLINK, None, None, "netlink", "a netlink socket"),
    (libc::AF_PACKET, None, None, "packet", "a packet socket"),
    (
        libc::AF_VSOCK,
        None,
        None,
        "vsock",
        "a socket to the hypervisor",
    ),
    (
        libc::AF_ALG,
        None,
        None,
        "alg",
        "a socket to the kernel's cryptography",
    ),
    (
        libc::AF_BLUETOOTH,
        None,
        None,
        "bluetooth",
        "a Bluetooth socket",
    ),
    (libc::AF_XDP, None, None, "xdp", "an XDP socket"),
    (libc::AF_TIPC, None, None, "tipc", "a TIPC socket"),
    (libc::AF_CAN, None, None, "can", "a CAN bus socket"),
];

fn socket_line(socket: BorrowedFd<'_>) -> Option<(&'static str, &'static str)> {
    let option = |name| int_option(socket, libc::SOL_SOCKET, name);
    let (family, kind) = (option(libc::SO_DOMAIN)?, option(libc::SO_TYPE)?);
    let protocol = option(libc::SO_PROTOCOL)?;
    let line = SOCKETS.iter().find(|(f, k, p, ..)| {
        *f == family && k.is_none_or(|k| k == kind) && p.is_none_or(|p| p == protocol)
    });
    line.map(|(.., room, name)| (*room, *name))
}

fn socket_room(socket: BorrowedFd<'_>) -> Result<&'static str, Reason> {
    match socket_line(socket) {
        Some((room, _)) if has_room(room) => Ok(room),
        Some((_, name)) => Err(Reason::new(format!("{name} has no room"), CLOSE)),
        None => Err(Reason::new("sockets of this family have no room", CLOSE)),
    }
}

fn shown(seen: &Seen, socket: Option<&OwnedFd>) -> String {
    let name = socket.and_then(|s| socket_line(s.as_fd()));
    name.map_or_else(
        || seen.link.display().to_string(),
        |(_, name)| name.to_owned(),
    )
}

/// A connection to another host. It goes on only where the pod's address moves with it.
fn connection(process: Looked, fd: i32, socket: BorrowedFd<'_>) -> Option<Note> {
    if int_option(socket, libc::SOL_SOCKET, libc::SO_TYPE)? != libc::SOCK_STREAM {
        return None;
    }
    let peer = getpeername::<SockaddrStorage>(socket.as_raw_fd()).ok()?;
    let own = getsockname::<SockaddrStorage>(socket.as_raw_fd()).ok()?;
    let (peer_ip, own_ip) = (ip(&peer)?, ip(&own)?);
    (!peer_ip.is_loopback() && peer_ip != own_ip).then(|| Note {
        pid: process.virt,
        fd: Some(fd),
        what: format!("the connection from {own} to {peer}"),
        why: "it goes on only where the pod's address moves with it; else the peer must connect again".into(),
    })
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    v4.or_else(|| Some(IpAddr::V6(address.as_sockaddr_in6()?.ip())))
        .map(|ip| ip.to_canonical())
}
