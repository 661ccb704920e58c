//! Pipes: anonymous ones and those with a name (fifos).
//!
//! A pipe is an inode with a queue; each description of it is a reading end, a writing end
//! or both. The first description that shows a pipe carries its state; the others refer to
//! it by number. At restart a *keeper* of both ends is made, every description is opened
//! through it with its own access mode, and the keeper goes with the builder: then a pipe
//! whose writers are all gone reads its queue and end of file, and one without readers
//! gives EPIPE, as before.
//!
//! The queue is copied by tee(2) and stays where it is. Packets (`O_DIRECT`) keep their bounds.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::OpenOptionsExt,
        },
    },
};

use intercept::sys;
use nix::{
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, tee},
    unistd::pipe2,
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{Description, Room, reopen::reopen};
use crate::{
    builder::Builder,
    capture::{Capture, Probe},
    error::{Error, Result},
    image::Record,
};

/// A description of one pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipe {
    /// Which pipe; the same for all its descriptions.
    number: u32,
    /// `F_GETFL`: access mode, packet mode.
    flags: i32,
    /// The fifo's name in the pod.
    path: Option<ByteBuf>,
    /// The pipe itself, with its first description.
    state: Option<State>,
}

/// What the pipe has, whoever looks at it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// `F_GETPIPE_SZ`, in bytes.
    size: i32,
    /// Permissions and owner of its inode: /proc/PID/fd/N and /dev/stdout are opened by them.
    mode: u32,
    owner: (u32, u32),
    queue: Queue,
}

impl Record for Pipe {
    const KIND: &'static str = "pipe";
    const VERSION: u16 = 1;
}

/// What waits in a pipe.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Queue {
    /// The bytes as reads would return them: one piece, or one for each packet.
    pieces: Vec<ByteBuf>,
    /// True when the pieces are packets.
    packets: bool,
}

impl Queue {
    /// Copies the queue of the pipe behind a description of either end.
    ///
    /// # Errors
    /// The kernel call that failed; the queue is as it was.
    pub(crate) fn capture(probe: &Probe) -> Result<Self> {
        let failed = |step, e: io::Error| Error::kernel(step, probe.name(), e);
        let waiting = sys::ioctl_get_int(probe.file.as_fd(), libc::FIONREAD)
            .map_err(|e| failed("ioctl FIONREAD", e))?;
        if waiting == 0 {
            return Ok(Self::default());
        }
        let reader = if probe.flags & libc::O_ACCMODE == libc::O_WRONLY {
            reopen(&probe.file, libc::O_RDONLY | libc::O_NONBLOCK)
        } else {
            probe.file.try_clone()
        };
        let reader = reader.map_err(|e| failed("open the reading end", e))?;
        copy_queue(reader.as_fd(), waiting as usize).map_err(|e| failed("tee", e))
    }

    /// True when nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Writes the queue into the empty pipe behind `fd`, whichever end that is.
    ///
    /// # Errors
    /// `EAGAIN` when the pipe is too small for it.
    pub(crate) fn fill(&self, fd: BorrowedFd<'_>, what: &str) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let mode = if self.packets { libc::O_DIRECT } else { 0 };
        let writer = reopen(fd, libc::O_WRONLY | libc::O_NONBLOCK)
            .map_err(|e| Error::kernel("open the writing end", what, e))?;
        // O_DIRECT is refused at open for a fifo with a name, but not by F_SETFL.
        let flags = OFlag::from_bits_retain(mode | libc::O_NONBLOCK);
        fcntl(&writer, FcntlArg::F_SETFL(flags))
            .map_err(|e| Error::kernel("fcntl F_SETFL", what, e))?;
        let mut writer = File::from(writer);
        for piece in &self.pieces {
            writer
                .write_all(piece)
                .map_err(|e| Error::kernel("write the queue", what, e))?;
        }
        Ok(())
    }
}

