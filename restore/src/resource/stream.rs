//! The streams between the pod and us: its standard input, output and error when they are
//! pipes (or a socket) whose other end our holder has.
//!
//! Such a description is a name (`stdin`, `stdout`, `stderr`): at restart it is bound to
//! what the new holder gives. What the pod has written is in the holder's log already; what
//! it was given and has not read yet is in the record, and goes in front of new input, so
//! the holder feeds a restored pod only after the builder is done.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};

use super::{Description, Room, pipe::Queue, reopen::reopen};
use crate::{
    builder::Builder,
    capture::{Capture, Probe},
    error::{Error, Result},
    image::Record,
};

/// A description of the pod's end of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// Which stream it is.
    name: String,
    /// `F_GETFL`; its access mode is the description's own.
    flags: i32,
    /// Input that was not read yet, with the first description of the stream.
    queue: Option<Queue>,
}

impl Record for Stream {
    const KIND: &'static str = "stream";
    const VERSION: u16 = 1;
}

impl Room for Stream {
    fn capture(probe: &Probe, cx: &mut Capture<'_>) -> Result<Option<Self>> {
        let Some(name) = cx.stream(probe).map(str::to_owned) else {
            return Ok(None);
        };
        // A terminal has state of its own.
        if probe.file_type() == libc::S_IFCHR {
            return Ok(None);
        }
        let key = [probe.stat.st_dev, probe.stat.st_ino];
        let input = probe.file_type() == libc::S_IFIFO
            && probe.flags & libc::O_ACCMODE != libc::O_WRONLY
            && !cx.seen("stream", &key);
        let queue = input.then(|| Queue::capture(probe)).transpose()?;
        if input {
            cx.number("stream", &key);
        }
        Ok(Some(Self {
            name,
            flags: probe.flags,
            queue,
        }))
    }
}

impl Stream {
    fn unfit(&self, why: &str) -> Error {
        Error::Unfit {
            object: format!("stream {}", self.name),
            why: why.into(),
        }
    }
}

impl Description for Stream {
    fn rebuild(&self, builder: &mut Builder<'_>) -> Result<OwnedFd> {
        let missing = || self.unfit("nothing was given to bind it to");
        let bound = builder.stream(&self.name).ok_or_else(missing)?;
        let again = if is_fifo(bound)? {
            reopen(bound, self.flags)
        } else {
            // A socket has one description only, and a file's offset is to be shared.
            bound.try_clone_to_owned()
        };
        again.map_err(|e| Error::kernel("open again", format!("stream {}", self.name), e))
    }

    fn connect(&self, fd: BorrowedFd<'_>, _builder: &mut Builder<'_>) -> Result<()> {
        match &self.queue {
            None => Ok(()),
            Some(queue) if queue.is_empty() => Ok(()),
            Some(queue) if is_fifo(fd)? => queue.fill(fd, &format!("stream {}", self.name)),
            Some(_) => Err(self.unfit("it is no pipe here, and input waits to be read")),
        }
    }
}

fn is_fifo(fd: BorrowedFd<'_>) -> Result<bool> {
    let stat = fstat(fd.as_fd()).map_err(|e| Error::kernel("fstat", "stream", e))?;
    Ok(stat.st_mode & libc::S_IFMT == libc::S_IFIFO)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        fs::File,
        io::{Read, Write},
    };

    use super::*;
    use crate::testing::{round_trip_with, same_description};

    #[test]
    fn unread_input_comes_before_new_input() {
        let (pod_in, holder_in) = nix::unistd::pipe().unwrap();
        let (holder_out, pod_out) = nix::unistd::pipe().unwrap();
        File::from(holder_in.try_clone().unwrap())
            .write_all(b"old ")
            .unwrap();
        let (new_in, mut new_feed) = std::io::pipe().unwrap();
        let (mut new_log, new_out) = std::io::pipe().unwrap();
        let streams = HashMap::from([
            ("stdin".to_owned(), new_in.into()),
            ("stdout".to_owned(), new_out.into()),
        ]);
        let twin = reopen(&pod_out, libc::O_WRONLY | libc::O_NONBLOCK).unwrap();
        let again = pod_out.try_clone().unwrap();
        let back = round_trip_with(
            vec![pod_in, pod_out, twin, again],
            |cx| {
                cx.name_stream(holder_in.as_fd(), "stdin").unwrap();
                cx.name_stream(holder_out.as_fd(), "stdout").unwrap();
            },
            streams,
        )
        .unwrap();
        new_feed.write_all(b"new").unwrap();
        let mut text = [0; 7];
        File::from(back[0].try_clone().unwrap())
            .read_exact(&mut text)
            .unwrap();
        assert_eq!(&text, b"old new");
        assert!(same_description(&back[1], &back[3]));
        assert!(!same_description(&back[1], &back[2]));
        let flags = |fd| nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFL).unwrap();
        assert_eq!(flags(&back[1]) & libc::O_NONBLOCK, 0);
        assert_ne!(flags(&back[2]) & libc::O_NONBLOCK, 0);
        drop(
            back.into_iter()
                .map(File::from)
                .map(|mut f| drop(f.write(b"!")))
                .collect::<Vec<_>>(),
        );
        let mut log = String::new();
        new_log.read_to_string(&mut log).unwrap();
        assert_eq!(log, "!!!");
    }

    #[test]
    fn a_stream_without_a_binding_is_named() {
        let (_holder, pod) = nix::unistd::pipe().unwrap();
        let own = pod.try_clone().unwrap();
        let e = round_trip_with(
            vec![pod],
            |cx| cx.name_stream(own.as_fd(), "stdout").unwrap(),
            HashMap::new(),
        );
        assert!(e.unwrap_err().to_string().contains("stream stdout"));
    }
}
