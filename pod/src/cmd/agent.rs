//! `pod agent`: makes and joins clusters, and serves other hosts.

use std::os::fd::AsFd;
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::agent::cluster::{self, Host};
use crate::agent::listen;
use crate::cli::{Agent, AgentCommand};
use crate::failure::OURS;
use crate::messages::Channel;
use crate::output;
use crate::store::Store;

/// Runs the command.
pub(super) fn agent(store: &Store, arguments: &Agent) -> Result<u8> {
    match &arguments.command {
        Some(AgentCommand::Init { listen, zone, dns }) => {
            let zone = netname::ZoneName::new(zone)?;
            let token = cluster::init(
                store.root(),
                &Host {
                    listen: *listen,
                    dns: *dns,
                },
                &zone,
            )?;
            output::print(&format!("{token}\n")).map(|()| 0)
        }
        Some(AgentCommand::Join {
            first,
            token,
            listen,
            dns,
        }) => {
            let host = Host {
                listen: *listen,
                dns: *dns,
            };
            cluster::join(store.root(), &host, *first, &token.parse()?).map(|()| 0)
        }
        None if arguments.stdio => stdio(store),
        None => listen::listen(store, arguments.listen).map(|()| 0),
    }
}

/// The work is done by a process of its own: if it dies, somebody is left to put things right.
fn stdio(store: &Store) -> Result<u8> {
    let own =
        |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map(Stdio::from).context("dup");
    let (input, output) = (
        own(std::io::stdin().as_fd())?,
        own(std::io::stdout().as_fd())?,
    );
    // Ours would keep the connection open after the worker's end.
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .context("open /dev/null")?;
    nix::unistd::dup2_stdin(&null).context("dup2")?;
    nix::unistd::dup2_stdout(&null).context("dup2")?;
    let status = listen::worker(store, Channel::Plain, input, output)?;
    Ok(if status.success() { 0 } else { OURS })
}
