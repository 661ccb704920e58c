//! What is left when a test is over, and must not be.
//!
//! A host's mounts, devices, addresses, rules, IPC objects and temporary files are its own, so they are
//! compared with what they were at the start. Processes and control groups are the machine's: those of a
//! world carry its token in their environment, live in one of its network namespaces, or have a pod's id in
//! their name.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::host::{Host, OWN};

/// Everything that a host has and that outlives a command, one item a line.
///
/// # Errors
/// When the listing fails.
pub(crate) fn belongings(host: &Host) -> Result<BTreeSet<String>> {
    let script = format!(
        "sed 's/^/mount: /' /proc/self/mountinfo
        ip -o link | cut -d: -f2 | sed 's/^/device: /'
        ip -o address | sed 's/^/address: /'
        ip route | sed 's/^/route: /'
        ip -6 rule; ip rule
        nft list ruleset | sed 's/^/nft: /'
        for kind in shm sem msg; do tail -n +2 /proc/sysvipc/$kind | sed \"s/^/$kind: /\"; done
        find {} -mindepth 1 | sed 's/^/file: /'",
        OWN.join(" ")
    );
    let text = host.shell(&script)?.ok()?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// A process that belongs to a world.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) command: String,
}

/// Processes that carry `token` or live in one of the network namespaces, but for `but`.
pub(crate) fn processes(token: &str, nets: &[u64], but: &[u32]) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| !but.contains(&pid.unsigned_abs()))
        .filter(|pid| carries(*pid, token) || nets.contains(&net_of(*pid)))
        .map(|pid| Process {
            pid,
            command: command_of(pid),
        })
        .collect()
}

fn carries(pid: i32, token: &str) -> bool {
    if token.is_empty() {
        return false;
    }
    let entry = format!("POD_TEST={token}");
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment
        .split(|byte| *byte == 0)
        .any(|one| one == entry.as_bytes())
}

fn net_of(pid: i32) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(format!("/proc/{pid}/ns/net")).map_or(0, |meta| meta.ino())
}

fn command_of(pid: i32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

/// Control groups whose name holds one of `ids`.
pub(crate) fn groups(ids: &[String]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), 4, &mut |directory| {
        let name = directory
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        if ids.iter().any(|id| name.contains(id.as_str())) {
            found.push(directory.to_owned());
        }
    });
    found
}

fn walk(directory: &Path, depth: u32, visit: &mut impl FnMut(&Path)) {
    visit(directory);
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    let below = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    for entry in below.filter(|_| depth > 0) {
        walk(&entry.path(), depth - 1, visit);
    }
}
