//! What can fail at a checkpoint or a restart, and what is refused before it begins.

use std::{fmt, io, path::PathBuf};

use intercept::tracee::TraceError;

/// Result of a step of checkpoint or restart.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step on a file failed.
    #[error("{step} {}: {source}", path.display())]
    File {
        /// What was tried (`open`, `read`, `rename`…).
        step: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A kernel call on an object failed.
    #[error("{step} of {object}: {source}")]
    Kernel {
        /// The call.
        step: &'static str,
        /// Which object, in the pod's names.
        object: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A tracee did not do what it should.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A call inside a task of the pod failed.
    #[error("{call} inside task {tid}: {source}")]
    Remote {
        /// The call's name.
        call: &'static str,
        /// The task, as this host numbers it.
        tid: i32,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file of /proc did not read as it should.
    #[error("{} does not read as expected: {why}", path.display())]
    Proc {
        /// The file.
        path: PathBuf,
        /// What was wrong.
        why: String,
    },
    /// The image is not what it should be.
    #[error("image {}: {why}", path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The image was written by a newer program.
    #[error("image {} has format {found}, this program reads up to {known}", path.display())]
    NewerImage {
        /// The image.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// A record refers to an object that is not there.
    #[error("image has no {kind} record {id}")]
    NoRecord {
        /// The kind of record.
        kind: String,
        /// Its number.
        id: u32,
    },
    /// The pod holds something that cannot be carried.
    #[error("{0}")]
    Refused(Refusals),
    /// This host lacks something the image needs.
    #[error("this host cannot take {object}: {why}")]
    Unfit {
        /// What cannot be rebuilt.
        object: String,
        /// What is missing.
        why: String,
    },
    /// The builder inside the pod failed, in its own words.
    #[error("rebuilding in the pod: {0}")]
    Builder(String),
}

impl Error {
    /// A kernel call on an object, from a `nix` or `io` error.
    pub fn kernel(
        step: &'static str,
        object: impl Into<String>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Kernel {
            step,
            object: object.into(),
            source: source.into(),
        }
    }

    /// A step on a file.
    pub fn file(
        step: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::File {
            step,
            path: path.into(),
            source: source.into(),
        }
    }
}

/// One thing that cannot be carried, named before anything is frozen.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Refusal {
    /// The process that holds it, by its virtual pid.
    pub pid: i32,
    /// The descriptor, where it is one.
    pub fd: Option<i32>,
    /// What it is.
    pub what: String,
    /// Why it cannot be carried.
    pub why: String,
    /// What the user can do.
    pub hint: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)?;
        if let Some(fd) = self.fd {
            write!(f, ", descriptor {fd}")?;
        }
        write!(f, ": {} cannot be carried: {}", self.what, self.why)
    }
}

/// All that cannot be carried; never empty where it is an error.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Refusals(pub Vec<Refusal>);

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, refusal) in self.0.iter().enumerate() {
            write!(f, "{}{refusal}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}
