//! What the two hosts of a move say to each other; `frame` has the order.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::authority::{Fence, Verdict};
use super::error::LinkError;
use super::frame::Conn;
use crate::failure::Failure;

/// From the source to the destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Say {
    /// What a pod needs. Answered with `Lacks`.
    Check(Needs),
    /// A pod is to move here. Answered with `Missing`.
    Offer(Box<Offer>),
    /// A piece of content follows in data frames, `length` bytes in all, and then its `Sum`.
    Part { part: Part, length: u64 },
    /// BLAKE3 of the content that was sent.
    Sum([u8; 32]),
    /// The image is complete: rebuild the pod and hold it. Answered with `Held`.
    Restart,
    /// Decide. Answered with `Decided`, and then with `Running` where the pod lives here.
    Commit,
    /// The move is off; remove what was made. Answered with `Done`.
    Abort,
    /// What was decided about a move? Asking decides: aborted, unless it is committed. Answered with `Decided`.
    Resolve(String),
    /// The source has done its part of the outcome; the decision need not be kept. Answered with `Done`.
    Settled(String),
    /// Goodbye.
    Bye,
}

/// From the destination to the source.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// What is missing here; nothing: the pod fits.
    Lacks(Vec<Lack>),
    /// The pod's directory stands. Numbers of the manifest's files that are not here, or differ.
    Missing(Vec<u32>),
    /// So many bytes of content arrived since the offer; more may be sent.
    Received(u64),
    /// The pod is rebuilt and held; it took so many microseconds.
    Held { took: u64 },
    /// The outcome.
    Decided(Verdict),
    /// The authority does not answer. The pod is still held here.
    Undecided(Failure),
    /// The pod runs here.
    Running,
    /// Done.
    Done,
    /// No. Nothing of the pod stands here any more.
    Refused(Failure),
}

/// What a pod needs of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Needs {
    /// The pod's name.
    pub(crate) name: String,
    /// Machine architecture.
    pub(crate) arch: String,
    /// Processor features that its programs may have chosen code by, as /proc/cpuinfo names them.
    pub(crate) cpu: Vec<String>,
    /// Kernel features, by the names of [`super::needs::FEATURES`].
    pub(crate) kernel: Vec<String>,
    /// Bytes of disk that its image, its layer and its files take at most.
    pub(crate) disk: u64,
    /// Bytes of memory that it uses now.
    pub(crate) memory: u64,
    /// Ports that must be free (`-p`).
    pub(crate) ports: Vec<u16>,
    /// An address that moves with it.
    pub(crate) address: Option<String>,
    /// Directories of the host that it reaches through to.
    pub(crate) volumes: Vec<PathBuf>,
    /// The zone it is published in.
    pub(crate) zone: Option<String>,
}

/// Something a host lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lack {
    /// What.
    pub(crate) what: String,
    /// What the user can do.
    pub(crate) hint: String,
}

/// A pod that is to move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Offer {
    /// Number of the move.
    pub(crate) id: String,
    /// The pod's id.
    pub(crate) pod: String,
    /// Its configuration, as `config.json` has it.
    pub(crate) config: serde_json::Value,
    /// What it needs.
    pub(crate) needs: Needs,
    /// What decides, where there is a zone.
    pub(crate) fence: Option<Fence>,
    /// Files of the host under its layer that it uses.
    pub(crate) manifest: Vec<HostFile>,
}

/// A file of the host that a pod uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostFile {
    /// Absolute, without symbolic links in its directories.
    pub(crate) path: PathBuf,
    /// Permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// What it holds.
    pub(crate) content: HostContent,
}

/// What a file of the host holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum HostContent {
    /// A regular file's length and BLAKE3.
    File { length: u64, blake3: [u8; 32] },
    /// A symbolic link's target.
    Link(PathBuf),
}

/// Which content a `Part` is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Part {
    /// A file of the manifest, by its number.
    File(u32),
    /// A file of the image directory, by its name.
    Image(String),
}

impl HostFile {
    /// Bytes of content that go over when it is sent.
    pub(crate) fn length(&self) -> u64 {
        match self.content {
            HostContent::File { length, .. } => length,
            HostContent::Link(_) => 0,
        }
    }
}

impl Conn {
    /// Receives an answer that is no refusal.
    pub(crate) fn answer(&mut self) -> Result<Answer, LinkError> {
        match self.receive()? {
            Answer::Refused(failure) => Err(LinkError::Refused(failure)),
            answer => Ok(answer),
        }
    }

    /// Says something and waits for the answer.
    pub(crate) fn ask(&mut self, say: &Say) -> Result<Answer, LinkError> {
        match self.send(say) {
            // Who refuses may close before he is heard out: his reason is still on its way.
            Err(LinkError::Closed) => self.answer().and(Err(LinkError::Closed)),
            sent => sent.and_then(|()| self.answer()),
        }
    }
}

/// An answer or message that has no place here.
pub(crate) fn unexpected(wanted: &'static str, got: &impl std::fmt::Debug) -> LinkError {
    let mut got = format!("{got:?}");
    got.truncate(got.char_indices().nth(80).map_or(got.len(), |(at, _)| at));
    LinkError::Unexpected { wanted, got }
}
