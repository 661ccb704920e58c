//! `pod pause` and `pod resume`.

use anyhow::Result;

use crate::messages::Ask;
use crate::store::Pod;
use crate::supervise::Client;

/// Runs `pod pause`.
pub(super) fn pause(pod: &Pod) -> Result<u8> {
    Client::to_live(pod)?.ask(&Ask::Pause)?;
    Ok(0)
}

/// Runs `pod resume`.
pub(super) fn resume(pod: &Pod) -> Result<u8> {
    Client::to_live(pod)?.ask(&Ask::Resume)?;
    Ok(0)
}
