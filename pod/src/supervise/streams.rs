//! The pod's standard streams: three pipes, or a terminal. Our ends are kept by the holder, which writes
//! what comes out to the log; the pod's ends go to whoever makes its main program.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::init_link::InitLink;
use super::{STDERR, STDIN, STDOUT, Supervised, TERMINAL};
use crate::messages::ToInit;
use crate::store::Config;

/// Makes the streams. Returns the pod's ends: standard input, output and error output, or its terminal.
pub(super) fn make(supervised: &Supervised, link: &InitLink) -> Result<Vec<OwnedFd>> {
    if supervised.config.tty {
        return Ok(vec![terminal(supervised, link)?]);
    }
    let input = input(supervised)?;
    let output = output(supervised, STDOUT)?;
    let errors = self::output(supervised, STDERR)?;
    Ok(vec![input, output, errors])
}

/// The names of the streams that [`make`] returns, in its order.
pub(super) fn names(config: &Config) -> &'static [&'static str] {
    if config.tty {
        &[TERMINAL]
    } else {
        &[STDIN, STDOUT, STDERR]
    }
}

fn terminal(supervised: &Supervised, link: &InitLink) -> Result<OwnedFd> {
    let window = supervised.config.window;
    let (_, fds) = link.order(ToInit::OpenTerminal { window }, &[])?;
    let [master, slave] =
        <[OwnedFd; 2]>::try_from(fds).map_err(|_| anyhow::anyhow!("init sent no terminal"))?;
    supervised.holder.pump(&master, true, false)?;
    keep(supervised, TERMINAL, master)?;
    Ok(slave)
}

fn input(supervised: &Supervised) -> Result<OwnedFd> {
    if !supervised.config.stdin {
        return Ok(std::fs::File::open("/dev/null")
            .context("open /dev/null")?
            .into());
    }
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).context("pipe")?;
    keep(supervised, STDIN, writer)?;
    Ok(reader)
}

fn output(supervised: &Supervised, name: &'static str) -> Result<OwnedFd> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).context("pipe")?;
    supervised.holder.pump(&reader, false, name == STDERR)?;
    keep(supervised, name, reader)?;
    Ok(writer)
}

fn keep(supervised: &Supervised, name: &'static str, fd: OwnedFd) -> Result<()> {
    supervised.holder.keep(name, &fd)?;
    supervised.facts().streams.insert(name, Arc::new(fd));
    Ok(())
}

impl Supervised {
    /// A copy of the descriptor the pod's input is written to, if it has one.
    pub(super) fn input(&self) -> Result<Option<OwnedFd>> {
        let facts = self.facts();
        let ours = facts
            .streams
            .get(TERMINAL)
            .or_else(|| facts.streams.get(STDIN));
        ours.map(|fd| fd.try_clone())
            .transpose()
            .context("duplicate the pod's input")
    }

    /// Closes the pod's standard input, if that is a pipe.
    pub(super) fn close_stdin(&self) -> Result<()> {
        if self.facts().streams.remove(STDIN).is_some() {
            self.holder.drop_kept(STDIN)?;
        }
        Ok(())
    }
}
