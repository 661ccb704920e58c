//! Trees of files: taken apart into nodes, and made again from them.
//!
//! A node has everything about a name but its bytes: type, permissions, owner, time,
//! extended attributes; a further name of a file refers to the first. Parents come before
//! their children, names in order, so that the same tree gives the same nodes.
//!
//! Neither direction follows a link or leaves the tree: the walk opens each name below the
//! directory it was read from, and what is planted is found by openat2(2) beneath the root,
//! because an image may be hostile.

use std::{
    collections::HashMap,
    ffi::{CString, OsStr},
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use intercept::sys;
use nix::{
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat},
    sys::{
        stat::{
            FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstat, fstatat,
            mkdirat, mknodat, utimensat,
        },
        time::TimeSpec,
    },
    unistd::{LinkatFlags, fchownat, linkat, symlinkat},
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::error::{Error, Result};

/// A name in a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Where it is, from the root; empty for the root itself.
    pub path: ByteBuf,
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner: user and group.
    pub owner: (u32, u32),
    /// Last modification: seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Extended attributes.
    pub attributes: Vec<(ByteBuf, ByteBuf)>,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A directory; what is in it follows.
    Directory,
    /// A file of so many bytes.
    File(u64),
    /// A symbolic link to this path.
    Symlink(ByteBuf),
    /// A fifo.
    Fifo,
    /// A socket's name.
    Socket,
    /// A device node: block or character, major, minor. A character device 0:0 is an overlay's whiteout.
    Device(bool, u32, u32),
    /// Another name of the file at this path.
    HardLink(ByteBuf),
}

/// Visits every name below (and with) `root`, files opened for reading.
///
/// Directories on which something else is mounted are visited, what is mounted is not.
///
/// # Errors
/// The step that failed on a name, or what `visit` failed on. A name that vanishes during
/// the walk is left out.
pub fn walk(
    root: BorrowedFd<'_>,
    visit: &mut dyn FnMut(Node, Option<File>) -> Result<()>,
) -> Result<()> {
    let stat = fstat(root).map_err(|e| Error::file("fstat", "", e))?;
    let mut walk = Walk {
        device: stat.st_dev,
        names: HashMap::new(),
        visit,
    };
    let attributes = attributes(root, b".").map_err(|e| Error::file("getxattr", "", e))?;
    (walk.visit)(node(&[], Kind::Directory, &stat, attributes), None)?;
    walk.directory(root, &[])
}

fn node(path: &[u8], kind: Kind, stat: &FileStat, attributes: Attributes) -> Node {
    Node {
        path: ByteBuf::from(path),
        kind,
        mode: stat.st_mode & 0o7777,
        owner: (stat.st_uid, stat.st_gid),
        modified: (stat.st_mtime, stat.st_mtime_nsec),
        attributes,
    }
}

struct Walk<'v> {
    device: u64,
    /// First names of files that have several.
    names: HashMap<u64, Vec<u8>>,
    visit: &'v mut dyn FnMut(Node, Option<File>) -> Result<()>,
}

impl Walk<'_> {
    fn directory(&mut self, dir: BorrowedFd<'_>, path: &[u8]) -> Result<()> {
        let list = format!("/proc/self/fd/{}", dir.as_raw_fd());
        let failed = |e| Error::file("readdir", shown(path), e);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(list).map_err(failed)? {
            names.push(entry.map_err(failed)?.file_name());
        }
        names.sort_unstable();
        for name in names {
            let name = name.as_bytes();
            let path = if path.is_empty() {
                name.to_vec()
            } else {
                [path, b"/", name].concat()
            };
            match self.name(dir, name, &path) {
                Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
        Ok(())
    }

    fn name(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<()> {
        let failed = |step, e: io::Error| Error::file(step, shown(path), e);
        let stat = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|e| failed("stat", e.into()))?;
        let kind = self
            .kind(dir, name, path, &stat)
            .map_err(|e| failed("readlink", e))?;
        let attributes = attributes(dir, name).map_err(|e| failed("getxattr", e))?;
        let open = |more| {
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | more;
            openat(dir, name, flags, Mode::empty()).map_err(|e| failed("open", e.into()))
        };
        match kind {
            Kind::File(_) => {
                let file = open(OFlag::O_NONBLOCK)?.into();
                (self.visit)(node(path, kind, &stat, attributes), Some(file))
            }
            Kind::Directory if stat.st_dev == self.device => {
                let below = open(OFlag::O_DIRECTORY)?;
                (self.visit)(node(path, kind, &stat, attributes), None)?;
                self.directory(below.as_fd(), path)
            }
            _ => (self.visit)(node(path, kind, &stat, attributes), None),
        }
    }

    fn kind(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        stat: &FileStat,
    ) -> io::Result<Kind> {
        let several = stat.st_nlink > 1 && stat.st_mode & libc::S_IFMT != libc::S_IFDIR;
        if several && let Some(first) = self.names.get(&stat.st_ino) {
            return Ok(Kind::HardLink(ByteBuf::from(first.clone())));
        }
        if several {
            self.names.insert(stat.st_ino, path.to_vec());
        }
        let (major, minor) = (libc::major(stat.st_rdev), libc::minor(stat.st_rdev));
        Ok(match stat.st_mode & libc::S_IFMT {
            libc::S_IFDIR => Kind::Directory,
            libc::S_IFREG => Kind::File(stat.st_size as u64),
            libc::S_IFLNK => Kind::Symlink(ByteBuf::from(readlinkat(dir, name)?.as_bytes())),
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFSOCK => Kind::Socket,
            libc::S_IFBLK => Kind::Device(true, major, minor),
            _ => Kind::Device(false, major, minor),
        })
    }
}

fn shown(path: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(path))
}

