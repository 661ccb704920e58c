//! Makes the pod's world, in the order its parts need each other: names, clocks, network, files, filter.

use std::fs;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use intercept::filter::Program;
use nix::sched::{CloneFlags, unshare};

use super::mounts;
use crate::failure::Hinted;
use crate::messages::Setup;
use crate::net;

const CLONE_NEWTIME: i32 = 0x80;

/// Returns the interception listener and the mounts that are shown read-only.
pub(super) fn make(setup: &Setup) -> Result<(Option<OwnedFd>, Vec<String>)> {
    if setup.own_pids {
        nix::unistd::sethostname(&setup.hostname)
            .with_context(|| format!("set the host name {}", setup.hostname))?;
    }
    if let Some(offsets) = setup.clocks {
        shift_clocks(offsets)?;
    }
    if setup.loopback {
        net::loopback_up().context("bring the loopback device up")?;
    }
    let read_only = mounts::make(&setup.root, setup.own_pids)?;
    let listener = setup.filter.as_deref().map(install).transpose()?;
    Ok((listener, read_only))
}

/// A new time namespace for every program init will start (time_namespaces(7)); init itself stays outside.
fn shift_clocks((monotonic, boot): (i64, i64)) -> Result<()> {
    unshare(CloneFlags::from_bits_retain(CLONE_NEWTIME)).context("make a time namespace")?;
    let line = |clock: i32, offset: i64| {
        format!(
            "{clock} {} {}\n",
            offset.div_euclid(1_000_000_000),
            offset.rem_euclid(1_000_000_000)
        )
    };
    let text = line(libc::CLOCK_MONOTONIC, monotonic) + &line(libc::CLOCK_BOOTTIME, boot);
    fs::write("/proc/self/timens_offsets", text).context("write /proc/self/timens_offsets")
}

fn install(filter: &[u8]) -> Result<OwnedFd> {
    Program::from_bytes(filter)
        .and_then(|program| program.install())
        .hinted(
            "install the interception filter",
            "inside another program that uses seccomp notification only one listener is possible",
        )
}
