//! `pod cp`: copies files between a pod and here.
//!
//! A running pod's files are reached through its init's root. Those of a pod that is over are put together
//! as they were, in a mount namespace of this command's own. Paths in the pod are resolved by the kernel
//! with the pod's root as the root (openat2, RESOLVE_IN_ROOT): no symbolic link of the pod leads out.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

use crate::cli::{Copy, Place};
use crate::failure::Failure;
use crate::store::{Pod, Store};
use crate::{init, layer, userns};

/// Runs the command.
pub(super) fn cp(store: &Store, arguments: &Copy) -> Result<u8> {
    let (source, target) = (&arguments.source, &arguments.target);
    let source_root = root_of(store, source)?;
    let target_root = root_of(store, target)?;
    anyhow::ensure!(
        source_root.is_none() || target_root.is_none(),
        Failure::new("both places are in pods").hint("copy to a file here first")
    );
    let from = existing(source_root.as_ref(), &source.path)?
        .ok_or_else(|| Failure::new(format!("{} does not exist", source.path.display())))?;
    let to = destination(target_root.as_ref(), &target.path, source.path.file_name())?;
    copy(&from.path(), &to.path()).with_context(|| format!("copy to {}", target.path.display()))?;
    Ok(0)
}

/// The root of the pod a place is in.
fn root_of(store: &Store, place: &Place) -> Result<Option<OwnedFd>> {
    let Some(name) = &place.pod else {
        return Ok(None);
    };
    let pod = store.find(name)?;
    let path = match pod.state()?.init.filter(|_| pod.is_held().unwrap_or(false)) {
        Some(init) => of_running(init)?,
        None => assembled(store, &pod)?,
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(&path, flags, Mode::empty())
        .with_context(|| format!("open the files of pod {name}"))?;
    Ok(Some(root))
}

/// A running pod's root, as its own root may use it.
fn of_running(init: i32) -> Result<PathBuf> {
    if userns::needed() {
        userns::join(init)?;
    }
    Ok(PathBuf::from(format!("/proc/{init}/root")))
}

/// Puts the files of a pod that is over together, visible to this process only.
fn assembled(store: &Store, pod: &Pod) -> Result<PathBuf> {
    let root = layer::plan(store, pod, &pod.config()?, userns::needed())?;
    init::assemble_privately(&root)?;
    Ok(root.mount_point)
}

/// A place that has been resolved: an open directory or file, and a name in it that may not exist yet.
struct Found {
    fd: OwnedFd,
    name: Option<PathBuf>,
}

impl Found {
    fn path(&self) -> PathBuf {
        let base = PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()));
        match &self.name {
            Some(name) => base.join(name),
            None => base,
        }
    }
}

/// Opens a place that exists, without following a symbolic link at its end.
fn existing(root: Option<&OwnedFd>, path: &Path) -> Result<Option<Found>> {
    let (directory, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name());
    let directory = if directory.as_os_str().is_empty() {
        Path::new(".")
    } else {
        directory
    };
    let Some(fd) = resolve(root, directory)? else {
        return Ok(None);
    };
    let found = Found {
        fd,
        name: name.map(PathBuf::from),
    };
    Ok(fs::symlink_metadata(found.path()).is_ok().then_some(found))
}

/// Where a copy goes: into a directory that exists, else under the name that was given.
fn destination(
    root: Option<&OwnedFd>,
    path: &Path,
    name: Option<&std::ffi::OsStr>,
) -> Result<Found> {
    if let Some(fd) = resolve(root, path)?
        && fs::metadata(format!("/proc/self/fd/{}", fd.as_raw_fd())).is_ok_and(|m| m.is_dir())
    {
        return Ok(Found {
            fd,
            name: name.map(PathBuf::from),
        });
    }
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let missing = || Failure::new(format!("{} does not exist", directory.display()));
    let fd = resolve(root, directory)?.ok_or_else(missing)?;
    Ok(Found {
        fd,
        name: path.file_name().map(PathBuf::from),
    })
}

fn resolve(root: Option<&OwnedFd>, path: &Path) -> Result<Option<OwnedFd>> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let opened = match root {
        Some(root) => {
            let how = OpenHow::new()
                .flags(flags)
                .resolve(ResolveFlag::RESOLVE_IN_ROOT);
            openat2(root.as_fd(), path, how)
        }
        None => open(path, flags, Mode::empty()),
    };
    match opened {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::ENOENT) => Ok(None),
        Err(e) => Err(e).with_context(|| format!("look up {}", path.display())),
    }
}

/// Copies a file, directory or symbolic link with its mode.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let metadata =
        fs::symlink_metadata(from).with_context(|| format!("look at {}", from.display()))?;
    let kind = metadata.file_type();
    if kind.is_symlink() {
        let link = fs::read_link(from).context("read a symbolic link")?;
        return symlink(link, to).context("make a symbolic link");
    }
    if kind.is_dir() {
        return copy_directory(from, to, metadata.permissions());
    }
    anyhow::ensure!(
        kind.is_file(),
        "{} is neither file, directory nor symbolic link",
        from.display()
    );
    copy_file(from, to, metadata.permissions())
}

fn copy_directory(from: &Path, to: &Path, mode: fs::Permissions) -> Result<()> {
    match fs::create_dir(to) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        other => other.context("make a directory")?,
    }
    for entry in fs::read_dir(from).context("list a directory")? {
        let entry = entry.context("list a directory")?;
        let to = to.join(entry.file_name());
        copy(&entry.path(), &to)
            .with_context(|| format!("copy {}", entry.file_name().display()))?;
    }
    fs::set_permissions(to, mode).context("chmod")
}

/// A symbolic link at the target is not followed: it may be the pod's and lead anywhere.
fn copy_file(from: &Path, to: &Path, mode: fs::Permissions) -> Result<()> {
    let flags =
        OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let bits = Mode::from_bits_truncate(mode.mode() & 0o777);
    let mut source = File::open(from).context("open the source")?;
    let mut target = File::from(open(to, flags, bits).context("open the target")?);
    io::copy(&mut source, &mut target).context("copy")?;
    target.set_permissions(mode).context("chmod")
}
