//! Multicast groups that a socket has joined.
//!
//! A socket does not list its groups, but it answers for one that it is asked about
//! (`MCAST_MSFILTER`, RFC 3678). The network namespace lists all groups of all its sockets
//! (`/proc/net/igmp`, `/proc/net/igmp6`): each socket is asked about each of them.

use std::{
    ffi::CString,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use libc::{IPPROTO_IP, IPPROTO_IPV6, sockaddr_storage};
use nix::sys::socket::{SockaddrLike, SockaddrStorage};
use serde::{Deserialize, Serialize};

use crate::{
    capture::{Capture, Probe},
    error::{Error, Result},
    resource::socket::inet_address,
};

/// linux/in.h.
const MCAST_JOIN_GROUP: i32 = 42;
/// linux/in.h.
const MCAST_MSFILTER: i32 = 48;
/// Most sources of one group that are asked for; the kernel's own limit is 10.
const SOURCES: usize = 64;
/// `MCAST_EXCLUDE`: everybody is heard except the sources.
const EXCLUDE: u32 = 0;

/// A multicast group that a socket has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Membership {
    group: IpAddr,
    /// The interface's name in the pod.
    interface: String,
    /// `MCAST_INCLUDE` (1) or `MCAST_EXCLUDE` (0) of the sources.
    mode: u32,
    sources: Vec<IpAddr>,
}

/// `struct group_filter`, with room for sources.
#[repr(C)]
#[derive(Clone, Copy)]
struct Filter {
    interface: u32,
    group: sockaddr_storage,
    mode: u32,
    count: u32,
    sources: [sockaddr_storage; SOURCES],
}

/// `struct group_req`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Request {
    interface: u32,
    group: sockaddr_storage,
}

/// The groups of a socket.
pub(super) fn capture(probe: &Probe, cx: &Capture<'_>) -> Result<Vec<Membership>> {
    let mut all = Vec::new();
    for (index, interface, group) in candidates(cx)? {
        let asked = ask(probe.file.as_fd(), index, group);
        let Some(filter) =
            asked.map_err(|e| Error::kernel("getsockopt MCAST_MSFILTER", probe.name(), e))?
        else {
            continue;
        };
        let sources = filter.sources.iter().take(filter.count as usize);
        let sources = sources.filter_map(address).collect();
        all.push(Membership {
            group,
            interface,
            mode: filter.mode,
            sources,
        });
    }
    Ok(all)
}

/// All groups of the pod's network namespace, with the interfaces they are joined on.
fn candidates(cx: &Capture<'_>) -> Result<Vec<(u32, String, IpAddr)>> {
    let mut all = Vec::new();
    let read = |name: &str| {
        let path = cx.process().join("net").join(name);
        match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            text => text.map_err(|e| Error::file("read", path, e)),
        }
    };
    let mut device = None;
    for line in read("igmp")?.lines().skip(1) {
        let mut words = line.split_whitespace();
        if line.starts_with(char::is_numeric) {
            let index = words.next().and_then(|w| w.parse().ok());
            device = index.zip(words.next().map(str::to_owned));
        } else if let (Some((index, name)), Some(group)) = (&device, words.next().and_then(hex_v4))
        {
            all.push((*index, name.clone(), group));
        }
    }
    for line in read("igmp6")?.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        if let [index, name, group, ..] = words[..]
            && let (Ok(index), Ok(group)) = (index.parse(), u128::from_str_radix(group, 16))
        {
            all.push((index, name.to_owned(), Ipv6Addr::from(group).into()));
        }
    }
    Ok(all)
}

/// The kernel prints the four bytes as one number of its own byte order.
fn hex_v4(text: &str) -> Option<IpAddr> {
    let number = u32::from_str_radix(text, 16).ok()?;
    Some(Ipv4Addr::from(number.to_ne_bytes()).into())
}

