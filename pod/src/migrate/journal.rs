//! What each end of a move remembers of it, so that either may crash and be started again at any point.
//!
//! ```text
//!   pods/<id>/move/journal:   length u32 │ BLAKE3 of the body, first 8 bytes │ CBOR body     (little endian)
//!
//!   source                                    found after a crash     duty
//!   Begun, Entered(check … restart)           commit was not asked    resume the pod
//!   Entered(commit)                           unknown                 ask the authority, stay frozen
//!   Decided(committed), Entered(run, release) it lives there          release
//!   Decided(aborted)                          it lives here           resume
//!
//!   destination
//!   Begun, Entered(prepare … restart)         commit was not asked    destroy what was made
//!   Entered(commit)                           unknown                 ask the authority, stay held
//!   Decided(committed)                        it lives here           run it
//!   Decided(aborted)                          it lives there          destroy
//!   Done                                                              nothing
//! ```
//!
//! An entry that changes the duty is synced before what it announces is done; the others, written while
//! the pod may stand still, are for whoever reads what happened. A crash can tear only the last entry,
//! which then announces something that was not begun: it is cut off. Damage anywhere else is an error.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::authority::{Fence, Verdict};
use super::phase::Phase;

/// No entry is longer than this, in bytes.
const ENTRY_MAX: u32 = 1 << 20;
const HEADER: usize = 12;

/// An end of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Side {
    /// Where the pod was.
    Source,
    /// Where it goes.
    Destination,
}

/// What a move is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Begun {
    /// Number of the move, random.
    pub(crate) id: String,
    /// Whose journal this is.
    pub(crate) side: Side,
    /// The other end, as the user named it, or as it named itself.
    pub(crate) peer: String,
    /// What decides, where there is a zone.
    pub(crate) fence: Option<Fence>,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Entry {
    /// The first.
    Begun(Box<Begun>),
    /// A phase begins.
    Entered(Phase),
    /// The outcome is known.
    Decided(Verdict),
    /// Everything is done that the outcome asks for.
    Done,
}

/// What an end has to do, by its journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Duty {
    /// Nothing.
    Nothing,
    /// Source: let the pod run on.
    Resume,
    /// Source: remove the frozen pod, it lives elsewhere.
    Release,
    /// Either: ask the authority; the pod stands still until it answers.
    Ask,
    /// Destination: remove what was made.
    Destroy,
    /// Destination: let the pod run.
    Run,
}

/// The journal of one move.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    begun: Begun,
    entries: Vec<Entry>,
}