/// A pipe of ours with a copy of what waits in `reader`'s.
fn duplicate(reader: BorrowedFd<'_>, waiting: usize) -> io::Result<File> {
    let (out, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    // As many slots as the original, so that one tee takes everything.
    let size = fcntl(reader, FcntlArg::F_GETPIPE_SZ)?;
    fcntl(&into, FcntlArg::F_SETPIPE_SZ(size))?;
    let n = tee(reader, &into, waiting, SpliceFFlags::SPLICE_F_NONBLOCK)?;
    if n != waiting {
        return Err(io::Error::other(format!("copied {n} of {waiting} bytes")));
    }
    Ok(out.into())
}

fn copy_queue(reader: BorrowedFd<'_>, waiting: usize) -> io::Result<Queue> {
    let mut copy = duplicate(reader, waiting)?;
    let (mut pieces, mut left, mut buf) = (Vec::new(), waiting, vec![0; waiting]);
    while left > 0 {
        let n = copy.read(&mut buf[..left])?;
        pieces.push(ByteBuf::from(&buf[..n]));
        left -= n;
    }
    let packets = pieces.len() > 1 || is_packet(reader, waiting)?;
    Ok(Queue { pieces, packets })
}

/// Tells one packet from plain bytes: of a packet, what a short read leaves is thrown away.
fn is_packet(reader: BorrowedFd<'_>, waiting: usize) -> io::Result<bool> {
    let mut copy = duplicate(reader, waiting)?;
    if waiting < 2 {
        return Ok(false);
    }
    let mut buf = vec![0; waiting - 1];
    copy.read_exact(&mut buf)?;
    // The copy has no writer: an empty one is at its end.
    Ok(copy.read(&mut buf)? == 0)
}

impl Room for Pipe {
    fn capture(probe: &Probe, cx: &mut Capture<'_>) -> Result<Option<Self>> {
        if probe.file_type() != libc::S_IFIFO || probe.flags & libc::O_PATH != 0 {
            return Ok(None);
        }
        let path = probe
            .link
            .is_absolute()
            .then(|| ByteBuf::from(probe.link.as_os_str().as_bytes()));
        if path.is_some() && probe.stat.st_nlink == 0 {
            let hint = "let its users close it, or give it a name again";
            cx.refuse(probe, "a fifo whose name was removed", hint);
            return Ok(None);
        }
        let key = [probe.stat.st_dev, probe.stat.st_ino];
        let seen = cx.seen("pipe", &key);
        Ok(Some(Self {
            number: cx.number("pipe", &key),
            flags: probe.flags,
            path,
            state: (!seen).then(|| State::capture(probe)).transpose()?,
        }))
    }
}

impl State {
    fn capture(probe: &Probe) -> Result<Self> {
        let size = fcntl(&probe.file, FcntlArg::F_GETPIPE_SZ)
            .map_err(|e| Error::kernel("fcntl F_GETPIPE_SZ", probe.name(), e))?;
        Ok(Self {
            size,
            mode: probe.stat.st_mode & 0o7777,
            owner: (probe.stat.st_uid, probe.stat.st_gid),
            queue: Queue::capture(probe)?,
        })
    }

    /// Makes an anonymous pipe's inode what it was.
    fn own(&self, fd: BorrowedFd<'_>, what: &str) -> Result<()> {
        let stat = nix::sys::stat::fstat(fd).map_err(|e| Error::kernel("fstat", what, e))?;
        if stat.st_mode & 0o7777 != self.mode {
            let mode = nix::sys::stat::Mode::from_bits_truncate(self.mode);
            nix::sys::stat::fchmod(fd, mode).map_err(|e| Error::kernel("fchmod", what, e))?;
        }
        if (stat.st_uid, stat.st_gid) != self.owner {
            let (uid, gid) = (self.owner.0.into(), self.owner.1.into());
            nix::unistd::fchown(fd, Some(uid), Some(gid))
                .map_err(|e| Error::kernel("fchown", what, e))?;
        }
        Ok(())
    }

    fn resize(&self, fd: BorrowedFd<'_>, what: &str) -> Result<()> {
        let size = fcntl(fd, FcntlArg::F_GETPIPE_SZ)
            .map_err(|e| Error::kernel("fcntl F_GETPIPE_SZ", what, e))?;
        if size != self.size {
            fcntl(fd, FcntlArg::F_SETPIPE_SZ(self.size)).map_err(|e| Error::Unfit {
                object: what.to_owned(),
                why: format!("its size of {} bytes: {e} (fs.pipe-max-size)", self.size),
            })?;
        }
        Ok(())
    }
}

/// Both ends of the pipes made so far, by number.
#[derive(Default)]
struct Keepers(HashMap<u32, OwnedFd>);

impl Description for Pipe {
    fn rebuild(&self, builder: &mut Builder<'_>) -> Result<OwnedFd> {
        let keepers = builder.shared::<Keepers>();
        if let std::collections::hash_map::Entry::Vacant(free) = keepers.0.entry(self.number) {
            free.insert(self.make()?);
        }
        let keeper = &keepers.0[&self.number];
        let fd = match &self.path {
            // By its name, so that /proc shows the name; the keeper saves the open from waiting.
            Some(_) => self.open_named(),
            None => reopen(keeper, self.flags & !libc::O_DIRECT),
        };
        fd.map_err(|e| Error::kernel("open", self.name(), e))
    }
}

impl Pipe {
    fn name(&self) -> String {
        match &self.path {
            Some(path) => format!("fifo {}", String::from_utf8_lossy(path)),
            None => format!("pipe {}", self.number),
        }
    }

    fn open_named(&self) -> io::Result<OwnedFd> {
        let path = self.path.as_ref().map(|p| OsString::from_vec(p.to_vec()));
        let place = File::options()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(path.unwrap_or_default())?;
        if nix::sys::stat::fstat(&place)?.st_mode & libc::S_IFMT != libc::S_IFIFO {
            return Err(io::Error::other("it is no fifo here"));
        }
        reopen(&place, self.flags & !libc::O_DIRECT)
    }

    /// A keeper of both ends, with the pipe's state, from the description that carries it.
    fn make(&self) -> Result<OwnedFd> {
        let what = self.name();
        let state = self.state.as_ref().ok_or_else(|| Error::NoRecord {
            kind: "pipe state".into(),
            id: self.number,
        })?;
        let keeper = match &self.path {
            Some(_) => Self {
                flags: libc::O_RDWR,
                ..self.clone()
            }
            .open_named(),
            None => pipe2(OFlag::O_CLOEXEC)
                .map_err(io::Error::from)
                .and_then(|(read, _)| reopen(&read, libc::O_RDWR)),
        };
        let keeper = keeper.map_err(|e| Error::kernel("make", &what, e))?;
        if self.path.is_none() {
            state.own(keeper.as_fd(), &what)?;
        }
        state.resize(keeper.as_fd(), &what)?;
        state.queue.fill(keeper.as_fd(), &what)?;
        Ok(keeper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::round_trip;

    fn read_now(fd: &OwnedFd, max: usize) -> io::Result<Vec<u8>> {
        let mut buf = vec![0; max];
        let n = nix::unistd::read(fd, &mut buf)?;
        buf.truncate(n);
        Ok(buf)
    }

    #[test]
    fn both_ends_the_queue_and_the_size_come_back() {
        let (r, w) = pipe2(OFlag::O_NONBLOCK).unwrap();
        fcntl(&w, FcntlArg::F_SETPIPE_SZ(1 << 18)).unwrap();
        let data: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        nix::unistd::write(&w, &data).unwrap();
        let spare = r.try_clone().unwrap();
        let other = reopen(&r, libc::O_RDONLY | libc::O_NONBLOCK).unwrap();
        let back = round_trip(vec![w, r, other]).unwrap();
        assert_eq!(fcntl(&back[0], FcntlArg::F_GETPIPE_SZ).unwrap(), 1 << 18);
        let mut got = read_now(&back[1], 100_000).unwrap();
        got.extend(read_now(&back[2], 200_000).unwrap());
        assert_eq!(got, data);
        nix::unistd::write(&back[0], b"more").unwrap();
        assert_eq!(read_now(&back[2], 10).unwrap(), b"more");
        assert_eq!(
            read_now(&back[1], 10).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        assert_eq!(
            read_now(&spare, 200_000).unwrap(),
            data,
            "the original kept its queue"
        );
    }

    #[test]
    fn a_pipe_without_writers_ends_and_one_without_readers_breaks() {
        let (r, w) = pipe2(OFlag::empty()).unwrap();
        nix::unistd::write(&w, b"last").unwrap();
        drop(w);
        let (other, lone) = pipe2(OFlag::empty()).unwrap();
        drop(other);
        let back = round_trip(vec![r, lone]).unwrap();
        assert_eq!(read_now(&back[0], 10).unwrap(), b"last");
        assert_eq!(read_now(&back[0], 10).unwrap(), b"");
        // SIGPIPE is ignored by Rust's runtime.
        assert_eq!(
            nix::unistd::write(&back[1], b"x"),
            Err(nix::errno::Errno::EPIPE)
        );
    }

    #[test]
    fn packets_keep_their_bounds() {
        for packets in [&[&b"one"[..], b"three", b"x"][..], &[b"single"]] {
            let (r, w) = pipe2(OFlag::O_DIRECT | OFlag::O_NONBLOCK).unwrap();
            packets
                .iter()
                .for_each(|p| assert!(nix::unistd::write(&w, p).is_ok()));
            let back = round_trip(vec![r, w]).unwrap();
            nix::unistd::write(&back[1], b"after").unwrap();
            for packet in packets {
                assert_eq!(read_now(&back[0], 100).unwrap(), *packet);
            }
            assert_eq!(
                read_now(&back[0], 2).unwrap(),
                b"af",
                "the rest of a packet is dropped"
            );
            assert!(read_now(&back[0], 2).is_err());
        }
    }

    #[test]
    fn a_fifo_keeps_its_name_and_its_queue() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o640)).unwrap();
        let both = File::options().read(true).write(true).open(&path).unwrap();
        let read = File::open(&path).unwrap();
        nix::unistd::write(&both, b"queued").unwrap();
        let mut original = Vec::new();
        let keep = both.try_clone().unwrap();
        let dir2 = tempfile::tempdir().unwrap();
        let (ids, refused) =
            crate::testing::capture(dir2.path(), &[both.as_fd(), read.as_fd()]).unwrap();
        assert_eq!(refused, []);
        original.resize(6, 0);
        (&keep).read_exact(&mut original).unwrap();
        drop((both, read, keep));
        let image = crate::image::Image::open(&dir2.path().join("image")).unwrap();
        let mut builder = Builder::new(&image, HashMap::new());
        builder.build().unwrap();
        let fd = builder
            .object(ids[1])
            .unwrap()
            .try_clone_to_owned()
            .unwrap();
        assert_eq!(read_now(&fd, 10).unwrap(), b"queued");
        let link = std::fs::read_link(format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&fd)
        ));
        assert_eq!(link.unwrap(), path);
    }
}
