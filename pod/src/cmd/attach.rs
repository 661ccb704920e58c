//! `pod attach`: connects this terminal to a pod's program, until the program ends or ctrl-p ctrl-q.

use anyhow::{Context, Result};

use super::follow::{Ended, Session};
use crate::log::LogReader;
use crate::store::Pod;
use crate::supervise::Client;

/// Runs the command.
pub(super) fn attach(pod: &Pod) -> Result<u8> {
    drop(Client::to_live(pod)?);
    let session = Session::prepare(pod, &pod.config()?, false)?;
    let mut log = LogReader::open(&pod.path("log")).context("open the pod's log")?;
    log.skip_to_now().context("read the pod's log")?;
    match session.stay_from(log)? {
        Ended::Exited(exit) => Ok(exit.code()),
        Ended::Detached => Ok(0),
    }
}
