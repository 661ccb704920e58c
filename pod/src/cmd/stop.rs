//! `pod stop`: asks a pod's program to end, and kills it when it does not in time.

use anyhow::Result;

use crate::messages::Ask;
use crate::store::Pod;
use crate::supervise::Client;

/// Runs the command.
pub(super) fn stop(pod: &Pod, seconds: u64) -> Result<u8> {
    let client = Client::to_live(pod)?;
    // The supervisor ends with the pod, and may do so before it was asked or has answered.
    if client.send(&Ask::Stop { seconds }, &[]).is_ok() {
        client.receive()?;
    }
    pod.until_let_go()?;
    Ok(0)
}
