//! A small client of the kernel's socket diagnosis (sock_diag(7), `net/unix/diag.c`,
//! `net/ipv4/inet_diag.c`).
//!
//! A socket's duplicate does not tell everything: who its unix peer is, which clients wait
//! in a listener's backlog, whether a connection without a descriptor still stands behind
//! it. The answers come over a netlink socket of the network namespace that the socket
//! itself lives in: `SIOCGSKNS` names that namespace, and a thread of its own visits it,
//! so nothing depends on which task of the pod is alive.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::{
        socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
        stat::fstat,
    },
};

use crate::error::{Error, Result};

/// `SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `SIOCGSKNS` of linux/sockios.h: the network namespace of a socket, as a descriptor.
const SIOCGSKNS: u64 = 0x894c;
/// Length of a `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of a `struct unix_diag_msg`.
const UNIX_MSG: usize = 16;
/// Length of a `struct inet_diag_msg`.
const INET_MSG: usize = 72;
/// `UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS | UDIAG_SHOW_RQLEN`.
const UDIAG_SHOW: u32 = 0x4 | 0x8 | 0x10;

/// A connection to the diagnosis of one network namespace.
pub struct SockDiag {
    netlink: OwnedFd,
}

/// What the kernel says about a unix socket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnixInfo {
    /// Its state, numbered as TCP's are: 1 connected, 7 not, 10 listening.
    pub state: u8,
    /// Inode of its peer; 0 when that has no descriptor, `None` when there is no peer.
    pub peer: Option<u32>,
    /// Of a listener: the inodes of the clients that wait in its backlog, first come first.
    pub waiting: Vec<u32>,
    /// Of a listener: its backlog.
    pub backlog: u32,
    /// Which directions are shut down: 1 receiving, 2 sending.
    pub shutdown: u8,
}

/// What the kernel says about a TCP socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpEntry {
    /// `TCP_ESTABLISHED` … of net/tcp_states.h.
    pub state: u8,
    /// This end.
    pub local: SocketAddr,
    /// The far end.
    pub remote: SocketAddr,
    /// Inode of its descriptor; 0 when it has none: not accepted yet, or closed and still sending.
    pub inode: u32,
    /// Bytes received and not read.
    pub unread: u32,
    /// Bytes written and not acknowledged.
    pub unsent: u32,
}

/// Diagnoses of all network namespaces that were asked about, each opened once.
#[derive(Default)]
pub struct SockDiags(HashMap<(u64, u64), SockDiag>);

impl SockDiags {
    /// The diagnosis of the network namespace that a socket lives in.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the namespace cannot be named or entered.
    pub fn of(&mut self, socket: BorrowedFd<'_>) -> Result<&SockDiag> {
        let namespace = namespace_of(socket).map_err(|e| failed("ioctl SIOCGSKNS", e))?;
        let stat = fstat(&namespace).map_err(|e| failed("fstat", e.into()))?;
        match self.0.entry((stat.st_dev, stat.st_ino)) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(new) => Ok(new.insert(SockDiag::in_namespace(&namespace)?)),
        }
    }

    /// The TCP sockets of all namespaces that were asked about.
    ///
    /// # Errors
    /// [`Error::Kernel`] with what the kernel said.
    pub fn all_tcp(&self) -> Result<Vec<TcpEntry>> {
        let mut all = Vec::new();
        for diag in self.0.values() {
            all.append(&mut diag.tcp()?);
        }
        Ok(all)
    }
}

impl SockDiag {
    /// The diagnosis of the network namespace that a socket lives in.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the namespace cannot be named or entered.
    pub fn of(socket: BorrowedFd<'_>) -> Result<Self> {
        let namespace = namespace_of(socket).map_err(|e| failed("ioctl SIOCGSKNS", e))?;
        Self::in_namespace(&namespace)
    }