type Attributes = Vec<(ByteBuf, ByteBuf)>;

/// Attributes that bind a file to this host: an overlay's handles of lower inodes.
const HOST_BOUND: [&[u8]; 4] = [
    b"trusted.overlay.origin",
    b"trusted.overlay.upper",
    b"user.overlay.origin",
    b"user.overlay.upper",
];

/// A name below a directory as one path: /proc's link leads to the directory, the rest is one component.
fn path_of(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<CString> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    Ok(CString::new(path)?)
}

fn attributes(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Attributes> {
    let path = path_of(dir, name)?;
    let list = grown(|buf, len| {
        // SAFETY: `path` is NUL-terminated, the buffer is `len` long.
        unsafe { libc::llistxattr(path.as_ptr(), buf.cast(), len) }
    });
    let list = match list {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Vec::new()),
        list => list?,
    };
    let keys = list.split(|b| *b == 0).filter(|k| !k.is_empty());
    keys.filter(|k| !HOST_BOUND.contains(k))
        .map(|key| Ok((ByteBuf::from(key), ByteBuf::from(attribute(&path, key)?))))
        .collect()
}

fn attribute(path: &CString, key: &[u8]) -> io::Result<Vec<u8>> {
    let key = CString::new(key)?;
    grown(|buf, len| {
        // SAFETY: both strings are NUL-terminated, the buffer is `len` long.
        unsafe { libc::lgetxattr(path.as_ptr(), key.as_ptr(), buf.cast(), len) }
    })
}

/// Calls with a buffer of the length that a call without one asks for.
fn grown(call: impl Fn(*mut u8, usize) -> isize) -> io::Result<Vec<u8>> {
    loop {
        let need = sys::check(call(std::ptr::null_mut(), 0) as i64)? as usize;
        let mut buf = vec![0; need];
        if need == 0 {
            return Ok(buf);
        }
        match sys::check(call(buf.as_mut_ptr(), need) as i64) {
            Err(e) if e.raw_os_error() == Some(libc::ERANGE) => {}
            got => {
                buf.truncate(got? as usize);
                return Ok(buf);
            }
        }
    }
}

/// Makes a tree below a directory that is there and empty.
pub struct Planter<'r> {
    root: BorrowedFd<'r>,
    /// Directories get their modes and times when they are full.
    directories: Vec<Node>,
}

impl<'r> Planter<'r> {
    /// Begins below `root`.
    #[must_use]
    pub fn new(root: BorrowedFd<'r>) -> Self {
        Self {
            root,
            directories: Vec::new(),
        }
    }

    /// Makes a name. A file is given to `fill`, which writes its bytes.
    ///
    /// # Errors
    /// The step that failed; a path that leads out of the tree.
    pub fn plant(&mut self, node: Node, fill: impl FnOnce(&File) -> io::Result<()>) -> Result<()> {
        let failed = |step, e| Error::file(step, shown(&node.path), e);
        if !node.path.is_empty() {
            let (dir, name) = self.place(&node.path).map_err(|e| failed("open", e))?;
            let made = make(dir.as_fd(), name, &node.kind, self);
            let file = made.map_err(|e| failed("make", e))?;
            if let Some(file) = file {
                fill(&file).map_err(|e| failed("write", e))?;
            }
            if node.kind != Kind::Directory && !matches!(node.kind, Kind::HardLink(_)) {
                dress(dir.as_fd(), name, &node)?;
            }
        }
        if node.kind == Kind::Directory {
            self.directories.push(node);
        }
        Ok(())
    }