impl Journal {
    /// Begins a journal. A finished move's journal makes way.
    ///
    /// # Errors
    /// When the file cannot be written, or an earlier move is not finished.
    pub(crate) fn begin(path: &Path, begun: Begun) -> Result<Self> {
        if let Some(earlier) = Self::open(path)?
            && earlier.duty() != Duty::Nothing
        {
            bail!(
                "an earlier move of this pod to {} is not finished",
                earlier.begun.peer
            );
        }
        let fresh = path.with_extension("new");
        let mut file = create(&fresh).with_context(|| format!("create {}", fresh.display()))?;
        append(&mut file, &Entry::Begun(Box::new(begun.clone())))
            .with_context(|| format!("write {}", fresh.display()))?;
        file.sync_data()
            .with_context(|| format!("sync {}", fresh.display()))?;
        std::fs::rename(&fresh, path).with_context(|| format!("rename {}", fresh.display()))?;
        sync_parent(path)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            entries: vec![Entry::Begun(Box::new(begun.clone()))],
            begun,
        })
    }

    /// Opens what a move left; `None` when there never was one.
    ///
    /// # Errors
    /// When the file cannot be read, or is damaged where no crash can have damaged it.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>> {
        let mut file = match OpenOptions::new().read(true).append(true).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("open {}", path.display())),
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)
            .with_context(|| format!("read {}", path.display()))?;
        let (entries, whole) =
            decode(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
        if whole < bytes.len() {
            file.set_len(whole as u64)
                .with_context(|| format!("cut {}", path.display()))?;
        }
        let Some(Entry::Begun(begun)) = entries.first().cloned() else {
            bail!(
                "{} is damaged: it does not begin with a move",
                path.display()
            );
        };
        Ok(Some(Self {
            path: path.to_owned(),
            file,
            begun: *begun,
            entries,
        }))
    }

    /// Writes an entry and, where it changes the duty, waits until it is on the disk.
    ///
    /// # Errors
    /// When it cannot be written; what it announces must not be done then.
    pub(crate) fn write(&mut self, entry: Entry) -> Result<()> {
        append(&mut self.file, &entry).with_context(|| format!("write {}", self.path.display()))?;
        if !matches!(entry, Entry::Entered(phase) if phase != Phase::Commit) {
            self.file
                .sync_data()
                .with_context(|| format!("sync {}", self.path.display()))?;
        }
        tracing::debug!(?entry, journal = %self.path.display());
        self.entries.push(entry);
        Ok(())
    }

    /// What the move is about.
    pub(crate) fn begun(&self) -> &Begun {
        &self.begun
    }

    /// How the move ended, where that is known.
    pub(crate) fn outcome(&self) -> Option<Verdict> {
        self.entries.iter().rev().find_map(|entry| match entry {
            Entry::Decided(verdict) => Some(*verdict),
            _ => None,
        })
    }

    /// What is to be done by this journal.
    pub(crate) fn duty(&self) -> Duty {
        duty(self.begun.side, &self.entries)
    }
}

/// The rule of the table above: the last entry that says something about the outcome counts.
fn duty(side: Side, entries: &[Entry]) -> Duty {
    for entry in entries.iter().rev() {
        return match (entry, side) {
            (Entry::Done, _) => Duty::Nothing,
            (Entry::Decided(Verdict::Committed), Side::Source) => Duty::Release,
            (Entry::Decided(Verdict::Committed), Side::Destination) => Duty::Run,
            (Entry::Decided(Verdict::Aborted), _) => undo(side),
            (Entry::Entered(Phase::Commit), _) => Duty::Ask,
            (Entry::Begun(_) | Entry::Entered(_), _) => continue,
        };
    }
    undo(side)
}

fn undo(side: Side) -> Duty {
    match side {
        Side::Source => Duty::Resume,
        Side::Destination => Duty::Destroy,
    }
}

fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

fn append(file: &mut File, entry: &Entry) -> Result<()> {
    let mut body = Vec::new();
    ciborium::into_writer(entry, &mut body).context("encode an entry")?;
    let mut frame = (body.len() as u32).to_le_bytes().to_vec();
    frame.extend(&blake3::hash(&body).as_bytes()[..8]);
    frame.extend(body);
    Ok(file.write_all(&frame)?)
}

/// Makes a name in a directory durable.
pub(super) fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let sync = || File::open(parent)?.sync_all();
    sync().with_context(|| format!("sync {}", parent.display()))
}

/// All whole entries, and how many bytes they take.
fn decode(bytes: &[u8]) -> Result<(Vec<Entry>, usize)> {
    let (mut entries, mut at) = (Vec::new(), 0);
    while let Some((body, end)) = frame_at(bytes, at)? {
        entries.push(ciborium::from_reader(body).with_context(|| format!("entry at byte {at}"))?);
        at = end;
    }
    Ok((entries, at))
}

