//! Round trips from one IPC namespace to another, each of the test's own.

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::mpsc::{Receiver, Sender, channel},
};

use super::*;
use crate::{capture::Probe, image::Writer};

/// A thread with an IPC namespace of its own, which runs what it is given.
struct Namespace {
    work: Sender<Box<dyn FnOnce() + Send>>,
    tid: i32,
}

impl Namespace {
    fn new() -> Self {
        let (work, todo): (Sender<Box<dyn FnOnce() + Send>>, Receiver<_>) = channel();
        let (tell, told) = channel();
        std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWIPC).unwrap();
            tell.send(nix::unistd::gettid().as_raw()).unwrap();
            todo.into_iter().for_each(|work| work());
        });
        let tid = told.recv().unwrap();
        Self { work, tid }
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        let work = move || drop(tell.send(work()));
        self.work.send(Box::new(work)).unwrap();
        told.recv().unwrap()
    }
}

fn through_an_image(old: &Namespace, new: &Namespace, dir: &Path) -> Vec<crate::Refusal> {
    let path = dir.join("image");
    let mut writer = Writer::create(&path).unwrap();
    let mut cx = Capture::new(&mut writer);
    capture(old.tid, &mut cx).unwrap();
    let refusals = cx.refusals().to_vec();
    drop(cx);
    writer.finish().unwrap();
    let again: PathBuf = path.clone();
    if refusals.is_empty() {
        new.run(move || {
            let image = Image::open(&again).unwrap();
            rebuild(&image).unwrap();
            image.all_read().unwrap();
        });
    }
    refusals
}

fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn shm(key: i32, size: usize, flags: i32) -> i32 {
    // SAFETY: plain values only.
    unsafe { libc::shmget(key, size, flags) }
}

fn attach(id: i32) -> &'static mut [u8] {
    // SAFETY: the kernel chooses the address.
    let at = unsafe { libc::shmat(id, std::ptr::null(), 0) };
    assert_ne!(at.addr(), usize::MAX);
    // SAFETY: segments of these tests have at least two pages.
    unsafe { std::slice::from_raw_parts_mut(at.cast(), 8192) }
}

#[test]
fn segments_keep_id_key_contents_owner_and_mark() {
    if !root() {
        return;
    }
    let (old, new) = (Namespace::new(), Namespace::new());
    let create = libc::IPC_CREAT | libc::IPC_EXCL;
    let (named, removed) = old.run(move || {
        // The first id is used up, so that the ids are not those a fresh namespace gives.
        let first = shm(libc::IPC_PRIVATE, 4096, 0o600);
        // SAFETY: the command takes no argument.
        unsafe { libc::shmctl(first, libc::IPC_RMID, std::ptr::null_mut()) };
        let named = shm(0x1234, 1 << 30, create | 0o640);
        attach(named)[5000..5005].copy_from_slice(b"hello");
        let removed = shm(libc::IPC_PRIVATE, 8192, 0o600);
        attach(removed)[0] = 7;
        // SAFETY: the command takes no argument.
        unsafe { libc::shmctl(removed, libc::IPC_RMID, std::ptr::null_mut()) };
        (named, removed)
    });
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(through_an_image(&old, &new, dir.path()), []);
    assert!(
        fs::metadata(dir.path().join("image/pages.img"))
            .unwrap()
            .len()
            < 1 << 20
    );
    let image = dir.path().join("image");
    new.run(move || {
        assert_eq!(shm(0x1234, 0, 0), named);
        assert_eq!(&attach(named)[5000..5005], b"hello");
        assert_eq!(attach(removed)[..2], [7, 0]);
        settle(&Image::open(&image).unwrap()).unwrap();
        let rows = perm::rows("shm").unwrap();
        let modes: Vec<_> = rows.iter().map(|r| (r.id(), r.perm(7).mode)).collect();
        assert_eq!(modes, [(named, 0o640), (removed, 0o1600)]);
        assert_eq!(rows[0].column(3), 1 << 30);
    });
}

#[test]
fn semaphores_and_their_values_come_back() {
    if !root() {
        return;
    }
    let (old, new) = (Namespace::new(), Namespace::new());
    let id = old.run(|| {
        // SAFETY: plain values only.
        let id = unsafe { libc::semget(77, 3, libc::IPC_CREAT | 0o666) };
        let values = [4u16, 0, 65];
        // SAFETY: a value for each of the three.
        let r = unsafe { libc::semctl(id, 0, libc::SETALL, values.as_ptr()) };
        assert_eq!(r, 0);
        // SAFETY: plain data for which zero is a valid value.
        let mut status: libc::semid_ds = unsafe { std::mem::zeroed() };
        (
            status.sem_perm.uid,
            status.sem_perm.gid,
            status.sem_perm.mode,
        ) = (33, 44, 0o604);
        // SAFETY: `status` outlives the call.
        let r = unsafe { libc::semctl(id, 0, libc::IPC_SET, &raw mut status) };
        assert_eq!(r, 0);
        id
    });
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(through_an_image(&old, &new, dir.path()), []);
    new.run(move || {
        // SAFETY: plain values only.
        assert_eq!(unsafe { libc::semget(77, 3, 0) }, id);
        // SAFETY: plain values only.
        let value = |n| unsafe { libc::semctl(id, n, libc::GETVAL) };
        assert_eq!([value(0), value(1), value(2)], [4, 0, 65]);
        let perm = perm::rows("sem").unwrap()[0].perm(4);
        assert_eq!(
            (perm.mode, perm.owner, perm.creator),
            (0o604, (33, 44), (0, 0))
        );
    });
}

