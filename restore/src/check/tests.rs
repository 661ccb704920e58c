//! What a look says and what a capture says must be the same.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    process::Command,
};

use super::{
    Looked, Report,
    descriptors::{Seen, room},
    tasks,
};
use crate::testing::capture;

fn made(r: libc::c_long) -> Option<OwnedFd> {
    // SAFETY: a number that is not negative is a descriptor the kernel has just made for us.
    (r >= 0).then(|| unsafe { OwnedFd::from_raw_fd(r as i32) })
}

fn socket(family: i32, kind: i32, protocol: i32) -> Option<OwnedFd> {
    // SAFETY: plain values.
    made(unsafe { libc::socket(family, kind, protocol) }.into())
}

/// One descriptor of each kind that this host lets us make, by name.
fn zoo() -> Vec<(&'static str, Option<OwnedFd>)> {
    let open = |path: &str| File::open(path).ok().map(OwnedFd::from);
    let (pipe, _) = nix::unistd::pipe().unwrap();
    let (unix, _) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut setup = [0_u8; 120];
    // struct perf_event_attr: type (software), size, config (dummy).
    let mut perf = [0_u64; 16];
    perf[0] = 1 | (128 << 32);
    perf[1] = 9;
    // SAFETY: each call gets plain values or pointers to structures that live and are large enough.
    let calls = unsafe {
        [
            ("eventfd", libc::eventfd(0, 0).into()),
            ("epoll", libc::epoll_create1(0).into()),
            ("timerfd", libc::timerfd_create(1, 0).into()),
            ("inotify", libc::inotify_init1(0).into()),
            (
                "memfd",
                libc::syscall(libc::SYS_memfd_create, c"m".as_ptr(), 0),
            ),
            (
                "io_uring",
                libc::syscall(libc::SYS_io_uring_setup, 4, setup.as_mut_ptr()),
            ),
            (
                "perf",
                libc::syscall(libc::SYS_perf_event_open, perf.as_ptr(), 0, -1, -1, 0),
            ),
            ("userfaultfd", libc::syscall(libc::SYS_userfaultfd, 1)),
            ("secret memory", libc::syscall(libc::SYS_memfd_secret, 0)),
        ]
    };
    let mut zoo: Vec<_> = calls.map(|(name, r)| (name, made(r))).into();
    zoo.extend([
        ("pipe", Some(pipe)),
        ("unix", Some(unix.into())),
        ("file", tempfile::tempfile().ok().map(OwnedFd::from)),
        ("directory", open("/")),
        ("/dev/null", open("/dev/null")),
        ("/dev/net/tun", open("/dev/net/tun")),
        ("/dev/fuse", open("/dev/fuse")),
        ("/dev/kmsg", open("/dev/kmsg")),
        ("tcp", socket(libc::AF_INET, libc::SOCK_STREAM, 0)),
        ("udp", socket(libc::AF_INET6, libc::SOCK_DGRAM, 0)),
        ("netlink", socket(libc::AF_NETLINK, libc::SOCK_RAW, 0)),
        ("packet", socket(libc::AF_PACKET, libc::SOCK_RAW, 0)),
        (
            "raw",
            socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
        ),
        ("alg", socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)),
    ]);
    zoo
}

#[test]
fn a_look_and_a_capture_refuse_the_same() {
    let mut seen = 0;
    for (name, fd) in zoo() {
        let Some(fd) = fd else { continue };
        let look = Seen::of(std::process::id() as i32, fd.as_raw_fd()).unwrap();
        let looked = room(&look, Some(&fd));
        let dir = tempfile::tempdir().unwrap();
        let (_, refused) = capture(dir.path(), &[fd.as_fd()]).unwrap();
        assert_eq!(looked.is_err(), !refused.is_empty(), "{name}: {refused:?}");
        seen += 1;
    }
    assert!(seen > 15, "only {seen} kinds could be made");
}

#[test]
fn each_refusal_has_a_reason_of_its_own() {
    for (name, fd) in zoo() {
        let refused = [
            "io_uring",
            "perf",
            "userfaultfd",
            "secret memory",
            "packet",
            "alg",
        ];
        let Some(fd) = fd.filter(|_| refused.contains(&name)) else {
            continue;
        };
        let look = Seen::of(std::process::id() as i32, fd.as_raw_fd()).unwrap();
        let Err(reason) = room(&look, Some(&fd)) else {
            panic!("{name} would be carried");
        };
        assert!(!reason.why.starts_with("no room"), "{name}: {}", reason.why);
        assert!(!reason.hint.is_empty());
    }
}

/// A sleeping child of ours and what a look at its tasks brings.
fn look_at(mut command: Command) -> Vec<String> {
    let mut child = command.spawn().unwrap();
    let pid = child.id() as i32;
    while !std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c == "sleep\n") {
        std::thread::yield_now();
    }
    let mut report = Report::default();
    let looked = Looked { real: pid, virt: 7 };
    tasks::check(looked, (std::process::id() as i32, 0), &mut report);
    child.kill().unwrap();
    child.wait().unwrap();
    report.refusals.iter().map(ToString::to_string).collect()
}

#[test]
fn a_plain_process_is_fit_and_one_with_its_own_namespace_is_not() {
    let mut plain = Command::new("sleep");
    plain.arg("100");
    assert_eq!(look_at(plain), Vec::<String>::new());
    let mut own = Command::new("unshare");
    own.args(["--uts", "--ipc", "sleep", "100"]);
    let refused = look_at(own);
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(
        refused[0].starts_with("process 7: a ipc namespace"),
        "{refused:?}"
    );
}

#[test]
fn processes_that_share_a_table_are_found_among_others() {
    let own = std::process::id() as i32;
    let mut others: Vec<_> = (0..5)
        .map(|_| Command::new("sleep").arg("100").spawn().unwrap())
        .collect();
    let mut all: Vec<Looked> = (1..)
        .zip(&others)
        .map(|(virt, child)| Looked {
            real: child.id() as i32,
            virt,
        })
        .collect();
    let mut report = Report::default();
    tasks::check_sharing(&all, &mut report);
    assert_eq!(report.refusals, []);
    // Two names of one process share everything.
    all.insert(
        1,
        Looked {
            real: own,
            virt: 20,
        },
    );
    all.push(Looked {
        real: own,
        virt: 30,
    });
    tasks::check_sharing(&all, &mut report);
    let why: Vec<_> = report.refusals.iter().map(|r| r.why.as_str()).collect();
    assert_eq!(why.len(), 3, "{why:?}");
    assert!(why[0].contains("memory with process"), "{why:?}");
    for child in &mut others {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
