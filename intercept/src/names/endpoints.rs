//! The endpoint table: which real address stands for which virtual one.
//!
//! Under a shared network the pod's sockets are the host's own. A listener has the real
//! port it asked for where that is free on this host, else one the kernel chose; the pod
//! sees its virtual port either way. So only names that differ need this table, and a
//! pod without any is served by the kernel alone ([`Endpoints::differs`]).
//!
//! ```text
//!   program: bind 0.0.0.0:6379 ──▶ 0.0.0.0:6379 is taken on this host ──▶ 0.0.0.0:40001
//!   table:   0.0.0.0:6379 ↔ 0.0.0.0:40001
//!   program: connect 127.0.0.1:6379 ──▶ 127.0.0.1:40001; getpeername ──▶ 127.0.0.1:6379
//! ```
//!
//! A checkpoint holds the virtual half. The real half and the socket's cookie are bindings:
//! they are skipped, and made anew by [`bind_where_free`] and [`Endpoints::adopt`].

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
};

use serde::{Deserialize, Serialize};

use crate::socket;

/// A local endpoint of a stream socket, kept while the socket listens or its names differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// What the program asked for.
    pub virt: SocketAddr,
    /// Whether `listen` was seen.
    pub listening: bool,
    /// What it has on this host.
    #[serde(skip)]
    pub real: Option<SocketAddr>,
    /// The socket's `SO_COOKIE` on this host.
    #[serde(skip)]
    pub cookie: u64,
}

impl Bound {
    fn differs(&self) -> bool {
        self.real.is_some_and(|real| real != self.virt)
    }
}

/// An established connection one of whose ends has another real name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Own end, as the pod sees it.
    pub local: SocketAddr,
    /// Far end, as the pod sees it.
    pub remote: SocketAddr,
    /// Both ends on this host: own, far.
    #[serde(skip)]
    pub real: Option<(SocketAddr, SocketAddr)>,
}

/// The endpoint table of one pod.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Endpoints {
    bound: Vec<Bound>,
    connections: Vec<Connection>,
    /// Virtual port → the host port published for it, which it gets or nothing.
    published: BTreeMap<u16, u16>,
    #[serde(skip)]
    generation: u64,
}

/// Whether an endpoint bound to `bound` answers at `ip` (`::` answers at IPv4 addresses, too).
fn answers_at(bound: IpAddr, ip: IpAddr) -> bool {
    let wildcard = match bound {
        IpAddr::V4(b) => b.is_unspecified() && ip.is_ipv4(),
        IpAddr::V6(b) => b.is_unspecified(),
    };
    bound == ip || wildcard
}

fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && (answers_at(a.ip(), b.ip()) || answers_at(b.ip(), a.ip()))
}

/// The name of `given` on the other side, where `from` is known as `to`: a wildcard keeps the address.
fn carry(given: SocketAddr, from: SocketAddr, to: SocketAddr) -> SocketAddr {
    if from.ip().is_unspecified() && !given.ip().is_unspecified() {
        SocketAddr::new(given.ip(), to.port())
    } else {
        to
    }
}

impl Endpoints {
    /// Publishes `virt` at the host's port `real`: a bind to `virt` gets that port or fails.
    pub fn publish(&mut self, virt: u16, real: u16) {
        self.published.insert(virt, real);
    }

    /// The host port that was published for a virtual one.
    #[must_use]
    pub fn published(&self, virt: u16) -> Option<u16> {
        self.published.get(&virt).copied()
    }

    /// Whether any name differs from its virtual one.
    #[must_use]
    pub fn differs(&self) -> bool {
        !self.connections.is_empty() || self.bound.iter().any(Bound::differs)
    }

    /// Counts changes of what the pod listens on.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// All local endpoints in the table.
    #[must_use]
    pub fn bound(&self) -> &[Bound] {
        &self.bound
    }

    /// What the pod was seen to listen on.
    pub fn listeners(&self) -> impl Iterator<Item = &Bound> {
        self.bound.iter().filter(|b| b.listening)
    }

    /// Notes what a socket was bound to.
    pub fn note_bound(&mut self, cookie: u64, virt: SocketAddr, real: SocketAddr) {
        self.bound.retain(|b| b.cookie != cookie);
        self.bound.push(Bound {
            virt,
            listening: false,
            real: Some(real),
            cookie,
        });
    }

    /// Notes that a socket listens; one that is not in the table yet has equal names.
    pub fn note_listening(&mut self, cookie: u64, real: SocketAddr) {
        if !self.bound.iter().any(|b| b.cookie == cookie) {
            self.note_bound(cookie, real, real);
        }
        for b in self.bound.iter_mut().filter(|b| b.cookie == cookie) {
            self.generation += u64::from(!b.listening);
            b.listening = true;
        }
    }

