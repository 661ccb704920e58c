//! A file opened by name: regular files, directories and device nodes that mean the same
//! on every host (`/dev/null` and its like).
//!
//! Contents are not in the record: the pod's layer moves with the pod, and what lies
//! beneath is there on the destination or is sent by its hash. A file that has lost its
//! name has nowhere else to live, so its contents go into the image and are rebuilt under
//! a temporary name that is removed again.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::OpenOptionsExt,
        },
    },
    path::{Path, PathBuf},
};

use nix::unistd::{Whence, lseek};
use serde::{Deserialize, Serialize};

use super::{Description, Room};
use crate::{
    builder::Builder,
    capture::{Capture, Probe},
    error::{Error, Result},
    image::{Content, Record},
};

/// An open file description of a named or unnamed file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Regular {
    /// Its path in the pod; of an unnamed file the path it had.
    #[serde(with = "serde_bytes")]
    path: Vec<u8>,
    /// `F_GETFL`: access mode and what open(2) must be told again.
    flags: i32,
    /// The file offset.
    pos: u64,
    /// Type and permission bits, to prove at restart that the name means the same kind of file.
    mode: u32,
    /// Contents of a file that has no name any more; the number is shared by its descriptions.
    unnamed: Option<Unnamed>,
}

/// A file without a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Unnamed {
    number: u32,
    /// With the first description that shows it; the others refer to it by number.
    content: Option<Content>,
}

impl Record for Regular {
    const KIND: &'static str = "regular";
    const VERSION: u16 = 1;
}

/// Device nodes by (major, minor) that are the same everywhere: null, zero, full, random, urandom.
const PLAIN_DEVICES: [(u64, u64); 5] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)];

impl Room for Regular {
    fn capture(probe: &Probe, cx: &mut Capture<'_>) -> Result<Option<Self>> {
        let carried = match probe.file_type() {
            libc::S_IFREG => {
                let absolute = probe.link.is_absolute() && !probe.link.starts_with("/memfd:");
                absolute && probe.link.as_os_str() != super::device::SECRET
            }
            libc::S_IFDIR => true,
            // A place, not an open file: whatever stands there.
            _ if probe.flags & libc::O_PATH != 0 => probe.link.is_absolute(),
            libc::S_IFCHR => is_plain_device(probe.stat.st_rdev),
            _ => false,
        };
        if !carried {
            return Ok(None);
        }
        let unnamed = (probe.stat.st_nlink == 0)
            .then(|| capture_unnamed(probe, cx))
            .transpose()?;
        let path = match &unnamed {
            Some(_) => strip_deleted(&probe.link),
            None => probe.link.as_os_str().as_bytes().to_vec(),
        };
        let (flags, pos, mode) = (probe.flags, probe.pos, probe.stat.st_mode);
        Ok(Some(Self {
            path,
            flags,
            pos,
            mode,
            unnamed,
        }))
    }
}

/// True for a device node that means the same on every host.
pub(crate) fn is_plain_device(device: u64) -> bool {
    let (major, minor) = (libc::major(device), libc::minor(device));
    PLAIN_DEVICES.contains(&(major.into(), minor.into()))
}

fn strip_deleted(link: &Path) -> Vec<u8> {
    let bytes = link.as_os_str().as_bytes();
    bytes.strip_suffix(b" (deleted)").unwrap_or(bytes).to_vec()
}

fn capture_unnamed(probe: &Probe, cx: &mut Capture<'_>) -> Result<Unnamed> {
    let key = [probe.stat.st_dev, probe.stat.st_ino];
    let seen = cx.seen("unnamed file", &key);
    let number = cx.number("unnamed file", &key);
    if seen || probe.file_type() != libc::S_IFREG {
        return Ok(Unnamed {
            number,
            content: None,
        });
    }
    let readable = format!("/proc/self/fd/{}", probe.file.as_raw_fd());
    let file = File::open(&readable).map_err(|e| Error::file("open", &probe.link, e))?;
    let content = cx.writer.content(&file, &probe.name())?;
    Ok(Unnamed {
        number,
        content: Some(content),
    })
}

/// Unnamed files made so far, by number, each open for reading and writing.
#[derive(Default)]
struct UnnamedFiles(std::collections::HashMap<u32, File>);

impl Description for Regular {
    fn rebuild(&self, builder: &mut Builder<'_>) -> Result<OwnedFd> {
        let file = match &self.unnamed {
            Some(unnamed) => self.open_unnamed(unnamed, builder)?,
            None => self.open(&self.path())?,
        };
        self.check_type(&file)?;
        if self.pos != 0 {
            lseek(&file, self.pos as i64, Whence::SeekSet)
                .map_err(|e| Error::file("lseek", self.path(), e))?;
        }
        Ok(file.into())
    }
}

