//! What a pod needs of a host that it moves to: asked before anything is touched.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Supervised;
use crate::agent::config::Settings;
use crate::layer;
use crate::migrate::manifest::Ground;
use crate::migrate::message::Needs;
use crate::migrate::needs;
use crate::process::descendants;
use crate::store::{Base, Net};

impl Supervised {
    /// What the pod needs of a host.
    pub(super) fn needs(&self) -> Result<Needs> {
        let config = &self.config;
        let kernel = needs::FEATURES
            .iter()
            .filter(|feature| feature.name != "overlay file systems" || config.base != Base::Host);
        let mut volumes: Vec<_> = config
            .volumes
            .iter()
            .map(|volume| volume.source.clone())
            .collect();
        if let Base::Rootfs(directory) = &config.base {
            volumes.push(directory.clone());
        }
        let memory = self.pids()?.into_iter().map(resident).sum();
        Ok(Needs {
            name: config.name.clone(),
            arch: std::env::consts::ARCH.into(),
            cpu: needs::cpu(),
            kernel: kernel.map(|feature| feature.name.to_owned()).collect(),
            disk: memory + used(&self.pod.path("layer")),
            memory,
            ports: config.publish.iter().map(|publish| publish.host).collect(),
            address: match &config.net {
                Net::Own(address) => Some(address.clone()),
                _ => None,
            },
            volumes,
            zone: Settings::of(self.store.root())?
                .dns
                .map(|dns| dns.zone.to_string()),
        })
    }

    pub(super) fn pids(&self) -> Result<Vec<i32>> {
        let init = self.facts().state.init.context("the pod has no init")?;
        Ok(descendants(init).into_iter().collect())
    }

    pub(super) fn ground(&self) -> Result<Ground> {
        let init = self.facts().state.init.context("the pod has no init")?;
        let ours = ["/proc", "/sys", "/dev"].map(PathBuf::from).into_iter();
        Ok(Ground {
            root: format!("/proc/{init}/root").into(),
            layers: match self.config.base {
                Base::Layer => layer::uppers(&self.pod)?,
                // The host's own files under --fs host; under --rootfs the directory must be there.
                Base::Host | Base::Rootfs(_) => Vec::new(),
            },
            outside: ours
                .chain(
                    self.config
                        .volumes
                        .iter()
                        .map(|volume| volume.target.clone()),
                )
                .collect(),
        })
    }
}

/// Resident memory of a process, in bytes (`VmRSS` of proc_pid_status(5)).
fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .unwrap_or(0)
        << 10
}

/// Bytes on disk below a directory.
fn used(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => used(&entry.path()),
        Ok(meta) => meta.blocks() * 512,
        Err(_) => 0,
    };
    entries.map(size).sum()
}
