//! Making unix sockets anew: who is made with whom, how queues are filled, when an end is finished.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, UnixAddr, accept4, listen, shutdown,
    socketpair,
};

use super::{
    Numbers, Role, Unix,
    name::{Name, connect_to, with_address},
    queue::{self, Message},
};
use crate::{
    builder::Builder,
    error::{Error, Result},
    resource::{
        Description, ObjectId, Order,
        socket::{disconnect, new_socket},
    },
};

/// What the builder knows of the image's unix sockets.
#[derive(Default)]
struct Sockets {
    /// Objects and records by number.
    index: BTreeMap<u32, (ObjectId, Unix)>,
    loaded: bool,
    /// Ends that were made with their peer and wait for their turn.
    made: HashMap<u32, OwnedFd>,
    /// Peers that only the builder holds, by the number of the other end.
    ghosts: HashMap<u32, OwnedFd>,
    /// Sockets whose queue is full as it was.
    filled: Numbers,
}

fn sockets<'b>(builder: &'b mut Builder<'_>) -> Result<&'b mut Sockets> {
    if !builder.shared::<Sockets>().loaded {
        let all = builder.image.all::<Unix>()?;
        let sockets = builder.shared::<Sockets>();
        sockets.index = all.into_iter().map(|(id, u)| (u.number, (id, u))).collect();
        sockets.loaded = true;
    }
    Ok(builder.shared())
}

impl Description for Unix {
    fn order(&self) -> Order {
        match self.role {
            Role::Listener { .. } => Order::First,
            _ => Order::Second,
        }
    }

    fn rebuild(&self, builder: &mut Builder<'_>) -> Result<OwnedFd> {
        if let Some(made) = sockets(builder)?.made.remove(&self.number) {
            return Ok(made);
        }
        match &self.role {
            Role::Listener { backlog, .. } => self.rebuild_listener(*backlog),
            Role::Connected(peer) => self.rebuild_connected(*peer, builder),
            Role::Orphan(_) if self.waits(builder)? => self.rebuild_alone(),
            Role::Orphan(name) => self.rebuild_with_ghost(name.as_ref(), builder),
            // Nobody can reach a nameless datagram socket by address: what it holds came from a peer.
            Role::Alone if self.is_datagram() && self.name.is_none() && !self.queue.is_empty() => {
                self.rebuild_with_ghost(None, builder)
            }
            Role::Alone => self.rebuild_alone(),
        }
    }

    fn connect(&self, fd: BorrowedFd<'_>, builder: &mut Builder<'_>) -> Result<()> {
        match &self.role {
            Role::Listener { waiting, .. } => {
                self.connect_waiting(fd, waiting, builder)?;
                self.finish(fd)
            }
            Role::Orphan(_) if self.waits(builder)? => self.finish(fd),
            _ if self.is_datagram() => self.connect_datagram(fd, builder),
            Role::Connected(peer) => self.connect_stream(fd, *peer, builder),
            Role::Orphan(_) => self.connect_orphan(fd, builder),
            Role::Alone => self.finish(fd),
        }
    }
}

impl Unix {
    fn rebuild_alone(&self) -> Result<OwnedFd> {
        let fd = new_socket(AddressFamily::Unix, self.sock_type())?;
        self.options.apply_early(fd.as_fd())?;
        if let Some(name) = &self.name {
            name.bind(fd.as_fd())?;
        }
        Ok(fd)
    }

    fn rebuild_listener(&self, backlog: u32) -> Result<OwnedFd> {
        let fd = self.rebuild_alone()?;
        listen_for(fd.as_fd(), backlog, self.name.as_ref())?;
        Ok(fd)
    }

    /// True when it waits in the backlog of a listener.
    fn waits(&self, builder: &mut Builder<'_>) -> Result<bool> {
        let mut all = sockets(builder)?.index.values();
        Ok(all.any(|(_, u)| match &u.role {
            Role::Listener { waiting, .. } => waiting.contains(&self.number),
            _ => false,
        }))
    }

    fn rebuild_connected(&self, peer: u32, builder: &mut Builder<'_>) -> Result<OwnedFd> {
        let (_, other) = sockets(builder)?
            .index
            .get(&peer)
            .cloned()
            .ok_or(Error::NoRecord {
                kind: "unix socket".into(),
                id: peer,
            })?;
        if self.is_datagram() && other.name.is_some() {
            return self.rebuild_alone();
        }
        let mutual = other.role == Role::Connected(self.number);
        let (own, theirs) = match self.is_datagram() {
            true => self.datagram_pair(&other, mutual)?,
            false => pair(self, other.name.as_ref(), builder)?,
        };
        sockets(builder)?.made.insert(peer, theirs);
        Ok(own)
    }

