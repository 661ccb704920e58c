//! Netlink sockets that ask and are answered, while no answer waits; and a clear word about
//! sockets of kinds that have no room.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libc::{AF_NETLINK, SOL_NETLINK, SOL_SOCKET};
use nix::{
    errno::Errno,
    poll::PollFlags,
    sys::socket::{NetlinkAddr, bind, getsockname},
};
use serde::{Deserialize, Serialize};

use super::{
    Description, Room,
    socket::{self, Options, family_and_type, int_option, set_int},
};
use crate::{
    builder::Builder,
    capture::{Capture, Probe},
    error::{Error, Result},
    image::Record,
};

/// Families whose messages mean the same on every host: routes, socket diagnosis, device events.
const SAME_EVERYWHERE: [i32; 3] = [
    libc::NETLINK_ROUTE,
    libc::NETLINK_SOCK_DIAG,
    libc::NETLINK_KOBJECT_UEVENT,
];

/// `int` options of linux/netlink.h.
const OPTIONS: [i32; 6] = [
    libc::NETLINK_PKTINFO,
    libc::NETLINK_BROADCAST_ERROR,
    libc::NETLINK_NO_ENOBUFS,
    libc::NETLINK_CAP_ACK,
    11, // NETLINK_EXT_ACK
    12, // NETLINK_GET_STRICT_CHK
];

/// A netlink socket without anything in its queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Netlink {
    /// `SOCK_RAW` or `SOCK_DGRAM`.
    kind: i32,
    /// `NETLINK_*`.
    protocol: i32,
    /// Port and group mask it is bound to.
    bound: (u32, u32),
    /// Groups it has joined, as a bitmap.
    groups: Vec<u32>,
    /// Those of [`OPTIONS`] that are set.
    set: Vec<i32>,
    options: Options,
}

impl Record for Netlink {
    const KIND: &'static str = "netlink";
    const VERSION: u16 = 1;
}

impl Room for Netlink {
    fn capture(probe: &Probe, cx: &mut Capture<'_>) -> Result<Option<Self>> {
        let Some((family, kind)) = family_and_type(probe) else {
            return Ok(None);
        };
        let fd = probe.file.as_fd();
        let protocol = int_option(fd, SOL_SOCKET, libc::SO_PROTOCOL).unwrap_or_default();
        if family != AF_NETLINK || !SAME_EVERYWHERE.contains(&protocol) {
            let why = format!("it is {}", describe(family, kind, protocol));
            cx.refuse(probe, why, "close it before the checkpoint");
            return Ok(None);
        }
        if socket::ready(fd, PollFlags::POLLIN)?.intersects(PollFlags::POLLIN | PollFlags::POLLERR)
        {
            cx.refuse(
                probe,
                "an answer of the kernel waits to be read",
                "try again in a moment",
            );
            return Ok(None);
        }
        let failed = |e| Error::kernel("getsockname", probe.name(), e);
        let address = getsockname::<NetlinkAddr>(fd.as_raw_fd()).map_err(failed)?;
        let set = OPTIONS
            .into_iter()
            .filter(|o| int_option(fd, SOL_NETLINK, *o) == Some(1));
        Ok(Some(Self {
            kind,
            protocol,
            bound: (address.pid(), address.groups()),
            groups: memberships(fd),
            set: set.collect(),
            options: Options::capture(probe, cx)?,
        }))
    }
}

fn describe(family: i32, kind: i32, protocol: i32) -> String {
    match (family, kind) {
        (AF_NETLINK, _) => format!(
            "a netlink socket of family {protocol}, whose messages mean something on this host only"
        ),
        (libc::AF_PACKET, _) => "a packet socket".into(),
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_RAW) => {
            format!("a raw socket of protocol {protocol}")
        }
        (libc::AF_INET | libc::AF_INET6, _) => format!("a socket of internet protocol {protocol}"),
        (libc::AF_VSOCK, _) => "a socket between virtual machines".into(),
        (libc::AF_ALG, _) => "a socket of the kernel's cryptography".into(),
        _ => format!("a socket of address family {family}"),
    }
}

/// `NETLINK_LIST_MEMBERSHIPS`: the groups as a bitmap, in words.
fn memberships(fd: BorrowedFd<'_>) -> Vec<u32> {
    let groups =
        intercept::sys::getsockopt(fd, SOL_NETLINK, libc::NETLINK_LIST_MEMBERSHIPS, [0u32; 16]);
    groups.unwrap_or_default().to_vec()
}

impl Description for Netlink {
    fn rebuild(&self, _builder: &mut Builder<'_>) -> Result<OwnedFd> {
        // SAFETY: plain values only.
        let fd = unsafe { libc::socket(AF_NETLINK, self.kind | libc::SOCK_CLOEXEC, self.protocol) };
        let fd = intercept::sys::check(fd.into())
            .map_err(|e| Error::kernel("socket", self.name(), e))?;
        // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
        let fd: OwnedFd = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd as i32) };
        self.options.apply_early(fd.as_fd())?;
        self.bind(fd.as_fd())?;
        self.join(fd.as_fd())
            .map_err(|e| Error::kernel("setsockopt", self.name(), e))?;
        self.options.apply_late(fd.as_fd())?;
        Ok(fd)
    }
}

impl Netlink {
    fn name(&self) -> String {
        format!("netlink socket of family {}", self.protocol)
    }

    /// Binds it to the port it had; where that is taken, to one that the kernel chooses.
    fn bind(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let (port, groups) = self.bound;
        if (port, groups) == (0, 0) {
            return Ok(());
        }
        let to = |port| bind(fd.as_raw_fd(), &NetlinkAddr::new(port, groups));
        let bound = match to(port) {
            Err(Errno::EADDRINUSE) => to(0),
            bound => bound,
        };
        bound.map_err(|e| Error::kernel("bind", self.name(), e))
    }

    fn join(&self, fd: BorrowedFd<'_>) -> std::io::Result<()> {
        for option in &self.set {
            set_int(fd, SOL_NETLINK, *option, 1)?;
        }
        for (word, bits) in self.groups.iter().enumerate() {
            for bit in (0..32).filter(|bit| bits & (1 << bit) != 0) {
                let group = (word * 32) as i32 + bit + 1;
                set_int(fd, SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

    use super::*;
    use crate::testing::{capture, own_network, round_trip};

    #[test]
    fn an_idle_route_socket_keeps_port_and_groups() {
        own_network();
        let (family, flags) = (AddressFamily::Netlink, SockFlag::SOCK_CLOEXEC);
        let fd = socket(family, SockType::Raw, flags, SockProtocol::NetlinkRoute).unwrap();
        bind(fd.as_raw_fd(), &NetlinkAddr::new(4242, 1)).unwrap();
        set_int(fd.as_fd(), SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, 33).unwrap();
        let want = memberships(fd.as_fd());
        let back = round_trip(vec![fd]).unwrap();
        let address = getsockname::<NetlinkAddr>(back[0].as_raw_fd()).unwrap();
        assert_eq!(
            (address.pid(), memberships(back[0].as_fd())),
            (4242, want.clone())
        );
        assert_eq!(want[..2], [1, 1]);
    }

    #[test]
    fn other_families_are_refused_by_name() {
        own_network();
        let flags = SockFlag::SOCK_CLOEXEC;
        let raw = socket(
            AddressFamily::Inet,
            SockType::Raw,
            flags,
            SockProtocol::Icmp,
        )
        .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (_, refused) = capture(dir.path(), &[raw.as_fd()]).unwrap();
        assert_eq!(refused.len(), 1);
        assert_eq!(refused[0].why, "it is a raw socket of protocol 1");
    }
}
