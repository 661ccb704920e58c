//! UDP sockets: bound, connected, with what they have received and the groups they joined.
//!
//! Datagrams that wait are delivered again, as packets from their senders' addresses. What
//! the network may do, we may do too: a datagram that cannot be delivered here, or that
//! stands behind an error we must not take away, is dropped and logged.

mod group;
#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use libc::{IPPROTO_UDP, SOL_SOCKET};
use nix::{
    errno::Errno,
    poll::PollFlags,
    sys::socket::{AddressFamily, SockType, SockaddrStorage, connect},
};
use serde::{Deserialize, Serialize};

use self::group::Membership;
use super::{
    Description, Order, Room,
    socket::{
        self, Injector, Options, disconnect, family_and_type, inet_address, int_option,
        local_address, message, new_socket, remote_address,
    },
};
use crate::{
    builder::Builder,
    capture::{Capture, Probe},
    error::{Error, Result},
    image::Record,
};

/// Room for the largest datagram.
const LARGEST: usize = 64 << 10;
/// `UDP_ENCAP` of linux/udp.h.
const UDP_ENCAP: i32 = 100;

/// A UDP socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Udp {
    /// `AF_INET` or `AF_INET6`.
    family: i32,
    /// Its endpoint (of datagrams virtual and real are one); port 0 where it is not bound.
    local: SocketAddr,
    /// The endpoint it is connected to.
    remote: Option<SocketAddr>,
    queue: Vec<Datagram>,
    groups: Vec<Membership>,
    options: Options,
}

/// A datagram that waits to be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Datagram {
    #[serde(with = "serde_bytes")]
    data: Vec<u8>,
    /// The sender's endpoint.
    from: SocketAddr,
}

impl Record for Udp {
    const KIND: &'static str = "udp";
    const VERSION: u16 = 1;
}

impl Room for Udp {
    fn capture(probe: &Probe, cx: &mut Capture<'_>) -> Result<Option<Self>> {
        let Some((family @ (libc::AF_INET | libc::AF_INET6), libc::SOCK_DGRAM)) =
            family_and_type(probe)
        else {
            return Ok(None);
        };
        let fd = probe.file.as_fd();
        if int_option(fd, SOL_SOCKET, libc::SO_PROTOCOL) != Some(IPPROTO_UDP) {
            return Ok(None);
        }
        if let Some(why) = unfit(fd) {
            cx.refuse(probe, why, "close it before the checkpoint");
            return Ok(None);
        }
        let remote = remote_address(fd).ok();
        Ok(Some(Self {
            family,
            local: local_address(fd)?,
            remote,
            queue: capture_queue(probe)?,
            groups: group::capture(probe, cx)?,
            options: Options::capture(probe, cx)?,
        }))
    }
}

/// What of a UDP socket cannot be read back.
fn unfit(fd: BorrowedFd<'_>) -> Option<&'static str> {
    let is_set = |name| int_option(fd, IPPROTO_UDP, name).is_some_and(|value| value != 0);
    if is_set(libc::UDP_CORK) {
        return Some("half a datagram waits to be sent (UDP_CORK)");
    }
    is_set(UDP_ENCAP).then_some("the kernel unpacks what it receives (UDP_ENCAP)")
}

fn capture_queue(probe: &Probe) -> Result<Vec<Datagram>> {
    let fd = probe.file.as_fd();
    // Looking at the queue would take the error away from the program.
    if socket::ready(fd, PollFlags::POLLIN)?.contains(PollFlags::POLLERR) {
        tracing::info!(
            "{}: an error waits, so its datagrams are dropped",
            probe.name()
        );
        return Ok(Vec::new());
    }
    let _front = message::PeekOffset::new(fd)?;
    let mut queue = Vec::new();
    loop {
        let peeked = match message::peek::<SockaddrStorage>(fd, LARGEST) {
            Err(Errno::EAGAIN) => return Ok(queue),
            peeked => peeked.map_err(|e| Error::kernel("recvmsg MSG_PEEK", probe.name(), e))?,
        };
        if let Some(from) = peeked.from.as_ref().and_then(inet_address) {
            queue.push(Datagram {
                data: peeked.data,
                from,
            });
        }
    }
}

impl Description for Udp {
    fn order(&self) -> Order {
        Order::Second
    }

    fn rebuild(&self, builder: &mut Builder<'_>) -> Result<OwnedFd> {
        let family = match self.family {
            libc::AF_INET6 => AddressFamily::Inet6,
            _ => AddressFamily::Inet,
        };
        let fd = new_socket(family, SockType::Datagram)?;
        self.options.apply_early(fd.as_fd())?;
        if self.local.port() != 0 {
            self.bind(fd.as_fd(), builder)?;
        }
        Ok(fd)
    }

    fn connect(&self, fd: BorrowedFd<'_>, _builder: &mut Builder<'_>) -> Result<()> {
        let buffers = self.options.apply_buffers(fd);
        buffers.map_err(|e| Error::kernel("setsockopt SO_RCVBUF", self.name(), e))?;
        for datagram in &self.queue {
            if let Err(e) = self.deliver(fd, datagram) {
                tracing::info!(
                    "{}: a datagram from {} is dropped: {e}",
                    self.name(),
                    datagram.from
                );
            }
        }
        if let Some(remote) = self.remote {
            let real = SockaddrStorage::from(remote);
            connect(fd.as_raw_fd(), &real).map_err(|e| Error::kernel("connect", self.name(), e))?;
        }
        for group in &self.groups {
            group.join(fd)?;
        }
        self.options.apply_late(fd)
    }
}

impl Udp {
    fn name(&self) -> String {
        match self.remote {
            Some(remote) => format!("UDP socket {} to {remote}", self.local),
            None => format!("UDP socket {}", self.local),
        }
    }

    /// Binds it. Of a connected socket the kernel chose the address, and may choose another here.
    fn bind(&self, fd: BorrowedFd<'_>, builder: &mut Builder<'_>) -> Result<()> {
        match builder.network.bind(fd, self.local) {
            Err(Error::Unfit { .. }) if self.remote.is_some() => {
                let any = SocketAddr::new(self.unspecified(), self.local.port());
                builder.network.bind(fd, any)
            }
            bound => bound,
        }
    }

    fn unspecified(&self) -> IpAddr {
        match self.family {
            libc::AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => Ipv4Addr::UNSPECIFIED.into(),
        }
    }

    /// Delivers a datagram to this socket and no other: connected to the sender, it goes before all
    /// that share its port.
    fn deliver(&self, fd: BorrowedFd<'_>, datagram: &Datagram) -> Result<()> {
        let failed = |e: std::io::Error| Error::kernel("deliver", self.name(), e);
        let from = datagram.from;
        connect(fd.as_raw_fd(), &SockaddrStorage::from(from)).map_err(|e| failed(e.into()))?;
        let to = local_address(fd)?;
        let injected = Injector::new(to.ip()).and_then(|i| i.datagram(from, to, &datagram.data));
        disconnect(fd)?;
        injected.map_err(failed)
    }
}
