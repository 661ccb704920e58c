//! Real ssh between the hosts of a world.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context, Result};

use crate::done::finish;
use crate::host::Host;
use crate::wait::eventually;

/// Keys that every host of a world trusts.
#[derive(Debug)]
pub(crate) struct Keys {
    directory: PathBuf,
}

impl Keys {
    /// Makes them once.
    pub(crate) fn make(world: &Path) -> Result<Self> {
        let directory = world.join("ssh");
        fs::create_dir(&directory).context("make a directory for ssh's keys")?;
        for name in ["user", "host"] {
            let path = directory.join(name);
            let mut keygen = Command::new("ssh-keygen");
            finish(
                keygen
                    .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                    .arg(&path),
            )?
            .ok()?;
        }
        fs::copy(directory.join("user.pub"), directory.join("authorized"))?;
        let host = fs::read_to_string(directory.join("host.pub"))?;
        fs::write(directory.join("known"), format!("* {host}"))?;
        Ok(Self { directory })
    }

    /// What `POD_SSH` says on every host.
    pub(crate) fn command(world: &Path) -> String {
        let at = world.join("ssh");
        let at = at.display();
        format!(
            "ssh -o BatchMode=yes -o IdentitiesOnly=yes -i {at}/user -o UserKnownHostsFile={at}/known"
        )
    }

    /// Starts the ssh daemon of `host` and waits until it listens.
    pub(crate) fn serve(&self, host: &Host) -> Result<Child> {
        let keys = self.directory.display();
        let environment: Vec<String> = host
            .environment()
            .iter()
            .map(|(name, value)| format!("{name}=\"{value}\""))
            .collect();
        let configuration = format!(
            "Port 22\nListenAddress {}\nHostKey {keys}/host\nAuthorizedKeysFile {keys}/authorized\n\
            PidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\nSetEnv {}\n",
            host.v4(),
            environment.join(" ")
        );
        let file = host.directory().join("sshd_config");
        fs::write(&file, configuration)?;
        let words = ["/usr/sbin/sshd", "-D", "-e", "-f", &file.to_string_lossy()];
        let child = host.spawn(&words, &host.directory().join("sshd.log"))?;
        eventually("sshd to listen", || {
            host.shell("ss -Hltn sport = 22 | grep -q .")?.ok()
        })?;
        Ok(child)
    }
}
