//! What a layer holds: read from its upper directories, without overlay.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use super::split::PLACE;
use super::uppers;
use crate::store::Pod;

/// What happened to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Added,
    Changed,
    Deleted,
}

/// One changed path of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Change {
    pub(crate) kind: Kind,
    /// As the pod sees it.
    pub(crate) path: PathBuf,
    /// Where its contents are on the host.
    #[serde(skip)]
    pub(crate) upper: PathBuf,
}

/// Places that exist only so that something of ours can be mounted there.
const PLACES: [&str; 8] = [
    "/proc",
    "/sys",
    "/dev",
    "/etc",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/machine-id",
];

/// Every change in a pod's layer, parents first. `lower` says what lies under a path of the pod.
pub(crate) fn changes(pod: &Pod, lower: &dyn Fn(&Path) -> PathBuf) -> Result<Vec<Change>> {
    let mut found = Vec::new();
    for (at, upper) in uppers(pod)? {
        walk(&upper, &at, lower, &mut found)?;
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn walk(
    upper: &Path,
    at: &Path,
    lower: &dyn Fn(&Path) -> PathBuf,
    found: &mut Vec<Change>,
) -> Result<()> {
    for entry in fs::read_dir(upper).with_context(|| format!("list {}", upper.display()))? {
        let entry = entry.with_context(|| format!("list {}", upper.display()))?;
        let path = at.join(entry.file_name());
        let metadata = fs::symlink_metadata(entry.path())
            .with_context(|| format!("look at {}", entry.path().display()))?;
        let below = fs::symlink_metadata(lower(&path)).ok();
        if let Some(kind) = kind(&path, &entry.path(), &metadata, below.as_ref()) {
            found.push(Change {
                kind,
                path: path.clone(),
                upper: entry.path(),
            });
        }
        if metadata.is_dir() {
            walk(&entry.path(), &path, lower, found)?;
        }
    }
    Ok(())
}

fn kind(
    path: &Path,
    at: &Path,
    upper: &fs::Metadata,
    lower: Option<&fs::Metadata>,
) -> Option<Kind> {
    if upper.file_type().is_char_device() && upper.rdev() == 0 {
        return Some(Kind::Deleted);
    }
    if upper.is_file() && upper.len() == 0 && upper.mode() & 0o7777 == PLACE {
        return None;
    }
    let place =
        PLACES.iter().any(|place| path == Path::new(place)) && (upper.is_dir() || upper.len() == 0);
    match lower {
        None if place => None,
        None => Some(Kind::Added),
        Some(_) if upper.is_dir() && is_opaque(at) => Some(Kind::Changed),
        // What is only there to hold a change below it, or a mount.
        Some(lower) if is_place(at, path, upper, lower) => None,
        Some(_) => Some(Kind::Changed),
    }
}

/// Whether a directory hides everything the lower side has in it (Documentation/filesystems/overlayfs.rst).
fn is_opaque(upper: &Path) -> bool {
    let Ok(path) = CString::new(upper.as_os_str().as_bytes()) else {
        return false;
    };
    [c"trusted.overlay.opaque", c"user.overlay.opaque"]
        .iter()
        .any(|name| {
            let mut value = [0_u8; 1];
            // SAFETY: both strings are C strings; value has the length that is passed.
            let length = unsafe {
                libc::lgetxattr(
                    path.as_ptr(),
                    name.as_ptr(),
                    value.as_mut_ptr().cast(),
                    value.len(),
                )
            };
            length == 1 && value[0] == b'y'
        })
}

/// Whether a directory, or a symbolic link, of the layer is as the one it lies over. A directory's owner
/// does not count where it could not be copied, for want of privilege.
fn is_place(upper_path: &Path, path: &Path, upper: &fs::Metadata, lower: &fs::Metadata) -> bool {
    if upper.is_symlink() && lower.is_symlink() {
        return fs::read_link(upper_path).ok() == fs::read_link(path).ok();
    }
    let owner =
        (upper.uid(), upper.gid()) == (lower.uid(), lower.gid()) || is_unmapped(lower.uid());
    upper.is_dir() && lower.is_dir() && upper.mode() == lower.mode() && owner
}

/// The number an owner has who does not exist in this user namespace (/proc/sys/kernel/overflowuid).
fn is_unmapped(uid: u32) -> bool {
    uid == 65534
}
