//! Who listens on a TCP port of this net namespace (`sock_diag(7)`).
//!
//! A listener is known by its cookie, which no other socket ever gets: so one can tell a
//! listener of the pod from a stranger's, and a dead table entry from a live one.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use crate::sys;

/// A listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listening {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its `SO_COOKIE`.
    pub cookie: u64,
}

/// `SOCK_DIAG_BY_FAMILY` of `linux/sock_diag.h`.
const BY_FAMILY: u16 = 20;
/// `TCP_LISTEN` of `net/tcp_states.h`, as a bit.
const LISTEN: u32 = 1 << 10;
/// Size of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Size of `struct inet_diag_req_v2`.
const REQUEST: usize = 56;

fn request(family: i32, port: u16) -> [u8; HEADER + REQUEST] {
    let mut m = [0; HEADER + REQUEST];
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    m[..4].copy_from_slice(&((HEADER + REQUEST) as u32).to_ne_bytes());
    m[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
    m[6..8].copy_from_slice(&flags.to_ne_bytes());
    m[HEADER] = family as u8;
    m[HEADER + 1] = libc::IPPROTO_TCP as u8;
    m[HEADER + 4..HEADER + 8].copy_from_slice(&LISTEN.to_ne_bytes());
    // struct inet_diag_sockid begins here; a port of 0 matches all.
    m[HEADER + 8..HEADER + 10].copy_from_slice(&port.to_be_bytes());
    m
}

fn netlink() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: plain values only.
    let r = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_SOCK_DIAG) };
    let fd = sys::check(i64::from(r))? as i32;
    // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// One `struct inet_diag_msg`: family, …, then the socket id at offset 4.
fn parse(body: &[u8]) -> Option<Listening> {
    let port = u16::from_be_bytes(body.get(4..6)?.try_into().ok()?);
    let source: [u8; 16] = body.get(8..24)?.try_into().ok()?;
    let ip = match i32::from(*body.first()?) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::new(source[0], source[1], source[2], source[3])),
        _ => IpAddr::V6(Ipv6Addr::from(source)),
    };
    let cookie = u64::from_ne_bytes(body.get(44..52)?.try_into().ok()?);
    Some(Listening {
        addr: SocketAddr::new(ip, port),
        cookie,
    })
}

/// Goes through one datagram of the dump; true when the dump is complete.
fn collect(mut data: &[u8], found: &mut Vec<Listening>) -> io::Result<bool> {
    while data.len() >= HEADER {
        let len = u32::from_ne_bytes([data[0], data[1], data[2], data[3]]) as usize;
        let kind = i32::from(u16::from_ne_bytes([data[4], data[5]]));
        let Some(body) = data.get(HEADER..len) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        match kind {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => return Err(io::Error::other("sock_diag refused the request")),
            _ => found.extend(parse(body)),
        }
        data = data.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(false)
}

fn dump(family: i32, port: u16, found: &mut Vec<Listening>) -> io::Result<()> {
    let fd = netlink()?;
    let message = request(family, port);
    // SAFETY: pointer and length describe `message`.
    let sent = unsafe {
        libc::send(
            fd.as_raw_fd(),
            message.as_ptr().cast(),
            message.len(),
            libc::MSG_NOSIGNAL,
        )
    };
    sys::check(sent as i64)?;
    let mut buf = vec![0u8; 32 << 10];
    loop {
        // SAFETY: pointer and length describe `buf`.
        let got = unsafe { libc::recv(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), 0) };
        let got = sys::check(got as i64)? as usize;
        if got == 0 || collect(&buf[..got], found)? {
            return Ok(());
        }
    }
}

/// The TCP listeners on `port` (0 for all ports), IPv4 and IPv6.
///
/// # Errors
/// What the netlink socket said.
pub fn listeners(port: u16) -> io::Result<Vec<Listening>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        dump(family, port, &mut found)?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{net::TcpListener, os::fd::AsFd};

    #[test]
    fn listeners_are_found_by_port_and_known_by_cookie() {
        let (four, six) = (
            TcpListener::bind("127.0.0.1:0").unwrap(),
            TcpListener::bind("[::1]:0").unwrap(),
        );
        for socket in [&four, &six] {
            let addr = socket.local_addr().unwrap();
            let cookie = crate::socket::cookie(socket.as_fd()).unwrap();
            assert_eq!(
                listeners(addr.port()).unwrap(),
                [Listening { addr, cookie }]
            );
        }
        let port = four.local_addr().unwrap().port();
        drop(four);
        assert_eq!(listeners(port).unwrap(), []);
        assert!(!listeners(0).unwrap().is_empty());
    }
}
