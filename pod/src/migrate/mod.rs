//! Moving a pod to another host.
//!
//! ```text
//!   pod migrate ─▶ ssh HOST pod agent --stdio            pod agent --listen ◀─ mutual TLS ─ pod migrate
//!        │ the connection's descriptors                        │ a worker for each connection
//!        ▼                                                     ▼
//!   supervisor: source ◀═══════════ frames ═══════════▶ destination: agent's worker
//!        │  strategy (cold, …)                                 │ makes the pod's directory, starts holder and
//!        ▼                                                     ▼ supervisor, which rebuild the pod and hold it
//!   SourcePod: freeze, capture, pin, resume, release    Arrival: restart, run, destroy
//! ```
//!
//! `phase` lists the phases and what each guarantees; `frame` draws the protocol; `journal` says what a
//! crashed end finds and does; `authority` is who decides. Both state machines (`source`, `destination`)
//! know nothing of a mode: a *strategy* is one file that says what is copied while the pod runs, what
//! while it stands still, and what afterwards.

pub(crate) mod authority;
pub(crate) mod cold;
pub(crate) mod destination;
pub(crate) mod error;
pub(crate) mod fault;
pub(crate) mod frame;
pub(crate) mod journal;
pub(crate) mod link;
pub(crate) mod manifest;
pub(crate) mod message;
pub(crate) mod needs;
pub(crate) mod phase;
pub(crate) mod report;
pub(crate) mod settle;
pub(crate) mod source;
pub(crate) mod transfer;
pub(crate) mod zone;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Result;

use authority::{Authority, Unknown, Verdict};
use frame::Conn;
use journal::Journal;
use message::{HostFile, Lack, Needs, Offer};
use report::Progress;

/// The pod at the source, as its supervisor has it.
pub(crate) trait SourcePod {
    /// What it needs of a host; refuses what cannot be carried.
    fn needs(&mut self) -> Result<Needs>;
    /// The host's files that it uses, with their closure.
    fn manifest(&mut self) -> Result<Vec<HostFile>>;
    /// Opens one of them as the pod sees it.
    fn open(&mut self, file: &HostFile) -> Result<File>;
    /// Stops every thread. On an error all go on.
    fn freeze(&mut self) -> Result<()>;
    /// Writes its whole state, its layer with it, into a new image directory.
    fn capture(&mut self, image: &Path) -> Result<()>;
    /// Makes the stop outlive this process.
    fn pin(&mut self) -> Result<()>;
    /// Lets it go on as if nothing had been.
    fn resume(&mut self) -> Result<()>;
    /// Ends what stands here, without a trace at the far ends of its connections.
    fn release(&mut self, to: &str) -> Result<()>;
}

/// A host that takes pods.
pub(crate) trait Host {
    /// What is missing here for a pod.
    fn lacks(&mut self, needs: &Needs) -> Result<Vec<Lack>>;
    /// Takes the pod's name, makes its directory, begins the journal. On an error nothing stands.
    fn admit(&mut self, offer: &Offer, from: &str) -> Result<Box<dyn Arrival>>;
    /// What was decided about a move; asking decides.
    fn resolve(&mut self, id: &str) -> Result<Verdict, Unknown>;
    /// Both ends know the outcome of a move.
    fn settled(&mut self, id: &str) -> Result<()>;
}

/// A pod that arrives at the destination.
pub(crate) trait Arrival {
    /// The move's journal at this end.
    fn journal(&mut self) -> &mut Journal;
    /// Who decides.
    fn authority(&self) -> &dyn Authority;
    /// Numbers of the files that are not here, or differ.
    fn missing(&mut self, manifest: &[HostFile]) -> Result<Vec<u32>>;
    /// Where the content of a file that is not here is to be received.
    fn place(&mut self, number: u32, file: &HostFile) -> Result<PathBuf>;
    /// The image directory; it exists.
    fn image(&self) -> PathBuf;
    /// Everything arrived: rebuilds the pod and holds it.
    fn restart(&mut self) -> Result<()>;
    /// Lets it run. Called after the commit only.
    fn run(&mut self) -> Result<()>;
    /// Removes everything that was made.
    fn destroy(&mut self) -> Result<()>;
}

/// A mode of moving: what is copied when.
pub(crate) trait Strategy {
    /// Its name on the command line.
    fn name(&self) -> &'static str;
    /// While the pod runs.
    fn copy(&mut self, move_: &mut Moving<'_>) -> Result<()>;
    /// While it stands still. Returns how long the capture alone took, in microseconds.
    fn last_state(&mut self, move_: &mut Moving<'_>) -> Result<u64>;
}

/// What a strategy works with.
pub(crate) struct Moving<'a> {
    /// The pod.
    pub(crate) pod: &'a mut dyn SourcePod,
    /// The connection to the destination.
    pub(crate) conn: &'a mut Conn,
    /// A directory for images; it goes with the move.
    pub(crate) dir: &'a Path,
    /// Hears how it goes.
    pub(crate) tell: &'a mut dyn FnMut(Progress),
    /// Bytes of state that went over.
    pub(crate) bytes: u64,
}
