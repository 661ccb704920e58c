use std::{
    io::{Read, Write},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{MetadataExt, PermissionsExt},
            net::{SocketAddr, UnixDatagram, UnixListener, UnixStream},
        },
    },
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, socketpair},
};

use super::*;
use crate::{
    resource::socket::{int_option, message, set_int},
    testing::{capture, round_trip, round_trip_with},
};

fn seqpacket() -> (OwnedFd, OwnedFd) {
    let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
    socketpair(family, kind, None, SockFlag::SOCK_CLOEXEC).unwrap()
}

fn streams(fds: Vec<OwnedFd>) -> Vec<UnixStream> {
    round_trip(fds)
        .unwrap()
        .into_iter()
        .map(UnixStream::from)
        .collect()
}

fn read(mut from: &UnixStream, room: usize) -> Vec<u8> {
    let mut buf = vec![0; room];
    let n = from.read(&mut buf).unwrap();
    buf.truncate(n);
    buf
}

fn send(fd: &impl AsFd, data: &[u8], files: &[BorrowedFd<'_>]) {
    let sent = message::send::<UnixAddr>(fd.as_fd(), data, files, None, None).unwrap();
    assert_eq!(sent, data.len());
}

#[test]
fn a_stream_keeps_bytes_and_the_byte_that_carries_descriptors() {
    let (a, b) = UnixStream::pair().unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"in flight").unwrap();
    send(&a, b"hello ", &[]);
    send(&a, b"world", &[file.as_fd()]);
    send(&a, b"!tail", &[]);
    (&b).write_all(b"back").unwrap();
    let back = streams(vec![a.into(), b.into()]);
    assert_eq!(read(&back[0], 99), b"back");
    let mut got = Vec::new();
    for room in [6, 99, 99] {
        let piece = message::receive::<UnixAddr>(back[1].as_fd(), room, MsgFlags::empty()).unwrap();
        got.push((piece.data, piece.fds.len()));
    }
    let want = [(&b"hello "[..], 0), (b"world", 1), (b"!tail", 0)];
    assert_eq!(got, want.map(|(d, n)| (d.to_vec(), n)));
}

#[test]
fn a_capture_leaves_queue_and_peek_offset_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = UnixStream::pair().unwrap();
    send(&a, b"stays", &[]);
    set_int(b.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, 2).unwrap();
    capture(dir.path(), &[a.as_fd(), b.as_fd()]).unwrap();
    assert_eq!(
        int_option(b.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF),
        Some(2)
    );
    assert_eq!(read(&b, 99), b"stays");
}

#[test]
fn datagrams_and_records_keep_their_boundaries() {
    let (a, b) = UnixDatagram::pair().unwrap();
    for data in [&b"one"[..], b"", b"three"] {
        a.send(data).unwrap();
    }
    let (c, d) = seqpacket();
    send(&c, b"first", &[d.as_fd()]);
    send(&c, &[7; 100_000], &[]);
    let mut back = round_trip(vec![a.into(), b.into(), c, d]).unwrap();
    let (d, _c) = (back.pop().unwrap(), back.pop());
    let (b, a) = (
        UnixDatagram::from(back.pop().unwrap()),
        UnixDatagram::from(back.pop().unwrap()),
    );
    let mut buf = [0; 200_000];
    let lengths = [b.recv(&mut buf), b.recv(&mut buf), b.recv(&mut buf)].map(Result::unwrap);
    assert_eq!(lengths, [3, 0, 5]);
    b.send(b"other way").unwrap();
    assert_eq!(a.recv(&mut buf).unwrap(), 9);
    let first = message::peek::<UnixAddr>(d.as_fd(), 99).unwrap();
    assert_eq!((&first.data[..], first.fds.len()), (&b"first"[..], 1));
    let mut d = std::fs::File::from(d);
    assert_eq!(
        (d.read(&mut buf).unwrap(), d.read(&mut buf).unwrap()),
        (5, 100_000)
    );
}

#[test]
fn a_socket_in_its_own_queue_and_deep_chains_come_back() {
    let (a, b) = UnixStream::pair().unwrap();
    send(&a, b"me", &[b.as_fd()]);
    let mut inner: OwnedFd = tempfile::tempfile().unwrap().into();
    let mut ends = Vec::new();
    for _ in 0..200 {
        let (c, d) = UnixStream::pair().unwrap();
        send(&c, b"x", &[inner.as_fd()]);
        ends.push(OwnedFd::from(c));
        inner = d.into();
    }
    let mut fds = vec![a.into(), b.into(), inner];
    fds.append(&mut ends);
    let back = round_trip(fds).unwrap();
    let own = message::peek::<UnixAddr>(back[1].as_fd(), 9).unwrap();
    let (a, b) = (
        nix::sys::stat::fstat(&own.fds[0]).unwrap(),
        nix::sys::stat::fstat(&back[1]).unwrap(),
    );
    assert_eq!(a.st_ino, b.st_ino);
    let mut next = back[2].try_clone().unwrap();
    let mut depth = 0;
    while let Some(fd) = message::peek::<UnixAddr>(next.as_fd(), 9)
        .ok()
        .and_then(|mut m| m.fds.pop())
    {
        (next, depth) = (fd, depth + 1);
    }
    assert_eq!(depth, 200);
}