    /// Gives the directories what they had, innermost first.
    ///
    /// # Errors
    /// The step that failed.
    pub fn finish(mut self) -> Result<()> {
        while let Some(node) = self.directories.pop() {
            let failed = |e| Error::file("open", shown(&node.path), e);
            let (dir, name) = self.place(&node.path).map_err(failed)?;
            dress(dir.as_fd(), name, &node)?;
        }
        Ok(())
    }

    /// The directory a path is in, opened beneath the root without following links, and its last name.
    fn place<'p>(&self, path: &'p [u8]) -> io::Result<(OwnedFd, &'p [u8])> {
        let (dir, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b"."[..], path),
        };
        if path.is_empty() {
            return Ok((self.root.try_clone_to_owned()?, b"."));
        }
        if name.is_empty() || name == b"." || name == b".." {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        Ok((openat2(self.root, dir, how)?, name))
    }
}

fn make(
    dir: BorrowedFd<'_>,
    name: &[u8],
    kind: &Kind,
    planter: &Planter<'_>,
) -> io::Result<Option<File>> {
    let private = Mode::from_bits_truncate(0o600);
    let special = |kind, device| mknodat(dir, name, kind, private, device);
    match kind {
        Kind::Directory => mkdirat(dir, name, Mode::from_bits_truncate(0o700))?,
        Kind::File(_) => {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_CLOEXEC;
            return Ok(Some(openat(dir, name, flags, private)?.into()));
        }
        Kind::Symlink(target) => symlinkat(&target[..], dir, name)?,
        Kind::Fifo => special(SFlag::S_IFIFO, 0)?,
        Kind::Socket => special(SFlag::S_IFSOCK, 0)?,
        Kind::Device(block, major, minor) => {
            let kind = if *block {
                SFlag::S_IFBLK
            } else {
                SFlag::S_IFCHR
            };
            special(kind, libc::makedev(*major, *minor))?;
        }
        Kind::HardLink(first) => {
            let (at, first) = planter.place(first)?;
            linkat(at, first, dir, name, LinkatFlags::empty())?;
        }
    }
    Ok(None)
}

/// Gives a name its owner, permissions, attributes and time, in the order in which none undoes another.
fn dress(dir: BorrowedFd<'_>, name: &[u8], node: &Node) -> Result<()> {
    let failed = |step, e: io::Error| Error::file(step, shown(&node.path), e);
    let (uid, gid) = (node.owner.0.into(), node.owner.1.into());
    fchownat(
        dir,
        name,
        Some(uid),
        Some(gid),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )
    .map_err(|e| failed("chown", e.into()))?;
    if !matches!(node.kind, Kind::Symlink(_)) {
        let mode = Mode::from_bits_truncate(node.mode);
        fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink)
            .map_err(|e| failed("chmod", e.into()))?;
    }
    for (key, value) in &node.attributes {
        set_attribute(dir, name, key, value).map_err(|e| failed("setxattr", e))?;
    }
    let modified = TimeSpec::new(node.modified.0, node.modified.1);
    utimensat(
        dir,
        name,
        &modified,
        &modified,
        UtimensatFlags::NoFollowSymlink,
    )
    .map_err(|e| failed("utimensat", e.into()))
}

fn set_attribute(dir: BorrowedFd<'_>, name: &[u8], key: &[u8], value: &[u8]) -> io::Result<()> {
    let (path, key_c) = (path_of(dir, name)?, CString::new(key)?);
    let (at, len) = (value.as_ptr().cast(), value.len());
    // SAFETY: both strings are NUL-terminated, the value is `len` long.
    let r = unsafe { libc::lsetxattr(path.as_ptr(), key_c.as_ptr(), at, len, 0) };
    match sys::check(r.into()) {
        // A label of a security module that this host does not run means nothing here.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) && key == b"security.selinux" => {
            Ok(())
        }
        done => done.map(drop),
    }
}

/// Opens a directory as the root of a walk or of planting.
///
/// # Errors
/// What open(2) says.
pub fn open_root(path: &Path) -> Result<OwnedFd> {
    File::open(path)
        .map(OwnedFd::from)
        .map_err(|e| Error::file("open", path, e))
}
