//! The pod's control groups: one to find, freeze and kill its programs with, and more where limits ask for
//! a controller that lives elsewhere.
//!
//! Version 2 is mounted at /sys/fs/cgroup, or beside version 1 at /sys/fs/cgroup/unified; both are found in
//! /proc/self/mountinfo. A controller is used where it is: version 2 if it lists it, else its version 1
//! hierarchy (Documentation/admin-guide/cgroup-v2.rst).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::failure::{Failure, Hinted};
use crate::store::Config;

/// Where the groups of a pod would be; nothing has been made yet.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Directories to make, the version 2 one first if there is one.
    pub(crate) directories: Vec<PathBuf>,
    /// File, value: written after the directories were made.
    limits: Vec<(PathBuf, String)>,
    /// Groups whose children must get a controller: (`cgroup.subtree_control`, controller).
    enable: Vec<(PathBuf, &'static str)>,
}

/// Mounted hierarchies.
#[derive(Debug)]
struct Hierarchies {
    unified: Option<PathBuf>,
    /// Controller and the directory of our own group in its hierarchy.
    legacy: Vec<(String, PathBuf)>,
}

/// Decides where a pod's groups go. Fails when a limit is asked for that nobody here can hold.
pub(crate) fn plan(root: &Path, config: &Config) -> Result<Plan> {
    let hierarchies = Hierarchies::read()?;
    // The pod may arrive from another root of this machine while it still stands there.
    let root = blake3::hash(root.as_os_str().as_encoded_bytes()).to_hex();
    let name = format!("pod-{}-{}", config.id, &root[..6]);
    let mut plan = Plan::default();
    if let Some(unified) = hierarchies.usable_unified() {
        plan.directories.push(unified.join(&name));
    }
    if let Some(bytes) = config.memory {
        plan.limit(
            &hierarchies,
            &name,
            "memory",
            "memory.max",
            "memory.limit_in_bytes",
            bytes,
        )?;
    }
    if let Some(count) = config.pids {
        plan.limit(&hierarchies, &name, "pids", "pids.max", "pids.max", count)?;
    }
    Ok(plan)
}

impl Plan {
    fn limit(
        &mut self,
        all: &Hierarchies,
        name: &str,
        controller: &'static str,
        new: &str,
        old: &str,
        value: u64,
    ) -> Result<()> {
        if let Some(unified) = all.unified_with(controller) {
            self.enable
                .push((unified.join("cgroup.subtree_control"), controller));
            self.limits
                .push((unified.join(name).join(new), value.to_string()));
            return Ok(());
        }
        let group = all
            .legacy
            .iter()
            .find(|(have, _)| have == controller)
            .map(|(_, group)| group.join(name));
        let group = group.filter(|group| group.parent().is_some_and(writable)).ok_or_else(|| {
            Failure::new(format!("limit {controller}: no control group of this host can hold the limit"))
                .hint(format!("the {controller} controller must be mounted and writable for you; or leave the limit out"))
        })?;
        self.limits.push((group.join(old), value.to_string()));
        self.directories.push(group);
        Ok(())
    }

    /// Makes the groups. Returns their `cgroup.procs`, open for writing.
    pub(crate) fn make(&self) -> Result<Vec<OwnedFd>> {
        for (file, controller) in &self.enable {
            fs::write(file, format!("+{controller}"))
                .with_context(|| format!("enable {controller} in {}", file.display()))?;
        }
        for directory in &self.directories {
            fs::create_dir(directory).with_context(|| format!("make {}", directory.display()))?;
        }
        for (file, value) in &self.limits {
            fs::write(file, value)
                .with_context(|| format!("write {value} to {}", file.display()))?;
        }
        self.directories
            .iter()
            .map(|directory| open_procs(directory))
            .collect()
    }
}

fn open_procs(directory: &Path) -> Result<OwnedFd> {
    let path = directory.join("cgroup.procs");
    let file = OpenOptions::new()
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    Ok(file.into())
}

fn writable(directory: &Path) -> bool {
    nix::unistd::access(directory, nix::unistd::AccessFlags::W_OK).is_ok()
}

impl Hierarchies {
    fn read() -> Result<Self> {
        let mounts =
            fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
        let groups = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
        Ok(Self::parse(&mounts, &groups))
    }

