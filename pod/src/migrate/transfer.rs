//! Content on its way: files of the image and of the host, each with its length in front and its BLAKE3
//! behind.
//!
//! ```text
//!   Part{image "pages.img", 70 MB} data data data … Sum      ── 8 MiB ──▶ Received   the receiver's credit:
//!   Part{file 17, 4 KB} data Sum                                          at most 4 windows are on their way
//! ```
//!
//! The credit is what makes a refusal heard: a sender that runs into its end reads, and finds why the
//! receiver stopped taking (a full disk) long before it has sent everything.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::error::LinkError;
use super::frame::Conn;
use super::message::{Answer, Part, Say, unexpected};

/// Bytes between two credits.
const WINDOW: u64 = 8 << 20;
/// Windows on their way.
const WINDOWS: u64 = 4;
/// Bytes in a data frame.
const CHUNK: usize = 256 << 10;

/// Sends contents.
pub(crate) struct Sender<'a> {
    conn: &'a mut Conn,
    sent: u64,
    credited: u64,
    /// Told how many bytes went over.
    progress: &'a mut dyn FnMut(u64),
}

impl<'a> Sender<'a> {
    /// Contents will go over `conn`; `progress` hears how many bytes went, all parts together.
    pub(crate) fn new(conn: &'a mut Conn, progress: &'a mut dyn FnMut(u64)) -> Self {
        Self {
            conn,
            sent: 0,
            credited: 0,
            progress,
        }
    }

    /// Sends what `file` holds, `length` bytes.
    ///
    /// # Errors
    /// A file that became shorter meanwhile; a connection that broke; the receiver's refusal.
    pub(crate) fn part(&mut self, part: Part, mut file: impl Read, length: u64) -> Result<()> {
        let name = format!("{part:?}");
        self.say(&Say::Part { part, length })?;
        let (mut left, mut hash) = (length, blake3::Hasher::new());
        let mut buffer = vec![0; CHUNK];
        while left > 0 {
            let piece = &mut buffer[..CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
            file.read_exact(piece)
                .with_context(|| format!("{name} became shorter while it was sent"))?;
            hash.update(piece);
            self.data(piece)?;
            left -= piece.len() as u64;
        }
        self.say(&Say::Sum(*hash.finalize().as_bytes()))
    }

    /// Waits until everything arrived.
    ///
    /// # Errors
    /// As [`Sender::part`].
    pub(crate) fn finish(mut self) -> Result<u64> {
        // Each credit is for a whole window: what is behind the last one is vouched for by the next answer.
        while self.credited + WINDOW <= self.sent {
            self.credit()?;
        }
        Ok(self.sent)
    }

    fn data(&mut self, piece: &[u8]) -> Result<()> {
        while self.sent - self.credited >= WINDOW * WINDOWS {
            self.credit()?;
        }
        let sent = self.conn.send_data(piece);
        self.heard(sent)?;
        self.sent += piece.len() as u64;
        (self.progress)(self.sent);
        Ok(())
    }

    fn say(&mut self, say: &Say) -> Result<()> {
        let sent = self.conn.send(say);
        self.heard(sent)
    }

    /// A receiver that refuses closes; its reason is what to report then.
    fn heard(&mut self, sent: Result<(), LinkError>) -> Result<()> {
        if matches!(sent, Err(LinkError::Closed)) {
            loop {
                self.credit()?;
            }
        }
        Ok(sent?)
    }

    fn credit(&mut self) -> Result<()> {
        match self.conn.answer()? {
            Answer::Received(total) if total > self.credited && total <= self.sent => {
                self.credited = total;
            }
            other => return Err(unexpected("Received", &other).into()),
        }
        Ok(())
    }
}

/// Receives contents.
#[derive(Debug, Default)]
pub(crate) struct Receiver {
    received: u64,
    credited: u64,
}

impl Receiver {
    /// Bytes of content so far.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Receives one content into a new file and proves it against its hash, which is returned.
    ///
    /// # Errors
    /// What writing said (a full disk); content that differs from its hash; a broken connection. The file is
    /// removed then.
    pub(crate) fn part(
        &mut self,
        conn: &mut Conn,
        length: u64,
        path: &Path,
        mode: u32,
    ) -> Result<[u8; 32]> {
        let received = self.receive_file(conn, length, path, mode);
        if received.is_err() {
            // The first error is the one to report.
            let _ = fs::remove_file(path);
        }
        received
    }

    fn receive_file(
        &mut self,
        conn: &mut Conn,
        length: u64,
        path: &Path,
        mode: u32,
    ) -> Result<[u8; 32]> {
        let mut options = OpenOptions::new();
        options
            .create_new(true)
            .write(true)
            .mode(mode)
            .custom_flags(libc::O_NOFOLLOW);
        let mut file = options
            .open(path)
            .with_context(|| format!("create {}", path.display()))?;
        let (mut left, mut hash) = (length, blake3::Hasher::new());
        while left > 0 {
            let piece = conn.receive_data()?;
            ensure!(
                !piece.is_empty() && piece.len() as u64 <= left,
                "a piece of content has the wrong length"
            );
            hash.update(&piece);
            file.write_all(&piece)
                .with_context(|| format!("write {}", path.display()))?;
            left -= piece.len() as u64;
            self.count(conn, piece.len() as u64)?;
        }
        let sum = *hash.finalize().as_bytes();
        match conn.receive()? {
            Say::Sum(theirs) if theirs == sum => Ok(sum),
            Say::Sum(_) => Err(damaged(path).into()),
            other => Err(unexpected("Sum", &other).into()),
        }
    }

