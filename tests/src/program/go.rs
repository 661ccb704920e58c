//! A static Go binary under its garbage collector, compiled here.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::talker::Talker;
use super::{Program, words};
use crate::done::finish;
use crate::host::Host;
use crate::site::Site;

const PORT: u16 = 9000;

/// The program in `programs/server.go`.
#[derive(Debug)]
pub struct Go {
    binary: String,
    talker: Talker,
}

impl Default for Go {
    fn default() -> Self {
        Self {
            binary: String::new(),
            talker: Talker::new(PORT, true),
        }
    }
}

impl Program for Go {
    fn prepare(&mut self, host: &Host) -> Result<()> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/server.go");
        let binary = host.directory().join("go-server");
        let mut build = Command::new("go");
        build
            .env("CGO_ENABLED", "0")
            .env("GO111MODULE", "off")
            .env("GOFLAGS", "");
        finish(build.args(["build", "-o"]).args([&binary, &source]))?
            .ok()
            .context("compile the Go program")?;
        self.binary = binary.to_string_lossy().into_owned();
        Ok(())
    }

    fn command(&self) -> Vec<String> {
        words(&[&self.binary, &PORT.to_string()])
    }

    fn ready(&mut self, site: &Site<'_>) -> Result<()> {
        self.talker.ready(site)
    }

    fn load(&mut self, site: &Site<'_>) -> Result<()> {
        self.talker.load(site)
    }

    fn check(&mut self, site: &Site<'_>) -> Result<()> {
        self.talker.check(site)
    }
}
