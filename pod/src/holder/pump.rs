//! Carries what the pod writes from a pipe or its terminal into the log.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::log::{LogWriter, Stream};

/// One source of the log.
#[derive(Debug)]
pub(super) struct Pump {
    source: OwnedFd,
    stream: Stream,
}

impl Pump {
    pub(super) fn new(source: OwnedFd, terminal: bool, error: bool) -> Self {
        let stream = match (terminal, error) {
            (true, _) => Stream::Terminal,
            (false, true) => Stream::Error,
            (false, false) => Stream::Output,
        };
        Self { source, stream }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }

    /// Carries one piece; the source must be readable. False at its end.
    pub(super) fn once(&mut self, log: &mut LogWriter) -> std::io::Result<bool> {
        let mut buffer = [0; 64 * 1024];
        match nix::unistd::read(&self.source, &mut buffer) {
            // A terminal without a reader and writer on the other side says EIO.
            Ok(0) | Err(Errno::EIO) => Ok(false),
            Ok(length) => log.write(self.stream, &buffer[..length]).map(|()| true),
            Err(Errno::EINTR | Errno::EAGAIN) => Ok(true),
            Err(e) => Err(e.into()),
        }
    }

    /// Carries what is there now, and does not wait for more.
    pub(super) fn rest(&mut self, log: &mut LogWriter) -> std::io::Result<()> {
        while self.is_ready() && self.once(log)? {}
        Ok(())
    }

    fn is_ready(&self) -> bool {
        let mut fds = [PollFd::new(self.source.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::LogReader;

    #[test]
    fn what_is_left_in_a_pipe_reaches_the_log_though_a_writer_lives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogWriter::open(&path).unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        nix::unistd::write(&writer, b"last words").unwrap();
        Pump::new(reader, false, true).rest(&mut log).unwrap();
        let frame = LogReader::open(&path).unwrap().next().unwrap().unwrap();
        assert_eq!(
            (frame.stream, frame.bytes.as_slice()),
            (Stream::Error, b"last words".as_slice())
        );
    }
}
