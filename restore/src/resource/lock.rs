//! Locks on files.
//!
//! flock(2) locks and "open file description" locks belong to a description: the builder
//! takes them again through it. Classic POSIX locks belong to a process, and the close of
//! any descriptor of the file gives them up: so the process itself takes them, after the
//! last descriptor of ours in it is closed. The kernel shows a lock in the fdinfo of the
//! descriptor it was taken through; those of a description in that of our duplicate, those
//! of a process only in its own.
//!
//! A lock that somebody else holds on the destination is an error: it cannot be shared.

use std::{
    fs, io,
    os::fd::{AsRawFd, BorrowedFd},
};

use intercept::sys;
use serde::{Deserialize, Serialize};

use super::{ObjectId, files::Slot};
use crate::{
    capture::{Capture, Probe},
    error::{Error, Result},
    image::Record,
    remote::Batch,
};

/// A lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Lock {
    kind: Kind,
    /// Exclusive, else shared.
    exclusive: bool,
    /// First byte.
    start: u64,
    /// Last byte; `None` for all that come.
    end: Option<u64>,
}

/// Whose a lock is, and by which call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    /// The description's, of the whole file: flock(2).
    Flock,
    /// The description's: `F_OFD_SETLK`.
    Description,
    /// The process's: `F_SETLK`.
    Process,
}

/// Locks of a description. Its number is the description's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locks(Vec<Lock>);

impl Record for Locks {
    const KIND: &'static str = "locks";
    const VERSION: u16 = 1;
}

/// Locks of a process, each with the descriptor it was taken through. Its number is the virtual pid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessLocks(Vec<(i32, Lock)>);

impl Record for ProcessLocks {
    const KIND: &'static str = "process-locks";
    const VERSION: u16 = 1;
}

/// What a line of fdinfo tells.
enum Line {
    Lock(Lock),
    /// A lease or another thing that has no room.
    Other(String),
}

/// Reads `lock: 1: POSIX  ADVISORY  WRITE 123 fe:00:1234 0 EOF`.
fn lines(fdinfo: &str) -> Option<Vec<Line>> {
    let locks = fdinfo.lines().filter_map(|l| l.strip_prefix("lock:"));
    locks.map(line).collect()
}

fn line(text: &str) -> Option<Line> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [_, kind, _, access, .., start, end] = words[..] else {
        return None;
    };
    let kind = match kind {
        "FLOCK" => Kind::Flock,
        "OFDLCK" => Kind::Description,
        "POSIX" => Kind::Process,
        other => return Some(Line::Other(other.to_lowercase())),
    };
    Some(Line::Lock(Lock {
        kind,
        exclusive: access == "WRITE",
        start: start.parse().ok()?,
        end: if end == "EOF" {
            None
        } else {
            Some(end.parse().ok()?)
        },
    }))
}

/// Captures the locks of a description.
///
/// # Errors
/// An fdinfo that does not read as it should; a lease goes to [`Capture::refuse`].
pub fn capture(probe: &Probe, id: ObjectId, cx: &mut Capture<'_>) -> Result<()> {
    let mut locks = Vec::new();
    for line in lines(&probe.fdinfo).ok_or_else(|| probe.unreadable("not a lock"))? {
        match line {
            Line::Lock(lock) => locks.push(lock),
            Line::Other(kind) => {
                let why = format!("it has a {kind} on the file, which only the kernel can break");
                cx.refuse(probe, why, "let the program give it back");
            }
        }
    }
    // The process locks of our own process are not the pod's.
    locks.retain(|l| l.kind != Kind::Process);
    if locks.is_empty() {
        return Ok(());
    }
    cx.writer.record(id, &Locks(locks))
}

