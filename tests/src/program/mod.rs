//! Real programs, each with a datum that must survive.

mod bash;
mod counter;
mod go;
mod memcached;
mod nginx;
mod node;
mod postgres;
mod python;
mod redis;
mod talker;

use anyhow::Result;

pub use bash::Bash;
pub use counter::Counter;
pub use go::Go;
pub use memcached::Memcached;
pub use nginx::Nginx;
pub use node::Node;
pub use postgres::Postgres;
pub use python::{Forest, Objects, Python, Threads};
pub use redis::Redis;

use crate::host::Host;
use crate::site::Site;

/// A program that people use.
pub trait Program {
    /// Writes what it needs before it starts, under [`Host::directory`].
    ///
    /// # Errors
    /// When that fails.
    fn prepare(&mut self, host: &Host) -> Result<()>;

    /// Its command line.
    fn command(&self) -> Vec<String>;

    /// Options for `pod run`.
    fn options(&self) -> Vec<String> {
        Vec::new()
    }

    /// What stands in front of the command when it runs natively (what an option does in a pod).
    fn native_prefix(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether it wants a terminal.
    fn terminal(&self) -> bool {
        false
    }

    /// Waits until it serves.
    ///
    /// # Errors
    /// When it does not.
    fn ready(&mut self, site: &Site<'_>) -> Result<()>;

    /// Puts a datum in. Called again after the journey.
    ///
    /// # Errors
    /// When it is not taken.
    fn load(&mut self, site: &Site<'_>) -> Result<()>;

    /// Asks for every datum, and whether the program is alive in all its parts.
    ///
    /// # Errors
    /// When one is not there.
    fn check(&mut self, site: &Site<'_>) -> Result<()>;
}

/// A command line of words.
fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|word| (*word).to_owned()).collect()
}
