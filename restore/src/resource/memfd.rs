//! Memory that is a file: memfd_create(2) and the pod's shared anonymous memory.
//!
//! Both are unnamed files of the kernel's own tmpfs. Their contents go into the image once,
//! with the first description that shows the file; the others refer to it by number.
//! Shared anonymous memory is found by its mappings (`/dev/zero (deleted)`), and is made
//! again as such where the kernel lets us open a mapping, else as a memfd: only the name
//! in /proc/PID/maps tells them apart. Seals are set when everything is mapped, because
//! they forbid what comes before.

use std::{
    collections::HashMap,
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use intercept::sys;
use nix::{
    sys::{
        stat::{Mode, fchmod},
        statfs::{FsType, fstatfs},
    },
    unistd::{Whence, lseek},
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{Description, Room, reopen::reopen};
use crate::{
    builder::Builder,
    capture::{Capture, Probe},
    error::{Error, Result},
    image::{Content, Record},
};

/// A description of a file that is memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memfd {
    /// Which file; the same for all its descriptions.
    number: u32,
    /// `F_GETFL`.
    flags: i32,
    /// The file offset.
    pos: u64,
    /// The file itself, with its first description.
    state: Option<State>,
}

/// What the file has, whoever looks at it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// The memfd's name; `None` for shared anonymous memory.
    name: Option<ByteBuf>,
    /// Permission bits: an executable memfd or not.
    mode: u32,
    /// `F_GET_SEALS`.
    seals: i32,
    /// Size of its pages, in bytes, where they are huge.
    huge: Option<u64>,
    content: Content,
}

impl Record for Memfd {
    const KIND: &'static str = "memfd";
    const VERSION: u16 = 1;
}

const MEMFD: &[u8] = b"/memfd:";
const GONE: &[u8] = b" (deleted)";
const SHARED: &[u8] = b"/dev/zero (deleted)";
const SHARED_HUGE: &[u8] = b"/anon_hugepage (deleted)";

/// The file's name, `Some(None)` for shared anonymous memory, `None` for another kind of file.
fn kind(probe: &Probe) -> Option<Option<Vec<u8>>> {
    let link = probe.link.as_os_str().as_bytes();
    if probe.file_type() != libc::S_IFREG || probe.stat.st_nlink != 0 {
        return None;
    }
    if link == SHARED || link == SHARED_HUGE {
        return Some(None);
    }
    let name = link.strip_prefix(MEMFD)?.strip_suffix(GONE)?;
    Some(Some(name.to_vec()))
}

impl Room for Memfd {
    fn capture(probe: &Probe, cx: &mut Capture<'_>) -> Result<Option<Self>> {
        let Some(name) = kind(probe) else {
            return Ok(None);
        };
        let key = [probe.stat.st_dev, probe.stat.st_ino];
        let seen = cx.seen("memfd", &key);
        let number = cx.number("memfd", &key);
        let state = (!seen)
            .then(|| State::capture(probe, name, cx))
            .transpose()?;
        let (flags, pos) = (probe.flags, probe.pos);
        Ok(Some(Self {
            number,
            flags,
            pos,
            state,
        }))
    }
}

impl State {
    fn capture(probe: &Probe, name: Option<Vec<u8>>, cx: &mut Capture<'_>) -> Result<Self> {
        let failed = |step, e: io::Error| Error::kernel(step, probe.name(), e);
        // SAFETY: F_GET_SEALS takes no argument.
        let seals = unsafe { libc::fcntl(probe.file.as_raw_fd(), libc::F_GET_SEALS) };
        let seals = sys::check(seals.into()).map_err(|e| failed("fcntl F_GET_SEALS", e))? as i32;
        let fs = fstatfs(&probe.file).map_err(|e| failed("fstatfs", e.into()))?;
        let huge =
            (fs.filesystem_type() == FsType(libc::HUGETLBFS_MAGIC)).then(|| fs.block_size() as u64);
        let readable = reopen(&probe.file, libc::O_RDONLY).map_err(|e| failed("open", e))?;
        Ok(Self {
            name: name.map(ByteBuf::from),
            mode: probe.stat.st_mode & 0o7777,
            seals,
            huge,
            content: cx.writer.content(&File::from(readable), &probe.name())?,
        })
    }

    fn make(&self) -> io::Result<OwnedFd> {
        let made = match &self.name {
            Some(_) => self.make_memfd()?,
            None => self.make_shared().or_else(|_| self.make_memfd())?,
        };
        fchmod(&made, Mode::from_bits_truncate(self.mode))?;
        Ok(made)
    }

    fn make_memfd(&self) -> io::Result<OwnedFd> {
        let name = self.name.as_ref().map_or(&b"shared"[..], |n| n);
        let name = CString::new(name)?;
        let huge = self.huge.map_or(0, |size| {
            libc::MFD_HUGETLB | size.trailing_zeros() << libc::MFD_HUGE_SHIFT
        });
        sys::memfd_create(&name, huge | libc::MFD_ALLOW_SEALING)
    }

