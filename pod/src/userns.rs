//! User namespaces: how a user without privilege gets to be root of a pod.
//!
//! Inside, user 0 is the user who runs the pod. Where `newuidmap` is installed and /etc/subuid gives the
//! user a range, the ids from 1 on are that range (subuid(5)); else there is only user 0, and changing to
//! another user fails in the pod.
//!
//! ```text
//!   pod    host                      pod    host
//!   0      1000                      0      1000
//!   1      100000  ┐ subuid, subgid
//!   …      …       ┘                 (nobody else)
//! ```

use std::fs;
use std::os::fd::AsFd;
use std::process::Command;

use anyhow::{Context, Result};
use intercept::sys::{Clone3, clone3};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{getegid, geteuid, pipe2, read};

use crate::failure::{Failure, Hinted};

/// Whether pods of the calling user need a user namespace.
pub(crate) fn needed() -> bool {
    !geteuid().is_root()
}

/// Gives a new user namespace, that of process `pid`, its ids. The caller made it.
pub(crate) fn map(pid: i32) -> Result<()> {
    let (users, groups) = (subordinates("/etc/subuid"), subordinates("/etc/subgid"));
    if let (Some(users), Some(groups)) = (users, groups)
        && helper("newuidmap", pid, geteuid().as_raw(), users)?
        && helper("newgidmap", pid, getegid().as_raw(), groups)?
    {
        return Ok(());
    }
    map_one(pid)
}

/// user_namespaces(7): without privilege, one id each, and no setgroups.
fn map_one(pid: i32) -> Result<()> {
    let write = |file: &str, text: String| {
        let path = format!("/proc/{pid}/{file}");
        fs::write(&path, text).with_context(|| format!("write {path}"))
    };
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("0 {} 1", geteuid()))?;
    write("gid_map", format!("0 {} 1", getegid()))
}

/// First id and count of the caller's range in /etc/subuid or /etc/subgid.
fn subordinates(file: &str) -> Option<(u32, u32)> {
    let text = fs::read_to_string(file).ok()?;
    let uid = geteuid();
    let name = nix::unistd::User::from_uid(uid)
        .ok()
        .flatten()
        .map(|user| user.name);
    range(&text, name.as_deref(), uid.as_raw())
}

fn range(text: &str, name: Option<&str>, uid: u32) -> Option<(u32, u32)> {
    text.lines().find_map(|line| {
        let mut field = line.split(':');
        let who = field.next()?;
        let ours = Some(who) == name || who == uid.to_string();
        let (first, count) = (field.next()?.parse().ok()?, field.next()?.parse().ok()?);
        (ours && count > 0).then_some((first, count))
    })
}

/// Runs newuidmap(1) or newgidmap(1). False when it is not installed.
fn helper(program: &str, pid: i32, own: u32, (first, count): (u32, u32)) -> Result<bool> {
    let numbers = [pid.unsigned_abs(), 0, own, 1, 1, first, count].map(|number| number.to_string());
    let output = match Command::new(program).args(&numbers).output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        other => other.with_context(|| format!("run {program}"))?,
    };
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    anyhow::ensure!(
        output.status.success(),
        Failure::new(format!("{program}: {said}"))
    );
    Ok(true)
}

/// Moves the calling process, which must have one thread, into a new user namespace where it is root, and
/// a new mount namespace.
pub(crate) fn enter() -> Result<()> {
    let (ready, tell) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("pipe")?;
    let us = std::process::id() as i32;
    // SAFETY: the caller promises one thread, so the child may do anything.
    let child = unsafe { clone3(Clone3::default()) }.context("fork")?;
    if child == 0 {
        drop(tell);
        let mapped = await_end(&ready).and_then(|()| map(us));
        // SAFETY: no memory is passed; nothing of the parent's may run at this exit.
        unsafe { libc::_exit(i32::from(mapped.is_err())) };
    }
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).hinted(
        "make a user namespace",
        "the host must allow unprivileged user namespaces",
    )?;
    drop(tell);
    let mut status = 0;
    // SAFETY: status outlives the call.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    anyhow::ensure!(status == 0, "the ids of a user namespace could not be set");
    Ok(())
}

/// Waits for the other end of a pipe to be closed.
fn await_end(pipe: &impl AsFd) -> Result<()> {
    let mut byte = [0];
    while read(pipe.as_fd(), &mut byte).context("read a pipe")? > 0 {}
    Ok(())
}

/// Moves the calling process, which must have one thread, into the user namespace of another.
pub(crate) fn join(pid: i32) -> Result<()> {
    let path = format!("/proc/{pid}/ns/user");
    let namespace = fs::File::open(&path).with_context(|| format!("open {path}"))?;
    setns(namespace, CloneFlags::CLONE_NEWUSER).context("enter the pod's user namespace")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_found_by_name_or_number() {
        let text = "mary:100000:65536\n1001:200000:10\nbroken\n";
        assert_eq!(range(text, Some("mary"), 1000), Some((100_000, 65536)));
        assert_eq!(range(text, None, 1001), Some((200_000, 10)));
        assert_eq!(range(text, Some("joe"), 7), None);
    }
}
