//! Packets from anywhere to ourselves.
//!
//! What our own kernel sends over the loopback keeps the route it was sent with, and is
//! not asked where it came from: so a raw socket can deliver again, to a rebuilt socket,
//! what the captured one had received from far away. Headers are those of RFC 791,
//! RFC 8200, RFC 768 and RFC 9293.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};

/// Delivers packets of one IP version.
pub(crate) struct Injector {
    raw: OwnedFd,
}

impl Injector {
    /// One for the version of `to`.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_RAW`.
    pub(crate) fn new(to: IpAddr) -> io::Result<Self> {
        let family = if to.to_canonical().is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let raw = socket(
            family,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::Raw,
        )?;
        Ok(Self { raw })
    }

    /// Delivers a TCP FIN.
    pub(crate) fn fin(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        seq: u32,
        ack: u32,
    ) -> io::Result<()> {
        const FIN_AND_ACK: u8 = 0x11;
        let mut segment = ports(from, to);
        segment.extend_from_slice(&seq.to_be_bytes());
        segment.extend_from_slice(&ack.to_be_bytes());
        segment.extend_from_slice(&[5 << 4, FIN_AND_ACK, 0xff, 0xff, 0, 0, 0, 0]);
        self.send(libc::IPPROTO_TCP, from.ip(), to.ip(), segment, 16)
    }

    /// Delivers a UDP datagram.
    pub(crate) fn datagram(&self, from: SocketAddr, to: SocketAddr, data: &[u8]) -> io::Result<()> {
        let mut datagram = ports(from, to);
        let len = u16::try_from(data.len() + 8).map_err(io::Error::other)?;
        datagram.extend_from_slice(&len.to_be_bytes());
        datagram.extend_from_slice(&[0, 0]);
        datagram.extend_from_slice(data);
        self.send(libc::IPPROTO_UDP, from.ip(), to.ip(), datagram, 6)
    }

    /// Sums a packet up, at `sum_at`, and sends it.
    fn send(
        &self,
        protocol: i32,
        from: IpAddr,
        to: IpAddr,
        mut body: Vec<u8>,
        sum_at: usize,
    ) -> io::Result<()> {
        let (from, to) = (from.to_canonical(), to.to_canonical());
        let len = (body.len() as u32).to_be_bytes();
        let pseudo = [&octets(from)[..], &octets(to), &len, &[0, protocol as u8]].concat();
        let sum = match checksum(&pseudo, &body) {
            // Zero would mean that there is no sum.
            0 => u16::MAX,
            sum => sum,
        };
        body[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
        let packet = [header(protocol, from, to, body.len()), body].concat();
        let to = SockaddrStorage::from(SocketAddr::new(to, 0));
        sendto(self.raw.as_raw_fd(), &packet, &to, MsgFlags::empty())?;
        Ok(())
    }
}

fn ports(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    [from.port().to_be_bytes(), to.port().to_be_bytes()].concat()
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The internet checksum (RFC 1071); a last odd byte counts as if a zero followed.
fn checksum(pseudo: &[u8], body: &[u8]) -> u16 {
    let words = pseudo.chunks(2).chain(body.chunks(2));
    let word = |w: &[u8]| u32::from(u16::from_be_bytes([w[0], w.get(1).copied().unwrap_or(0)]));
    let mut sum: u32 = words.map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An IP header; the kernel fills in what is left zero in version 4.
fn header(protocol: i32, from: IpAddr, to: IpAddr, len: usize) -> Vec<u8> {
    let mut bytes = match from {
        IpAddr::V4(_) => {
            let [high, low] = ((len + 20) as u16).to_be_bytes();
            vec![0x45, 0, high, low, 0, 0, 0, 0, 64, protocol as u8, 0, 0]
        }
        IpAddr::V6(_) => {
            let [high, low] = (len as u16).to_be_bytes();
            vec![0x60, 0, 0, 0, high, low, protocol as u8, 64]
        }
    };
    bytes.extend(octets(from));
    bytes.extend(octets(to));
    bytes
}