/// The filter of a group; `None` when the socket has not joined it.
fn ask(fd: BorrowedFd<'_>, interface: u32, group: IpAddr) -> io::Result<Option<Filter>> {
    let level = level(group);
    // SAFETY: the struct is plain data for which zero is a valid value.
    let mut filter: Filter = unsafe { std::mem::zeroed() };
    (filter.interface, filter.group, filter.count) = (interface, storage(group), SOURCES as u32);
    match intercept::sys::getsockopt(fd, level, MCAST_MSFILTER, filter) {
        Ok(filter) => Ok(Some(filter)),
        Err(e) => match e.raw_os_error() {
            // Not joined; or a socket of the other IP version.
            Some(libc::EADDRNOTAVAIL | libc::ENOPROTOOPT | libc::EINVAL | libc::EOPNOTSUPP) => {
                Ok(None)
            }
            _ => Err(e),
        },
    }
}

fn level(group: IpAddr) -> i32 {
    if group.is_ipv4() {
        IPPROTO_IP
    } else {
        IPPROTO_IPV6
    }
}

fn storage(ip: IpAddr) -> sockaddr_storage {
    let address = SockaddrStorage::from(SocketAddr::new(ip, 0));
    // SAFETY: the struct is plain data for which zero is a valid value.
    let mut storage: sockaddr_storage = unsafe { std::mem::zeroed() };
    // SAFETY: both places hold at least `len` bytes, and they do not overlap.
    unsafe {
        std::ptr::copy_nonoverlapping(
            address.as_ptr().cast::<u8>(),
            (&raw mut storage).cast::<u8>(),
            address.len() as usize,
        );
    }
    storage
}

fn address(storage: &sockaddr_storage) -> Option<IpAddr> {
    // SAFETY: a sockaddr_storage is readable for its whole length, which is what is passed.
    let address = unsafe {
        SockaddrStorage::from_raw(
            (&raw const *storage).cast(),
            Some(size_of::<sockaddr_storage>() as u32),
        )
    };
    inet_address(&address?).map(|a| a.ip())
}

impl Membership {
    /// Joins the group on the interface that has the name here.
    pub(super) fn join(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let name = format!("multicast group {} on {}", self.group, self.interface);
        let interface = self.index().ok_or_else(|| Error::Unfit {
            object: name.clone(),
            why: "there is no such interface here".into(),
        })?;
        let failed = |e| Error::kernel("setsockopt MCAST_JOIN_GROUP", name.clone(), e);
        let request = Request {
            interface,
            group: storage(self.group),
        };
        intercept::sys::setsockopt(fd, level(self.group), MCAST_JOIN_GROUP, &request)
            .map_err(failed)?;
        if self.mode == EXCLUDE && self.sources.is_empty() {
            return Ok(());
        }
        self.filter(fd, interface).map_err(failed)
    }

    fn index(&self) -> Option<u32> {
        let name = CString::new(self.interface.as_str()).ok()?;
        // SAFETY: `name` is a NUL-terminated string that outlives the call.
        Some(unsafe { libc::if_nametoindex(name.as_ptr()) }).filter(|index| *index != 0)
    }

    fn filter(&self, fd: BorrowedFd<'_>, interface: u32) -> io::Result<()> {
        // SAFETY: the struct is plain data for which zero is a valid value.
        let mut filter: Filter = unsafe { std::mem::zeroed() };
        (filter.interface, filter.group, filter.mode) = (interface, storage(self.group), self.mode);
        let places = filter.sources.iter_mut().zip(&self.sources);
        filter.count = places.map(|(place, ip)| *place = storage(*ip)).count() as u32;
        let len = std::mem::offset_of!(Filter, sources)
            + filter.count as usize * size_of::<sockaddr_storage>();
        // SAFETY: `filter` is readable for `len` bytes, which its sources end at.
        let r = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                level(self.group),
                MCAST_MSFILTER,
                (&raw const filter).cast(),
                len as u32,
            )
        };
        intercept::sys::check(r.into()).map(drop)
    }
}
