//! One connection to the agent: a process of its own, so that nothing of one visitor reaches another.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};

use super::cluster;
use super::host::LocalHost;
use super::identity::{Identity, is_member};
use crate::messages::Channel;
use crate::migrate::destination;
use crate::migrate::error::LinkError;
use crate::migrate::fault::Faults;
use crate::migrate::frame::Conn;
use crate::migrate::link::Link;
use crate::store::Store;

/// Serves standard input and output.
///
/// # Errors
/// What broke the connection, or what was asked for and failed; the visitor was told.
pub(crate) fn serve(store: &Store, channel: Channel) -> Result<()> {
    let faults = Faults::from_env()?;
    let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().context("dup");
    let (input, output): (OwnedFd, OwnedFd) = (
        own(std::io::stdin().as_fd())?,
        own(std::io::stdout().as_fd())?,
    );
    let (mut conn, member) = match channel {
        Channel::Plain => (Conn::new(Link::new(input, output).context("fcntl")?), true),
        Channel::Tls => {
            let mut stream =
                Identity::of(store.root()).accept(Link::socket(input).context("fcntl")?)?;
            let member = is_member(&mut stream)?;
            (Conn::new(stream), member)
        }
    };
    conn.handshake()?;
    if !member {
        return cluster::admit(store.root(), &mut conn);
    }
    let served = destination::serve(&mut conn, &mut LocalHost::new(store)?, &faults);
    served.or_else(|error| match error.downcast_ref() {
        // Whoever hung up is not there to be told, and what it left is put right.
        Some(LinkError::Closed) => Ok(()),
        _ => Err(error),
    })
}
