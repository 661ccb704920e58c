//! Who says where a pod lives. The outcome of a move is one durable write by one authority, and that
//! write is a compare-and-swap: whoever writes first has decided, everybody else reads what was decided.
//!
//! ```text
//!   authority             committed                          aborted
//!   the zone              UPDATE: epoch old → new            UPDATE: epoch old → another of the source
//!   the destination's     link(2) of a synced file that      link(2) of a synced file that says
//!   decision file         says committed                     aborted
//! ```
//!
//! Both ends may ask at any time, and asking decides: a source that lost its destination asks for
//! `aborted`, and if that wins, the destination can never commit afterwards. So nobody waits for the
//! other end, only for the authority.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::journal::sync_parent;

/// The outcome of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// The pod lives at the destination.
    Committed,
    /// The pod lives at the source.
    Aborted,
}

/// A move as the zone sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fence {
    /// The zone the pod is published in.
    pub(crate) zone: netname::ZoneName,
    /// The pod's name in it.
    pub(crate) pod: netname::PodName,
    /// The epoch before the move.
    pub(crate) old: netname::Epoch,
    /// The epoch that means committed.
    pub(crate) new: netname::Epoch,
    /// The epoch that means aborted.
    pub(crate) back: netname::Epoch,
}

/// The authority could not be asked: the outcome is unknown and may be either.
#[derive(Debug, thiserror::Error)]
#[error("{authority} cannot be asked for the outcome of the move")]
pub(crate) struct Unknown {
    /// Who was asked.
    pub(crate) authority: String,
    /// Why there is no answer.
    #[source]
    pub(crate) source: anyhow::Error,
}

/// Says where a pod lives.
pub(crate) trait Authority {
    /// Writes `wanted` unless something was written before, and tells what stands there now.
    ///
    /// # Errors
    /// [`Unknown`] when there is no answer; the write may have been made all the same.
    fn decide(&self, wanted: Verdict) -> Result<Verdict, Unknown>;
}

/// The decisions of a destination without a zone: one file for each move, `ROOT/decisions/<move>`.
#[derive(Clone, Debug)]
pub(crate) struct Decisions {
    dir: PathBuf,
}

/// One move's decision file.
#[derive(Debug)]
pub(crate) struct DecisionFile {
    path: PathBuf,
}

impl Decisions {
    /// The decisions of a root directory.
    pub(crate) fn of(root: &Path) -> Self {
        Self {
            dir: root.join("decisions"),
        }
    }

    /// The decision about one move, made or not.
    ///
    /// # Errors
    /// When the directory cannot be made, or `id` is no number of a move.
    pub(crate) fn about(&self, id: &str) -> io::Result<DecisionFile> {
        if id.is_empty() || id.len() > 64 || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not the number of a move",
            ));
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)?;
        Ok(DecisionFile {
            path: self.dir.join(id),
        })
    }
}

impl DecisionFile {
    /// The decision need not be kept: *committed* once the source knows it, *aborted* once nothing of the
    /// arrival is left that could ask for a commit (to whoever asks later, it is aborted again).
    ///
    /// # Errors
    /// When it cannot be removed.
    pub(crate) fn forget(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn read(&self) -> anyhow::Result<Verdict> {
        match fs::read_to_string(&self.path)?.as_str() {
            "committed\n" => Ok(Verdict::Committed),
            "aborted\n" => Ok(Verdict::Aborted),
            other => anyhow::bail!("{} says {other:?}", self.path.display()),
        }
    }

    /// A name that no other asker of this host writes to.
    fn draft(&self) -> PathBuf {
        static ASKED: AtomicU64 = AtomicU64::new(0);
        let number = ASKED.fetch_add(1, Ordering::Relaxed);
        self.path
            .with_extension(format!("{}-{number}", std::process::id()))
    }

    fn write(&self, wanted: Verdict) -> anyhow::Result<Verdict> {
        let text = match wanted {
            Verdict::Committed => "committed\n",
            Verdict::Aborted => "aborted\n",
        };
        let draft = self.draft();
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        let linked = fs::hard_link(&draft, &self.path);
        fs::remove_file(&draft)?;
        match linked {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e.into()),
            _ => sync_parent(&self.path)?,
        }
        self.read()
    }
}

impl Authority for DecisionFile {
    fn decide(&self, wanted: Verdict) -> Result<Verdict, Unknown> {
        self.write(wanted).map_err(|source| Unknown {
            authority: self.path.display().to_string(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_writes_first_has_decided() {
        let root = tempfile::tempdir().unwrap();
        let decisions = Decisions::of(root.path());
        let file = decisions.about("a1").unwrap();
        assert_eq!(file.decide(Verdict::Aborted).unwrap(), Verdict::Aborted);
        assert_eq!(file.decide(Verdict::Committed).unwrap(), Verdict::Aborted);
        assert_eq!(
            decisions
                .about("a2")
                .unwrap()
                .decide(Verdict::Committed)
                .unwrap(),
            Verdict::Committed
        );
        file.forget().unwrap();
        file.forget().unwrap();
        assert_eq!(
            fs::read_dir(root.path().join("decisions")).unwrap().count(),
            1
        );
    }

    #[test]
    fn a_race_has_one_outcome() {
        let root = tempfile::tempdir().unwrap();
        for round in 0..50 {
            let ask = |wanted| {
                let file = Decisions::of(root.path())
                    .about(&format!("m{round}"))
                    .unwrap();
                std::thread::spawn(move || file.decide(wanted).unwrap())
            };
            let (first, second) = (ask(Verdict::Committed), ask(Verdict::Aborted));
            assert_eq!(first.join().unwrap(), second.join().unwrap());
        }
    }

    #[test]
    fn numbers_of_moves_are_no_paths() {
        let root = tempfile::tempdir().unwrap();
        for bad in ["", "../x", "a/b", "."] {
            assert!(Decisions::of(root.path()).about(bad).is_err(), "{bad}");
        }
    }
}