    /// Forgets the listeners whose sockets are not among `alive`.
    pub fn retain_listeners(&mut self, alive: &BTreeSet<u64>) {
        let before = self.bound.len();
        self.bound
            .retain(|b| !b.listening || b.real.is_none() || alive.contains(&b.cookie));
        self.generation += (before - self.bound.len()) as u64;
    }

    /// The listeners of this pod that a bind to `virt` would meet.
    pub fn conflicting(&self, virt: SocketAddr) -> impl Iterator<Item = &Bound> {
        self.listeners().filter(move |b| overlap(b.virt, virt))
    }

    /// The listener that answers at `virt`; an exact address goes before a wildcard.
    ///
    /// Whether `virt` is an address of this host is for the caller to know.
    #[must_use]
    pub fn listener_at(&self, virt: SocketAddr) -> Option<&Bound> {
        self.listeners()
            .filter(|b| b.virt.port() == virt.port() && answers_at(b.virt.ip(), virt.ip()))
            .min_by_key(|b| b.virt.ip() != virt.ip())
    }

    /// Where the pod's own listener at `virt` is to be reached on this host.
    #[must_use]
    pub fn real_of(&self, virt: SocketAddr) -> Option<SocketAddr> {
        let listener = self.listener_at(virt)?;
        Some(carry(virt, listener.virt, listener.real?))
    }

    fn connection(&self, local: SocketAddr, remote: SocketAddr) -> Option<&Connection> {
        let real = Some((local, remote));
        self.connections.iter().find(|c| c.real == real)
    }

    /// The pod's name for a real endpoint that one of its listeners holds.
    fn virtual_of(&self, real: SocketAddr) -> SocketAddr {
        let held = |b: &&Bound| {
            b.real
                .is_some_and(|r| r.port() == real.port() && answers_at(r.ip(), real.ip()))
        };
        let best = self.bound.iter().filter(held);
        best.min_by_key(|b| b.real != Some(real))
            .map_or(real, |b| carry(real, b.real.unwrap_or(real), b.virt))
    }

    /// What `getsockname` tells for a socket with this cookie and these real names.
    #[must_use]
    pub fn virtual_local(
        &self,
        cookie: u64,
        local: SocketAddr,
        remote: Option<SocketAddr>,
    ) -> SocketAddr {
        if let Some(c) = remote.and_then(|r| self.connection(local, r)) {
            return c.local;
        }
        match self.bound.iter().find(|b| b.cookie == cookie) {
            Some(b) => carry(local, b.real.unwrap_or(local), b.virt),
            None => self.virtual_of(local),
        }
    }

    /// What `getpeername` tells for a socket with these real names.
    #[must_use]
    pub fn virtual_remote(&self, local: SocketAddr, remote: SocketAddr) -> SocketAddr {
        // Only an address of this host can be one of our listeners.
        let here = remote.ip().is_loopback() || remote.ip() == local.ip();
        match self.connection(local, remote) {
            Some(c) => c.remote,
            None if here => self.virtual_of(remote),
            None => remote,
        }
    }

    /// Takes over a socket that was bound anew after a restart (see [`bind_where_free`]).
    ///
    /// # Errors
    /// What `getsockname` or `getsockopt(SO_COOKIE)` said.
    pub fn adopt(
        &mut self,
        fd: BorrowedFd<'_>,
        virt: SocketAddr,
        listening: bool,
    ) -> io::Result<()> {
        self.adopt_as(virt, local_of(fd)?, socket::cookie(fd)?, listening);
        Ok(())
    }

    /// [`Endpoints::adopt`] of a socket that another process holds, by its real name and cookie.
    pub fn adopt_as(&mut self, virt: SocketAddr, real: SocketAddr, cookie: u64, listening: bool) {
        // The entry that came with the image has no binding yet: this one takes its place.
        self.bound.retain(|b| b.real.is_some() || b.virt != virt);
        self.note_bound(cookie, virt, real);
        if listening {
            self.note_listening(cookie, real);
        }
    }

    /// Notes a connection that was rebuilt: its names in the pod, and those it has on this host.
    pub fn adopt_connection(
        &mut self,
        virt: (SocketAddr, SocketAddr),
        real: (SocketAddr, SocketAddr),
    ) {
        self.connections
            .retain(|c| c.real.is_some() && c.real != Some(real));
        if virt != real {
            self.connections.push(Connection {
                local: virt.0,
                remote: virt.1,
                real: Some(real),
            });
        }
    }
}

fn local_of(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    socket::local(fd)?
        .get()
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
}

fn wildcard(like: SocketAddr, port: u16) -> SocketAddr {
    match like {
        SocketAddr::V4(_) => ([0, 0, 0, 0], port).into(),
        SocketAddr::V6(_) => ([0; 8], port).into(),
    }
}

