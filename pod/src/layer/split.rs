//! The layer of a user without privilege.
//!
//! In a user namespace the mounts a process inherits are locked together (mount_namespaces(7)), and overlay
//! refuses a lower directory with a locked mount below it: `/` itself is always one. So the root is taken
//! apart: directories without mounts below get an overlay each, the few that hold mounts are made anew.
//!
//! ```text
//!   /            plain: layer/%2F/upper, with a place for each of
//!   ├ usr        overlay     layer/%2Fusr
//!   ├ bin        symbolic link, copied
//!   ├ mnt        plain (something is mounted below)
//!   │ └ disk     overlay     layer/%2Fmnt%2Fdisk
//!   └ proc …     mounted later
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::plan::{Mounted, overlay};
use super::{OURS, encode};
use crate::messages::{Overlay, Root};
use crate::store::{Pod, private_dir};

/// Mode of an empty file that is only there to be covered by a mount. No program makes such a file.
pub(super) const PLACE: u32 = 0o1000;

/// Plans the root as overlays without mounts below them.
pub(super) fn split(pod: &Pod, root: &mut Root, mounts: &[Mounted]) -> Result<()> {
    let base = pod.path("layer").join(encode(Path::new("/"))).join("upper");
    private_dir(&base)?;
    let mut splitting = Splitting {
        pod,
        mounts,
        base: base.clone(),
        overlays: Vec::new(),
        read_only: Vec::new(),
    };
    splitting.directory(Path::new("/"))?;
    super::plan::copy_attributes(Path::new("/"), &base)?;
    root.base = Some(base);
    root.overlays = Some(splitting.overlays);
    root.read_only = splitting.read_only;
    Ok(())
}

struct Splitting<'a> {
    pod: &'a Pod,
    mounts: &'a [Mounted],
    base: PathBuf,
    overlays: Vec<Overlay>,
    read_only: Vec<PathBuf>,
}

impl Splitting<'_> {
    fn directory(&mut self, directory: &Path) -> Result<()> {
        for entry in
            fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?
        {
            let path = entry
                .with_context(|| format!("list {}", directory.display()))?
                .path();
            self.entry(&path)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path) -> Result<()> {
        let metadata =
            fs::symlink_metadata(path).with_context(|| format!("look at {}", path.display()))?;
        if metadata.is_symlink() {
            return self.link(path);
        }
        if metadata.is_file() {
            self.read_only.push(path.to_owned());
            return self.file(path);
        }
        if !metadata.is_dir() {
            return Ok(());
        }
        self.place(path, metadata.mode())?;
        let mounted = self.mounts.iter().find(|mounted| mounted.at == path);
        if OURS.iter().any(|ours| path == Path::new(ours)) {
            return Ok(());
        }
        if mounted.is_some_and(|mounted| mounted.read_only) {
            self.read_only.push(path.to_owned());
        } else if self
            .mounts
            .iter()
            .any(|mounted| mounted.at != path && mounted.at.starts_with(path))
        {
            return self.directory(path);
        } else {
            self.overlays.push(overlay(self.pod, path, path)?);
        }
        Ok(())
    }

    fn ours(&self, path: &Path) -> PathBuf {
        self.base.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn link(&self, path: &Path) -> Result<()> {
        let target = fs::read_link(path).with_context(|| format!("read {}", path.display()))?;
        existing(symlink(target, self.ours(path)))
            .with_context(|| format!("copy {}", path.display()))
    }

    fn place(&self, path: &Path, mode: u32) -> Result<()> {
        let place = self.ours(path);
        let made = existing(fs::create_dir(&place));
        let made = made
            .and_then(|()| fs::set_permissions(&place, fs::Permissions::from_mode(mode & 0o7777)));
        made.with_context(|| format!("make a place for {}", path.display()))
    }

    fn file(&self, path: &Path) -> Result<()> {
        let place = self.ours(path);
        if place.exists() {
            return Ok(());
        }
        let made = fs::File::create(&place)
            .and_then(|file| file.set_permissions(fs::Permissions::from_mode(PLACE)));
        made.with_context(|| format!("make a place for {}", path.display()))
    }
}

fn existing(made: io::Result<()>) -> io::Result<()> {
    match made {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}