#[test]
fn a_listener_keeps_file_backlog_and_what_it_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server.sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let client = UnixStream::connect(&path).unwrap();
    let (server, _) = listener.accept().unwrap();
    send(&client, b"asked", &[]);
    let waiting = [
        UnixStream::connect(&path).unwrap(),
        UnixStream::connect(&path).unwrap(),
    ];
    let old = std::fs::metadata(&path).unwrap();
    let [first, second] = waiting.map(OwnedFd::from);
    let fds = vec![listener.into(), client.into(), server.into(), first, second];
    let mut back = round_trip(fds).unwrap();
    let new = std::fs::metadata(&path).unwrap();
    assert_eq!(new.mode(), old.mode());
    let clients = [back.pop(), back.pop()].map(|c| UnixStream::from(c.unwrap()));
    let (server, client) = (
        UnixStream::from(back.pop().unwrap()),
        UnixStream::from(back.pop().unwrap()),
    );
    let listener = UnixListener::from(back.pop().unwrap());
    assert_eq!(
        client.peer_addr().unwrap().as_pathname(),
        Some(path.as_path())
    );
    assert_eq!(
        server.local_addr().unwrap().as_pathname(),
        Some(path.as_path())
    );
    assert_eq!(read(&server, 99), b"asked");
    send(&clients[1], b"first", &[]);
    send(&clients[0], b"second", &[]);
    for want in [&b"first"[..], b"second"] {
        assert_eq!(read(&listener.accept().unwrap().0, 99), want);
    }
    let late = UnixStream::connect(&path).unwrap();
    send(&late, b"late", &[]);
    assert_eq!(read(&listener.accept().unwrap().0, 99), b"late");
    let names = std::fs::read_dir(dir.path()).unwrap();
    assert_eq!(names.count(), 1, "nothing was left beside the socket");
}

#[test]
fn abstract_names_unlinked_and_relative_paths_come_back() {
    use std::os::linux::net::SocketAddrExt;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::env::set_current_dir(dir.path()).unwrap();
    let name = dir.path().file_name().unwrap().as_encoded_bytes().to_vec();
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    let client = UnixStream::connect_addr(&address).unwrap();
    let (server, _) = listener.accept().unwrap();
    let relative = UnixListener::bind("./near.sock").unwrap();
    let unlinked = UnixListener::bind("far.sock").unwrap();
    let far = UnixStream::connect("far.sock").unwrap();
    let (far_server, _) = unlinked.accept().unwrap();
    std::fs::remove_file("far.sock").unwrap();
    std::fs::write("far.sock", "a file of another").unwrap();
    let fds = vec![
        listener.into(),
        client.into(),
        server.into(),
        relative.into(),
        unlinked.into(),
        far.into(),
        far_server.into(),
    ];
    let back = streams(fds);
    assert_eq!(
        back[1].peer_addr().unwrap().as_abstract_name(),
        Some(&name[..])
    );
    assert_eq!(
        back[2].local_addr().unwrap().as_abstract_name(),
        Some(&name[..])
    );
    assert_eq!(std::fs::read("far.sock").unwrap(), b"a file of another");
    assert_eq!(
        back[5].peer_addr().unwrap().as_pathname(),
        Some("far.sock".as_ref())
    );
    send(&back[5], b"through", &[]);
    assert_eq!(read(&back[6], 99), b"through");
    UnixStream::connect(dir.path().join("near.sock")).unwrap();
    assert_eq!(
        back[3].local_addr().unwrap().as_pathname(),
        Some("./near.sock".as_ref())
    );
    assert_eq!(
        std::env::current_dir().unwrap(),
        dir.path().canonicalize().unwrap()
    );
}

