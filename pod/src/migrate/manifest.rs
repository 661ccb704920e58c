//! Which files of the host a pod uses: what is open, mapped, executed or named on a command line, and
//! the closure of that.
//!
//! ```text
//!   /proc/PID/{exe,maps,fd,cmdline} ─▶ paths ─┬─ owned by a package ─▶ its files and those of its
//!                                             │                        dependencies (dpkg)
//!                                             └─ owned by none ──────▶ the files of its directory
//! ```
//!
//! The pod's layer always moves and is left out; so are volumes, which reach through to the host, and
//! whatever is no file. Paths are looked at through the pod's own root: what it does not see, it does
//! not use.

mod packages;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::message::{HostContent, HostFile};
use packages::Packages;

/// The files of a pod that lie under its layer.
#[derive(Clone, Debug)]
pub(crate) struct Ground {
    /// The pod's root, as /proc/PID/root of one of its processes.
    pub(crate) root: PathBuf,
    /// Where each part of the layer stands in the pod, and the directory with the pod's writes.
    pub(crate) layers: Vec<(PathBuf, PathBuf)>,
    /// Where volumes and kernel file systems stand in the pod.
    pub(crate) outside: Vec<PathBuf>,
}

impl Ground {
    /// Whether a path of the pod is the host's file, seen through the layer.
    fn holds(&self, path: &Path) -> bool {
        if self.outside.iter().any(|outside| path.starts_with(outside)) {
            return false;
        }
        let part = self
            .layers
            .iter()
            .filter(|(at, _)| path.starts_with(at))
            .max_by_key(|(at, _)| at.components().count());
        part.is_some_and(|(at, upper)| {
            let inside = path.strip_prefix(at).unwrap_or(path);
            upper.join(inside).symlink_metadata().is_err()
        })
    }

    fn real(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Opens a file as the pod sees it.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn open(&self, path: &Path) -> Result<File> {
        File::open(self.real(path)).with_context(|| format!("open {} of the pod", path.display()))
    }

    fn entry(&self, path: &Path) -> Result<Option<HostFile>> {
        let real = self.real(path);
        let Ok(meta) = real.symlink_metadata() else {
            return Ok(None);
        };
        let content = if meta.is_symlink() {
            HostContent::Link(
                fs::read_link(&real).with_context(|| format!("readlink {}", path.display()))?,
            )
        } else if meta.is_file() {
            HostContent::File {
                length: meta.len(),
                blake3: hash(&real)?,
            }
        } else {
            return Ok(None);
        };
        Ok(Some(HostFile {
            path: path.to_owned(),
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            content,
        }))
    }
}

fn hash(path: &Path) -> Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    std::io::copy(&mut file, &mut hasher).with_context(|| format!("read {}", path.display()))?;
    Ok(*hasher.finalize().as_bytes())
}

/// The manifest of the pod whose processes have these pids on this host.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn manifest(ground: &Ground, pids: &[i32]) -> Result<Vec<HostFile>> {
    let mut used: BTreeSet<PathBuf> = pids.iter().flat_map(|pid| used_by(ground, *pid)).collect();
    used.retain(|path| ground.holds(path) && ground.real(path).is_file());
    let packages = Packages::read(&ground.root)?;
    let mut all = closure(ground, &packages, &used);
    all.retain(|path| ground.holds(path));
    all.iter()
        .filter_map(|path| ground.entry(path).transpose())
        .collect()
}

fn closure(ground: &Ground, packages: &Packages, used: &BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
    let owners: BTreeSet<&str> = used
        .iter()
        .filter_map(|path| packages.owner(path))
        .collect();
    let mut all = packages.closure(owners);
    for path in used {
        all.insert(path.clone());
        if packages.owner(path).is_none() && executable(&ground.real(path)) {
            all.extend(siblings(ground, path));
        }
    }
    all
}

fn executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.mode() & 0o111 != 0)
}

/// The files beside a file.
fn siblings(ground: &Ground, path: &Path) -> Vec<PathBuf> {
    let Some(parent) = path.parent() else {
        return Vec::new();
    };
    let entries = fs::read_dir(ground.real(parent))
        .into_iter()
        .flatten()
        .flatten();
    entries
        .map(|entry| parent.join(entry.file_name()))
        .collect()
}

