//! Making TCP sockets anew.
//!
//! Both ends of a connection inside the pod are made when the first one's turn comes, in
//! repair mode, bound before either is connected, because the kernel may have chosen their
//! ports. They are released together when everything else exists. What was in flight
//! between them is sent again from the queue, so nothing waits for a retransmission.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use libc::IPPROTO_IPV6;
use nix::sys::socket::{AddressFamily, Backlog, SockType, SockaddrStorage, listen};

use super::{
    EndedBy, State, Tcp,
    link::{Link, Links, pair_of},
    release::begin_connect,
    repair::{self, Connection},
};
use crate::{
    builder::Builder,
    error::{Error, Result},
    image::Record,
    network::LostConnections,
    resource::{
        Description, ObjectId, Order,
        socket::{
            Options, local_address,
            message::{Direction, LargeBuffer},
            new_socket, remote_address,
        },
    },
};

/// The two ends of a connection.
pub(super) type Ends = (SocketAddr, SocketAddr);

/// What the builder knows of the image's TCP sockets.
#[derive(Default)]
pub(super) struct Sockets {
    loaded: bool,
    index: Vec<(ObjectId, Tcp)>,
    pub(super) links: Links,
    connections: BTreeMap<u32, Connection>,
    /// Ends that were made with their far end and wait for their turn.
    made: HashMap<ObjectId, OwnedFd>,
    /// What each end shall be after its release, by the real ends.
    pub(super) plans: HashMap<Ends, Connection>,
    /// Far ends of the builder's own, by the real ends of the near one.
    pub(super) ghosts: HashMap<Ends, OwnedFd>,
}

pub(super) fn sockets<'b>(builder: &'b mut Builder<'_>) -> Result<&'b mut Sockets> {
    if !builder.shared::<Sockets>().loaded {
        let index = builder.image.all::<Tcp>()?.into_iter().collect();
        let links = builder.image.all::<Links>()?.remove(&0).unwrap_or_default();
        let connections = builder.image.all::<Connection>()?;
        let sockets = builder.shared::<Sockets>();
        (sockets.index, sockets.links, sockets.loaded) = (index, links, true);
        sockets.connections = connections;
    }
    Ok(builder.shared())
}

/// The inside of a connection.
pub(super) fn connection(number: u32, builder: &mut Builder<'_>) -> Result<Connection> {
    let found = sockets(builder)?.connections.get(&number).cloned();
    found.ok_or_else(|| Error::NoRecord {
        kind: Connection::KIND.into(),
        id: number,
    })
}

impl Sockets {
    /// The far end of a connection inside the pod.
    pub(super) fn far(&self, (local, remote): Ends) -> Option<(ObjectId, Tcp)> {
        let wanted = pair_of(remote, local);
        let is_it = |t: &Tcp| match &t.state {
            State::Connected(remote, _) => pair_of(t.local, *remote) == wanted,
            _ => false,
        };
        self.index.iter().find(|(_, t)| is_it(t)).cloned()
    }
}

pub(super) fn failed(what: &Ends) -> impl Fn(io::Error) -> Error {
    let name = format!("the connection {} to {}", what.0, what.1);
    move |e| Error::kernel("rebuild", name.clone(), e)
}

impl Description for Tcp {
    fn order(&self) -> Order {
        match self.state {
            State::Listener { .. } => Order::First,
            _ => Order::Second,
        }
    }

    fn rebuild(&self, builder: &mut Builder<'_>) -> Result<OwnedFd> {
        sockets(builder)?;
        match &self.state {
            State::Unconnected | State::Connecting(_) => self.bound(builder),
            State::Listener { backlog } => self.listener(*backlog, builder),
            State::Ended {
                error: Some(EndedBy::Refused),
                ..
            } => self.bound(builder),
            State::Ended { unread, .. } => {
                self.with_far_end_here(&Connection::invented(unread.clone()), builder)
            }
            State::Connected(remote, number) => {
                self.connected(*remote, &connection(*number, builder)?, builder)
            }
        }
    }

    fn connect(&self, fd: BorrowedFd<'_>, builder: &mut Builder<'_>) -> Result<()> {
        match &self.state {
            State::Unconnected | State::Listener { .. } => {}
            State::Connecting(remote) => {
                let real = builder.network.real_of(*remote);
                begin_connect(fd, real).map_err(failed(&(self.local, *remote)))?;
            }
            State::Ended { unread: _, error } => return self.end(fd, *error, builder),
            State::Connected(remote, number) => {
                return self.join(fd, *remote, &connection(*number, builder)?, builder);
            }
        }
        self.options.apply_late(fd)
    }

    fn settle(&self, fd: BorrowedFd<'_>, builder: &mut Builder<'_>) -> Result<()> {
        let State::Connected(remote, number) = &self.state else {
            return Ok(());
        };
        let ends = (self.local, *remote);
        if sockets(builder)?.links.of(ends.0, ends.1) != Some(Link::Outside) {
            return Ok(());
        }
        self.settle_alone(fd, &connection(*number, builder)?, &ends)
    }
}