#[test]
fn a_closed_peer_gives_the_queue_then_the_end_or_a_reset() {
    let (a, gone) = UnixStream::pair().unwrap();
    send(&gone, b"last words", &[]);
    drop(gone);
    let (b, resets) = UnixStream::pair().unwrap();
    send(&b, b"never read", &[]);
    send(&resets, b"kept", &[]);
    drop(resets);
    let (c, d) = UnixStream::pair().unwrap();
    send(&c, b"half", &[]);
    c.shutdown(std::net::Shutdown::Write).unwrap();
    let back = streams(vec![a.into(), b.into(), c.into(), d.into()]);
    assert_eq!(
        (read(&back[0], 99), read(&back[0], 99)),
        (b"last words".to_vec(), vec![])
    );
    assert_eq!(nix::unistd::write(&back[0], b"x"), Err(Errno::EPIPE));
    assert_eq!(read(&back[1], 99), b"kept");
    let reset = (&back[1]).read(&mut [0; 9]).unwrap_err();
    assert_eq!(reset.raw_os_error(), Some(libc::ECONNRESET));
    assert_eq!(
        (read(&back[3], 99), read(&back[3], 99)),
        (b"half".to_vec(), vec![])
    );
    send(&back[3], b"still", &[]);
    assert_eq!(read(&back[2], 99), b"still");
}

#[test]
fn named_datagram_sockets_keep_senders_and_peers() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let server = UnixDatagram::bind(at("server")).unwrap();
    let client = UnixDatagram::bind(at("client")).unwrap();
    client.connect(at("server")).unwrap();
    client.send(b"from a client").unwrap();
    {
        let gone = UnixDatagram::bind(at("gone")).unwrap();
        gone.send_to(b"from the dead", at("server")).unwrap();
    }
    UnixDatagram::unbound()
        .unwrap()
        .send_to(b"from nobody", at("server"))
        .unwrap();
    let back = round_trip(vec![server.into(), client.into()]).unwrap();
    let mut back = back.into_iter().map(UnixDatagram::from);
    let (server, client) = (back.next().unwrap(), back.next().unwrap());
    client.send(b"again").unwrap();
    let mut got = Vec::new();
    for _ in 0..4 {
        let mut buf = [0; 99];
        let (n, from) = server.recv_from(&mut buf).unwrap();
        let from = from
            .as_pathname()
            .and_then(|p| p.file_name())
            .map(|n| n.to_str().unwrap().to_owned());
        got.push((String::from_utf8_lossy(&buf[..n]).into_owned(), from));
    }
    let want = [
        ("from a client", Some("client")),
        ("from the dead", Some("gone")),
        ("from nobody", None),
        ("again", Some("client")),
    ];
    assert_eq!(got, want.map(|(d, f)| (d.to_owned(), f.map(str::to_owned))));
}

#[test]
fn options_and_credentials_come_back() {
    let (a, b) = UnixStream::pair().unwrap();
    set_int(b.as_fd(), libc::SOL_SOCKET, libc::SO_PASSCRED, 1).unwrap();
    set_int(a.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, 50_000).unwrap();
    b.set_read_timeout(Some(Duration::from_millis(1500)))
        .unwrap();
    send(&a, b"who", &[]);
    let size = int_option(a.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF);
    let own = std::process::id() as i32;
    let names = |cx: &mut Capture<'_>| cx.set_pids([(own, own)].into());
    let back = round_trip_with(vec![a.into(), b.into()], names, HashMap::new()).unwrap();
    let back: Vec<_> = back.into_iter().map(UnixStream::from).collect();
    assert_eq!(
        int_option(back[0].as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF),
        size
    );
    assert_eq!(
        back[1].read_timeout().unwrap(),
        Some(Duration::from_millis(1500))
    );
    let got = message::peek::<UnixAddr>(back[1].as_fd(), 9).unwrap();
    let creds = got.creds.unwrap();
    assert_eq!((creds.0, creds.1), (own, 0));
}

#[test]
fn what_reaches_outside_of_the_pod_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (a, _outside) = UnixStream::pair().unwrap();
    let (_, refusals) = capture(dir.path(), &[a.as_fd()]).unwrap();
    let why = &refusals[0].why;
    assert!(
        why.contains(&format!("process {} of this host", std::process::id())),
        "{why}"
    );
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let client = UnixStream::connect(&path).unwrap();
    send(&client, b"unreachable", &[]);
    let other = tempfile::tempdir().unwrap();
    let (_, refusals) = capture(other.path(), &[listener.as_fd(), client.as_fd()]).unwrap();
    assert_eq!(
        (refusals.len(), refusals[0].fd),
        (1, Some(client.as_raw_fd()))
    );
    drop(client);
    let third = tempfile::tempdir().unwrap();
    let (_, refusals) = capture(third.path(), &[listener.as_fd()]).unwrap();
    assert_eq!(
        (refusals.len(), refusals[0].fd),
        (1, Some(listener.as_raw_fd()))
    );
}
