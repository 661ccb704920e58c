//! `--net private` without privilege: pasta(1) carries the pod's packets through sockets of the user's own.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::unistd::{AccessFlags, access};

use super::Site;
use crate::failure::Failure;
use crate::process::Known;
use crate::store::Publish;

const PROGRAM: &str = "pasta";

/// Whether pasta is in PATH and the user may make tap devices with it.
pub(super) fn is_usable() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).any(|directory| directory.join(PROGRAM).is_file());
    installed && access("/dev/net/tun", AccessFlags::R_OK | AccessFlags::W_OK).is_ok()
}

/// Makes the network of a pod. pasta goes to the background by itself when the device is ready.
pub(super) fn make(site: &Site<'_>) -> Result<()> {
    let pid_file = pid_file_of(site);
    let mut command = Command::new(PROGRAM);
    command.args([
        "--quiet",
        "--config-net",
        "--ns-ifname",
        "eth0",
        "--no-map-gw",
    ]);
    command.args([
        "-u",
        "none",
        "-T",
        "none",
        "-U",
        "none",
        "-t",
        &ports(&site.config.publish),
    ]);
    command
        .arg("--pid")
        .arg(&pid_file)
        .arg(site.init.to_string());
    let output = command.stdin(Stdio::null()).output().context("run pasta")?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    anyhow::ensure!(
        output.status.success(),
        Failure::new(format!("pasta: {said}"))
    );
    let text = std::fs::read_to_string(&pid_file).context("read pasta's pid")?;
    let pid = text.trim().parse().context("read pasta's pid")?;
    let helper = Known::of(pid).context("pasta is gone already")?;
    (site.note)(&|made| made.helpers = vec![helper])
}

fn pid_file_of(site: &Site<'_>) -> std::path::PathBuf {
    site.store
        .root()
        .join("pods")
        .join(&site.config.id)
        .join("pasta.pid")
}

/// `-t` of pasta(1): host:pod, comma separated.
fn ports(publish: &[Publish]) -> String {
    if publish.is_empty() {
        return "none".to_owned();
    }
    publish
        .iter()
        .map(|port| format!("{}:{}", port.host, port.pod))
        .collect::<Vec<_>>()
        .join(",")
}
