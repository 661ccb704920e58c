//! `pod logs`: what a pod wrote, on the streams it wrote to.

use anyhow::{Context, Result};

use super::follow::write_frame;
use crate::cli::Logs;
use crate::log::{Frame, LogReader, Stream};
use crate::output;
use crate::store::Pod;
use crate::watch::Watch;

/// Runs the command.
pub(super) fn logs(pod: &Pod, arguments: &Logs) -> Result<u8> {
    if !pod.path("log").exists() {
        return Ok(0);
    }
    let watch = Watch::pod(pod)?;
    let mut log = LogReader::open(&pod.path("log")).context("open the pod's log")?;
    loop {
        watch.drain()?;
        let held = pod.is_held()?;
        while let Some(frame) = log.next().context("read the pod's log")? {
            if frame.stream == Stream::End {
                return Ok(0);
            }
            write(&frame, arguments.timestamps)?;
        }
        if !arguments.follow || !held {
            return Ok(0);
        }
        watch.wait()?;
    }
}

fn write(frame: &Frame, timestamps: bool) -> Result<()> {
    if timestamps {
        let (seconds, nanoseconds) = (frame.time / 1_000_000_000, frame.time % 1_000_000_000);
        output::print(&format!("{seconds}.{nanoseconds:09} "))?;
    }
    write_frame(frame)
}
