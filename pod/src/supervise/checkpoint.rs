//! `pod checkpoint`: freeze, capture into an image, then end the pod or let it go on.
//!
//! ```text
//!   freeze ─▶ capture ─▶ image synced and named ─▶ kill          (the pod is over)
//!      └───────┴─ any failure, or --leave-running ─▶ resume      (the pod goes on, unharmed)
//! ```
//!
//! All of it happens on the tracer thread, because the tracees are that thread's.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use restore::capture::Capture;
use restore::checkpoint::{self, Subject};
use restore::freeze::{self, Frozen};
use restore::image::{Header, Writer};
use restore::network::LostConnections;
use restore::resource::tcp::Connections;

use super::image::{self, PodRecord, clocks, offsets_of};
use super::numbers::HeldBy;
use super::{Event, Supervised};
use crate::failure::Failure;
use crate::messages::Checkpointed;
use crate::store::Phase;

/// What the tracer thread needs to know of the pod.
pub(super) struct Job {
    pub(super) init: i32,
    pod: PodRecord,
    streams: Vec<(String, std::os::fd::OwnedFd)>,
    held_by: HeldBy,
    /// Directory of the pod's layer.
    layer: PathBuf,
    image: PathBuf,
    leave_running: bool,
    /// What becomes of connections that cannot move.
    pub(super) lost: LostConnections,
}

impl Supervised {
    /// Writes an image of the pod to `image`.
    pub(super) fn checkpoint(&self, image: PathBuf, leave_running: bool) -> Result<Checkpointed> {
        let _moving = self.no_move()?;
        let job = self.checkpoint_job(image, leave_running)?;
        self.check_fit()?;
        let _still = self.pause_names()?;
        let temporary = Writer::temporary(&job.image);
        self.change(|state| state.made.images.push(temporary.clone()))?;
        let done = self.tracer()?.run(move |_| take(&job));
        self.change(|state| state.made.images.retain(|image| *image != temporary))?;
        let done = done.context("the tracer thread is gone")??;
        if !leave_running {
            self.raise(Event::Checkpointed);
        }
        Ok(done)
    }

    pub(super) fn checkpoint_job(&self, image: PathBuf, leave_running: bool) -> Result<Job> {
        let held_by = self.held_by()?;
        let facts = self.facts();
        let phase = facts.state.phase;
        anyhow::ensure!(
            phase == Phase::Running,
            Failure::new(format!("the pod is {phase}"))
                .hint("a paused pod is resumed first: pod resume")
        );
        let pod = PodRecord {
            config: self.config.clone(),
            main: facts.state.main.context("the pod has no main program")?,
            clocks: (0, 0),
            names: held_by.tables(),
        };
        let init = facts.state.init.context("the pod has no init")?;
        let streams = facts
            .streams
            .iter()
            .map(|(name, fd)| Ok(((*name).to_owned(), fd.try_clone()?)));
        let streams = streams
            .collect::<std::io::Result<_>>()
            .context("duplicate a stream")?;
        Ok(Job {
            init,
            pod,
            streams,
            held_by,
            layer: self.pod.path("layer"),
            image,
            leave_running,
            lost: LostConnections::Reset,
        })
    }
}

/// On the tracer thread.
fn take(job: &Job) -> Result<Checkpointed> {
    let begun = Instant::now();
    let mut writer = Writer::create(&job.image)?;
    let mut frozen = freeze::freeze(job.init, &[])?;
    let stopped = Instant::now();
    let (processes, threads) = (frozen.processes.len(), frozen.threads());
    let connections = capture(job, &mut frozen, &mut writer)?;
    let header = if job.leave_running {
        frozen.resume()?;
        finish(writer, &job.image)?
    } else {
        // Synced and named while the pod still stands: a full disk costs nothing but time.
        let header = finish(writer, &job.image)?;
        // The pod lives on in its image: nobody at a far end shall hear that it was closed here.
        if let Err(error) = connections.silence() {
            tracing::warn!("{error}");
        }
        frozen.kill();
        header
    };
    Ok(Checkpointed {
        processes,
        threads,
        bytes: header.files.values().map(|file| file.len).sum(),
        frozen_micros: stopped.elapsed().as_micros() as u64,
        total_micros: begun.elapsed().as_micros() as u64,
    })
}

fn finish(writer: Writer, image: &Path) -> Result<Header> {
    writer
        .finish()
        .with_context(|| format!("complete the image {}", image.display()))
}

pub(super) fn capture(job: &Job, frozen: &mut Frozen, writer: &mut Writer) -> Result<Connections> {
    let mut pod = job.pod.clone();
    let any = frozen
        .processes
        .first()
        .context("the pod has no process")?
        .pid;
    let ((monotonic, boot), (ahead, boot_ahead)) = (clocks()?, offsets_of(any)?);
    pod.clocks = (monotonic + ahead, boot + boot_ahead);
    writer.record(0, &pod)?;
    let streams = job
        .streams
        .iter()
        .map(|(name, fd)| Ok((name.clone(), fd.try_clone()?)));
    let streams = streams
        .collect::<std::io::Result<_>>()
        .context("duplicate a stream")?;
    let subject = Subject {
        init: job.init,
        pids: &job.held_by,
        streams,
        own_shm: true,
        masks: job.pod.config.mask.filters(),
    };
    let mut cx = Capture::new(writer);
    cx.network = job.held_by.network();
    cx.network.lost = job.lost;
    checkpoint::capture(frozen, &subject, &mut cx)?;
    let connections = Connections::of(&cx)?;
    drop(cx);
    image::pack_layer(&job.layer, writer)?;
    Ok(connections)
}
