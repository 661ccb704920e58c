//! The pod's files: assembles a new root from the plan the supervisor made, and moves into it.
//!
//! Everything happens in the pod's own mount namespace, with propagation cut first, so nothing reaches the
//! host and all of it vanishes with the pod. Sources on the host are opened as detached mounts *before*
//! the move and attached *after* it, so that a symbolic link inside the pod can never lead outside.
//!
//! ```text
//!   cut propagation ─▶ open sources ─▶ overlays on the mount point ─▶ pivot_root ─▶ /proc /sys /dev ─▶ files, volumes
//! ```

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::devices;
use crate::failure::{Failure, Hinted};
use crate::messages::{Overlay, Root};
use crate::{sys, userns};

/// A detached mount and where it goes.
struct Source {
    tree: OwnedFd,
    target: PathBuf,
    directory: bool,
}

/// Makes the pod's root. Returns the mounts that are read-only because they cannot lie under a layer.
pub(super) fn make(root: &Root, own_pids: bool) -> Result<Vec<String>> {
    cut_propagation()?;
    let sources = sources(root)?;
    let sys = open("/sys".as_ref(), "/sys".as_ref(), true, true)?;
    let proc = proc(own_pids)?;
    let devices = devices::sources(root.unprivileged)?;
    let mut read_only = assemble(root)?;
    pivot(&root.mount_point)?;
    attach(&proc)?;
    attach(&sys)?;
    devices::make(devices, root.unprivileged)?;
    for source in &sources {
        attach(source)?;
    }
    hide_store(root)?;
    read_only.extend(root.read_only.iter().map(|path| path.display().to_string()));
    Ok(read_only)
}

/// Puts a pod's files together on its mount point, in a new mount namespace of the calling process, which
/// must have one thread. What lies over them in a running pod (/proc, volumes, …) is left out.
pub(crate) fn assemble_privately(root: &Root) -> Result<()> {
    if userns::needed() {
        userns::enter()?;
    } else {
        unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    }
    cut_propagation()?;
    assemble(root).map(drop)
}

fn cut_propagation() -> Result<()> {
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).context("cut mount propagation")
}

fn sources(root: &Root) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for path in &root.read_only {
        sources.push(open(path, path, true, true)?);
    }
    for (ours, target) in &root.files {
        sources.push(open(ours, target, false, false)?);
    }
    for volume in &root.volumes {
        sources.push(open(
            &volume.source,
            &volume.target,
            true,
            volume.read_only,
        )?);
    }
    Ok(sources)
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .with_context(|| format!("{} has a NUL in it", path.display()))
}

fn open(source: &Path, target: &Path, recursive: bool, read_only: bool) -> Result<Source> {
    let metadata = fs::metadata(source).with_context(|| format!("look at {}", source.display()))?;
    let tree = sys::copy_mount(&c_path(source)?, recursive)
        .with_context(|| format!("open {}", source.display()))?;
    if read_only {
        sys::make_read_only(tree.as_fd())
            .with_context(|| format!("make {} read-only", source.display()))?;
    }
    Ok(Source {
        tree,
        target: target.to_owned(),
        directory: metadata.is_dir(),
    })
}

/// Attaches a mount, making the place it goes where that is missing.
fn attach(source: &Source) -> Result<()> {
    let target = &source.target;
    if !target.exists() {
        make_place(target, source.directory)
            .with_context(|| format!("make {} in the pod", target.display()))?;
    }
    sys::attach_mount(source.tree.as_fd(), &c_path(target)?)
        .with_context(|| format!("mount {}", target.display()))
}

fn make_place(target: &Path, directory: bool) -> std::io::Result<()> {
    if directory {
        return fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::File::create(target).map(drop)
}

/// Puts the base of the new root on the mount point. Returns what had to be shown read-only.
fn assemble(root: &Root) -> Result<Vec<String>> {
    let Some(overlays) = &root.overlays else {
        let host = sys::copy_mount(c"/", true).context("open the host's root")?;
        sys::attach_mount(host.as_fd(), &c_path(&root.mount_point)?)
            .context("mount the host's files")?;
        return Ok(Vec::new());
    };
    if let Some(base) = &root.base {
        let base = sys::copy_mount(&c_path(base)?, false).context("open the plain root")?;
        sys::attach_mount(base.as_fd(), &c_path(&root.mount_point)?)
            .context("mount the plain root")?;
    }
    let mut read_only = Vec::new();
    for overlay in overlays {
        let at = root
            .mount_point
            .join(overlay.at.strip_prefix("/").unwrap_or(&overlay.at));
        match mount_overlay(overlay, &at, root.unprivileged) {
            Ok(()) => {}
            Err(errno) if overlay.at != Path::new("/") => {
                tracing::info!(at = %overlay.at.display(), %errno, "cannot lie under a layer");
                attach(&open(&overlay.lower, &at, true, true)?)?;
                read_only.push(overlay.at.display().to_string());
            }
            Err(errno) => return Err(refused(overlay, errno)),
        }
    }
    Ok(read_only)
}

fn refused(overlay: &Overlay, errno: Errno) -> anyhow::Error {
    let what = format!(
        "put a layer over {}: {}",
        overlay.lower.display(),
        errno.desc()
    );
    let hint = "overlay needs a file system under --root that can hold one (ext4, xfs, btrfs, tmpfs); or use --fs host";
    Failure::new(what).hint(hint).into()
}

fn mount_overlay(overlay: &Overlay, at: &Path, unprivileged: bool) -> nix::Result<()> {
    // Under userxattr overlay takes no word on redirects but "nofollow", and never makes any.
    let portable = if unprivileged {
        "userxattr"
    } else {
        "redirect_dir=off,metacopy=off"
    };
    let options = format!(
        "lowerdir={},upperdir={},workdir={},index=off,xino=off,{portable}",
        escaped(&overlay.lower),
        escaped(&overlay.upper),
        escaped(&overlay.work)
    );
    mount(
        Some("overlay"),
        at,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
}

/// Overlay's options end at a comma and its lower directories at a colon.
fn escaped(path: &Path) -> String {
    let mut text = String::new();
    for c in path.to_string_lossy().chars() {
        if matches!(c, '\\' | ',' | ':') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

/// pivot_root(2) with the old root stacked under the new one and then detached.
fn pivot(new: &Path) -> Result<()> {
    let _ = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    nix::unistd::chdir(new).context("enter the new root")?;
    nix::unistd::pivot_root(".", ".").context("pivot_root")?;
    umount2(".", MntFlags::MNT_DETACH).context("let go of the old root")?;
    nix::unistd::chdir("/").context("enter /")
}

/// A /proc for the pod's own pids, else the host's. It is made while the host's is still in sight: without
/// privilege the kernel shows no more than what could be seen before.
fn proc(own_pids: bool) -> Result<Source> {
    if !own_pids {
        return open("/proc".as_ref(), "/proc".as_ref(), true, false);
    }
    let tree = sys::new_proc().hinted(
        "make a /proc",
        "the host's own /proc must not be partly covered by other mounts",
    )?;
    Ok(Source {
        tree,
        target: "/proc".into(),
        directory: true,
    })
}

/// Our own state, and the pod's own layer, are no business of the pod.
fn hide_store(root: &Root) -> Result<()> {
    if !root.hide.is_dir() {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    mount(
        Some("tmpfs"),
        &root.hide,
        Some("tmpfs"),
        flags,
        Some("mode=0,size=0"),
    )
    .with_context(|| format!("hide {}", root.hide.display()))
}