/// Paths of the pod that a process uses. A process that ends meanwhile uses nothing.
fn used_by(ground: &Ground, pid: i32) -> Vec<PathBuf> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let mut paths: Vec<PathBuf> = fs::read_link(proc.join("exe")).into_iter().collect();
    let maps = fs::read_to_string(proc.join("maps")).unwrap_or_default();
    paths.extend(
        maps.lines()
            .filter_map(|line| line.find('/').map(|at| line[at..].into())),
    );
    let fds = fs::read_dir(proc.join("fd"))
        .into_iter()
        .flatten()
        .flatten();
    paths.extend(
        fds.filter_map(|fd| fs::read_link(fd.path()).ok())
            .filter(|path| path.is_absolute()),
    );
    paths.extend(named(ground, &proc));
    paths
}

/// Files that a command line names: a script, a configuration.
fn named(ground: &Ground, proc: &Path) -> Vec<PathBuf> {
    let cwd = fs::read_link(proc.join("cwd")).unwrap_or_else(|_| "/".into());
    let line = fs::read(proc.join("cmdline")).unwrap_or_default();
    let words = line
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty());
    let paths = words.map(|word| cwd.join(String::from_utf8_lossy(word).as_ref()));
    paths.filter(|path| ground.real(path).is_file()).collect()
}

/// Numbers of the files of a manifest that are not on this host, or differ.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn missing(manifest: &[HostFile]) -> Result<Vec<u32>> {
    let mut missing = Vec::new();
    for (number, file) in (0_u32..).zip(manifest) {
        if !is_here(file)? {
            missing.push(number);
        }
    }
    Ok(missing)
}

fn is_here(file: &HostFile) -> Result<bool> {
    let Ok(meta) = file.path.symlink_metadata() else {
        return Ok(false);
    };
    Ok(match &file.content {
        HostContent::Link(target) => fs::read_link(&file.path).is_ok_and(|found| found == *target),
        HostContent::File { length, blake3 } => {
            meta.is_file()
                && meta.len() == *length
                && meta.mode() & 0o7777 == file.mode
                && hash(&file.path)? == *blake3
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_the_layer_or_outside_is_not_the_hosts() {
        let upper = tempfile::tempdir().unwrap();
        fs::create_dir(upper.path().join("etc")).unwrap();
        fs::write(upper.path().join("etc/changed"), "").unwrap();
        let ground = Ground {
            root: "/".into(),
            layers: vec![
                ("/".into(), upper.path().into()),
                ("/home".into(), "/no/upper".into()),
            ],
            outside: vec!["/proc".into(), "/srv/data".into()],
        };
        for (path, holds) in [
            ("/etc/changed", false),
            ("/etc/passwd", true),
            ("/home/etc/changed", true),
            ("/proc/1/exe", false),
            ("/srv/data/x", false),
            ("/srv/datax", true),
        ] {
            assert_eq!(ground.holds(Path::new(path)), holds, "{path}");
        }
    }

    #[test]
    fn a_running_program_is_found_with_its_closure() {
        let own = std::process::id() as i32;
        let ground = Ground {
            root: "/".into(),
            layers: vec![("/".into(), "/no/upper".into())],
            outside: vec!["/proc".into()],
        };
        let exe = fs::read_link("/proc/self/exe").unwrap();
        let used = used_by(&ground, own);
        assert!(used.contains(&exe));
        let libc = used
            .iter()
            .find(|path| path.to_string_lossy().contains("libc.so"))
            .unwrap()
            .clone();
        let packages = Packages::read(Path::new("/")).unwrap();
        let all = closure(&ground, &packages, &BTreeSet::from([libc.clone()]));
        assert!(all.contains(&libc));
        if packages.owner(&libc).is_some() {
            assert!(
                all.iter()
                    .any(|path| path.to_string_lossy().contains("ld-linux")),
                "{all:?}"
            );
        }
    }

    #[test]
    fn a_file_that_differs_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let (same, other, link) = (
            dir.path().join("same"),
            dir.path().join("other"),
            dir.path().join("link"),
        );
        fs::write(&same, "one").unwrap();
        fs::write(&other, "one").unwrap();
        std::os::unix::fs::symlink("same", &link).unwrap();
        let ground = Ground {
            root: "/".into(),
            layers: Vec::new(),
            outside: Vec::new(),
        };
        let entry = |path: &Path| ground.entry(path).unwrap().unwrap();
        let manifest = [entry(&same), entry(&other), entry(&link), entry(&same)];
        fs::write(&other, "two").unwrap();
        assert_eq!(missing(&manifest).unwrap(), [1]);
        fs::remove_file(&link).unwrap();
        fs::remove_file(&same).unwrap();
        assert_eq!(missing(&manifest).unwrap(), [0, 1, 2, 3]);
    }
}
