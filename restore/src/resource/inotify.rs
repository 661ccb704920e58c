//! inotify(7): watches, by the path that leads to each inode.
//!
//! The kernel shows a watched inode by number and file handle, not by name. The handle is
//! opened on each mount of its file system, which gives the path as the pod sees it; where
//! the file system cannot do that (an overlay), its mounts are searched, shallow places
//! first. Each answer is proved by a watch of our own that must show the same inode.
//!
//! Events that wait unread cannot be looked at without taking them away, so an instance
//! that has some is refused: its program is about to read them. Watches are set last of
//! all, so that they do not see the pod being rebuilt.

use std::{
    collections::{HashMap, VecDeque},
    ffi::{CString, OsString},
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::{DirEntryExt, MetadataExt, OpenOptionsExt},
        },
    },
    path::{Path, PathBuf},
};

use intercept::sys;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{Description, Room};
use crate::{
    builder::Builder,
    capture::{Capture, Probe},
    error::{Error, Result},
    image::Record,
};

/// An inotify instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inotify {
    watches: Vec<Watch>,
}

/// A watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Watch {
    /// The number the program knows it by.
    wd: i32,
    /// What it watches, as the pod sees it.
    path: ByteBuf,
    /// `IN_*`.
    mask: u32,
}

impl Record for Inotify {
    const KIND: &'static str = "inotify";
    const VERSION: u16 = 1;
}

/// A watch as fdinfo shows it.
struct Line {
    wd: i32,
    inode: Inode,
    mask: u32,
    handle_type: i32,
    handle: Vec<u8>,
}

/// An inode on this host: device (as mountinfo writes it) and number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Inode {
    device: String,
    number: u64,
}

impl Room for Inotify {
    fn capture(probe: &Probe, cx: &mut Capture<'_>) -> Result<Option<Self>> {
        if !probe.is_link("anon_inode:inotify") {
            return Ok(None);
        }
        let waiting = sys::ioctl_get_int(probe.file.as_fd(), libc::FIONREAD)
            .map_err(|e| Error::kernel("ioctl FIONREAD", probe.name(), e))?;
        if waiting > 0 {
            let hint = "try again when the program has read its events";
            cx.refuse(
                probe,
                "it has file events that the program has not read",
                hint,
            );
            return Ok(None);
        }
        let lines = lines(&probe.fdinfo).ok_or_else(|| probe.unreadable("not a watch"))?;
        let mut paths = Finder::new(cx.process())?.find_all(&lines);
        let mut watches = Vec::new();
        for line in lines {
            let Some(path) = paths.remove(&line.inode) else {
                let why = format!(
                    "no path leads to inode {} that it watches",
                    line.inode.number
                );
                cx.refuse(
                    probe,
                    why,
                    "let the program drop the watch of the removed file",
                );
                return Ok(None);
            };
            let path = ByteBuf::from(path.into_os_string().into_vec());
            watches.push(Watch {
                wd: line.wd,
                path,
                mask: line.mask,
            });
        }
        Ok(Some(Self { watches }))
    }
}

/// Reads `inotify wd:1 ino:3c4a7 sdev:fe00000 mask:fff … fhandle-type:1 f_handle:a7c4…`.
fn lines(fdinfo: &str) -> Option<Vec<Line>> {
    let watches = fdinfo.lines().filter(|l| l.starts_with("inotify wd:"));
    watches.map(line).collect()
}

fn line(line: &str) -> Option<Line> {
    let field = |name| line.split_whitespace().find_map(|w| w.strip_prefix(name));
    let hex = |name| u64::from_str_radix(field(name)?, 16).ok();
    let device = hex("sdev:")?;
    let byte = |i| u8::from_str_radix(field("f_handle:")?.get(2 * i..2 * i + 2)?, 16).ok();
    Some(Line {
        wd: hex("wd:")? as i32,
        inode: Inode {
            // The kernel's own dev_t: 12 bits of major, 20 of minor.
            device: format!("{}:{}", device >> 20, device & 0xf_ffff),
            number: hex("ino:")?,
        },
        mask: hex("mask:")? as u32,
        handle_type: hex("fhandle-type:").unwrap_or(0) as i32,
        handle: (0..hex("fhandle-bytes:").unwrap_or(0) as usize)
            .map(byte)
            .collect::<Option<_>>()?,
    })
}

