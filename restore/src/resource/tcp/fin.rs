//! The end of the far end's bytes, delivered anew.
//!
//! A connection whose far end will write no more, and does not know that it is talking to
//! a rebuilt socket, needs that far end's FIN once again. It is put on the loopback as a
//! raw segment (RFC 9293 §3.1) from the far end's address: what our own kernel sends to
//! itself is not asked where it came from.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
    },
};

use super::repair::Connection;

/// Length of a TCP header without options.
const HEADER: usize = 20;
/// FIN and ACK.
const FLAGS: u8 = 0x11;
/// How long our own kernel may take to deliver it, in milliseconds.
const PATIENCE: u16 = 2000;

/// Lets the connection of `fd` (ours at `local`, theirs at `remote`) receive its FIN.
pub(super) fn deliver(
    fd: BorrowedFd<'_>,
    local: SocketAddr,
    remote: SocketAddr,
    connection: &Connection,
) -> io::Result<()> {
    let (to, from) = (
        SocketAddr::new(local.ip().to_canonical(), 0),
        remote.ip().to_canonical(),
    );
    let ports = (remote.port(), local.port());
    let segment = segment(
        ports,
        connection.received,
        connection.first_outgoing(),
        from,
        to.ip(),
    );
    let family = if to.is_ipv4() {
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
    let mut packet = header(from, to.ip());
    packet.extend_from_slice(&segment);
    sendto(
        raw.as_raw_fd(),
        &packet,
        &SockaddrStorage::from(to),
        MsgFlags::empty(),
    )?;
    let mut seen = [PollFd::new(
        fd.as_fd(),
        PollFlags::from_bits_retain(libc::POLLRDHUP),
    )];
    match poll(&mut seen, PollTimeout::from(PATIENCE))? {
        0 => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the far end's FIN was not delivered",
        )),
        _ => Ok(()),
    }
}

fn segment(
    ports: (u16, u16),
    sequence: u32,
    acknowledged: u32,
    from: IpAddr,
    to: IpAddr,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER);
    bytes.extend_from_slice(&ports.0.to_be_bytes());
    bytes.extend_from_slice(&ports.1.to_be_bytes());
    bytes.extend_from_slice(&sequence.to_be_bytes());
    bytes.extend_from_slice(&acknowledged.to_be_bytes());
    bytes.extend_from_slice(&[(HEADER as u8 / 4) << 4, FLAGS, 0xff, 0xff, 0, 0, 0, 0]);
    let sum = checksum(&[&octets(from), &octets(to), &[0, 6, 0, HEADER as u8], &bytes]);
    bytes[16..18].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The internet checksum (RFC 1071) of parts of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks_exact(2));
    let mut sum: u32 = words
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An IP header; the kernel fills in what is left zero in version 4.
fn header(from: IpAddr, to: IpAddr) -> Vec<u8> {
    let len = HEADER as u8;
    let mut bytes = match from {
        IpAddr::V4(_) => vec![0x45, 0, 0, 20 + len, 0, 0, 0, 0, 64, 6, 0, 0],
        IpAddr::V6(_) => vec![0x60, 0, 0, 0, 0, len, 6, 64],
    };
    bytes.extend(octets(from));
    bytes.extend(octets(to));
    bytes
}
