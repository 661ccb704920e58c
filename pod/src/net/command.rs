//! Running ip(8) and nft(8), here or in a pod's network namespace.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use crate::failure::{Failure, Hinted};

/// Runs ip(8), in the network namespace of process `inside` if one is given.
pub(super) fn ip(inside: Option<i32>, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(arguments).stdin(Stdio::null());
    if let Some(pid) = inside {
        enter(&mut command, pid)?;
    }
    let output = command
        .output()
        .hinted("run the program ip", "install iproute2")?;
    succeeded(&output, &format!("ip {}", arguments.join(" ")))
}

fn enter(command: &mut Command, pid: i32) -> Result<()> {
    let path = format!("/proc/{pid}/ns/net");
    let namespace = File::open(&path).with_context(|| format!("open {path}"))?;
    let join = move || setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from);
    // SAFETY: the closure makes one system call.
    unsafe { command.pre_exec(join) };
    Ok(())
}

/// Runs an nft(8) script: all of it takes effect, or nothing.
pub(super) fn nft(script: &str) -> Result<()> {
    let mut command = Command::new("nft");
    command
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .hinted("run the program nft", "install nftables")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(script.as_bytes()).context("write to nft")?;
    }
    succeeded(&child.wait_with_output().context("wait for nft")?, "nft")
}

fn succeeded(output: &Output, what: &str) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!("{what}: {}", said.trim())).into())
}

/// Removes a table of ours. The declaration first makes the deletion succeed where it is gone already.
pub(super) fn remove_table(name: &str) -> Result<()> {
    nft(&format!("table ip {name}\ndelete table ip {name}\n"))
}