/// Finds paths of inodes among the mounts of a process.
struct Finder {
    /// The process's root, through /proc.
    root: PathBuf,
    /// (device, mount point as the process sees it).
    mounts: Vec<(String, PathBuf)>,
    /// For proofs; one for all, because closing an instance waits for the kernel's readers.
    prover: OwnedFd,
}

/// A search gives up after so many names.
const MOST_NAMES: usize = 200_000;

impl Finder {
    fn new(process: &Path) -> Result<Self> {
        let path = process.join("mountinfo");
        let text = fs::read_to_string(&path).map_err(|e| Error::file("read", &path, e))?;
        let mount = |line: &str| {
            let mut words = line.split(' ').skip(2);
            let device = words.next()?.to_owned();
            Some((
                device,
                PathBuf::from(OsString::from_vec(unescape(words.nth(1)?))),
            ))
        };
        Ok(Self {
            root: process.join("root"),
            mounts: text.lines().filter_map(mount).collect(),
            prover: new().map_err(|e| Error::kernel("inotify_init1", "a watch of ours", e))?,
        })
    }

    /// A path of the pod as we reach it.
    fn reach(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn find_all(&self, lines: &[Line]) -> HashMap<Inode, PathBuf> {
        let mut found = HashMap::new();
        for line in lines {
            if let Some(path) = self.by_handle(line) {
                found.insert(line.inode.clone(), path);
            }
        }
        let mut missing: Vec<_> = lines
            .iter()
            .filter(|l| !found.contains_key(&l.inode) && !self.has_no_name(l))
            .map(|l| &l.inode)
            .collect();
        for (device, mount) in &self.mounts {
            if missing.iter().any(|i| i.device == *device) {
                self.search(device, mount, &mut missing, &mut found);
            }
        }
        found
    }

    fn by_handle(&self, line: &Line) -> Option<PathBuf> {
        let mounts = self.mounts.iter().filter(|(d, _)| *d == line.inode.device);
        mounts
            .filter_map(|(_, mount)| open_handle(&self.reach(mount), line).ok())
            .filter_map(|fd| fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok())
            .find(|path| self.proves(path, &line.inode))
    }

    /// True when the handle's inode has lost its last name (ESTALE says so): no search will find it.
    fn has_no_name(&self, line: &Line) -> bool {
        let mut mounts = self.mounts.iter().filter(|(d, _)| *d == line.inode.device);
        mounts.any(|(_, mount)| match open_handle(&self.reach(mount), line) {
            Ok(fd) => nix::sys::stat::fstat(&fd).is_ok_and(|s| s.st_nlink == 0),
            Err(e) => e.raw_os_error() == Some(libc::ESTALE),
        })
    }

    /// True when a watch of ours on the path shows the same inode.
    fn proves(&self, path: &Path, inode: &Inode) -> bool {
        let shown = watched(&self.prover, &self.reach(path));
        shown.is_ok_and(|shown| shown.is_some_and(|s| s == *inode))
    }

    /// Looks at one mount, shallow places first.
    fn search(
        &self,
        device: &str,
        mount: &Path,
        missing: &mut Vec<&Inode>,
        found: &mut HashMap<Inode, PathBuf>,
    ) {
        let mut names = 0;
        let mut queue = VecDeque::from([mount.to_owned()]);
        let on = fs::metadata(self.reach(mount)).map(|m| m.dev());
        self.settle(mount, device, missing, found);
        while let Some(dir) = queue.pop_front() {
            let Ok(entries) = fs::read_dir(self.reach(&dir)) else {
                continue;
            };
            for entry in entries.flatten() {
                names += 1;
                let path = dir.join(entry.file_name());
                let wanted = missing.iter().any(|i| i.number == entry.ino());
                if wanted {
                    self.settle(&path, device, missing, found);
                }
                let below = entry.file_type().is_ok_and(|t| t.is_dir())
                    && entry.metadata().map(|m| m.dev()).ok() == on.as_ref().ok().copied();
                if below {
                    queue.push_back(path);
                }
            }
            if missing.iter().all(|i| i.device != device) || names > MOST_NAMES {
                return;
            }
        }
    }

    fn settle(
        &self,
        path: &Path,
        device: &str,
        missing: &mut Vec<&Inode>,
        found: &mut HashMap<Inode, PathBuf>,
    ) {
        let proved = |i: &&Inode| i.device == device && self.proves(path, i);
        if let Some(at) = missing.iter().position(proved) {
            found.insert(missing.swap_remove(at).clone(), path.to_owned());
        }
    }
}

/// Undoes mountinfo's octal escapes.
fn unescape(text: &str) -> Vec<u8> {
    let (bytes, mut out, mut i) = (text.as_bytes(), Vec::new(), 0);
    while i < bytes.len() {
        let code = text.get(i + 1..i + 4).filter(|_| bytes[i] == b'\\');
        match code.and_then(|c| u8::from_str_radix(c, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 4;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    out
}

/// `struct file_handle` with the longest handle there is (`MAX_HANDLE_SZ`).
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    data: [u8; 128],
}

fn open_handle(mount: &Path, line: &Line) -> io::Result<OwnedFd> {
    let mut options = fs::OpenOptions::new();
    let mount = options.read(true).custom_flags(libc::O_PATH).open(mount)?;
    let mut data = [0; 128];
    let place = data.get_mut(..line.handle.len());
    place
        .ok_or(io::ErrorKind::InvalidData)?
        .copy_from_slice(&line.handle);
    let (bytes, kind) = (line.handle.len() as u32, line.handle_type);
    let handle = Handle { bytes, kind, data };
    let (fd, flags) = (mount.as_raw_fd(), libc::O_PATH | libc::O_CLOEXEC);
    // SAFETY: `handle` has the kernel's layout and outlives the call.
    let r = unsafe { libc::syscall(libc::SYS_open_by_handle_at, fd, &raw const handle, flags) };
    let fd = sys::check(r)? as i32;
    // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn new() -> io::Result<OwnedFd> {
    // SAFETY: plain values only.
    let fd = sys::check(unsafe { libc::inotify_init1(libc::IN_CLOEXEC) }.into())? as i32;
    // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn add(inotify: BorrowedFd<'_>, path: &[u8], mask: u32) -> io::Result<i32> {
    let path = CString::new(path)?;
    // SAFETY: `path` is NUL-terminated and outlives the call.
    let r = unsafe { libc::inotify_add_watch(inotify.as_raw_fd(), path.as_ptr(), mask) };
    sys::check(r.into()).map(|wd| wd as i32)
}

/// The inode that a watch on `path` shows.
fn watched(inotify: &OwnedFd, path: &Path) -> io::Result<Option<Inode>> {
    let mask = libc::IN_DELETE_SELF | libc::IN_DONT_FOLLOW;
    let wd = add(inotify.as_fd(), path.as_os_str().as_bytes(), mask)?;
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", inotify.as_raw_fd()))?;
    // SAFETY: plain values only.
    unsafe { libc::inotify_rm_watch(inotify.as_raw_fd(), wd) };
    let shown = lines(&text).and_then(|all| all.into_iter().find(|l| l.wd == wd));
    Ok(shown.map(|l| l.inode))
}

/// `INOTIFY_IOC_SETNEXTWD` of linux/inotify.h.
const SETNEXTWD: u64 = 0x4004_4900;

impl Description for Inotify {
    fn rebuild(&self, _builder: &mut Builder<'_>) -> Result<OwnedFd> {
        new().map_err(|e| Error::kernel("inotify_init1", "inotify", e))
    }

    fn settle(&self, fd: BorrowedFd<'_>, _builder: &mut Builder<'_>) -> Result<()> {
        for watch in &self.watches {
            watch.set(fd).map_err(|e| {
                let path = PathBuf::from(OsString::from_vec(watch.path.to_vec()));
                Error::file("inotify_add_watch", path, e)
            })?;
        }
        Ok(())
    }
}

impl Watch {
    fn set(&self, inotify: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: the request takes an int by value.
        let r = unsafe { libc::ioctl(inotify.as_raw_fd(), SETNEXTWD, self.wd) };
        sys::check(r.into())?;
        // The path was resolved to the end: a last component that is a link is what was watched.
        let wd = add(inotify, &self.path, self.mask | libc::IN_DONT_FOLLOW)?;
        if wd == self.wd {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "it got number {wd} instead of {}",
            self.wd
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{capture, round_trip};

    fn event(fd: &OwnedFd) -> Option<(i32, u32)> {
        let mut buf = [0; 4096];
        let n = nix::unistd::read(fd, &mut buf).ok()?;
        let word = |at: usize| i32::from_ne_bytes(buf[at..at + 4].try_into().unwrap());
        (n > 0).then(|| (word(0), word(4) as u32))
    }

    #[test]
    fn watches_keep_number_path_and_mask() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a file");
        fs::write(&file, "x").unwrap();
        let inotify = new().unwrap();
        nix::fcntl::fcntl(
            &inotify,
            nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
        )
        .unwrap();
        let at =
            |path: &Path, mask| add(inotify.as_fd(), path.as_os_str().as_bytes(), mask).unwrap();
        let first = at(&file, libc::IN_MODIFY);
        let second = at(dir.path(), libc::IN_CREATE | libc::IN_DELETE);
        // SAFETY: plain values only.
        unsafe { libc::inotify_rm_watch(inotify.as_raw_fd(), first) };
        assert_eq!(event(&inotify), Some((first, libc::IN_IGNORED)));
        let third = at(&file, libc::IN_MODIFY | libc::IN_ONESHOT);
        let back = round_trip(vec![inotify]).unwrap();
        assert_eq!(event(&back[0]), None);
        fs::write(dir.path().join("new"), "").unwrap();
        assert_eq!(event(&back[0]), Some((second, libc::IN_CREATE)));
        fs::write(&file, "y").unwrap();
        assert_eq!(event(&back[0]), Some((third, libc::IN_MODIFY)));
    }

    #[test]
    fn unread_events_and_removed_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        let inotify = new().unwrap();
        add(
            inotify.as_fd(),
            file.as_os_str().as_bytes(),
            libc::IN_MODIFY,
        )
        .unwrap();
        let refused = |name: &str| {
            capture(&dir.path().join(name), &[inotify.as_fd()])
                .unwrap()
                .1
        };
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::create_dir(dir.path().join("b")).unwrap();
        let open = fs::File::open(&file).unwrap();
        fs::remove_file(&file).unwrap();
        assert!(refused("a")[0].why.contains("no path"));
        fs::write(format!("/proc/self/fd/{}", open.as_raw_fd()), "y").unwrap();
        assert!(refused("b")[0].why.contains("not read"));
    }

    #[test]
    fn a_search_finds_what_a_handle_cannot() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("deep/er");
        fs::create_dir_all(&file).unwrap();
        let inode = watched(&new().unwrap(), &file).unwrap().unwrap();
        let finder = Finder::new(Path::new("/proc/self")).unwrap();
        let (mut missing, mut found) = (vec![&inode], HashMap::new());
        finder.search(&inode.device, dir.path(), &mut missing, &mut found);
        assert_eq!(found.get(&inode), Some(&file));
        assert_eq!(unescape(r"/a\040b\134"), b"/a b\\");
    }
}
