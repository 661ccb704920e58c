use std::{
    collections::HashMap,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    process::Command,
    sync::mpsc,
};

use super::*;
use crate::{
    network::{LostConnections, NetMode},
    resource::socket::set_int,
    testing::{capture_with, own_network, round_trip, round_trip_with},
};

fn pair(at: &str) -> (TcpListener, TcpStream, TcpStream) {
    let listener = TcpListener::bind(at).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    (listener, client, server)
}

fn streams(fds: Vec<OwnedFd>) -> Vec<TcpStream> {
    round_trip(fds)
        .unwrap()
        .into_iter()
        .map(TcpStream::from)
        .collect()
}

/// Writes a pattern until nobody takes any more; how much it was.
fn stuff(mut to: &TcpStream) -> usize {
    to.set_nonblocking(true).unwrap();
    let mut done = 0;
    loop {
        let piece: Vec<u8> = (done..done + 5000).map(|i| (i % 251) as u8).collect();
        match to.write(&piece) {
            Ok(n) => done += n,
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::WouldBlock);
                to.set_nonblocking(false).unwrap();
                return done;
            }
        }
    }
}

fn expect(mut from: &TcpStream, len: usize) {
    let mut data = vec![0; len];
    from.read_exact(&mut data).unwrap();
    let right = data.iter().enumerate().all(|(i, b)| *b == (i % 251) as u8);
    assert!(right, "the bytes are those that were written");
}

fn new() -> OwnedFd {
    socket::new_socket(AddressFamily::Inet, nix::sys::socket::SockType::Stream).unwrap()
}

fn say(mut to: &TcpStream, what: &[u8]) {
    to.write_all(what).unwrap();
}

fn hear(mut from: &TcpStream) -> Vec<u8> {
    let mut data = vec![0; 999];
    let n = from.read(&mut data).unwrap();
    data.truncate(n);
    data
}

#[test]
fn listeners_keep_address_backlog_and_options() {
    own_network();
    let both = TcpListener::bind("[::]:7001").unwrap();
    let v4 = TcpListener::bind("127.0.0.1:7002").unwrap();
    set_int(v4.as_fd(), IPPROTO_TCP, libc::TCP_NODELAY, 1).unwrap();
    let back = round_trip(vec![both.into(), v4.into()]).unwrap();
    let backlogs = back
        .iter()
        .map(|fd| repair::Info::of(fd.as_fd()).unwrap().backlog());
    assert_eq!(backlogs.collect::<Vec<_>>(), [128, 128]);
    let mut back = back.into_iter().map(TcpListener::from);
    for at in ["127.0.0.1:7001", "127.0.0.1:7002"] {
        let listener = back.next().unwrap();
        let client = TcpStream::connect(at).unwrap();
        let (server, from) = listener.accept().unwrap();
        assert_eq!(from.port(), client.local_addr().unwrap().port());
        assert_eq!(server.nodelay().unwrap(), at.ends_with('2'));
    }
}

#[test]
fn both_ends_of_a_loopback_connection_lose_nothing() {
    own_network();
    for at in ["127.0.0.1:0", "[::1]:0"] {
        let (listener, client, server) = pair(at);
        let (up, down) = (stuff(&client), stuff(&server));
        let names = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let mut back = round_trip(vec![client.into(), server.into(), listener.into()]).unwrap();
        let listener = TcpListener::from(back.pop().unwrap());
        let back: Vec<_> = back.into_iter().map(TcpStream::from).collect();
        assert_eq!(
            (back[0].local_addr().unwrap(), back[0].peer_addr().unwrap()),
            names
        );
        let [a, b] = [&back[0], &back[1]];
        std::thread::scope(|scope| {
            scope.spawn(|| expect(a, down));
            expect(b, up);
        });
        say(a, b"and on");
        assert_eq!(hear(b), b"and on");
        TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    }
}