/// Captures the POSIX locks of process `pid`, known in the pod as `vpid`.
///
/// # Errors
/// An fdinfo that cannot be read.
pub fn capture_process(pid: i32, vpid: i32, slots: &[Slot], cx: &mut Capture<'_>) -> Result<()> {
    let mut all: Vec<(i32, Lock)> = Vec::new();
    for slot in slots {
        let path = format!("/proc/{pid}/fdinfo/{}", slot.fd);
        let text = fs::read_to_string(&path).map_err(|e| Error::file("read", &path, e))?;
        let why = || Error::Proc {
            path: path.into(),
            why: "not a lock".into(),
        };
        for line in lines(&text).ok_or_else(why)? {
            if let Line::Lock(lock) = line
                && lock.kind == Kind::Process
                // A duplicate of the descriptor shows the lock again.
                && !slots.iter().any(|s| s.object == slot.object && all.contains(&(s.fd, lock)))
            {
                all.push((slot.fd, lock));
            }
        }
    }
    if all.is_empty() {
        return Ok(());
    }
    cx.writer.record(vpid as u32, &ProcessLocks(all))
}

impl Lock {
    /// `struct flock` for the lock.
    fn range(&self) -> libc::flock {
        // SAFETY: plain data for which zero is a valid value.
        let mut range: libc::flock = unsafe { std::mem::zeroed() };
        let kind = if self.exclusive {
            libc::F_WRLCK
        } else {
            libc::F_RDLCK
        };
        (range.l_type, range.l_whence) = (kind as i16, libc::SEEK_SET as i16);
        range.l_start = self.start as i64;
        range.l_len = self.end.map_or(0, |end| (end - self.start + 1) as i64);
        range
    }

    fn take(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let fd = fd.as_raw_fd();
        let r = match self.kind {
            Kind::Flock => {
                let how = if self.exclusive {
                    libc::LOCK_EX
                } else {
                    libc::LOCK_SH
                };
                // SAFETY: plain values only.
                unsafe { libc::flock(fd, how | libc::LOCK_NB) }
            }
            Kind::Description | Kind::Process => {
                let range = self.range();
                // SAFETY: `range` outlives the call.
                unsafe { libc::fcntl(fd, libc::F_OFD_SETLK, &raw const range) }
            }
        };
        sys::check(r.into()).map(drop)
    }
}

impl Locks {
    /// Takes the locks again through a description that was made anew.
    ///
    /// # Errors
    /// [`Error::Unfit`] when somebody else holds one here.
    pub fn rebuild(&self, fd: BorrowedFd<'_>) -> Result<()> {
        for lock in &self.0 {
            lock.take(fd).map_err(|e| match e.raw_os_error() {
                Some(libc::EAGAIN) => Error::Unfit {
                    object: format!("a lock on {}", path(fd)),
                    why: "another process on this host holds it".into(),
                },
                _ => Error::kernel("lock", path(fd), e),
            })?;
        }
        Ok(())
    }
}

fn path(fd: BorrowedFd<'_>) -> String {
    let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.unwrap_or_default().display().to_string()
}

impl ProcessLocks {
    /// Lets the process take its locks again: its own descriptors are in place, and none of
    /// ours will be closed in it any more.
    pub fn rebuild(&self, batch: &mut Batch) {
        for (fd, lock) in &self.0 {
            let range = lock.range();
            let mut words = [0u64; 4];
            words[0] = u64::from(range.l_type as u16) | u64::from(range.l_whence as u16) << 16;
            (words[1], words[2]) = (range.l_start as u64, range.l_len as u64);
            let range = batch.words(&words);
            let args = [*fd as u64, libc::F_SETLK as u64, range];
            batch.call("fcntl F_SETLK", libc::SYS_fcntl, &args);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        os::{fd::AsFd, unix::ffi::OsStrExt},
        process::{Command, Stdio},
    };

    use intercept::tracee::Running;

    use super::*;
    use crate::{image::Image, remote::Scope, testing::round_trip};

    fn lock(kind: Kind, exclusive: bool, start: u64, end: Option<u64>) -> Lock {
        Lock {
            kind,
            exclusive,
            start,
            end,
        }
    }

    fn open(path: &std::path::Path) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    #[test]
    fn locks_of_descriptions_come_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (a, b) = (open(file.path()), open(file.path()));
        lock(Kind::Flock, true, 0, None).take(a.as_fd()).unwrap();
        lock(Kind::Description, true, 10, Some(19))
            .take(b.as_fd())
            .unwrap();
        lock(Kind::Description, false, 30, None)
            .take(b.as_fd())
            .unwrap();
        let back = round_trip(vec![a.into(), b.into()]).unwrap();
        let other = open(file.path());
        let taken = |l: Lock| l.take(other.as_fd()).is_err();
        assert!(taken(lock(Kind::Flock, false, 0, None)));
        assert!(taken(lock(Kind::Description, false, 19, Some(19))));
        assert!(!taken(lock(Kind::Description, true, 20, Some(29))));
        assert!(!taken(lock(Kind::Description, false, 30, None)));
        assert!(taken(lock(Kind::Description, true, 1 << 40, None)));
        drop(back);
        assert!(!taken(lock(Kind::Flock, true, 0, None)));
    }