impl Tcp {
    fn bound(&self, builder: &mut Builder<'_>) -> Result<OwnedFd> {
        let fd = new_socket(self.address_family(), SockType::Stream)?;
        self.options.apply_early(fd.as_fd())?;
        if self.local.port() != 0 || !self.local.ip().is_unspecified() {
            builder.network.bind(fd.as_fd(), self.local)?;
        }
        Ok(fd)
    }

    fn listener(&self, backlog: u32, builder: &mut Builder<'_>) -> Result<OwnedFd> {
        let fd = self.bound(builder)?;
        // Buffers are handed down to what is accepted, and the window scale with them.
        let buffers = self.options.apply_buffers(fd.as_fd());
        buffers.map_err(|e| Error::kernel("setsockopt SO_RCVBUF", self.local.to_string(), e))?;
        let backlog = Backlog::new(i32::try_from(backlog).unwrap_or(i32::MAX));
        listen(&fd, backlog.unwrap_or(Backlog::MAXCONN)).map_err(|e| match e {
            nix::errno::Errno::EADDRINUSE => Error::Unfit {
                object: format!("a listener at {}", self.local),
                why: "the port is taken on this host".into(),
            },
            e => Error::kernel("listen", self.local.to_string(), e),
        })?;
        builder.network.listens(fd.as_fd(), self.local)?;
        Ok(fd)
    }

    fn connected(
        &self,
        remote: SocketAddr,
        connection: &Connection,
        builder: &mut Builder<'_>,
    ) -> Result<OwnedFd> {
        let ends = (self.local, remote);
        let link = sockets(builder)?.links.of(ends.0, ends.1);
        match link.unwrap_or(Link::Outside) {
            Link::Inside => self.with_far_end_inside(ends, connection, builder),
            Link::Waiting => self.bound(builder),
            Link::Ghost => self.with_ghost(ends, connection, builder),
            Link::Lost => {
                let mut own = connection.clone();
                own.written = own.first_outgoing();
                own.outgoing.clear();
                self.with_far_end_here(&own, builder)
            }
            Link::Outside => {
                let fd = match self.in_repair(self.local, builder) {
                    Err(Error::Unfit { .. }) if builder.network.lost == LostConnections::Reset => {
                        sockets(builder)?.links.lose(ends.0, ends.1);
                        return self.connected(remote, connection, builder);
                    }
                    fd => fd?,
                };
                let real = builder.network.real_of(remote);
                fill(fd.as_fd(), connection, real, &ends)?;
                Ok(fd)
            }
        }
    }

    /// A socket in repair mode, bound to what stands for `local`.
    fn in_repair(&self, local: SocketAddr, builder: &Builder<'_>) -> Result<OwnedFd> {
        let fd = self.new_in_repair()?;
        builder.network.bind_end(fd.as_fd(), local)?;
        Ok(fd)
    }

    /// Repair mode comes last: it lets the port be shared, which setting `SO_REUSEADDR` would undo.
    fn new_in_repair(&self) -> Result<OwnedFd> {
        let fd = new_socket(self.address_family(), SockType::Stream)?;
        self.options.apply_early(fd.as_fd())?;
        repair::enter(fd.as_fd()).map_err(|e| Error::kernel("TCP_REPAIR", "a socket", e))?;
        Ok(fd)
    }

    fn with_far_end_inside(
        &self,
        ends: Ends,
        connection: &Connection,
        builder: &mut Builder<'_>,
    ) -> Result<OwnedFd> {
        let missing = || Error::NoRecord {
            kind: format!("TCP socket {}", ends.1),
            id: 0,
        };
        let (far_id, far) = sockets(builder)?.far(ends).ok_or_else(missing)?;
        let State::Connected(far_remote, number) = &far.state else {
            return Err(missing());
        };
        let theirs = super::rebuild::connection(*number, builder)?;
        let far_ends = (far.local, *far_remote);
        if let Some(made) = self.already_made(ends, builder)? {
            return Ok(made);
        }
        let (mut own_plan, mut far_plan) = (connection.clone(), theirs.clone());
        if !(connection.meets(&theirs) && theirs.meets(connection)) {
            return Err(Error::Unfit {
                object: format!("the connection {} to {}", ends.0, ends.1),
                why: "its two ends do not fit together".into(),
            });
        }
        own_plan.forget_received_by(&theirs);
        far_plan.forget_received_by(connection);
        let own_fd = self.in_repair(self.local, builder)?;
        let far_fd = far.in_repair(far.local, builder)?;
        let (own_at, far_at) = (
            local_address(own_fd.as_fd())?,
            local_address(far_fd.as_fd())?,
        );
        fill(own_fd.as_fd(), &own_plan, self.fit(far_at), &ends)?;
        fill(far_fd.as_fd(), &far_plan, far.fit(own_at), &far_ends)?;
        let plans = [
            (real_ends(own_fd.as_fd())?, own_plan),
            (real_ends(far_fd.as_fd())?, far_plan),
        ];
        let sockets = sockets(builder)?;
        sockets.plans.extend(plans);
        sockets.made.insert(far_id, far_fd);
        Ok(own_fd)
    }

