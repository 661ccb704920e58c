//! `pod checkpoint`: puts a pod to sleep in an image.

use anyhow::{Context, Result};

use crate::cli::{Checkpoint, Format};
use crate::failure::Failure;
use crate::messages::{Ask, Told};
use crate::output;
use crate::store::Pod;
use crate::supervise::Client;

/// Runs the command.
pub(super) fn checkpoint(pod: &Pod, arguments: &Checkpoint, format: Format) -> Result<u8> {
    let here = std::env::current_dir().context("find the current directory")?;
    let image = here.join(&arguments.output);
    let ask = Ask::Checkpoint {
        image,
        leave_running: arguments.leave_running,
    };
    let (told, _) = Client::to_live(pod)?.ask(&ask)?;
    let Told::Checkpointed(done) = told else {
        return Err(Failure::new("the supervisor gave an answer to another question").into());
    };
    if !arguments.leave_running {
        pod.until_let_go()?;
    }
    match format {
        Format::Json => output::json(&done)?,
        Format::Table => output::print(&format!(
            "{}: {} processes, {} threads, {} bytes; frozen {} ms of {} ms\n",
            arguments.output.display(),
            done.processes,
            done.threads,
            done.bytes,
            done.frozen_micros / 1000,
            done.total_micros / 1000,
        ))?,
    }
    Ok(0)
}