    #[test]
    fn a_lock_of_somebody_else_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (mine, theirs) = (open(file.path()), open(file.path()));
        let locks = Locks(vec![lock(Kind::Flock, true, 0, None)]);
        locks.rebuild(theirs.as_fd()).unwrap();
        let e = locks.rebuild(mine.as_fd()).unwrap_err().to_string();
        assert!(e.contains("another process"), "{e}");
    }

    #[test]
    fn leases_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        // A reading lease is given only while nobody has the file open for writing.
        fs::write(dir.path().join("file"), "x").unwrap();
        let file = File::open(dir.path().join("file")).unwrap();
        // SAFETY: plain values only.
        let r = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) };
        assert_eq!(r, 0);
        let (_, refused) = crate::testing::capture(dir.path(), &[file.as_fd()]).unwrap();
        assert!(refused[0].why.contains("lease"), "{refused:?}");
    }

    /// A process that runs our batches: it took the lock by itself, through us.
    #[test]
    fn a_process_takes_its_locks_and_they_are_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id() as i32;
        let running = Running::seize(pid, 0).unwrap();
        running.interrupt().unwrap();
        let stopped = running.wait_stopped().unwrap();
        let (start, end) = crate::checkpoint::vdso_range(pid).unwrap();
        let gate = stopped.find_syscall(start, end).unwrap().unwrap();
        let scope = Scope::map_stub(stopped, gate).unwrap();
        let mut batch = Batch::new();
        let path = batch.c_string(file.path().as_os_str().as_bytes());
        let at = libc::AT_FDCWD as u64;
        let fd = batch.call(
            "openat",
            libc::SYS_openat,
            &[at, path, libc::O_RDWR as u64, 0],
        );
        let (results, scope) = scope.run(batch).unwrap();
        let fd = results.value(fd) as i32;
        let mut batch = Batch::new();
        let locks = vec![
            (fd, lock(Kind::Process, true, 5, Some(9))),
            (fd, lock(Kind::Process, false, 100, None)),
        ];
        ProcessLocks(locks.clone()).rebuild(&mut batch);
        batch.call("dup", libc::SYS_dup, &[fd as u64]);
        let (_, scope) = scope.run(batch).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut writer = crate::image::Writer::create(&dir.path().join("image")).unwrap();
        let mut cx = Capture::new(&mut writer);
        let slots = crate::resource::files::capture(pid, 7, &mut cx).unwrap();
        capture_process(pid, 7, &slots, &mut cx).unwrap();
        drop(cx);
        writer.finish().unwrap();
        let image = Image::open(&dir.path().join("image")).unwrap();
        assert_eq!(image.get::<ProcessLocks>(7).unwrap().0, locks);
        assert!(image.all::<Locks>().unwrap().is_empty());
        scope.unmap_stub(gate).unwrap().detach(0).unwrap();
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }
}
