//! POSIX message queues, and descriptors of them.
//!
//! The queues of a namespace are the files of its `mqueue` file system, which we mount for
//! ourselves. Messages cannot be looked at, only received; so they are received and sent
//! again at once, in the same order, while the pod stands still. That would set off a
//! notification (mq_notify) that waits for a first message, so a queue with one is refused.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
};

use intercept::sys;
use nix::sys::{
    stat::{Mode, fchmod, fstat},
    statfs::{FsType, fstatfs},
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::{
    builder::Builder,
    capture::{Capture, Probe},
    error::{Error, Result},
    image::{Image, Record},
    resource::{Description, Room},
};

/// A queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Queue {
    /// Its name, without the slash.
    name: ByteBuf,
    /// Permissions, user and group.
    mode: u32,
    owner: (u32, u32),
    /// So many messages of so many bytes.
    capacity: (i64, i64),
    /// Messages in the order in which they are received: priority and text.
    messages: Vec<(u32, ByteBuf)>,
}

impl Record for Queue {
    const KIND: &'static str = "mqueue";
    const VERSION: u16 = 1;
}

/// The queues that were seen, with what is in the way of carrying them.
pub(super) struct Found(Vec<(Queue, Option<&'static str>)>);

/// Looks at all queues of the calling thread's namespace.
pub(super) fn look() -> Result<Found> {
    let failed = |step, e| Error::kernel(step, "POSIX message queues", e);
    let root = match mount() {
        // A kernel without them.
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => return Ok(Found(Vec::new())),
        root => root.map_err(|e| failed("mount", e))?,
    };
    let list = format!("/proc/self/fd/{}", root.as_raw_fd());
    let mut names = BTreeMap::new();
    for entry in fs::read_dir(&list).map_err(|e| failed("list", e))? {
        let entry = entry.map_err(|e| failed("list", e))?;
        let status = fs::read_to_string(entry.path()).map_err(|e| failed("read", e))?;
        names.insert(entry.file_name().into_vec(), status);
    }
    let queues = names.into_iter().map(|(name, status)| {
        let object = format!("message queue /{}", String::from_utf8_lossy(&name));
        look_at(name, &status).map_err(|e| Error::kernel("read", object, e))
    });
    Ok(Found(queues.collect::<Result<_>>()?))
}

/// The namespace's `mqueue` file system, attached nowhere.
fn mount() -> io::Result<OwnedFd> {
    const FSCONFIG_CMD_CREATE: u32 = 6;
    let none = std::ptr::null::<u8>();
    // SAFETY: the name is NUL-terminated.
    let fs = owned(unsafe { libc::syscall(libc::SYS_fsopen, c"mqueue".as_ptr(), 1) })?;
    let raw = fs.as_raw_fd();
    // SAFETY: the command takes neither key nor value.
    sys::check(unsafe {
        libc::syscall(libc::SYS_fsconfig, raw, FSCONFIG_CMD_CREATE, none, none, 0)
    })?;
    // SAFETY: plain values only.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, raw, 1, 0) })
}

fn owned(r: i64) -> io::Result<OwnedFd> {
    let fd = sys::check(r)? as i32;
    // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn open(name: &[u8], flags: i32, mode: u32, attr: Option<&Attr>) -> io::Result<OwnedFd> {
    let (name, attr) = (
        CString::new(name)?,
        attr.map_or(std::ptr::null(), std::ptr::from_ref),
    );
    let flags = flags | libc::O_CLOEXEC;
    // SAFETY: the name is NUL-terminated; `attr` is null or lives.
    owned(unsafe { libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, mode, attr) })
}

/// `struct mq_attr`: flags, capacity, size of a message, messages now.
type Attr = [i64; 8];

fn attributes(queue: BorrowedFd<'_>) -> io::Result<Attr> {
    let mut attr: Attr = [0; 8];
    let none = std::ptr::null::<Attr>();
    // SAFETY: `attr` has the size of struct mq_attr.
    let r = unsafe {
        libc::syscall(
            libc::SYS_mq_getsetattr,
            queue.as_raw_fd(),
            none,
            &raw mut attr,
        )
    };
    sys::check(r).map(|_| attr)
}

fn look_at(name: Vec<u8>, status: &str) -> io::Result<(Queue, Option<&'static str>)> {
    let fd = open(&name, libc::O_RDWR | libc::O_NONBLOCK, 0, None)?;
    let (stat, [_, most, size, waiting, ..]) = (fstat(&fd)?, attributes(fd.as_fd())?);
    let notifies =
        !status.contains("NOTIFY_PID:0 ") && !status.trim_end().ends_with("NOTIFY_PID:0");
    let obstacle = notifies.then_some("a process waits for its notification (mq_notify)");
    let messages = if obstacle.is_none() && waiting > 0 {
        take_and_put(fd.as_fd(), size as usize)?
    } else {
        Vec::new()
    };
    let queue = Queue {
        name: name.into(),
        mode: stat.st_mode & 0o7777,
        owner: (stat.st_uid, stat.st_gid),
        capacity: (most, size),
        messages,
    };
    Ok((queue, obstacle))
}

/// Receives all messages and sends them again.
fn take_and_put(queue: BorrowedFd<'_>, size: usize) -> io::Result<Vec<(u32, ByteBuf)>> {
    let mut taken = Vec::new();
    let received = loop {
        match receive(queue, size) {
            Ok(message) => taken.push(message),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break Ok(()),
            Err(e) => break Err(e),
        }
    };
    for (priority, text) in &taken {
        send(queue, *priority, text)?;
    }
    received.map(|()| taken)
}

fn receive(queue: BorrowedFd<'_>, size: usize) -> io::Result<(u32, ByteBuf)> {
    let (mut text, mut priority, fd) = (vec![0u8; size], 0u32, queue.as_raw_fd());
    let (at, prio, none) = (text.as_mut_ptr(), &raw mut priority, std::ptr::null::<u8>());
    // SAFETY: room for `size` bytes and a priority; no time-out.
    let n = unsafe { libc::syscall(libc::SYS_mq_timedreceive, fd, at, size, prio, none) };
    text.truncate(sys::check(n)? as usize);
    Ok((priority, text.into()))
}

fn send(queue: BorrowedFd<'_>, priority: u32, text: &[u8]) -> io::Result<()> {
    let (fd, at, none) = (queue.as_raw_fd(), text.as_ptr(), std::ptr::null::<u8>());
    // SAFETY: the text is as long as said; no time-out.
    let r = unsafe { libc::syscall(libc::SYS_mq_timedsend, fd, at, text.len(), priority, none) };
    sys::check(r).map(drop)
}

impl Found {
    pub(super) fn record(self, cx: &mut Capture<'_>) -> Result<()> {
        for (id, (queue, obstacle)) in (1..).zip(self.0) {
            if let Some(why) = obstacle {
                let what = format!("message queue /{}", String::from_utf8_lossy(&queue.name));
                cx.refuse_process(1, &what, why, "let it give its notification up");
                continue;
            }
            cx.writer.record(id, &queue)?;
        }
        Ok(())
    }
}

/// Makes all queues of an image.
pub(super) fn rebuild(image: &Image) -> Result<()> {
    for queue in image.all::<Queue>()?.values() {
        let object = || format!("message queue /{}", String::from_utf8_lossy(&queue.name));
        queue
            .make()
            .map_err(|e| Error::kernel("make", object(), e))?;
    }
    Ok(())
}

impl Queue {
    fn make(&self) -> io::Result<()> {
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | libc::O_NONBLOCK;
        let attr: Attr = [0, self.capacity.0, self.capacity.1, 0, 0, 0, 0, 0];
        let fd = open(&self.name, flags, 0o600, Some(&attr))?;
        for (priority, text) in &self.messages {
            send(fd.as_fd(), *priority, text)?;
        }
        fchmod(&fd, Mode::from_bits_truncate(self.mode))?;
        let (user, group) = (self.owner.0.into(), self.owner.1.into());
        nix::unistd::fchown(&fd, Some(user), Some(group))?;
        Ok(())
    }
}

/// A descriptor of a queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mqueue {
    /// The queue's name, without the slash.
    name: ByteBuf,
    /// `F_GETFL`.
    flags: i32,
}