#[test]
fn messages_keep_type_and_order() {
    if !root() {
        return;
    }
    let (old, new) = (Namespace::new(), Namespace::new());
    let send = |id: i32, kind: i64, text: &[u8]| {
        let message = [&kind.to_ne_bytes()[..], text].concat();
        // SAFETY: a type and `text.len()` bytes.
        let r = unsafe { libc::msgsnd(id, message.as_ptr().cast(), text.len(), 0) };
        assert_eq!(r, 0);
    };
    let id = old.run(move || {
        // SAFETY: plain values only.
        let id = unsafe { libc::msgget(5, libc::IPC_CREAT | 0o600) };
        send(id, 3, b"three");
        send(id, 1, b"");
        send(id, 9, &[8; 5000]);
        id
    });
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(through_an_image(&old, &new, dir.path()), []);
    let receive = move || {
        let mut got = Vec::new();
        let mut buf = [0i64; 1025];
        loop {
            let flags = libc::IPC_NOWAIT;
            // SAFETY: room for a type and 8192 bytes.
            let n = unsafe { libc::msgrcv(id, buf.as_mut_ptr().cast(), 8192, 0, flags) };
            if n < 0 {
                return got;
            }
            got.push((buf[0], n));
        }
    };
    let all = [(3, 5), (1, 0), (9, 5000)];
    assert_eq!(new.run(receive), all);
    assert_eq!(old.run(receive), all, "the original kept its messages");
}

#[test]
fn posix_queues_limits_and_descriptors_come_back() {
    if !root() {
        return;
    }
    let (old, new) = (Namespace::new(), Namespace::new());
    let give: [(u32, &[u8]); 3] = [(1, b"low"), (5, b"high"), (1, b"low too")];
    let in_order = || {
        vec![
            (5, b"high".to_vec()),
            (1, b"low".to_vec()),
            (1, b"low too".to_vec()),
        ]
    };
    let queue = old.run(move || {
        fs::write("/proc/sys/fs/mqueue/msg_max", "20").unwrap();
        let queue = mqueue::open_for_test(b"jobs", (20, 100));
        mqueue::exchange_for_test(&queue, &give);
        queue
    });
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(through_an_image(&old, &new, dir.path()), []);
    let own = queue.try_clone().unwrap();
    assert_eq!(mqueue::exchange_for_test(&own, &[]), in_order());
    let probe = Probe::new(1, Some(3), OwnedFd::from(queue)).unwrap();
    let image = dir.path().join("two");
    let mut writer = Writer::create(&image).unwrap();
    let mut cx = Capture::new(&mut writer);
    let id = cx.description(&probe).unwrap();
    assert_eq!(cx.refusals(), []);
    drop(cx);
    writer.finish().unwrap();
    let again = new.run(move || {
        assert_eq!(
            read_limit("fs/mqueue/msg_max").unwrap().as_deref(),
            Some("20")
        );
        let image = Image::open(&image).unwrap();
        let mut builder = crate::builder::Builder::new(&image, std::collections::HashMap::new());
        builder.build().unwrap();
        File::from(builder.object(id).unwrap().try_clone_to_owned().unwrap())
    });
    assert_eq!(mqueue::exchange_for_test(&again, &[]), in_order());
}

#[test]
fn the_hosts_own_namespace_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(&dir.path().join("image")).unwrap();
    let mut cx = Capture::new(&mut writer);
    capture(std::process::id() as i32, &mut cx).unwrap();
    drop(cx);
    writer.finish().unwrap();
    let image = Image::open(&dir.path().join("image")).unwrap();
    assert_eq!(image.envelopes().count(), 0);
}

/// A child that has used SEM_UNDO, until the test is done with it.
fn undoing(id: i32) -> i32 {
    // SAFETY: the child makes system calls only, and ends by the parent's signal.
    let child = unsafe { intercept::sys::clone3(intercept::sys::Clone3::default()) }.unwrap();
    if child == 0 {
        let mut up = libc::sembuf {
            sem_num: 0,
            sem_op: 1,
            sem_flg: libc::SEM_UNDO as i16,
        };
        // SAFETY: one operation.
        unsafe { libc::semop(id, &raw mut up, 1) };
        loop {
            // SAFETY: waits for the signal that ends it.
            unsafe { libc::pause() };
        }
    }
    child
}

#[test]
fn what_cannot_be_undone_elsewhere_is_refused() {
    // SAFETY: plain values only.
    let id = unsafe { libc::semget(libc::IPC_PRIVATE, 1, 0o600) };
    let child = undoing(id);
    // SAFETY: plain values only.
    while unsafe { libc::semctl(id, 0, libc::GETVAL) } == 0 {
        std::thread::yield_now();
    }
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(&dir.path().join("image")).unwrap();
    let mut cx = Capture::new(&mut writer);
    let own = std::process::id() as i32;
    cx.set_pids(std::collections::HashMap::from([(child, 8), (own, 9)]));
    sem::refuse_undo(own, &mut cx).unwrap();
    let refused: Vec<_> = cx.refusals().iter().map(|r| r.pid).collect();
    // SAFETY: ends our own child, and removes our own set.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
        libc::semctl(id, 0, libc::IPC_RMID);
    }
    assert_eq!(refused, [8]);
}
