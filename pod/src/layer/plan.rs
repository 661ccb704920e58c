//! Which file systems lie under the pod's layer, and the directories their writes go to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::split::split;
use super::{OURS, encode, uppers};
use crate::messages::{Overlay, Root};
use crate::store::{Base, Config, Pod, Store, private_dir};

/// Kernel interfaces and other things that are no files of the host.
const NO_FILES: [&str; 19] = [
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "cgroup",
    "cgroup2",
    "mqueue",
    "debugfs",
    "tracefs",
    "securityfs",
    "pstore",
    "bpf",
    "configfs",
    "fusectl",
    "hugetlbfs",
    "autofs",
    "binfmt_misc",
    "nsfs",
    "efivarfs",
];

/// A line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    pub(super) at: PathBuf,
    kind: String,
    pub(super) read_only: bool,
}

/// Plans the pod's root and makes the directories of its layer.
pub(crate) fn plan(store: &Store, pod: &Pod, config: &Config, unprivileged: bool) -> Result<Root> {
    let mount_point = pod.path("mnt");
    private_dir(&mount_point)?;
    let mut root = Root {
        hide: store.root().to_owned(),
        mount_point,
        base: None,
        overlays: None,
        read_only: Vec::new(),
        unprivileged,
        files: own_files(pod, config)?,
        volumes: config.volumes.clone(),
    };
    match &config.base {
        Base::Host => {}
        Base::Rootfs(directory) => {
            root.overlays = Some(vec![overlay(pod, Path::new("/"), directory)?]);
        }
        Base::Layer => host(pod, &mut root)?,
    }
    Ok(root)
}

fn host(pod: &Pod, root: &mut Root) -> Result<()> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    if root.unprivileged {
        split(pod, root, &reachable(&text))?;
    } else {
        whole(pod, root, files_of_the_host(reachable(&text)))?;
    }
    moved_in(pod, root)
}

/// One overlay for each file system.
fn whole(pod: &Pod, root: &mut Root, mounts: Vec<Mounted>) -> Result<()> {
    let mut overlays = Vec::new();
    for mounted in mounts {
        if mounted.at.starts_with(&root.hide) {
            continue;
        }
        if mounted.at != Path::new("/") && (mounted.read_only || !mounted.at.is_dir()) {
            root.read_only.push(mounted.at);
        } else {
            overlays.push(overlay(pod, &mounted.at, &mounted.at)?);
        }
    }
    root.overlays = Some(overlays);
    Ok(())
}

/// A layer that was made on a host with other file systems has parts with no counterpart here: they get
/// overlays too, over whatever lies at their place.
fn moved_in(pod: &Pod, root: &mut Root) -> Result<()> {
    let overlays = root.overlays.get_or_insert_default();
    let planned: BTreeSet<PathBuf> = overlays.iter().map(|overlay| overlay.at.clone()).collect();
    for (at, _) in uppers(pod)? {
        if planned.contains(&at) || at == Path::new("/") {
            continue;
        }
        let lower = if at.is_dir() {
            at.clone()
        } else {
            nothing(pod)?
        };
        overlays.push(overlay(pod, &at, &lower)?);
    }
    overlays.sort_by(|a, b| a.at.cmp(&b.at));
    Ok(())
}

fn nothing(pod: &Pod) -> Result<PathBuf> {
    let empty = pod.path("empty");
    private_dir(&empty)?;
    Ok(empty)
}

/// The mounts a path can reach, parents before children.
fn reachable(mountinfo: &str) -> Vec<Mounted> {
    let mut last = BTreeMap::new();
    for mounted in mountinfo.lines().filter_map(parse) {
        // A later mount hides an earlier one at the same place, and everything below it.
        last.retain(|at: &PathBuf, _| !at.starts_with(&mounted.at));
        last.insert(mounted.at.clone(), mounted);
    }
    last.into_values().collect()
}

/// Those with files that are no interface of the kernel.
fn files_of_the_host(mut mounts: Vec<Mounted>) -> Vec<Mounted> {
    let ours = |at: &Path| OURS.iter().any(|ours| at.starts_with(ours));
    mounts.retain(|mounted| !ours(&mounted.at) && !NO_FILES.contains(&mounted.kind.as_str()));
    mounts
}

/// A line of mountinfo.
fn parse(line: &str) -> Option<Mounted> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ');
    let at = unescape(left.nth(4)?);
    let read_only = left.next()?.split(',').any(|option| option == "ro");
    Some(Mounted {
        at: at.into(),
        kind: right.split(' ').next()?.to_owned(),
        read_only,
    })
}

/// Blanks and backslashes are octal in mountinfo.
fn unescape(text: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

pub(super) fn overlay(pod: &Pod, at: &Path, lower: &Path) -> Result<Overlay> {
    let base = pod.path("layer").join(encode(at));
    let overlay = Overlay {
        at: at.to_owned(),
        lower: lower.to_owned(),
        upper: base.join("upper"),
        work: base.join("work"),
    };
    let fresh = !overlay.upper.exists();
    private_dir(&overlay.upper)?;
    private_dir(&overlay.work)?;
    if fresh {
        // The root of an overlay has the attributes of its upper directory.
        copy_attributes(lower, &overlay.upper)?;
    }
    Ok(overlay)
}

pub(super) fn copy_attributes(from: &Path, to: &Path) -> Result<()> {
    let metadata = fs::metadata(from).with_context(|| format!("look at {}", from.display()))?;
    if chown(to, Some(metadata.uid()), Some(metadata.gid())).is_err() {
        tracing::debug!(path = %to.display(), "the owner cannot be copied without privilege");
    }
    let mode = fs::Permissions::from_mode(metadata.mode() & 0o7777);
    fs::set_permissions(to, mode).with_context(|| format!("chmod {}", to.display()))
}

/// The files that say which host this is: bound over the host's.
fn own_files(pod: &Pod, config: &Config) -> Result<Vec<(PathBuf, PathBuf)>> {
    let directory = pod.path("etc");
    private_dir(&directory)?;
    let hosts = format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\t{}\n",
        config.hostname
    );
    let resolv = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let texts = [
        ("hostname", format!("{}\n", config.hostname)),
        ("hosts", hosts),
        ("resolv.conf", resolv),
        ("machine-id", format!("{}\n", config.machine_id)),
    ];
    let mut files = Vec::new();
    for (name, text) in texts {
        let path = directory.join(name);
        if !path.exists() {
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
                .with_context(|| format!("chmod {}", path.display()))?;
        }
        files.push((path, Path::new("/etc").join(name)));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reachable_file_systems_with_files_count() {
        let text = "1 0 254:0 / / rw - ext4 /dev/vda rw\n\
            2 1 0:1 / /proc rw - proc proc rw\n\
            3 1 0:2 / /home rw - xfs /dev/vdb rw\n\
            4 3 0:3 / /home/a\\040b ro,nosuid - xfs /dev/vdc rw\n\
            5 1 0:4 / /mnt rw - ext4 /dev/vdd rw\n\
            6 5 0:5 / /mnt/deep rw - ext4 /dev/vde rw\n\
            7 5 0:6 / /mnt rw - tmpfs none rw\n\
            8 2 0:7 / /dev/shm rw - tmpfs none rw\n";
        let found: Vec<_> = files_of_the_host(reachable(text))
            .into_iter()
            .map(|m| (m.at.display().to_string(), m.read_only))
            .collect();
        let want = [
            ("/", false),
            ("/home", false),
            ("/home/a b", true),
            ("/mnt", false),
        ];
        assert_eq!(
            found,
            want.map(|(at, read_only)| (at.to_owned(), read_only))
        );
    }
}