    fn datagram_pair(&self, other: &Self, mutual: bool) -> Result<(OwnedFd, OwnedFd)> {
        let (own, theirs) = nameless_pair(SockType::Datagram)?;
        if let Some(name) = &self.name {
            name.bind(own.as_fd())?;
        }
        if !mutual {
            disconnect(theirs.as_fd())?;
        }
        self.options.apply_early(own.as_fd())?;
        other.options.apply_early(theirs.as_fd())?;
        Ok((own, theirs))
    }

    fn rebuild_with_ghost(
        &self,
        name: Option<&Name>,
        builder: &mut Builder<'_>,
    ) -> Result<OwnedFd> {
        let (own, ghost) = match self.is_datagram() {
            true => self.datagram_ghost(name)?,
            false => pair(self, name, builder)?,
        };
        sockets(builder)?.ghosts.insert(self.number, ghost);
        Ok(own)
    }

    fn datagram_ghost(&self, name: Option<&Name>) -> Result<(OwnedFd, OwnedFd)> {
        let (own, ghost) = nameless_pair(SockType::Datagram)?;
        if let Some(name) = &self.name {
            name.bind(own.as_fd())?;
        }
        // An abstract name may belong to somebody else by now; then the ghost stays nameless.
        if let Some(name) = name
            && let Err(e) = name.bind_hidden(ghost.as_fd())
        {
            tracing::debug!("the closed peer's name is taken: {e}");
        }
        self.options.apply_early(own.as_fd())?;
        Ok((own, ghost))
    }

    fn connect_waiting(
        &self,
        fd: BorrowedFd<'_>,
        waiting: &[u32],
        builder: &mut Builder<'_>,
    ) -> Result<()> {
        let Some(name) = &self.name else {
            return Ok(());
        };
        for number in waiting {
            let client = sockets(builder)?.index.get(number).map(|(id, _)| *id);
            let missing = Error::NoRecord {
                kind: "unix socket".into(),
                id: *number,
            };
            connect_to(builder.object(client.ok_or(missing)?)?, fd, name)?;
        }
        Ok(())
    }

    /// Fills the queue from the peer; the second of the two to come finishes both.
    fn connect_stream(
        &self,
        fd: BorrowedFd<'_>,
        peer: u32,
        builder: &mut Builder<'_>,
    ) -> Result<()> {
        let (id, other) = sockets(builder)?.index[&peer].clone();
        queue::fill(builder.object(id)?, None, &self.queue, builder)?;
        let sockets = sockets(builder)?;
        sockets.filled.insert(self.number);
        if sockets.filled.contains(&peer) {
            self.finish(fd)?;
            other.finish(builder.object(id)?)?;
        }
        Ok(())
    }

    fn connect_orphan(&self, fd: BorrowedFd<'_>, builder: &mut Builder<'_>) -> Result<()> {
        if let Some(ghost) = sockets(builder)?.ghosts.remove(&self.number) {
            queue::fill(ghost.as_fd(), None, &self.queue, builder)?;
            if self.reset {
                // Closing a socket that has not read everything is what resets the other end.
                nix::unistd::write(fd, b"\0")
                    .map_err(|e| Error::kernel("write", "a unix socket", e))?;
            }
        }
        self.finish(fd)
    }

    fn connect_datagram(&self, fd: BorrowedFd<'_>, builder: &mut Builder<'_>) -> Result<()> {
        let peer = match self.role {
            Role::Connected(peer) => sockets(builder)?.index.get(&peer).cloned(),
            _ => None,
        };
        let named = peer
            .as_ref()
            .and_then(|(id, u)| Some((*id, u.name.clone()?)));
        // Who only hears its peer may hold more than a stranger could have sent.
        let early = named.as_ref().filter(|(_, name)| {
            self.queue
                .iter()
                .all(|m| m.from.as_ref().is_some_and(|f| f.same(name)))
        });
        if let Some((id, name)) = early {
            connect_to(fd, builder.object(*id)?, name)?;
        }
        self.fill_datagrams(fd, peer.map(|(id, _)| id), builder)?;
        match (&named, early, &self.role) {
            (Some((id, name)), None, _) => connect_to(fd, builder.object(*id)?, name)?,
            (_, _, Role::Alone) if sockets(builder)?.ghosts.remove(&self.number).is_some() => {
                disconnect(fd)?;
            }
            _ => drop(sockets(builder)?.ghosts.remove(&self.number)),
        }
        self.finish(fd)
    }

    fn fill_datagrams(
        &self,
        fd: BorrowedFd<'_>,
        peer: Option<ObjectId>,
        builder: &mut Builder<'_>,
    ) -> Result<()> {
        for message in &self.queue {
            let one = std::slice::from_ref(message);
            match &self.name {
                None => {
                    let sender = match sockets(builder)?.ghosts.get(&self.number) {
                        Some(ghost) => ghost.try_clone(),
                        None => builder
                            .object(peer.unwrap_or_default())?
                            .try_clone_to_owned(),
                    };
                    let sender = sender.map_err(|e| Error::kernel("dup", "a unix socket", e))?;
                    queue::fill(sender.as_fd(), None, one, builder)?;
                }
                Some(name) => {
                    let sender = sender_of(message, builder)?;
                    let fill =
                        |to: &UnixAddr| Ok(queue::fill(sender.as_fd(), Some(to), one, builder));
                    with_address(fd, name, fill)??;
                }
            }
        }
        Ok(())
    }

