use std::{collections::HashMap, net::UdpSocket};

use super::*;
use crate::testing::{own_network, round_trip, round_trip_with};

fn sockets(fds: Vec<OwnedFd>) -> Vec<UdpSocket> {
    round_trip(fds)
        .unwrap()
        .into_iter()
        .map(UdpSocket::from)
        .collect()
}

fn hear(from: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut data = vec![0; 70_000];
    let (n, from) = from.recv_from(&mut data).unwrap();
    data.truncate(n);
    (data, from)
}

#[test]
fn datagrams_wait_with_their_senders_addresses() {
    own_network();
    for ip in ["127.0.0.1", "::1"] {
        let any: SocketAddr = (ip.parse::<IpAddr>().unwrap(), 0).into();
        let (server, a, b) = (
            UdpSocket::bind(any).unwrap(),
            UdpSocket::bind(any).unwrap(),
            UdpSocket::bind(any).unwrap(),
        );
        let to = server.local_addr().unwrap();
        let names = [a.local_addr().unwrap(), b.local_addr().unwrap()];
        a.connect(to).unwrap();
        let large = vec![9; 20_001];
        a.send(b"from a").unwrap();
        b.send_to(&large, to).unwrap();
        a.send(b"").unwrap();
        drop(b);
        let back = sockets(vec![server.into(), a.into()]);
        assert_eq!(back[0].local_addr().unwrap(), to);
        assert_eq!(back[1].peer_addr().unwrap(), to);
        let got = [hear(&back[0]), hear(&back[0]), hear(&back[0])];
        assert_eq!(
            got,
            [
                (b"from a".to_vec(), names[0]),
                (large, names[1]),
                (vec![], names[0])
            ]
        );
        back[1].send(b"again").unwrap();
        assert_eq!(hear(&back[0]), (b"again".to_vec(), names[0]));
    }
}

#[test]
fn sockets_that_share_a_port_keep_each_its_own() {
    own_network();
    let shared = || {
        let fd = new_socket(AddressFamily::Inet, SockType::Datagram).unwrap();
        socket::set_int(fd.as_fd(), SOL_SOCKET, libc::SO_REUSEPORT, 1).unwrap();
        let at: SocketAddr = "127.0.0.1:7100".parse().unwrap();
        nix::sys::socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(at)).unwrap();
        UdpSocket::from(fd)
    };
    let both = [shared(), shared()];
    for i in 0..20u8 {
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(&[i], "127.0.0.1:7100").unwrap();
    }
    let drain = |socket: &UdpSocket| {
        socket.set_nonblocking(true).unwrap();
        let mut got = Vec::new();
        let mut byte = [0];
        while socket.recv(&mut byte).is_ok() {
            got.push(byte[0]);
        }
        got
    };
    let peek = |socket: &UdpSocket| {
        let _front = message::PeekOffset::new(socket.as_fd()).unwrap();
        let next = || message::peek::<SockaddrStorage>(socket.as_fd(), 9).ok();
        std::iter::from_fn(next)
            .map(|p| p.data[0])
            .collect::<Vec<_>>()
    };
    let want = both.each_ref().map(peek);
    assert!(
        want.iter().all(|w| !w.is_empty()),
        "both have something: {want:?}"
    );
    let back = sockets(both.map(OwnedFd::from).into());
    assert_eq!([drain(&back[0]), drain(&back[1])], want);
}

#[test]
fn groups_are_joined_again() {
    own_network();
    let socket = UdpSocket::bind("0.0.0.0:7101").unwrap();
    let lonely = UdpSocket::bind("0.0.0.0:7102").unwrap();
    let group = Ipv4Addr::new(239, 7, 7, 7);
    socket
        .join_multicast_v4(&group, &Ipv4Addr::LOCALHOST)
        .unwrap();
    let v6 = UdpSocket::bind("[::]:7103").unwrap();
    let group6: Ipv6Addr = "ff02::7:7".parse().unwrap();
    v6.join_multicast_v6(&group6, 1).unwrap();
    let here = |cx: &mut Capture<'_>| cx.set_process(nix::unistd::gettid().as_raw());
    let fds = vec![socket.into(), lonely.into(), v6.into()];
    let back = round_trip_with(fds, here, HashMap::new()).unwrap();
    let back: Vec<_> = back.into_iter().map(UdpSocket::from).collect();
    back[0]
        .leave_multicast_v4(&group, &Ipv4Addr::LOCALHOST)
        .unwrap();
    back[1]
        .leave_multicast_v4(&group, &Ipv4Addr::LOCALHOST)
        .unwrap_err();
    back[2].leave_multicast_v6(&group6, 1).unwrap();
}