    fn already_made(&self, ends: Ends, builder: &mut Builder<'_>) -> Result<Option<OwnedFd>> {
        let sockets = sockets(builder)?;
        let is_own = |t: &Tcp| matches!(&t.state, State::Connected(r, _) if (t.local, *r) == ends);
        let own = sockets.index.iter().find(|(_, t)| is_own(t));
        let own = own.map(|(id, _)| *id);
        Ok(own.and_then(|id| sockets.made.remove(&id)))
    }

    /// With a far end of our own under the address that the closed one had. Where that one still
    /// stands in the kernel, closed and without a descriptor, it is the far end itself.
    fn with_ghost(
        &self,
        ends: Ends,
        connection: &Connection,
        builder: &mut Builder<'_>,
    ) -> Result<OwnedFd> {
        let far = Self {
            options: Options::default(),
            ..self.clone()
        };
        let own_fd = self.in_repair(self.local, builder)?;
        let far_fd = far.in_repair(ends.1, builder)?;
        let (own_at, far_at) = (
            local_address(own_fd.as_fd())?,
            local_address(far_fd.as_fd())?,
        );
        let mut own = connection.clone();
        own.unsent = own.outgoing.len() as u32;
        fill(own_fd.as_fd(), &own, far_at, &ends)?;
        let real = real_ends(own_fd.as_fd())?;
        let stands = match fill(far_fd.as_fd(), &own.mirror(), own_at, &ends) {
            Err(Error::Kernel { source, .. }) if source.kind() == ErrorKind::AddrNotAvailable => {
                true
            }
            filled => filled.map(|()| false)?,
        };
        let sockets = sockets(builder)?;
        sockets.plans.insert(real, own);
        if !stands {
            sockets.ghosts.insert(real, far_fd);
        }
        Ok(own_fd)
    }

    /// With a far end of our own at the loopback, wherever it was before.
    fn with_far_end_here(&self, own: &Connection, builder: &mut Builder<'_>) -> Result<OwnedFd> {
        let ends = (self.local, self.loopback());
        let far = Self {
            options: Options::default(),
            ..self.clone()
        };
        let (own_fd, far_fd) = (self.new_in_repair()?, far.new_in_repair()?);
        let here = SockaddrStorage::from(self.loopback());
        for fd in [&own_fd, &far_fd] {
            nix::sys::socket::bind(fd.as_raw_fd(), &here)
                .map_err(|e| Error::kernel("bind", self.loopback().to_string(), e))?;
        }
        fill(own_fd.as_fd(), own, local_address(far_fd.as_fd())?, &ends)?;
        fill(
            far_fd.as_fd(),
            &own.mirror(),
            local_address(own_fd.as_fd())?,
            &ends,
        )?;
        let real = real_ends(own_fd.as_fd())?;
        let sockets = sockets(builder)?;
        sockets.plans.insert(real, own.clone());
        sockets.ghosts.insert(real, far_fd);
        Ok(own_fd)
    }

    /// An address in the form that this socket's family has for it.
    fn fit(&self, address: SocketAddr) -> SocketAddr {
        match (self.family, address.ip().to_canonical()) {
            (libc::AF_INET6, IpAddr::V4(ip)) => (ip.to_ipv6_mapped(), address.port()).into(),
            (libc::AF_INET, ip @ IpAddr::V4(_)) => (ip, address.port()).into(),
            _ => address,
        }
    }

    pub(super) fn loopback(&self) -> SocketAddr {
        let only_v6 = self.options.int(IPPROTO_IPV6, libc::IPV6_V6ONLY) == Some(1);
        match (self.address_family(), only_v6) {
            (AddressFamily::Inet, _) => (Ipv4Addr::LOCALHOST, 0).into(),
            (_, true) => (Ipv6Addr::LOCALHOST, 0).into(),
            _ => (Ipv4Addr::LOCALHOST.to_ipv6_mapped(), 0).into(),
        }
    }
}

pub(super) fn real_ends(fd: BorrowedFd<'_>) -> Result<Ends> {
    Ok((local_address(fd)?, remote_address(fd)?))
}

/// Makes room for the queues and puts them in.
fn fill(
    fd: BorrowedFd<'_>,
    connection: &Connection,
    remote: SocketAddr,
    ends: &Ends,
) -> Result<()> {
    let (incoming, outgoing) = (connection.incoming.len(), connection.outgoing.len());
    let _receive = LargeBuffer::new(fd, Direction::Receive, incoming, incoming / 4096 + 1)?;
    let _send = LargeBuffer::new(fd, Direction::Send, outgoing, outgoing / 4096 + 1)?;
    connection.rebuild(fd, remote).map_err(failed(ends))
}