    fn parse(mounts: &str, groups: &str) -> Self {
        let mut found = Self {
            unified: None,
            legacy: Vec::new(),
        };
        for line in mounts.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let at = PathBuf::from(left.split(' ').nth(4).unwrap_or("/"));
            let mut right = right.split(' ');
            match (right.next(), right.nth(1)) {
                (Some("cgroup2"), _) => found.unified = Some(at),
                (Some("cgroup"), Some(options)) => found.add_legacy(&at, options, groups),
                _ => {}
            }
        }
        found
    }

    fn add_legacy(&mut self, at: &Path, options: &str, groups: &str) {
        for controller in options
            .split(',')
            .filter(|option| matches!(*option, "memory" | "pids"))
        {
            let own = groups.lines().find_map(|line| {
                let mut field = line.splitn(3, ':').skip(1);
                field
                    .next()?
                    .split(',')
                    .any(|have| have == controller)
                    .then(|| field.next())
                    .flatten()
            });
            let own = own.unwrap_or("/").trim_start_matches('/');
            let group = at.join(own);
            let group = if group.is_dir() { group } else { at.to_owned() };
            self.legacy.push((controller.to_owned(), group));
        }
    }

    /// The version 2 directory in which we may make groups.
    fn usable_unified(&self) -> Option<&PathBuf> {
        self.unified.as_ref().filter(|at| writable(at))
    }

    fn unified_with(&self, controller: &str) -> Option<&PathBuf> {
        let unified = self.usable_unified()?;
        let text = fs::read_to_string(unified.join("cgroup.controllers")).ok()?;
        text.split_ascii_whitespace()
            .any(|have| have == controller)
            .then_some(unified)
    }
}

/// The group among a pod's that can be frozen.
pub(crate) fn freezer(directories: &[PathBuf]) -> Option<&PathBuf> {
    directories
        .iter()
        .find(|directory| directory.join("cgroup.freeze").exists())
}

/// Freezes or thaws a version 2 group and waits until the kernel says it is so.
pub(crate) fn set_frozen(directory: &Path, frozen: bool) -> Result<()> {
    let mut events = File::open(directory.join("cgroup.events")).context("open cgroup.events")?;
    let wanted = format!("frozen {}", u8::from(frozen));
    fs::write(
        directory.join("cgroup.freeze"),
        if frozen { "1" } else { "0" },
    )
    .hinted(
        "write cgroup.freeze",
        "the pod's control group must be writable for you",
    )?;
    loop {
        let mut text = String::new();
        events.rewind()?;
        events
            .read_to_string(&mut text)
            .context("read cgroup.events")?;
        if text.lines().any(|line| line == wanted) {
            return Ok(());
        }
        let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
        poll(&mut fds, PollTimeout::NONE).context("wait for cgroup.events")?;
    }
}

/// Ends everything in a pod's groups and removes them. A group that is gone already is fine.
pub(crate) fn remove(directory: &Path) -> Result<()> {
    let kill = directory.join("cgroup.kill");
    if kill.exists() {
        fs::write(&kill, "1").with_context(|| format!("write {}", kill.display()))?;
        await_empty(directory)?;
    }
    match fs::remove_dir(directory) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

fn await_empty(directory: &Path) -> Result<()> {
    let mut events = File::open(directory.join("cgroup.events")).context("open cgroup.events")?;
    loop {
        let mut text = String::new();
        events.rewind()?;
        events
            .read_to_string(&mut text)
            .context("read cgroup.events")?;
        if text.lines().any(|line| line == "populated 0") {
            return Ok(());
        }
        let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
        poll(&mut fds, PollTimeout::NONE).context("wait for cgroup.events")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_found_where_they_are_mounted() {
        let mounts = "1 2 0:1 / / rw - ext4 /dev/vda rw\n\
            38 31 0:35 / /cg/memory rw - cgroup cgroup rw,memory\n\
            41 31 0:38 / /cg/unified rw - cgroup2 cgroup2 rw\n";
        let found = Hierarchies::parse(mounts, "4:memory:/a/b\n0::/\n");
        assert_eq!(found.unified.as_deref(), Some(Path::new("/cg/unified")));
        assert_eq!(
            found.legacy,
            [("memory".to_owned(), PathBuf::from("/cg/memory"))]
        );
    }
}
