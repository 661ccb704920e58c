//! Debian's python3: threads, subprocesses and asyncio; two hundred threads; a hundred processes;
//! one of every kernel object.

use super::talker::Talker;
use super::{Program, words};
use crate::host::Host;
use crate::site::Site;
use anyhow::{Context, Result};

const PORT: u16 = 8000;

macro_rules! script {
    ($(#[$doc:meta])* $name:ident, $file:literal, $keeps:literal) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name {
            script: String,
            talker: Talker,
        }

        impl Default for $name {
            fn default() -> Self {
                Self { script: String::new(), talker: Talker::new(PORT, $keeps) }
            }
        }

        impl Program for $name {
            fn prepare(&mut self, host: &Host) -> Result<()> {
                let path = host.directory().join($file);
                self.script = path.to_string_lossy().into_owned();
                std::fs::write(&path, include_str!(concat!("../../programs/", $file))).context("write the script")
            }

            fn command(&self) -> Vec<String> {
                words(&["/usr/bin/python3", &self.script, &PORT.to_string()])
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
    };
}

script!(
    /// Threads, a subprocess on pipes, an asyncio loop on a socket pair and an interval timer.
    Python, "server.py", true
);
script!(
    /// Two hundred threads that wait in four ways.
    Threads, "threads.py", false
);
script!(
    /// A hundred processes with groups, sessions, grandchildren, a zombie and a stopped one.
    Forest, "forest.py", false
);
script!(
    /// One of every kernel object that a descriptor or an id can stand for.
    Objects, "objects.py", false
);
