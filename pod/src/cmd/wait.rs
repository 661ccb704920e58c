//! `pod wait`: waits for the program's end and exits as it did.

use anyhow::Result;

use crate::failure::Failure;
use crate::messages::{Ask, Told};
use crate::store::{Exit, Phase, Pod};
use crate::supervise::Client;

/// Runs the command.
pub(super) fn wait(pod: &Pod) -> Result<u8> {
    exit_of(pod).map(Exit::code)
}

/// Waits for the end of a pod's program. A supervisor that dies meanwhile is replaced and asked again.
pub(super) fn exit_of(pod: &Pod) -> Result<Exit> {
    while let Some(client) = Client::connect(pod)? {
        // It may die at any moment; its successor, or the state, knows.
        if client.send(&Ask::Wait, &[]).is_ok()
            && let Ok(Some((Told::Exited(exit), _))) = client.receive()
        {
            return Ok(exit);
        }
        let state = pod.state()?;
        if let Some(exit) = state.finished.and(state.exit) {
            return Ok(exit);
        }
    }
    match pod.state()?.exit {
        Some(exit) => Ok(exit),
        None => Err(no_exit(pod)?.into()),
    }
}

fn no_exit(pod: &Pod) -> Result<Failure> {
    let (state, name) = (pod.state()?, pod.config()?.name);
    Ok(match (state.phase, state.failure) {
        (Phase::Failed, Some(failure)) => failure,
        (phase, _) => {
            let reason = state
                .reason
                .map(|reason| format!(": {reason}"))
                .unwrap_or_default();
            Failure::new(format!("pod {name} is {phase}{reason}"))
                .hint("its program's exit code is not known")
        }
    })
}