    /// The last touches: directions that are shut down, and options that would have hindered.
    fn finish(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let how = match self.shutdown {
            1 => Some(Shutdown::Read),
            2 => Some(Shutdown::Write),
            3 => Some(Shutdown::Both),
            _ => None,
        };
        if let Some(how) = how.filter(|_| {
            !matches!(self.role, Role::Alone | Role::Listener { .. }) || self.is_datagram()
        }) {
            shutdown(fd.as_raw_fd(), how)
                .map_err(|e| Error::kernel("shutdown", "a unix socket", e))?;
        }
        self.options.apply_late(fd)
    }
}

/// Who sends a message anew: the socket of the image that has the sender's name, or one made for it.
fn sender_of(message: &Message, builder: &mut Builder<'_>) -> Result<OwnedFd> {
    if let Some(name) = &message.from {
        let mut all = sockets(builder)?.index.values();
        let has = |u: &Unix| u.is_datagram() && u.name.as_ref().is_some_and(|n| n.same(name));
        if let Some(id) = all.find(|(_, u)| has(u)).map(|(id, _)| *id) {
            let sender = builder.object(id)?.try_clone_to_owned();
            return sender.map_err(|e| Error::kernel("dup", name.to_string(), e));
        }
    }
    let sender = new_socket(AddressFamily::Unix, SockType::Datagram)?;
    if let Some(name) = &message.from {
        name.bind_hidden(sender.as_fd())?;
    }
    Ok(sender)
}

fn nameless_pair(kind: SockType) -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|e| Error::kernel("socketpair", "unix sockets", e))
}

/// The object of the image's listener with this name.
fn listener(kind: i32, name: Option<&Name>, builder: &mut Builder<'_>) -> Result<Option<ObjectId>> {
    let mut all = sockets(builder)?.index.values();
    let found = all.find(|(_, u)| {
        let named = u.name.as_ref().zip(name).is_some_and(|(a, b)| a.same(b));
        named && u.kind == kind && matches!(u.role, Role::Listener { .. })
    });
    Ok(found.map(|(id, _)| *id))
}

/// Two connected ends: `own`, and one with the name `theirs`.
fn pair(
    own: &Unix,
    theirs: Option<&Name>,
    builder: &mut Builder<'_>,
) -> Result<(OwnedFd, OwnedFd)> {
    let theirs_listens = listener(own.kind, theirs, builder)?;
    let own_listens = listener(own.kind, own.name.as_ref(), builder)?.is_some();
    let own_listens = own_listens && theirs_listens.is_none();
    let (server, client, swapped) = match (theirs, &own.name) {
        (None, None) => return nameless_pair(own.sock_type()),
        (Some(theirs), Some(own)) if own_listens => (own, Some(theirs), true),
        (Some(server), client) => (server, client.as_ref(), false),
        (None, Some(server)) => (server, None, true),
    };
    let temporary;
    let through = match listener(own.kind, Some(server), builder)? {
        Some(id) => builder.object(id)?,
        None => {
            temporary = temporary_listener(own.sock_type(), server)?;
            temporary.as_fd()
        }
    };
    let near = new_socket(AddressFamily::Unix, own.sock_type())?;
    if let Some(name) = client {
        name.bind(near.as_fd())?;
    }
    connect_to(near.as_fd(), through, server)?;
    let far = accept(through, server)?;
    Ok(if swapped { (far, near) } else { (near, far) })
}

fn temporary_listener(kind: SockType, name: &Name) -> Result<OwnedFd> {
    let fd = new_socket(AddressFamily::Unix, kind)?;
    name.bind_hidden(fd.as_fd())?;
    listen_for(fd.as_fd(), 1, Some(name))?;
    Ok(fd)
}

fn listen_for(fd: BorrowedFd<'_>, backlog: u32, name: Option<&Name>) -> Result<()> {
    let failed = |e| {
        Error::kernel(
            "listen",
            name.map_or("a unix socket".into(), Name::to_string),
            e,
        )
    };
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    // nix's type stops at SOMAXCONN of the headers; the host's own limit may be higher.
    let backlog = Backlog::new(backlog).unwrap_or(Backlog::MAXCONN);
    listen(&fd, backlog).map_err(failed)
}

fn accept(listener: BorrowedFd<'_>, name: &Name) -> Result<OwnedFd> {
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)
        .map_err(|e| Error::kernel("accept", name.to_string(), e))?;
    // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
