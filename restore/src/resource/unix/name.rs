//! The name of a unix socket and how a socket gets it back.
//!
//! The kernel keeps two things: the bytes that bind(2) was given, which every peer can
//! ask for, and the inode that bind made, which may have been renamed or unlinked since.
//! Both come back: the socket is bound under the very bytes it was bound to (what stands
//! there meanwhile is set aside), then its file is moved where it was, or removed.

use std::{
    fs,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
        },
    },
    path::{Path, PathBuf},
};

use nix::sys::socket::{UnixAddr, bind, connect};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// `SIOCUNIXFILE` of linux/un.h: the file a unix socket is bound to, as an `O_PATH` descriptor.
const SIOCUNIXFILE: u64 = 0x89e0;

/// What a unix socket is bound to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Name {
    /// A name that is no file.
    Abstract(#[serde(with = "serde_bytes")] Vec<u8>),
    /// A path, as it was given to bind(2), and the file it made.
    Path(#[serde(with = "serde_bytes")] Vec<u8>, Option<BoundFile>),
}

/// The file of a bound socket, while it has a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct BoundFile {
    /// Its absolute path in the pod.
    #[serde(with = "serde_bytes")]
    path: Vec<u8>,
    /// Permission bits.
    mode: u32,
    /// Its owner.
    uid: u32,
    /// Its group.
    gid: u32,
}

impl Name {
    /// The name of an address; `None` when it has none.
    pub(super) fn of(address: &UnixAddr) -> Option<Self> {
        match (address.path(), address.as_abstract()) {
            (Some(path), _) => Some(Self::Path(path.as_os_str().as_bytes().to_vec(), None)),
            (_, Some(name)) => Some(Self::Abstract(name.to_vec())),
            _ => None,
        }
    }

    /// The name of a socket, with its file.
    pub(super) fn capture(fd: BorrowedFd<'_>) -> Result<Option<Self>> {
        let address = nix::sys::socket::getsockname::<UnixAddr>(fd.as_raw_fd())
            .map_err(|e| Error::kernel("getsockname", "a unix socket", e))?;
        Ok(match Self::of(&address) {
            Some(Self::Path(path, _)) => Some(Self::Path(path, bound_file(fd)?)),
            other => other,
        })
    }

    /// The same bytes, whatever became of the file.
    pub(super) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Abstract(a), Self::Abstract(b)) | (Self::Path(a, _), Self::Path(b, _)) => a == b,
            _ => false,
        }
    }

    fn address(&self) -> Result<UnixAddr> {
        let made = match self {
            Self::Abstract(name) => UnixAddr::new_abstract(name),
            Self::Path(path, _) => UnixAddr::new(path.as_slice()),
        };
        made.map_err(|e| Error::kernel("unix address", self.to_string(), e))
    }

    /// Binds a socket to the name, its file where it was.
    pub(super) fn bind(&self, fd: BorrowedFd<'_>) -> Result<()> {
        match self {
            Self::Abstract(_) => self.bind_plainly(fd),
            Self::Path(path, file) => self.bind_path(fd, path, file.as_ref()),
        }
    }

    /// Binds a socket to the name and leaves the file system as it was.
    pub(super) fn bind_hidden(&self, fd: BorrowedFd<'_>) -> Result<()> {
        match self {
            Self::Abstract(_) => self.bind_plainly(fd),
            Self::Path(path, _) => self.bind_path(fd, path, None),
        }
    }

    fn bind_plainly(&self, fd: BorrowedFd<'_>) -> Result<()> {
        bind(fd.as_raw_fd(), &self.address()?)
            .map_err(|e| Error::kernel("bind", self.to_string(), e))
    }

    fn bind_path(&self, fd: BorrowedFd<'_>, path: &[u8], file: Option<&BoundFile>) -> Result<()> {
        let given = PathBuf::from(std::ffi::OsString::from_vec(path.to_vec()));
        let base = Base::enter(&given, file)?;
        let aside = Aside::take(&given)?;
        self.bind_plainly(fd)?;
        let Some(file) = file else {
            fs::remove_file(&given).map_err(|e| Error::file("unlink", &given, e))?;
            return Ok(());
        };
        let place = file.place();
        if base.resolve(&given) == place {
            aside.discard()?;
        } else {
            fs::rename(&given, &place).map_err(|e| Error::file("rename", &given, e))?;
        }
        file.dress(&place)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Abstract(name) => write!(f, "unix socket @{}", String::from_utf8_lossy(name)),
            Self::Path(path, _) => write!(f, "unix socket {}", String::from_utf8_lossy(path)),
        }
    }
}

impl BoundFile {
    fn place(&self) -> PathBuf {
        PathBuf::from(std::ffi::OsString::from_vec(self.path.clone()))
    }

    /// Gives the new file the owner and the mode of the old one.
    fn dress(&self, place: &Path) -> Result<()> {
        std::os::unix::fs::lchown(place, Some(self.uid), Some(self.gid))
            .map_err(|e| Error::file("chown", place, e))?;
        fs::set_permissions(place, fs::Permissions::from_mode(self.mode))
            .map_err(|e| Error::file("chmod", place, e))
    }
}

/// The directory from which a relative name is bound; the one we were in comes back.
struct Base {
    before: Option<PathBuf>,
    own: Option<PathBuf>,
}