    /// Shared anonymous memory, opened through a mapping of it.
    fn make_shared(&self) -> io::Result<OwnedFd> {
        if self.huge.is_some() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let len = self.content.size as usize;
        let (none, rw) = (std::ptr::null_mut(), libc::PROT_READ | libc::PROT_WRITE);
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping where the kernel likes.
        let at = unsafe { libc::mmap(none, len, rw, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let end = (at as usize + len).next_multiple_of(4096);
        let file = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/self/map_files/{:x}-{end:x}", at as usize));
        // SAFETY: the mapping just made, which nothing refers to.
        unsafe { libc::munmap(at, len) };
        file.map(OwnedFd::from)
    }
}

/// Files made so far, by number.
#[derive(Default)]
struct Made(HashMap<u32, OwnedFd>);

impl Description for Memfd {
    fn rebuild(&self, builder: &mut Builder<'_>) -> Result<OwnedFd> {
        let failed = |step, e: io::Error| Error::kernel(step, self.name(), e);
        let image = builder.image;
        let made = builder.shared::<Made>();
        if let Some(state) = self
            .state
            .as_ref()
            .filter(|_| !made.0.contains_key(&self.number))
        {
            let fd = state.make().map_err(|e| failed("make", e))?;
            let file = File::from(fd);
            state
                .content
                .restore(image.pages(), &file)
                .map_err(|e| failed("write", e))?;
            made.0.insert(self.number, file.into());
        }
        let file = made.0.get(&self.number).ok_or_else(|| Error::NoRecord {
            kind: "memfd contents".into(),
            id: self.number,
        })?;
        let fd = reopen(file, self.flags).map_err(|e| failed("open", e))?;
        if self.pos != 0 {
            lseek(&fd, self.pos as i64, Whence::SeekSet).map_err(|e| failed("lseek", e.into()))?;
        }
        Ok(fd)
    }

    fn settle(&self, _fd: BorrowedFd<'_>, builder: &mut Builder<'_>) -> Result<()> {
        let seals = self.state.as_ref().map_or(0, |s| s.seals);
        if seals == 0 {
            return Ok(());
        }
        let file = builder.shared::<Made>().0[&self.number].as_fd();
        // SAFETY: F_GET_SEALS takes no argument.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) } == seals {
            return Ok(());
        }
        // SAFETY: F_ADD_SEALS takes an int.
        let r = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) };
        sys::check(r.into())
            .map(drop)
            .map_err(|e| Error::kernel("fcntl F_ADD_SEALS", self.name(), e))
    }
}

impl Memfd {
    fn name(&self) -> String {
        match self.state.as_ref().and_then(|s| s.name.as_ref()) {
            Some(name) => format!("memfd {}", String::from_utf8_lossy(name)),
            None => format!("memory file {}", self.number),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Seek, Write},
        os::unix::fs::MetadataExt,
    };

    use super::*;
    use crate::testing::round_trip;

    #[test]
    fn contents_name_seals_and_sharing_come_back() {
        let mut file = File::from(sys::memfd_create(c"a b", libc::MFD_ALLOW_SEALING).unwrap());
        file.write_all(b"kept").unwrap();
        file.set_len(1 << 30).unwrap();
        file.seek(io::SeekFrom::Start(2)).unwrap();
        let seals = libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_WRITE;
        // SAFETY: F_ADD_SEALS takes an int.
        let sealed = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) };
        assert_eq!(sealed, 0);
        let second = reopen(&file, libc::O_RDONLY).unwrap();
        let back = round_trip(vec![file.into(), second]).unwrap();
        // SAFETY: F_GET_SEALS takes no argument.
        let found = unsafe { libc::fcntl(back[0].as_raw_fd(), libc::F_GET_SEALS) };
        assert_eq!(found, seals);
        let link = std::fs::read_link(format!("/proc/self/fd/{}", back[0].as_raw_fd()));
        assert_eq!(link.unwrap().to_str(), Some("/memfd:a b (deleted)"));
        let mut files: Vec<_> = back.into_iter().map(File::from).collect();
        let mut text = [0; 2];
        files[0].read_exact(&mut text).unwrap();
        assert_eq!(&text, b"pt");
        files[1].read_exact(&mut text).unwrap();
        assert_eq!(&text, b"ke");
        let stats: Vec<_> = files.iter().map(|f| f.metadata().unwrap()).collect();
        assert_eq!((stats[0].ino(), stats[0].len()), (stats[1].ino(), 1 << 30));
        assert!(stats[0].blocks() < 1000, "the hole is still a hole");
        assert!(files[0].write(b"x").is_err(), "sealed");
    }

    #[test]
    fn shared_anonymous_memory_is_a_file_like_another() {
        let content = Content {
            size: 8192,
            extents: Vec::new(),
        };
        let state = State {
            name: None,
            mode: 0o777,
            seals: 0,
            huge: None,
            content,
        };
        let Ok(shared) = state.make_shared() else {
            // Opening a mapping needs CAP_CHECKPOINT_RESTORE over the whole host.
            assert!(!nix::unistd::geteuid().is_root());
            return;
        };
        nix::sys::uio::pwrite(&shared, b"both see it", 4096).unwrap();
        let back = round_trip(vec![shared]).unwrap();
        let mut text = [0; 11];
        nix::sys::uio::pread(&back[0], &mut text, 4096).unwrap();
        assert_eq!(&text, b"both see it");
        let link = std::fs::read_link(format!("/proc/self/fd/{}", back[0].as_raw_fd()));
        assert_eq!(link.unwrap().as_os_str().as_bytes(), SHARED);
    }
}
