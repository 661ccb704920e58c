//! The zone's journal: what an answered update promised survives a crash.
//!
//! ```text
//! file   = "PODZONE1" frame…          the first frame is a snapshot, the others are changes
//! frame  = length u32 | mark u32 | hash [u8; 8] | payload [length]
//! payload= kind u8 | serial u32 | set…
//! set    = name | type u16 | ttl u32 | count u16 | (length u16 | rdata record)…   count 0: the set is gone
//! ```
//! `mark` is derived from the length, `hash` is the head of the payload's BLAKE3. A frame is appended
//! with one write and synced before the update is answered, so that only the very last frame can be
//! torn, and a torn frame was never promised: it is cut off at start. Damage anywhere else is an
//! error, never a silent loss. Compaction writes a new file with one snapshot, syncs it, and renames
//! it over the old one. A lock file keeps a second server away.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use super::{
    codec::{self, Payload},
    records::{Changes, Records},
};
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"PODZONE1";
const HEAD: usize = 16;
/// Changes worth this many bytes are kept before a compaction, at least.
const COMPACT_FLOOR: u64 = 64 * 1024;

/// An open journal, positioned at its end.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    end: u64,
    snapshot_end: u64,
    _lock: Flock<File>,
}

fn mark(length: u32) -> u32 {
    length.rotate_left(13) ^ 0x706f_647a
}

fn frame(payload: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(HEAD + payload.len());
    bytes.extend(length.to_le_bytes());
    bytes.extend(mark(length).to_le_bytes());
    bytes.extend(&blake3::hash(payload).as_bytes()[..8]);
    bytes.extend(payload);
    Ok(bytes)
}

/// What stands at one offset of the file.
enum Found<'a> {
    Frame(&'a [u8], usize),
    /// What a crash in the middle of the last append leaves behind.
    Torn,
    Damaged(&'static str),
}

fn look(rest: &[u8]) -> Found<'_> {
    let Some((head, body)) = rest.split_first_chunk::<HEAD>() else {
        return Found::Torn;
    };
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let length = word(0);
    if mark(length) != word(4) {
        return if head.iter().all(|b| *b == 0) {
            Found::Torn
        } else {
            Found::Damaged("the length of a frame is damaged")
        };
    }
    let Some(payload) = body.get(..length as usize) else {
        return Found::Torn;
    };
    if blake3::hash(payload).as_bytes()[..8] == head[8..] {
        return Found::Frame(payload, HEAD + payload.len());
    }
    if payload.len() == body.len() {
        Found::Torn
    } else {
        Found::Damaged("the hash of a frame does not match")
    }
}

