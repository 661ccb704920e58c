//! Round trips of terminal pairs.

use std::{
    collections::HashMap,
    fs::File,
    os::fd::AsFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::{read, write},
};

use super::*;
use crate::testing::{capture, round_trip, round_trip_with};

/// Terminals of this test's own: numbers are given in order, and other tests take some too.
fn own_terminals() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    if nix::unistd::geteuid().is_root() {
        let none: Option<&str> = None;
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let options = Some("newinstance,ptmxmode=0666");
        mount(none, "/dev/pts", Some("devpts"), MsFlags::empty(), options).unwrap();
        mount(
            Some("/dev/pts/ptmx"),
            "/dev/ptmx",
            none,
            MsFlags::MS_BIND,
            none,
        )
        .unwrap();
    }
    guard
}

fn master() -> OwnedFd {
    let master = File::options()
        .read(true)
        .write(true)
        .open("/dev/ptmx")
        .unwrap();
    ioctl::lock(&master, false).unwrap();
    master.into()
}

fn pair() -> (OwnedFd, OwnedFd) {
    let master = master();
    let slave = ioctl::slave_of(&master, libc::O_RDWR).unwrap();
    (master, slave)
}

fn take(fd: &OwnedFd) -> String {
    let mut buf = [0; 256];
    // A poll brings what a kernel worker still has.
    let ready = ioctl::ready(fd, nix::poll::PollFlags::POLLIN).unwrap();
    if !ready.contains(nix::poll::PollFlags::POLLIN) {
        return String::new();
    }
    let n = read(fd, &mut buf).unwrap_or(0);
    String::from_utf8_lossy(&buf[..n]).into_owned()
}

#[test]
fn modes_size_and_queues_come_back_and_stay() {
    let _own = own_terminals();
    let (master, slave) = pair();
    let number = ioctl::index(&master).unwrap();
    ioctl::set_size(&slave, [40, 132, 1, 2]).unwrap();
    write(&master, b"one\ntwo\nunfin").unwrap();
    while ioctl::waiting(&slave).unwrap() < 8 {
        std::thread::yield_now();
    }
    write(&slave, b"a line\nand more").unwrap();
    let kept = (master.try_clone().unwrap(), slave.try_clone().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let (ids, refused) = capture(dir.path(), &[slave.as_fd(), master.as_fd()]).unwrap();
    assert_eq!(refused, []);
    check(&kept.0, &kept.1);
    drop((kept, master, slave));
    let image = crate::image::Image::open(&dir.path().join("image")).unwrap();
    let mut builder = Builder::new(&image, HashMap::new());
    builder.build().unwrap();
    image.all_read().unwrap();
    let fd = |id| builder.object(id).unwrap().try_clone_to_owned().unwrap();
    let (slave, master) = (fd(ids[0]), fd(ids[1]));
    assert_eq!(ioctl::index(&master).unwrap(), number);
    assert_eq!(ioctl::size(&slave).unwrap(), [40, 132, 1, 2]);
    check(&master, &slave);
    drop((slave, builder));
    assert!(
        read(&master, &mut [0; 8]).is_err(),
        "the last slave is closed"
    );
}

/// The echo of the input, then the output; two lines and the beginning of a third.
fn check(master: &OwnedFd, slave: &OwnedFd) {
    assert_eq!(take(master), "one\r\ntwo\r\nunfina line\r\nand more");
    assert_eq!((take(slave), take(slave)), ("one\n".into(), "two\n".into()));
    assert_eq!(take(slave), "");
    write(master, b"ished\n").unwrap();
    while ioctl::waiting(slave).unwrap() == 0 {
        std::thread::yield_now();
    }
    assert_eq!(take(slave), "unfinished\n");
    assert_eq!(take(master), "ished\r\n");
}

#[test]
fn a_slave_without_its_master_stays_dead() {
    let _own = own_terminals();
    let (master, slave) = pair();
    drop(master);
    let back = round_trip(vec![slave]).unwrap();
    assert_eq!(
        ioctl::termios(&back[0]).unwrap_err().raw_os_error(),
        Some(libc::EIO)
    );
    assert_eq!(read(&back[0], &mut [0; 8]), Ok(0));
}

#[test]
fn a_master_knows_whether_there_was_a_slave() {
    let _own = own_terminals();
    let hung = |m: &OwnedFd| {
        let ready = ioctl::ready(m, nix::poll::PollFlags::POLLIN).unwrap();
        ready.contains(nix::poll::PollFlags::POLLHUP)
    };
    let (ended, slave) = pair();
    write(&slave, b"last words").unwrap();
    drop(slave);
    let fresh = master();
    let back = round_trip(vec![ended, fresh]).unwrap();
    assert!(hung(&back[0]) && !hung(&back[1]));
    assert_eq!(take(&back[0]), "last words");
}

#[test]
fn the_pods_own_terminal_is_bound_to_a_new_one() {
    let _own = own_terminals();
    let ((holder, slave), (new_holder, _new)) = (pair(), pair());
    write(&holder, b"typed ahead\n").unwrap();
    while ioctl::waiting(&slave).unwrap() == 0 {
        std::thread::yield_now();
    }
    let streams = HashMap::from([("tty".to_owned(), new_holder.try_clone().unwrap())]);
    let name = |cx: &mut Capture<'_>| cx.name_stream(holder.as_fd(), "tty").unwrap();
    let back = round_trip_with(vec![slave], name, streams).unwrap();
    assert_eq!(take(&back[0]), "typed ahead\n");
    write(&back[0], b"hello\n").unwrap();
    assert_eq!(take(&new_holder), "hello\r\n");
}

#[test]
fn a_terminal_of_somebody_else_is_refused() {
    let _own = own_terminals();
    let (_master, slave) = pair();
    let dir = tempfile::tempdir().unwrap();
    let (_, refused) = capture(dir.path(), &[slave.as_fd()]).unwrap();
    assert!(refused[0].why.contains("outside the pod"), "{refused:?}");
}