impl Regular {
    /// Its path in the pod; of a file without a name the one it had.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.path.clone()))
    }

    fn open(&self, path: &Path) -> Result<File> {
        // What an open did once must not happen again; a tmpfile's flag includes O_DIRECTORY.
        let mut once =
            libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_ACCMODE | libc::O_NOFOLLOW;
        if self.flags & libc::O_PATH != 0 {
            // The place may be a symbolic link; nothing else in its path is one.
            once &= !libc::O_NOFOLLOW;
        }
        if self.flags & libc::O_TMPFILE == libc::O_TMPFILE {
            once |= libc::O_TMPFILE;
        }
        let access = self.flags & libc::O_ACCMODE;
        OpenOptions::new()
            .read(access != libc::O_WRONLY)
            .write(access != libc::O_RDONLY)
            .custom_flags(self.flags & !once | libc::O_CLOEXEC | libc::O_NOCTTY)
            .open(path)
            .map_err(|e| Error::file("open", path, e))
    }

    fn check_type(&self, file: &File) -> Result<()> {
        let stat = nix::sys::stat::fstat(file).map_err(|e| Error::file("fstat", self.path(), e))?;
        if stat.st_mode & libc::S_IFMT == self.mode & libc::S_IFMT {
            return Ok(());
        }
        let object = self.path().display().to_string();
        Err(Error::Unfit {
            object,
            why: "it is another kind of file here".into(),
        })
    }

    fn open_unnamed(&self, unnamed: &Unnamed, builder: &mut Builder<'_>) -> Result<File> {
        if !builder
            .shared::<UnnamedFiles>()
            .0
            .contains_key(&unnamed.number)
        {
            let file = self.make_unnamed(unnamed, builder)?;
            builder
                .shared::<UnnamedFiles>()
                .0
                .insert(unnamed.number, file);
        }
        let file = &builder.shared::<UnnamedFiles>().0[&unnamed.number];
        self.open(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())))
    }

    /// Makes the file beside the place where it had its name (the same file system), or in /tmp.
    fn make_unnamed(&self, unnamed: &Unnamed, builder: &Builder<'_>) -> Result<File> {
        let path = self.path();
        let beside = path
            .parent()
            .filter(|p| p.is_dir())
            .unwrap_or(Path::new("/tmp"));
        let name = beside.join(format!(
            ".pod-unnamed-{}-{}",
            std::process::id(),
            unnamed.number
        ));
        if self.mode & libc::S_IFMT == libc::S_IFDIR {
            fs::create_dir(&name).map_err(|e| Error::file("mkdir", &name, e))?;
            let dir = File::open(&name).map_err(|e| Error::file("open", &name, e));
            fs::remove_dir(&name).map_err(|e| Error::file("rmdir", &name, e))?;
            return dir;
        }
        let made = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(self.mode & 0o7777)
            .open(&name)
            .map_err(|e| Error::file("create", &name, e))?;
        fs::remove_file(&name).map_err(|e| Error::file("unlink", &name, e))?;
        let content = unnamed.content.clone().unwrap_or_default();
        content
            .restore(builder.image.pages(), &made)
            .map_err(|e| Error::file("write", &name, e))?;
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Seek, Write},
        os::fd::AsFd,
    };

    use super::*;
    use crate::testing::round_trip;

    #[test]
    fn a_named_file_keeps_path_offset_flags_and_sharing() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"0123456789").unwrap();
        let mut open = OpenOptions::new()
            .append(true)
            .read(true)
            .open(file.path())
            .unwrap();
        open.seek(std::io::SeekFrom::Start(4)).unwrap();
        let twin = open.try_clone().unwrap();
        let back = round_trip(vec![open.into(), twin.into()]).unwrap();
        let flags = nix::fcntl::fcntl(&back[0], nix::fcntl::FcntlArg::F_GETFL).unwrap();
        assert_ne!(flags & libc::O_APPEND, 0);
        let mut back: Vec<File> = back.into_iter().map(File::from).collect();
        let (mut a, mut b) = ([0; 3], [0; 3]);
        back[0].read_exact(&mut a).unwrap();
        back[1].read_exact(&mut b).unwrap();
        assert_eq!((&a, &b), (b"456", b"789"));
    }

    #[test]
    fn a_place_is_a_place_whatever_stands_there() {
        let dir = tempfile::tempdir().unwrap();
        let (fifo, link) = (dir.path().join("fifo"), dir.path().join("link"));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("fifo", &link).unwrap();
        let place = |path: &Path| {
            let flags = libc::O_PATH | libc::O_NOFOLLOW;
            let mut options = OpenOptions::new();
            options.read(true).custom_flags(flags).open(path).unwrap()
        };
        let back = round_trip(vec![place(&fifo).into(), place(&link).into()]).unwrap();
        let path = |fd: &OwnedFd| fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        assert_eq!(path(&back[0]).unwrap(), fifo);
        assert_eq!(path(&back[1]).unwrap(), link);
    }

    #[test]
    fn an_unnamed_file_keeps_contents_and_has_no_name() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"kept").unwrap();
        file.set_len(1 << 30).unwrap();
        let again = File::open(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())).unwrap();
        let mut back = round_trip(vec![file.into(), again.into()]).unwrap();
        let (mut second, first) = (File::from(back.remove(1)), File::from(back.remove(0)));
        let mut text = [0; 4];
        second.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"kept");
        let (a, b) = (first.metadata().unwrap(), second.metadata().unwrap());
        use std::os::unix::fs::MetadataExt;
        assert_eq!((a.ino(), a.nlink(), a.len()), (b.ino(), 0, 1 << 30));
        assert!(a.blocks() < 1000, "the hole is still a hole");
    }
}