impl Journal {
    /// Opens or makes the journal at `path`. `seed` is the zone's content where there is no journal yet.
    pub(crate) fn open(path: &Path, serial: u32, seed: Records) -> Result<(Self, u32, Records)> {
        let lock = lock(path)?;
        let fault = |step| {
            move |source| Error::Journal {
                path: path.to_owned(),
                step,
                source,
            }
        };
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => Self::replay(path, file, lock),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let (file, end) = write_snapshot(path, serial, &seed)
                    .map_err(fault("write the first snapshot"))?;
                Ok((
                    Self {
                        path: path.to_owned(),
                        file,
                        end,
                        snapshot_end: end,
                        _lock: lock,
                    },
                    serial,
                    seed,
                ))
            }
            Err(e) => Err(fault("open it")(e)),
        }
    }

    fn replay(path: &Path, mut file: File, lock: Flock<File>) -> Result<(Self, u32, Records)> {
        let fault = |step| {
            move |source| Error::Journal {
                path: path.to_owned(),
                step,
                source,
            }
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(fault("read it"))?;
        let replayed = replay(&bytes).map_err(|(offset, reason)| Error::JournalDamaged {
            path: path.to_owned(),
            offset: offset as u64,
            reason,
        })?;
        let end = replayed.end as u64;
        if end < bytes.len() as u64 {
            tracing::warn!(path = %path.display(), from = end, to = bytes.len(), "cutting off a torn frame");
            file.set_len(end)
                .and_then(|()| file.sync_all())
                .map_err(fault("cut off a torn frame"))?;
        }
        file.seek(SeekFrom::Start(end)).map_err(fault("seek"))?;
        let snapshot_end = replayed.snapshot_end as u64;
        Ok((
            Self {
                path: path.to_owned(),
                file,
                end,
                snapshot_end,
                _lock: lock,
            },
            replayed.serial,
            replayed.records,
        ))
    }

    /// Appends `changes` and syncs. An error comes with whether the file is again as before; if it is
    /// not, nothing may be appended until it was read again.
    pub(crate) fn append(
        &mut self,
        serial: u32,
        changes: &Changes,
    ) -> Result<(), (Error, Recovered)> {
        match self.try_append(serial, changes) {
            Ok(()) => Ok(()),
            Err((step, source)) => {
                let recovered = self
                    .file
                    .set_len(self.end)
                    .and_then(|()| self.file.sync_all())
                    .is_ok()
                    && self.file.seek(SeekFrom::Start(self.end)).is_ok();
                Err((
                    Error::Journal {
                        path: self.path.clone(),
                        step,
                        source,
                    },
                    Recovered(recovered),
                ))
            }
        }
    }

    fn try_append(
        &mut self,
        serial: u32,
        changes: &Changes,
    ) -> Result<(), (&'static str, io::Error)> {
        let payload = codec::encode_changes(serial, changes)
            .map_err(|e| ("encode an update", io::Error::other(e)))?;
        let bytes = frame(&payload).map_err(|e| ("encode an update", e))?;
        self.file
            .write_all(&bytes)
            .map_err(|e| ("append an update", e))?;
        self.file.sync_data().map_err(|e| ("sync an update", e))?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Whether the changes outweigh the snapshot they follow.
    pub(crate) fn wants_compaction(&self) -> bool {
        self.end - self.snapshot_end > COMPACT_FLOOR.max(self.snapshot_end)
    }

    /// Replaces the file by one snapshot.
    pub(crate) fn compact(&mut self, serial: u32, records: &Records) -> Result<()> {
        let (file, end) =
            write_snapshot(&self.path, serial, records).map_err(|source| Error::Journal {
                path: self.path.clone(),
                step: "write a snapshot",
                source,
            })?;
        (self.file, self.end, self.snapshot_end) = (file, end, end);
        Ok(())
    }
}

/// Whether the file is again as it was before the failed append.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recovered(pub(crate) bool);

fn lock(path: &Path) -> Result<Flock<File>> {
    let lock_path = path.with_extension("lock");
    let fault = |step| {
        let path = lock_path.clone();
        move |source| Error::Journal { path, step, source }
    };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(fault("open the lock file"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => Error::JournalBusy {
            path: lock_path.clone(),
        },
        other => fault("lock it")(other.into()),
    })
}

fn write_snapshot(path: &Path, serial: u32, records: &Records) -> io::Result<(File, u64)> {
    let payload = codec::encode_snapshot(serial, records).map_err(io::Error::other)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend(frame(&payload)?);
    let temporary = path.with_extension("journal-new");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
    Ok((file, bytes.len() as u64))
}

struct Replayed {
    serial: u32,
    records: Records,
    end: usize,
    snapshot_end: usize,
}

fn replay(bytes: &[u8]) -> Result<Replayed, (usize, String)> {
    if bytes.get(..MAGIC.len()) != Some(MAGIC) {
        return Err((0, "this is no zone journal of this version".to_owned()));
    }
    let mut done = Replayed {
        serial: 0,
        records: Records::default(),
        end: MAGIC.len(),
        snapshot_end: 0,
    };
    while done.end < bytes.len() {
        match look(&bytes[done.end..]) {
            Found::Frame(payload, size) => done.take(payload, size)?,
            Found::Torn => break,
            Found::Damaged(reason) => return Err((done.end, reason.to_owned())),
        }
    }
    if done.snapshot_end == 0 {
        Err((MAGIC.len(), "there is no snapshot".to_owned()))
    } else {
        Ok(done)
    }
}

impl Replayed {
    fn take(&mut self, payload: &[u8], size: usize) -> Result<(), (usize, String)> {
        let (serial, payload) = codec::decode(payload).map_err(|e| (self.end, e.to_string()))?;
        let offset = self.end;
        self.end += size;
        self.serial = serial;
        match payload {
            Payload::Snapshot(changes) => {
                self.records = Records::default();
                self.records.merge(changes);
                self.snapshot_end = self.end;
            }
            Payload::Changes(_) if self.snapshot_end == 0 => {
                return Err((offset, "there is no snapshot".to_owned()));
            }
            Payload::Changes(changes) => self.records.merge(changes),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