    fn in_namespace(namespace: &OwnedFd) -> Result<Self> {
        let here = File::open("/proc/thread-self/ns/net")
            .map_err(|e| Error::file("open", "/proc/thread-self/ns/net", e))?;
        let same = same_file(namespace, &here).map_err(|e| failed("fstat", e.into()))?;
        let netlink = if same { open() } else { open_in(namespace) };
        netlink
            .map(|netlink| Self { netlink })
            .map_err(|e| failed("socket NETLINK_SOCK_DIAG", e))
    }

    /// Asks for the unix socket with this inode; `None` when there is none.
    ///
    /// # Errors
    /// [`Error::Kernel`] with what the kernel said.
    pub fn unix(&self, inode: u32) -> Result<Option<UnixInfo>> {
        let mut request = vec![libc::AF_UNIX as u8, 0, 0, 0];
        for word in [u32::MAX, inode, UDIAG_SHOW, u32::MAX, u32::MAX] {
            request.extend_from_slice(&word.to_ne_bytes());
        }
        self.ask(&request, 0).map_err(|e| failed("unix_diag", e))?;
        let mut found = None;
        self.answers(false, &mut |body| found = parse_unix(body))
            .map_err(|e| failed("unix_diag", e))?;
        Ok(found)
    }

    /// All TCP sockets of the namespace, listeners and those without a descriptor included.
    ///
    /// # Errors
    /// [`Error::Kernel`] with what the kernel said.
    pub fn tcp(&self) -> Result<Vec<TcpEntry>> {
        let mut all = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut request = vec![family as u8, libc::IPPROTO_TCP as u8, 0, 0];
            request.extend_from_slice(&u32::MAX.to_ne_bytes());
            request.resize(56, 0);
            self.ask(&request, libc::NLM_F_DUMP as u16)
                .map_err(|e| failed("inet_diag", e))?;
            self.answers(true, &mut |body| all.extend(parse_tcp(body)))
                .map_err(|e| failed("inet_diag", e))?;
        }
        Ok(all)
    }

    fn ask(&self, request: &[u8], flags: u16) -> io::Result<()> {
        let mut message = Vec::with_capacity(HEADER + request.len());
        message.extend_from_slice(&((HEADER + request.len()) as u32).to_ne_bytes());
        message.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        message.extend_from_slice(&(libc::NLM_F_REQUEST as u16 | flags).to_ne_bytes());
        message.extend_from_slice(&[0; 8]);
        message.extend_from_slice(request);
        send(self.netlink.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(())
    }

    /// Hands each answer to `each`: one for an exact question, all until the end for a dump.
    fn answers(&self, dump: bool, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let mut buf = vec![0; 256 << 10];
        loop {
            let n = recv(self.netlink.as_raw_fd(), &mut buf, MsgFlags::empty())?;
            let mut rest = &buf[..n];
            while let Some((kind, body, next)) = split_message(rest) {
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => return answer_error(body),
                    _ => each(body),
                }
                rest = next;
            }
            if !dump {
                return Ok(());
            }
        }
    }
}

