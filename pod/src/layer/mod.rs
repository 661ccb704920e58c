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

use std::path::{Path, PathBuf};

pub(crate) use changes::{Kind, changes};
pub(crate) use plan::plan;

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
