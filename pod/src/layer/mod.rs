//! The pod's layer: where what it writes goes.
//!
//! Under `--fs layer` every mounted file system of the host (or the one directory of `--rootfs`) is the
//! lower side of an overlay, and the pod's writes are the upper side:
//!
//! ```text
//!   pods/<id>/layer/%2F/upper          what the pod changed under /
//!                   %2Fhome/upper      … under /home, where that is a file system of its own
//!                        └ work        overlay's own
//! ```
//!
//! Only overlay options are used that leave the upper side readable without overlay (no redirects, no
//! metacopy, no index): a file is there whole, a deletion is a character device 0/0, a directory that
//! replaced another has an `opaque` attribute. So the layer can be packed, moved, and put over another host.

mod changes;
mod plan;
mod split;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::store::Pod;

pub(crate) use changes::{Kind, changes};
pub(crate) use plan::plan;

/// Places of the pod that are not the host's files: mounted anew in every pod.
const OURS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The parts of a pod's layer: the path of the pod they lie at, and their upper directory.
pub(crate) fn uppers(pod: &Pod) -> Result<Vec<(PathBuf, PathBuf)>> {
    let layer = pod.path("layer");
    let mut parts = Vec::new();
    if !layer.is_dir() {
        return Ok(parts);
    }
    for entry in fs::read_dir(&layer).with_context(|| format!("list {}", layer.display()))? {
        let entry = entry.with_context(|| format!("list {}", layer.display()))?;
        let at = decode(&entry.file_name().to_string_lossy());
        parts.push((at, entry.path().join("upper")));
    }
    parts.sort();
    Ok(parts)
}

/// Where the pod's writes to a path go, given the parts of its layer.
pub(crate) fn cover(parts: &[(PathBuf, PathBuf)], path: &Path) -> Option<PathBuf> {
    let covering = parts.iter().filter(|(at, _)| path.starts_with(at));
    let (at, upper) = covering.max_by_key(|(at, _)| at.components().count())?;
    let inside = path.strip_prefix(at).ok()?;
    Some(if inside.as_os_str().is_empty() {
        upper.clone()
    } else {
        upper.join(inside)
    })
}

/// The directory name for the file system at a path of the pod.
pub(crate) fn encode(at: &Path) -> String {
    at.to_string_lossy().replace('%', "%25").replace('/', "%2F")
}

/// The path of the pod that a directory name stands for.
pub(crate) fn decode(name: &str) -> PathBuf {
    name.replace("%2F", "/").replace("%25", "%").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_for_paths() {
        for path in ["/", "/home", "/a%2Fb/c", "/100%"] {
            assert_eq!(decode(&encode(path.as_ref())), Path::new(path));
            assert!(!encode(path.as_ref()).contains('/'));
        }
    }
}