impl Record for Mqueue {
    const KIND: &'static str = "mqueue-descriptor";
    const VERSION: u16 = 1;
}

/// `MQUEUE_MAGIC` of ipc/mqueue.c.
const MAGIC: FsType = FsType(0x1980_0202);

impl Room for Mqueue {
    fn capture(probe: &Probe, cx: &mut Capture<'_>) -> Result<Option<Self>> {
        if probe.file_type() != libc::S_IFREG {
            return Ok(None);
        }
        let fs = fstatfs(&probe.file).map_err(|e| Error::kernel("fstatfs", probe.name(), e))?;
        if fs.filesystem_type() != MAGIC {
            return Ok(None);
        }
        if probe.stat.st_nlink == 0 {
            cx.refuse(
                probe,
                "a message queue whose name was removed",
                "close it before the checkpoint",
            );
            return Ok(None);
        }
        let name = probe.link.file_name().unwrap_or_default().as_bytes();
        let (name, flags) = (ByteBuf::from(name), probe.flags);
        Ok(Some(Self { name, flags }))
    }
}

impl Description for Mqueue {
    fn rebuild(&self, _builder: &mut Builder<'_>) -> Result<OwnedFd> {
        let flags = self.flags & (libc::O_ACCMODE | libc::O_NONBLOCK);
        let object = || format!("message queue /{}", String::from_utf8_lossy(&self.name));
        open(&self.name, flags, 0, None).map_err(|e| Error::kernel("mq_open", object(), e))
    }
}

/// Used by the tests beside this file.
#[cfg(test)]
pub(super) fn open_for_test(name: &[u8], capacity: (i64, i64)) -> fs::File {
    let attr: Attr = [0, capacity.0, capacity.1, 0, 0, 0, 0, 0];
    let flags = libc::O_CREAT | libc::O_RDWR | libc::O_NONBLOCK;
    open(name, flags, 0o640, Some(&attr)).unwrap().into()
}

#[cfg(test)]
pub(super) fn exchange_for_test(queue: &fs::File, give: &[(u32, &[u8])]) -> Vec<(u32, Vec<u8>)> {
    for (priority, text) in give {
        send(queue.as_fd(), *priority, text).unwrap();
    }
    let size = attributes(queue.as_fd()).unwrap()[2] as usize;
    std::iter::from_fn(|| receive(queue.as_fd(), size).ok())
        .map(|(priority, text)| (priority, text.into_vec()))
        .take(if give.is_empty() { usize::MAX } else { 0 })
        .collect()
}
