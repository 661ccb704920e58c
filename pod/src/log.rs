//! A pod's log: what it wrote to standard output and standard error, kept apart, with times.
//!
//! ```text
//!   frame:  stream u8 │ 0 u8 ×3 │ length u32 │ nanoseconds since the epoch u64 │ bytes      (little endian)
//!   stream: 1 output, 2 error output, 3 terminal, 255 the end (no bytes): nothing will follow
//! ```
//!
//! The holder appends, readers follow with inotify. A reader stops at the end frame, or when the holder
//! has died without writing one.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

const HEADER: usize = 16;

/// Where bytes came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Output,
    Error,
    Terminal,
    End,
}

impl Stream {
    fn tag(self) -> u8 {
        match self {
            Self::Output => 1,
            Self::Error => 2,
            Self::Terminal => 3,
            Self::End => 255,
        }
    }

    fn of(tag: u8) -> Option<Self> {
        [Self::Output, Self::Error, Self::Terminal, Self::End]
            .into_iter()
            .find(|stream| stream.tag() == tag)
    }
}

/// The holder's end.
#[derive(Debug)]
pub(crate) struct LogWriter {
    file: File,
}

impl LogWriter {
    /// Opens a log for appending.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?;
        Ok(Self { file })
    }

    /// Appends one frame with a single write, so that a reader never sees a torn header.
    pub(crate) fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let time = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |t| t.as_nanos() as u64);
        let mut frame = Vec::with_capacity(HEADER + bytes.len());
        frame.extend([stream.tag(), 0, 0, 0]);
        frame.extend((bytes.len() as u32).to_le_bytes());
        frame.extend(time.to_le_bytes());
        frame.extend(bytes);
        self.file.write_all(&frame)
    }
}

/// A reader's end.
#[derive(Debug)]
pub(crate) struct LogReader {
    file: File,
    pending: Vec<u8>,
}

/// One piece of the log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) stream: Stream,
    /// Nanoseconds since the epoch.
    pub(crate) time: u64,
    pub(crate) bytes: Vec<u8>,
}

impl LogReader {
    /// Opens a log at its beginning.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::open(path)?,
            pending: Vec::new(),
        })
    }

    /// The next whole frame that has been written, `None` when there is none yet.
    pub(crate) fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(Some(frame));
            }
            let mut buffer = [0; 64 * 1024];
            match self.file.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(length) => self.pending.extend(&buffer[..length]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Passes over everything written so far.
    pub(crate) fn skip_to_now(&mut self) -> io::Result<()> {
        while self
            .next()?
            .is_some_and(|frame| frame.stream != Stream::End)
        {}
        Ok(())
    }

    fn take_frame(&mut self) -> io::Result<Option<Frame>> {
        let Some((header, rest)) = self.pending.split_at_checked(HEADER) else {
            return Ok(None);
        };
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the log is damaged");
        let stream = Stream::of(header[0]).ok_or_else(damaged)?;
        let time = u64::from_le_bytes(header[8..16].try_into().map_err(|_| damaged())?);
        let Some(bytes) = rest.get(..length).map(<[u8]>::to_vec) else {
            return Ok(None);
        };
        self.pending.drain(..HEADER + length);
        Ok(Some(Frame {
            stream,
            time,
            bytes,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_follows_a_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut writer = LogWriter::open(&path).unwrap();
        let mut reader = LogReader::open(&path).unwrap();
        assert!(reader.next().unwrap().is_none());
        writer.write(Stream::Output, b"one").unwrap();
        writer.write(Stream::Error, &[7; 100_000]).unwrap();
        let first = reader.next().unwrap().unwrap();
        assert_eq!(
            (first.stream, first.bytes.as_slice()),
            (Stream::Output, b"one".as_slice())
        );
        assert_eq!(reader.next().unwrap().unwrap().bytes.len(), 100_000);
        assert!(reader.next().unwrap().is_none());
        writer.write(Stream::End, b"").unwrap();
        assert_eq!(reader.next().unwrap().unwrap().stream, Stream::End);
    }

    #[test]
    fn damage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, [42; 64]).unwrap();
        assert_eq!(
            LogReader::open(&path).unwrap().next().unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