    fn count(&mut self, conn: &mut Conn, bytes: u64) -> Result<()> {
        self.received += bytes;
        while self.received - self.credited >= WINDOW {
            self.credited += WINDOW;
            conn.send(&Answer::Received(self.credited))?;
        }
        Ok(())
    }
}

fn damaged(path: &Path) -> LinkError {
    let what = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    LinkError::Content {
        what,
        why: "its bytes differ from their hash".into(),
    }
}

/// The files of an image directory with their lengths, by name.
///
/// # Errors
/// When the directory cannot be read, or holds something that is no plain file.
pub(crate) fn image_files(dir: &Path) -> Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("list {}", dir.display()))?;
        let meta = entry
            .metadata()
            .with_context(|| format!("look at {}", entry.path().display()))?;
        let name = entry
            .file_name()
            .into_string()
            .map_err(|name| anyhow::anyhow!("{name:?} is no name in an image"))?;
        ensure!(
            meta.is_file(),
            "{} is no plain file",
            entry.path().display()
        );
        files.push((name, meta.len()));
    }
    files.sort();
    Ok(files)
}

/// Sends an image directory.
///
/// # Errors
/// As [`Sender::part`].
pub(crate) fn send_image(sender: &mut Sender<'_>, dir: &Path) -> Result<()> {
    for (name, length) in image_files(dir)? {
        let path = dir.join(&name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        sender.part(Part::Image(name), file, length)?;
    }
    Ok(())
}

/// Where a file of an image goes in the directory `dir`.
///
/// # Errors
/// A name that leads anywhere else.
pub(crate) fn image_path(dir: &Path, name: &str) -> Result<PathBuf> {
    let plain = !name.is_empty()
        && name.len() <= 255
        && !name.contains(['/', '\0'])
        && !name.starts_with('.');
    if !plain {
        bail!("{name:?} is no name in an image");
    }
    Ok(dir.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    /// Sends a directory over a socket to a receiver that does `receive`.
    fn through<T: Send + 'static>(
        dir: &Path,
        receive: impl FnOnce(&mut Conn) -> T + Send + 'static,
    ) -> (Result<u64>, T) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let receiver = std::thread::spawn(move || receive(&mut Conn::new(theirs)));
        let mut conn = Conn::new(ours);
        let mut silent = |_| {};
        let mut sender = Sender::new(&mut conn, &mut silent);
        let sent = send_image(&mut sender, dir).and_then(|()| sender.finish());
        drop(conn);
        (sent, receiver.join().unwrap())
    }

    fn receive_all(conn: &mut Conn, dir: &Path) -> Result<u64> {
        let mut receiver = Receiver::default();
        loop {
            match conn.receive() {
                Ok(Say::Part {
                    part: Part::Image(name),
                    length,
                }) => {
                    receiver.part(conn, length, &image_path(dir, &name)?, 0o600)?;
                }
                Err(LinkError::Closed) => return Ok(receiver.received()),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_directory_arrives_whole() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let large: Vec<u8> = (0..50_000_003_u32)
            .map(|i| i.wrapping_mul(i) as u8)
            .collect();
        fs::write(from.path().join("pages.img"), &large).unwrap();
        fs::write(from.path().join("empty"), b"").unwrap();
        let target = to.path().to_owned();
        let (sent, received) = through(from.path(), move |conn| receive_all(conn, &target));
        assert_eq!(
            (sent.unwrap(), received.unwrap()),
            (large.len() as u64, large.len() as u64)
        );
        assert!(fs::read(to.path().join("pages.img")).unwrap() == large);
        assert_eq!(fs::read(to.path().join("empty")).unwrap(), b"");
    }

    #[test]
    fn a_refusal_is_heard_in_the_middle() {
        let from = tempfile::tempdir().unwrap();
        File::create(from.path().join("pages.img"))
            .unwrap()
            .set_len(1 << 30)
            .unwrap();
        let (sent, read) = through(from.path(), |conn| {
            let _: Say = conn.receive().unwrap();
            conn.send(&Answer::Refused(crate::failure::Failure::new(
                "the disk is full",
            )))
            .unwrap();
            conn.drain();
            conn.bytes().1
        });
        let error = sent.unwrap_err();
        assert!(
            format!("{error:#}").contains("the disk is full"),
            "{error:#}"
        );
        assert!(read < 1 << 20);
    }

    #[test]
    fn damage_is_found_and_leaves_no_file() {
        let to = tempfile::tempdir().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut source = Conn::new(ours);
        source.send_data(b"content").unwrap();
        source.send(&Say::Sum([7; 32])).unwrap();
        let path = to.path().join("x");
        let error = Receiver::default()
            .part(&mut Conn::new(theirs), 7, &path, 0o600)
            .unwrap_err();
        assert!(matches!(error.downcast(), Ok(LinkError::Content { .. })));
        assert!(!path.exists());
    }

    #[test]
    fn names_lead_nowhere_else() {
        for bad in ["", "..", ".hidden", "a/b", "/etc/passwd", "a\0"] {
            assert!(image_path(Path::new("/x"), bad).is_err(), "{bad:?}");
        }
        assert!(image_path(Path::new("/x"), "layer.cbor").is_ok());
    }
}