#[test]
fn a_dual_stack_server_and_its_client_find_each_other() {
    own_network();
    let listener = TcpListener::bind("[::]:7003").unwrap();
    let client = TcpStream::connect("127.0.0.1:7003").unwrap();
    let (server, _) = listener.accept().unwrap();
    say(&client, b"mapped");
    let back = streams(vec![server.into(), client.into()]);
    assert_eq!(hear(&back[0]), b"mapped");
    say(&back[0], b"back");
    assert_eq!(hear(&back[1]), b"back");
}

#[test]
fn half_closed_connections_stay_half_closed() {
    own_network();
    let (_l, client, server) = pair("127.0.0.1:0");
    say(&client, b"last");
    client.shutdown(Shutdown::Write).unwrap();
    let back = streams(vec![client.into(), server.into()]);
    assert_eq!((hear(&back[1]), hear(&back[1])), (b"last".to_vec(), vec![]));
    say(&back[1], b"answer");
    assert_eq!(hear(&back[0]), b"answer");
    back[1].shutdown(Shutdown::Write).unwrap();
    assert_eq!(hear(&back[0]), b"");
}

#[test]
fn a_closed_far_end_gives_what_it_sent_then_the_end() {
    own_network();
    let (_l, client, server) = pair("127.0.0.1:0");
    say(&server, b"bye");
    drop(server);
    let back = streams(vec![client.into()]);
    assert_eq!((hear(&back[0]), hear(&back[0])), (b"bye".to_vec(), vec![]));
}

/// Captures here, rebuilds in a new network namespace.
fn elsewhere(fds: &[OwnedFd]) -> Vec<OwnedFd> {
    let dir = tempfile::tempdir().unwrap();
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let (ids, refused) = capture_with(dir.path(), &borrowed, |_| ()).unwrap();
    assert_eq!(refused, []);
    own_network();
    let image = Image::open(&dir.path().join("image")).unwrap();
    let mut builder = crate::builder::Builder::new(&image, HashMap::new());
    builder.build().unwrap();
    image.all_read().unwrap();
    let give = |id: &u32| builder.object(*id).unwrap().try_clone_to_owned().unwrap();
    ids.iter().map(give).collect()
}