/// The frame that begins at a place, and where it ends; `None` when it is torn or there is none.
fn frame_at(bytes: &[u8], at: usize) -> Result<Option<(&[u8], usize)>> {
    let Some(header) = bytes.get(at..at + HEADER) else {
        return Ok(None);
    };
    let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let end = at + HEADER + length as usize;
    let Some(body) = bytes.get(at + HEADER..end).filter(|_| length <= ENTRY_MAX) else {
        return Ok(None);
    };
    if blake3::hash(body).as_bytes()[..8] == header[4..] {
        return Ok(Some((body, end)));
    }
    if end == bytes.len() {
        return Ok(None);
    }
    bail!("entry at byte {at} differs from its hash");
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Aborted, Committed};

    fn begun(side: Side) -> Begun {
        Begun {
            id: "m1".into(),
            side,
            peer: "host:7".into(),
            fence: None,
        }
    }

    /// The journals a crash can leave: every beginning of every course a move can take.
    fn courses() -> Vec<Vec<Entry>> {
        let through = |last: Phase| {
            Phase::ALL
                .into_iter()
                .filter(move |p| *p <= last)
                .map(Entry::Entered)
        };
        let committed = || {
            through(Phase::Commit).chain([Entry::Decided(Committed), Entry::Entered(Phase::Run)])
        };
        let mut courses = vec![
            committed()
                .chain([Entry::Entered(Phase::Release), Entry::Done])
                .collect::<Vec<_>>(),
            through(Phase::Commit)
                .chain([Entry::Decided(Aborted), Entry::Done])
                .collect(),
        ];
        for phase in Phase::ALL.into_iter().filter(|p| *p < Phase::Commit) {
            courses.push(
                through(phase)
                    .chain([Entry::Decided(Aborted), Entry::Done])
                    .collect(),
            );
        }
        courses
    }

    fn safe(side: Side, entries: &[Entry], found: Duty) -> bool {
        let decided = entries.iter().find_map(|e| {
            if let Entry::Decided(v) = e {
                Some(*v)
            } else {
                None
            }
        });
        let asked = entries.contains(&Entry::Entered(Phase::Commit));
        let done = entries.contains(&Entry::Done);
        let expected = match (side, done, decided, asked) {
            (_, true, ..) => Duty::Nothing,
            (Side::Source, _, Some(Committed), _) => Duty::Release,
            (Side::Destination, _, Some(Committed), _) => Duty::Run,
            (_, _, None, true) => Duty::Ask,
            (Side::Source, ..) => Duty::Resume,
            (Side::Destination, ..) => Duty::Destroy,
        };
        found == expected
    }

    #[test]
    fn every_crash_leaves_a_duty_that_keeps_the_promise() {
        for side in [Side::Source, Side::Destination] {
            for course in courses() {
                for length in 0..=course.len() {
                    let entries = &course[..length];
                    let found = duty(side, entries);
                    assert!(
                        safe(side, entries, found),
                        "{side:?} {entries:?}: {found:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_journal_survives_a_tear_at_every_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut journal = Journal::begin(&path, begun(Side::Source)).unwrap();
        let first = std::fs::metadata(&path).unwrap().len() as usize;
        journal.write(Entry::Entered(Phase::Commit)).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for length in first..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let mut again = Journal::open(&path).unwrap().unwrap();
            assert_eq!(again.duty(), Duty::Resume, "cut at {length}");
            again.write(Entry::Decided(Committed)).unwrap();
            assert_eq!(Journal::open(&path).unwrap().unwrap().duty(), Duty::Release);
        }
    }

    #[test]
    fn damage_is_not_taken_for_a_tear() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut journal = Journal::begin(&path, begun(Side::Source)).unwrap();
        journal.write(Entry::Entered(Phase::Commit)).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[HEADER + 3] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(Journal::open(&path).is_err());
    }

    #[test]
    fn an_unfinished_move_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        assert!(Journal::open(&path).unwrap().is_none());
        let mut journal = Journal::begin(&path, begun(Side::Source)).unwrap();
        assert!(Journal::begin(&path, begun(Side::Source)).is_err());
        journal.write(Entry::Done).unwrap();
        assert!(Journal::begin(&path, begun(Side::Source)).is_ok());
    }
}