/// No such socket is an answer, not an error.
fn answer_error(body: &[u8]) -> io::Result<()> {
    match word(body, 0).map_or(0, |w| -(w as i32)) {
        0 | libc::ENOENT => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn failed(step: &'static str, e: io::Error) -> Error {
    Error::kernel(step, "the pod's network namespace", e)
}

fn namespace_of(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the request takes no argument and answers a descriptor.
    let fd = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) };
    let fd = intercept::sys::check(fd.into())? as i32;
    // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn same_file(a: &impl AsFd, b: &impl AsFd) -> nix::Result<bool> {
    let (a, b) = (fstat(a)?, fstat(b)?);
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

fn open() -> io::Result<OwnedFd> {
    let (family, flags) = (AddressFamily::Netlink, SockFlag::SOCK_CLOEXEC);
    Ok(socket(
        family,
        SockType::Raw,
        flags,
        SockProtocol::NetlinkSockDiag,
    )?)
}

/// Opens the socket in a thread that visits the namespace: the visit ends with the thread.
fn open_in(namespace: &OwnedFd) -> io::Result<OwnedFd> {
    std::thread::scope(|scope| {
        let visitor = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            open()
        });
        visitor
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the visiting thread panicked")))
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn words(bytes: &[u8]) -> Vec<u32> {
    (0..bytes.len() / 4)
        .filter_map(|i| word(bytes, i * 4))
        .collect()
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

/// Splits a netlink message off: its type, its body, the rest.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = word(bytes, 0)? as usize;
    let body = bytes.get(HEADER..len)?;
    let next = len.next_multiple_of(4).min(bytes.len());
    Some((half(bytes, 4)?, body, &bytes[next..]))
}

/// Splits an attribute off: its type, its value, the rest.
fn split_attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = usize::from(half(bytes, 0)?);
    let value = bytes.get(4..len)?;
    let next = len.next_multiple_of(4).min(bytes.len());
    Some((half(bytes, 2)?, value, &bytes[next..]))
}

fn parse_unix(body: &[u8]) -> Option<UnixInfo> {
    let mut info = UnixInfo {
        state: *body.get(2)?,
        ..UnixInfo::default()
    };
    let mut rest = body.get(UNIX_MSG..)?;
    while let Some((kind, value, next)) = split_attribute(rest) {
        match kind {
            2 => info.peer = word(value, 0),
            3 => info.waiting = words(value),
            4 => info.backlog = word(value, 4).unwrap_or_default(),
            6 => info.shutdown = value.first().copied().unwrap_or_default(),
            _ => {}
        }
        rest = next;
    }
    Some(info)
}

fn parse_tcp(body: &[u8]) -> Option<TcpEntry> {
    let body = body.get(..INET_MSG)?;
    let address = |port: usize, at: usize| {
        let port = u16::from_be_bytes([body[port], body[port + 1]]);
        let ip: [u8; 16] = body[at..at + 16].try_into().unwrap_or_default();
        let ip = match i32::from(body[0]) {
            libc::AF_INET => IpAddr::V4(Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3])),
            _ => IpAddr::V6(Ipv6Addr::from(ip)),
        };
        SocketAddr::new(ip, port)
    };
    Some(TcpEntry {
        state: body[1],
        local: address(4, 8),
        remote: address(6, 24),
        inode: word(body, 68)?,
        unread: word(body, 56)?,
        unsent: word(body, 60)?,
    })
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        os::unix::net::UnixStream,
    };

    use super::*;
    use crate::testing::own_network;

    #[test]
    fn a_pair_names_its_peer_and_what_is_shut_down() {
        let (a, b) = UnixStream::pair().unwrap();
        a.shutdown(std::net::Shutdown::Write).unwrap();
        let inode = |s: &UnixStream| fstat(s).unwrap().st_ino as u32;
        let diag = SockDiag::of(a.as_fd()).unwrap();
        let info = diag.unix(inode(&a)).unwrap().unwrap();
        assert_eq!((info.state, info.peer), (1, Some(inode(&b))));
        assert_eq!(info.shutdown, 2);
        assert_eq!(diag.unix(inode(&b)).unwrap().unwrap().shutdown, 1);
        let gone = inode(&b);
        drop(b);
        assert_eq!(diag.unix(gone).unwrap(), None);
        assert_eq!(diag.unix(inode(&a)).unwrap().unwrap().peer, Some(0));
    }

    #[test]
    fn a_child_in_a_backlog_of_another_namespace_has_no_inode() {
        let sockets = std::thread::spawn(|| {
            own_network();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (listener, client)
        });
        let (listener, client) = sockets.join().unwrap();
        let all = SockDiag::of(listener.as_fd()).unwrap().tcp().unwrap();
        let child = all
            .iter()
            .find(|e| e.remote == client.local_addr().unwrap())
            .unwrap();
        assert_eq!((child.state, child.inode), (1, 0));
        assert_eq!(all.len(), 3, "listener, client and child: {all:?}");
    }
}