#[test]
fn what_was_closed_or_begun_comes_back_in_another_network() {
    own_network();
    let (listener, client, server) = pair("127.0.0.1:7008");
    say(&server, b"bye");
    drop(server);
    let connecting = new();
    let nowhere: nix::sys::socket::SockaddrIn = "127.0.0.1:7009".parse().unwrap();
    let full = TcpListener::bind("127.0.0.1:7009").unwrap();
    nix::sys::socket::listen(&full, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let first = TcpStream::connect("127.0.0.1:7009").unwrap();
    TcpStream::from(connecting.try_clone().unwrap())
        .set_nonblocking(true)
        .unwrap();
    let begun = nix::sys::socket::connect(connecting.as_raw_fd(), &nowhere);
    assert_eq!(begun, Err(Errno::EINPROGRESS));
    let fds = vec![
        listener.into(),
        client.into(),
        full.into(),
        first.into(),
        connecting,
    ];
    let mut back = elsewhere(&fds);
    let connecting = TcpStream::from(back.pop().unwrap());
    let (_first, full) = (back.pop(), TcpListener::from(back.remove(2)));
    let client = TcpStream::from(back.pop().unwrap());
    assert_eq!((hear(&client), hear(&client)), (b"bye".to_vec(), vec![]));
    assert_eq!(
        connecting.peer_addr().unwrap_err().raw_os_error(),
        Some(libc::ENOTCONN)
    );
    full.accept().unwrap();
    let (second, _) = full.accept().unwrap();
    let mut ready = [nix::poll::PollFd::new(
        connecting.as_fd(),
        PollFlags::POLLOUT,
    )];
    nix::poll::poll(&mut ready, nix::poll::PollTimeout::NONE).unwrap();
    say(&second, b"welcome");
    connecting.set_nonblocking(false).unwrap();
    assert_eq!(hear(&connecting), b"welcome");
}

#[test]
fn clients_that_wait_are_accepted_later() {
    own_network();
    let listener = TcpListener::bind("127.0.0.1:7004").unwrap();
    let client = TcpStream::connect("127.0.0.1:7004").unwrap();
    let name = client.local_addr().unwrap();
    let mut back = round_trip(vec![client.into(), listener.into()]).unwrap();
    let listener = TcpListener::from(back.pop().unwrap());
    let client = TcpStream::from(back.pop().unwrap());
    say(&client, b"hello");
    let (server, from) = listener.accept().unwrap();
    assert_eq!((from, hear(&server)), (name, b"hello".to_vec()));
}

#[test]
fn what_only_accept_can_reach_is_refused() {
    own_network();
    let listener = TcpListener::bind("127.0.0.1:7005").unwrap();
    let client = TcpStream::connect("127.0.0.1:7005").unwrap();
    say(&client, b"in the child's queue");
    while intercept::sys::ioctl_get_int(client.as_fd(), libc::TIOCOUTQ).unwrap() > 0 {
        std::thread::yield_now();
    }
    let dir = tempfile::tempdir().unwrap();
    let (_, refused) =
        capture_with(dir.path(), &[listener.as_fd(), client.as_fd()], |_| ()).unwrap();
    assert_eq!(
        (refused.len(), refused[0].fd),
        (1, Some(client.as_raw_fd()))
    );
}

#[test]
fn a_connection_that_leaves_the_pod_is_named_or_reset() {
    own_network();
    let (_l, client, outside) = pair("127.0.0.1:0");
    say(&outside, b"still readable");
    let dir = tempfile::tempdir().unwrap();
    let shared = |lost| {
        move |cx: &mut Capture<'_>| (cx.network.mode, cx.network.lost) = (NetMode::Shared, lost)
    };
    let refuse = shared(LostConnections::Refuse);
    let (_, refused) = capture_with(dir.path(), &[client.as_fd()], refuse).unwrap();
    let far = client.peer_addr().unwrap().to_string();
    assert!(refused[0].why.contains(&far), "{refused:?}");
    say(&outside, b", unharmed");
    let reset = shared(LostConnections::Reset);
    let back = round_trip_with(vec![client.into()], reset, HashMap::new()).unwrap();
    let client = TcpStream::from(back.into_iter().next().unwrap());
    assert_eq!(hear(&client), b"still readable, unharmed");
    let error = (&client).read(&mut [0; 9]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn what_has_ended_or_not_begun_comes_back_so() {
    own_network();
    let (_l, finished, far) = pair("127.0.0.1:0");
    say(&far, b"unread");
    far.shutdown(Shutdown::Write).unwrap();
    finished.shutdown(Shutdown::Write).unwrap();
    let (_l2, was_reset, far2) = pair("127.0.0.1:0");
    say(&was_reset, b"never read");
    drop((far, far2));
    let new =
        || socket::new_socket(AddressFamily::Inet, nix::sys::socket::SockType::Stream).unwrap();
    let (bound, fresh) = (new(), new());
    let here: nix::sys::socket::SockaddrIn = "127.0.0.1:7006".parse().unwrap();
    nix::sys::socket::bind(bound.as_raw_fd(), &here).unwrap();
    let fds = vec![finished.into(), was_reset.into(), bound, fresh];
    let back = streams(fds);
    assert_eq!(
        (hear(&back[0]), hear(&back[0])),
        (b"unread".to_vec(), vec![])
    );
    let error = (&back[1]).read(&mut [0; 9]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(back[2].local_addr().unwrap().to_string(), "127.0.0.1:7006");
    let error = (&back[3]).read(&mut [0; 9]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
}

#[test]
fn a_taken_port_gives_way_and_the_table_is_told() {
    own_network();
    let virt: SocketAddr = "127.0.0.1:7010".parse().unwrap();
    let (listener, client, server) = pair("127.0.0.1:7010");
    say(&client, b"across");
    let waiting = TcpStream::connect(virt).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let fds = [
        listener.as_fd(),
        client.as_fd(),
        server.as_fd(),
        waiting.as_fd(),
    ];
    let (ids, refused) = capture_with(dir.path(), &fds, |_| ()).unwrap();
    assert_eq!(refused, []);
    // The captured ones live on beside those that are rebuilt: every port is taken.
    let image = Image::open(&dir.path().join("image")).unwrap();
    let mut strict = crate::builder::Builder::new(&image, HashMap::new());
    assert!(matches!(strict.make(), Err(Error::Unfit { .. })));
    let mut builder = crate::builder::Builder::new(&image, HashMap::new());
    builder.network.mode = NetMode::Shared;
    builder.build().unwrap();
    let give = |id: &u32| builder.object(*id).unwrap().try_clone_to_owned().unwrap();
    let new = TcpListener::from(give(&ids[0]));
    let ends = [
        TcpStream::from(give(&ids[1])),
        TcpStream::from(give(&ids[2])),
    ];
    let real = new.local_addr().unwrap();
    assert_ne!(real, virt);
    assert_eq!(builder.network.endpoints.real_of(virt), Some(real));
    assert_eq!(hear(&ends[1]), b"across");
    say(&ends[1], b"and back");
    assert_eq!(hear(&ends[0]), b"and back");
    let names = builder.network.local(ends[1].as_fd()).unwrap();
    assert_eq!(names, virt);
    new.accept().unwrap();
    let mut told = intercept::names::Endpoints::default();
    builder
        .network
        .made()
        .iter()
        .for_each(|made| made.tell(&mut told));
    assert_eq!(told.real_of(virt), Some(real));
}

fn ip(arguments: &str) {
    let done = Command::new("ip")
        .args(arguments.split(' '))
        .status()
        .unwrap();
    assert!(done.success(), "ip {arguments}");
}

/// A far host: a thread in a network namespace of its own that connects to 10.77.0.1:7007.
fn far_host(tid: &mpsc::Sender<i32>, go: &mpsc::Receiver<()>) -> TcpStream {
    own_network();
    tid.send(nix::unistd::gettid().as_raw()).unwrap();
    go.recv().unwrap();
    ip("addr add 10.77.0.2/24 dev far");
    ip("link set far up");
    TcpStream::connect("10.77.0.1:7007").unwrap()
}

#[test]
fn a_connection_to_a_far_host_goes_on_where_the_address_moves() {
    own_network();
    let ((tid, get_tid), (go, wait)) = (mpsc::channel(), mpsc::channel());
    let far = std::thread::spawn(move || {
        let streams = [
            far_host(&tid, &wait),
            TcpStream::connect("10.77.0.1:7007").unwrap(),
        ];
        say(&streams[0], b"before");
        streams[1].shutdown(Shutdown::Write).unwrap();
        streams
    });
    let tid = get_tid.recv().unwrap();
    ip(&format!(
        "link add near type veth peer name far netns {tid}"
    ));
    ip("addr add 10.77.0.1/24 dev near");
    ip("link set near up");
    let listener = TcpListener::bind("10.77.0.1:7007").unwrap();
    go.send(()).unwrap();
    let (a, b) = (listener.accept().unwrap().0, listener.accept().unwrap().0);
    let [far_a, far_b] = far.join().unwrap();
    let mut first = [0; 3];
    a.peek(&mut first).unwrap();
    b.peek(&mut first).unwrap();
    let back = streams(vec![a.into(), b.into()]);
    assert_eq!(hear(&back[0]), b"before");
    say(&far_a, b"after");
    assert_eq!(hear(&back[0]), b"after");
    let much = stuff(&back[0]);
    expect(&far_a, much);
    assert_eq!(hear(&back[1]), b"");
    say(&back[1], b"half open");
    assert_eq!(hear(&far_b), b"half open");
}