/// Binds a stream socket to the real endpoint that stands for `virt` on this host: the same
/// where it is free, else the same address with a port that the kernel chooses; and where the
/// address is none of this host's, the wildcard in its place.
///
/// # Errors
/// What `bind` said for the last of them.
pub fn bind_where_free(fd: BorrowedFd<'_>, virt: SocketAddr) -> io::Result<SocketAddr> {
    let mut address = socket::address_like(fd, virt)?;
    let mut tried = socket::bind(fd, &address);
    for (errno, next) in [
        (libc::EADDRINUSE, SocketAddr::new(virt.ip(), 0)),
        (libc::EADDRNOTAVAIL, wildcard(virt, virt.port())),
        (libc::EADDRINUSE, wildcard(virt, 0)),
    ] {
        if matches!(&tried, Err(e) if e.raw_os_error() == Some(errno)) {
            address.set(next);
            tried = socket::bind(fd, &address);
        }
    }
    tried.and_then(|()| local_of(fd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn add(e: &mut Endpoints, cookie: u64, virt: &str, real: &str) {
        e.note_bound(cookie, addr(virt), addr(real));
        e.note_listening(cookie, addr(real));
    }

    fn moved() -> Endpoints {
        let mut e = Endpoints::default();
        add(&mut e, 7, "0.0.0.0:6379", "0.0.0.0:40001");
        e
    }

    #[test]
    fn a_moved_listener_is_found_and_told_by_its_virtual_port() {
        let e = moved();
        assert!(e.differs());
        let (virt, real) = (addr("127.0.0.1:6379"), addr("127.0.0.1:40001"));
        assert_eq!(e.real_of(virt), Some(real));
        assert_eq!(e.real_of(addr("127.0.0.1:6380")), None);
        assert_eq!(e.virtual_remote(addr("127.0.0.1:50000"), real), virt);
        assert_eq!(e.virtual_local(99, real, None), virt);
        let own = e.virtual_local(7, addr("0.0.0.0:40001"), None);
        assert_eq!(own, addr("0.0.0.0:6379"));
        let stranger = addr("10.9.9.9:40001");
        assert_eq!(e.virtual_remote(addr("10.0.0.1:5"), stranger), stranger);
    }

    #[test]
    fn exact_listeners_go_before_wildcards_and_v6_answers_v4() {
        let mut e = moved();
        add(&mut e, 8, "127.0.0.2:6379", "127.0.0.2:40002");
        let exact = e.real_of(addr("127.0.0.2:6379"));
        assert_eq!(exact, Some(addr("127.0.0.2:40002")));
        add(&mut e, 9, "[::]:80", "[::]:40003");
        let mapped = e.real_of(addr("127.0.0.1:80"));
        assert_eq!(mapped, Some(addr("127.0.0.1:40003")));
        assert_eq!(e.conflicting(addr("127.0.0.1:80")).count(), 1);
        e.retain_listeners(&[8].into());
        assert_eq!(e.bound().len(), 1);
    }

    #[test]
    fn an_image_holds_virtual_names_only() {
        let mut e = moved();
        let pair = (addr("10.0.0.1:6379"), addr("10.0.0.9:1000"));
        e.adopt_connection(pair, (addr("10.0.0.2:40001"), addr("10.0.0.9:1000")));
        let text = serde_json::to_string(&e).unwrap();
        assert!(!text.contains("40001") && text.contains("6379"), "{text}");
        let back: Endpoints = serde_json::from_str(&text).unwrap();
        assert!(back.bound()[0].real.is_none() && back.bound()[0].listening);
        assert!(!back.bound()[0].differs());
    }

    #[test]
    fn connections_tell_both_ends() {
        let mut e = Endpoints::default();
        let virt = (addr("10.0.0.1:6379"), addr("10.0.0.9:1000"));
        let real = (addr("10.0.0.2:40001"), addr("10.0.0.8:2000"));
        e.adopt_connection(virt, real);
        assert_eq!(e.virtual_local(1, real.0, Some(real.1)), virt.0);
        assert_eq!(e.virtual_remote(real.0, real.1), virt.1);
        e.adopt_connection(real, real);
        assert!(!e.differs());
    }

    #[test]
    fn a_taken_port_gives_way_and_is_adopted() {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let virt = holder.local_addr().unwrap();
        let fd = socket::stream(libc::AF_INET).unwrap();
        let real = bind_where_free(fd.as_fd(), virt).unwrap();
        assert!(real.port() != virt.port() && real.ip() == virt.ip());
        let mut e = Endpoints::default();
        e.adopt(fd.as_fd(), virt, true).unwrap();
        assert_eq!(e.real_of(virt), Some(real));
        let elsewhere = socket::stream(libc::AF_INET).unwrap();
        let real = bind_where_free(elsewhere.as_fd(), addr("192.0.2.1:0")).unwrap();
        assert!(real.ip().is_unspecified());
    }
}