impl Base {
    fn enter(given: &Path, file: Option<&BoundFile>) -> Result<Self> {
        if given.is_absolute() {
            return Ok(Self {
                before: None,
                own: None,
            });
        }
        let before = std::env::current_dir().map_err(|e| Error::file("getcwd", ".", e))?;
        let known = file.and_then(|f| strip_end(&f.place(), given));
        let own = known
            .is_none()
            .then(|| std::env::temp_dir().join(format!(".pod-bind-{}", std::process::id())));
        if let Some(own) = &own {
            let parent = own.join(given.parent().unwrap_or(Path::new("")));
            fs::create_dir_all(&parent).map_err(|e| Error::file("mkdir", &parent, e))?;
        }
        let base = Self {
            before: Some(before),
            own,
        };
        let to = known.or_else(|| base.own.clone()).unwrap_or_default();
        std::env::set_current_dir(&to).map_err(|e| Error::file("chdir", &to, e))?;
        Ok(base)
    }

    fn resolve(&self, given: &Path) -> PathBuf {
        match (&self.own, std::env::current_dir()) {
            (None, Ok(here)) => here.join(given).components().collect(),
            _ => given.to_owned(),
        }
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        let back = self.before.as_ref().map(std::env::set_current_dir);
        let cleared = self.own.as_ref().map(fs::remove_dir_all);
        if let Some(Err(e)) = back.or(cleared) {
            tracing::error!("leaving a directory: {e}");
        }
    }
}

/// `whole` without the relative `end`, where it ends so.
fn strip_end(whole: &Path, end: &Path) -> Option<PathBuf> {
    let end: PathBuf = end
        .components()
        .filter(|c| *c != std::path::Component::CurDir)
        .collect();
    whole.ends_with(&end).then(|| {
        whole
            .components()
            .take(whole.components().count() - end.components().count())
            .collect()
    })
}

/// What stood at a path, under another name; dropped, it goes back.
struct Aside {
    place: PathBuf,
    held: Option<PathBuf>,
}

impl Aside {
    fn take(place: &Path) -> Result<Self> {
        let place = place.to_owned();
        if place.symlink_metadata().is_err() {
            return Ok(Self { place, held: None });
        }
        let mut name = place.file_name().unwrap_or_default().to_owned();
        name.push(format!(".pod-aside-{}", std::process::id()));
        let held = place.with_file_name(name);
        fs::rename(&place, &held).map_err(|e| Error::file("rename", &place, e))?;
        Ok(Self {
            place,
            held: Some(held),
        })
    }

    /// It was the socket's own old file: it goes for good. Anything else was not expected there.
    fn discard(mut self) -> Result<()> {
        let Some(held) = self.held.take() else {
            return Ok(());
        };
        let stat = held
            .symlink_metadata()
            .map_err(|e| Error::file("stat", &held, e))?;
        if !stat.file_type().is_socket() {
            let object = self.place.display().to_string();
            self.held = Some(held);
            return Err(Error::Unfit {
                object,
                why: "something else than a socket stands there".into(),
            });
        }
        fs::remove_file(&held).map_err(|e| Error::file("unlink", &held, e))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if let Some(held) = &self.held
            && let Err(e) = fs::rename(held, &self.place)
        {
            tracing::error!("{} could not be put back: {e}", self.place.display());
        }
    }
}

/// The file a socket is bound to, as an `O_PATH` descriptor.
fn bound_inode(fd: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    // SAFETY: the request takes no argument and answers a descriptor.
    let file = unsafe { libc::ioctl(fd.as_raw_fd(), SIOCUNIXFILE) };
    let file = intercept::sys::check(file.into())? as i32;
    // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(file) })
}

fn bound_file(fd: BorrowedFd<'_>) -> Result<Option<BoundFile>> {
    let file =
        bound_inode(fd).map_err(|e| Error::kernel("ioctl SIOCUNIXFILE", "a unix socket", e))?;
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let stat = fs::metadata(&link).map_err(|e| Error::file("stat", &link, e))?;
    if stat.nlink() == 0 {
        return Ok(None);
    }
    let path = fs::read_link(&link).map_err(|e| Error::file("readlink", &link, e))?;
    Ok(Some(BoundFile {
        path: path.into_os_string().into_vec(),
        mode: stat.mode() & 0o7777,
        uid: stat.uid(),
        gid: stat.gid(),
    }))
}

/// Connects to a bound socket, or only sends to it when `send` is given: by its inode where it has
/// one, so that a name that is hidden or was taken over does not matter.
pub(super) fn with_address<T>(
    target: BorrowedFd<'_>,
    name: &Name,
    act: impl FnOnce(&UnixAddr) -> nix::Result<T>,
) -> Result<T> {
    let failed = |e: std::io::Error| Error::kernel("ioctl SIOCUNIXFILE", name.to_string(), e);
    let inode = match name {
        Name::Abstract(_) => None,
        Name::Path(..) => Some(bound_inode(target).map_err(failed)?),
    };
    let address = match &inode {
        None => name.address()?,
        Some(inode) => {
            let link = format!("/proc/self/fd/{}", inode.as_fd().as_raw_fd());
            UnixAddr::new(link.as_str()).map_err(|e| Error::kernel("unix address", link, e))?
        }
    };
    act(&address).map_err(|e| Error::kernel("connect", name.to_string(), e))
}

/// Connects a socket to one that is bound to `name`.
pub(super) fn connect_to(fd: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &Name) -> Result<()> {
    with_address(target, name, |address| connect(fd.as_raw_fd(), address))
}
