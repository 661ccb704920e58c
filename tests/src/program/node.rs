//! Node.js with timers, a worker thread, a child process and an HTTP server.

use anyhow::{Context, Result};

use super::talker::Talker;
use super::{Program, words};
use crate::host::Host;
use crate::site::Site;

const PORT: u16 = 3000;

/// `node`.
#[derive(Debug)]
pub struct Node {
    script: String,
    talker: Talker,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            script: String::new(),
            talker: Talker::new(PORT, true),
        }
    }
}

impl Program for Node {
    fn prepare(&mut self, host: &Host) -> Result<()> {
        let path = host.directory().join("server.js");
        self.script = path.to_string_lossy().into_owned();
        std::fs::write(&path, include_str!("../../programs/server.js")).context("write the script")
    }

    fn command(&self) -> Vec<String> {
        words(&["node", &self.script, &PORT.to_string()])
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
