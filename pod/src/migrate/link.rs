//! The bytes under a connection: two descriptors (an ssh's pipes, a socket twice), with or without TLS on
//! top. Reads and writes wait for the other side, but not for ever: a peer that is silent for
//! [`SILENCE`] is taken for lost, because a pod may stand frozen meanwhile.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};

/// How long the other side may be silent.
pub(crate) const SILENCE: Duration = Duration::from_secs(20);

/// Two descriptors as one stream.
#[derive(Debug)]
pub(crate) struct Link {
    from: OwnedFd,
    to: OwnedFd,
    silence: Duration,
}

impl Link {
    /// Reads from one descriptor and writes to the other. Both become non-blocking.
    pub(crate) fn new(from: OwnedFd, to: OwnedFd) -> io::Result<Self> {
        for fd in [&from, &to] {
            let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
            fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        Ok(Self {
            from,
            to,
            silence: SILENCE,
        })
    }

    /// Both directions of one socket.
    pub(crate) fn socket(socket: OwnedFd) -> io::Result<Self> {
        Self::new(socket.try_clone()?, socket)
    }
}

fn wait(fd: BorrowedFd<'_>, events: PollFlags, silence: Duration) -> io::Result<()> {
    let timeout = PollTimeout::try_from(silence).unwrap_or(PollTimeout::MAX);
    loop {
        match poll(&mut [PollFd::new(fd, events)], timeout) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

impl Read for Link {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match read(&self.from, buffer) {
                Ok(n) => return Ok(n),
                Err(Errno::EAGAIN) => wait(self.from.as_fd(), PollFlags::POLLIN, self.silence)?,
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Write for Link {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match write(&self.to, bytes) {
                Ok(n) => return Ok(n),
                Err(Errno::EAGAIN) => wait(self.to.as_fd(), PollFlags::POLLOUT, self.silence)?,
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn silence_ends_a_read_and_a_write() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut link = Link::socket(ours.into()).unwrap();
        link.silence = Duration::from_millis(1);
        let mut byte = [0];
        assert_eq!(
            link.read(&mut byte).unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
        let full = link.write_all(&vec![0; 16 << 20]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::TimedOut);
        drop(theirs);
    }

    #[test]
    fn bytes_come_through_whole() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut link = Link::socket(ours.into()).unwrap();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            Link::socket(theirs.into())
                .unwrap()
                .read_to_end(&mut all)
                .map(|_| all)
        });
        let sent: Vec<u8> = (0..3_000_000_u32).map(|i| i as u8).collect();
        link.write_all(&sent).unwrap();
        drop(link);
        assert!(reader.join().unwrap().unwrap() == sent);
    }
}
