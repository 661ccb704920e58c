//! A pair: what master and slave have together.

use std::{
    cell::RefCell,
    collections::HashMap,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
};

use nix::{
    poll::PollFlags,
    sys::stat::{Mode, fchmod, fstat},
    unistd::fchown,
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{
    ioctl::{self, Size, Termios},
    queue,
};
use crate::{
    capture::{Capture, Probe},
    error::{Error, Result},
    image::Record,
};

/// A pair of terminal ends. Its number is that in [`super::Tty`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pair {
    /// N of /dev/pts/N.
    pub(super) index: u32,
    /// The stream between the pod and us whose other end we hold; then the master is ours.
    pub(super) stream: Option<String>,
    /// What it is set to; `None` when the master is closed, so that nothing works any more.
    pub(super) state: Option<State>,
}

/// What a living pair is set to, and what waits in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    termios: Termios,
    size: Size,
    packet: bool,
    locked: bool,
    exclusive: bool,
    /// True when a slave is open, or was: from then on the master reads end of file without one.
    opened: bool,
    /// Permissions, user and group of the slave's name, when one is open.
    name: Option<(u32, u32, u32)>,
    input: ByteBuf,
    output: ByteBuf,
}

impl Record for Pair {
    const KIND: &'static str = "terminal-pair";
    const VERSION: u16 = 1;
}

/// The ends of the pairs seen so far, by (device, inode) of the slave.
#[derive(Default, Clone)]
pub(super) struct Seen(Rc<RefCell<HashMap<[u64; 2], Ends>>>);

/// The ends of a pair that descriptors lead to.
struct Ends {
    number: u32,
    index: u32,
    stream: Option<String>,
    master: Option<OwnedFd>,
    slave: Option<OwnedFd>,
    /// Who is named when the pair is refused.
    witness: Probe,
}

/// Notes an end; returns the pair's number. The pair itself is captured when all ends are known.
pub(super) fn note(
    probe: &Probe,
    key: [u64; 2],
    index: u32,
    is_master: bool,
    cx: &mut Capture<'_>,
) -> Result<u32> {
    let failed = |e| Error::kernel("dup", probe.name(), e);
    let seen = cx.shared::<Seen>().clone();
    if seen.0.borrow().is_empty() {
        let all = seen.clone();
        cx.later(move |cx| all.capture(cx));
    }
    let number = cx.number("terminal", &key);
    if !seen.0.borrow().contains_key(&key) {
        let held = cx
            .terminal(index)
            .map(|(name, fd)| (name.to_owned(), fd.try_clone_to_owned()));
        let (name, master) = held.unzip();
        let stream = name.or_else(|| cx.stream(probe).map(str::to_owned));
        let copy = probe.file.try_clone().map_err(failed)?;
        let ends = Ends {
            number,
            index,
            stream,
            master: master.transpose().map_err(failed)?,
            slave: None,
            witness: Probe::new(probe.pid, probe.number, copy)?,
        };
        seen.0.borrow_mut().insert(key, ends);
    }
    let mut seen = seen.0.borrow_mut();
    if let Some(ends) = seen.get_mut(&key) {
        let end = if is_master {
            &mut ends.master
        } else {
            &mut ends.slave
        };
        if end.is_none() {
            *end = Some(probe.file.try_clone().map_err(failed)?);
        }
    }
    Ok(number)
}

impl Seen {
    fn capture(&self, cx: &mut Capture<'_>) -> Result<()> {
        for ends in self.0.take().into_values() {
            let name = format!("terminal /dev/pts/{}", ends.index);
            let failed = |e| Error::kernel("look at", name, e);
            let state = ends.state().map_err(failed)?;
            if state.is_some() && ends.master.is_none() && ends.stream.is_none() {
                let why = "the other end of this terminal is outside the pod";
                cx.refuse(
                    &ends.witness,
                    why,
                    "start the pod with -t, which gives it a terminal of its own",
                );
                continue;
            }
            let Ends {
                number,
                index,
                stream,
                ..
            } = ends;
            cx.writer.record(
                number,
                &Pair {
                    index,
                    stream,
                    state,
                },
            )?;
        }
        Ok(())
    }
}

impl Ends {
    fn state(&self) -> io::Result<Option<State>> {
        let Some(either) = self.slave.as_ref().or(self.master.as_ref()) else {
            return Ok(None);
        };
        let termios = match ioctl::termios(either) {
            // The master is gone: every call on the slave says so.
            Err(e) if e.raw_os_error() == Some(libc::EIO) => return Ok(None),
            termios => termios?,
        };
        let ask =
            |what: fn(&OwnedFd) -> io::Result<bool>| self.master.as_ref().map_or(Ok(false), what);
        let ended = ask(|m| Ok(ioctl::ready(m, PollFlags::empty())?.contains(PollFlags::POLLHUP)))?;
        let opened = self.slave.is_some() || ended;
        let packet = ask(|m| ioctl::is_packet(m))?;
        let stat = self.slave.as_ref().map(fstat).transpose()?;
        let (input, output) = if opened {
            self.queues(&termios, packet)?
        } else {
            Default::default()
        };
        Ok(Some(State {
            termios,
            size: ioctl::size(either)?,
            packet,
            locked: ask(|m| ioctl::is_locked(m))?,
            exclusive: ioctl::is_exclusive(either)?,
            opened,
            name: stat.map(|s| (s.st_mode & 0o7777, s.st_uid, s.st_gid)),
            input: input.into(),
            output: output.into(),
        }))
    }

    /// What waits in both directions; it waits there again afterwards.
    fn queues(&self, termios: &Termios, packet: bool) -> io::Result<(Vec<u8>, Vec<u8>)> {
        let Some(master) = self.master.as_ref().map(AsFd::as_fd) else {
            return Ok(Default::default());
        };
        // In packet mode the master would be told of our changes of modes.
        if packet {
            ioctl::set_packet(master, false)?;
        }
        let taken = self.take_and_put(master, termios);
        if packet {
            ioctl::set_packet(master, true)?;
        }
        taken
    }

    fn take_and_put(
        &self,
        master: BorrowedFd<'_>,
        termios: &Termios,
    ) -> io::Result<(Vec<u8>, Vec<u8>)> {
        let slave = ioctl::slave_of(master, libc::O_RDWR | libc::O_NONBLOCK)?;
        let input = queue::take_input(slave.as_fd(), termios)?;
        queue::put_input(master, slave.as_fd(), termios, &input)?;
        // What the pod has written to a stream is the holder's business: it reads that end.
        if self.stream.is_some() {
            return Ok((input, Vec::new()));
        }
        let output = ioctl::drain(master)?;
        queue::put_output(slave.as_fd(), termios, &output)?;
        Ok((input, output))
    }
}

/// A pair that was made, or bound to a stream.
pub(super) struct Made {
    pub(super) master: Option<OwnedFd>,
    /// Holds the slave open while the pair is being made, or all there is of a stream.
    pub(super) slave: Option<OwnedFd>,
}

impl Pair {
    /// Makes the pair in the devpts of the calling process, under its number.
    pub(super) fn make(&self) -> io::Result<Made> {
        let master = self.master()?;
        ioctl::lock(&master, false)?;
        let Some(state) = &self.state else {
            let slave = Some(ioctl::slave_of(&master, libc::O_RDWR)?);
            return Ok(Made {
                master: Some(master),
                slave,
            });
        };
        state.set(&master)?;
        let slave = state
            .opened
            .then(|| ioctl::slave_of(&master, libc::O_RDWR | libc::O_NONBLOCK));
        let made = Made {
            slave: slave.transpose()?,
            master: Some(master),
        };
        self.fill(&made)?;
        Ok(made)
    }

    /// Takes a stream for the pair: a master or a slave.
    pub(super) fn bind(&self, end: BorrowedFd<'_>) -> io::Result<Made> {
        let end = end.try_clone_to_owned()?;
        if let Some(state) = &self.state {
            state.set(&end)?;
        }
        if ioctl::index(&end).is_err() {
            return Ok(Made {
                master: None,
                slave: Some(end),
            });
        }
        let slave = Some(ioctl::slave_of(&end, libc::O_RDWR | libc::O_NONBLOCK)?);
        let made = Made {
            master: Some(end),
            slave,
        };
        self.fill(&made)?;
        Ok(made)
    }

    fn fill(&self, made: &Made) -> io::Result<()> {
        let (Some(state), Some(master), Some(slave)) = (&self.state, &made.master, &made.slave)
        else {
            return Ok(());
        };
        let termios = &state.termios;
        queue::put_input(master.as_fd(), slave.as_fd(), termios, &state.input)?;
        queue::put_output(slave.as_fd(), termios, &state.output)?;
        if let Some((mode, user, group)) = state.name {
            fchmod(slave, Mode::from_bits_truncate(mode))?;
            fchown(slave, Some(user.into()), Some(group.into()))?;
        }
        Ok(())
    }

    /// A master with the wanted number: the kernel gives the lowest that is free.
    fn master(&self) -> io::Result<OwnedFd> {
        let mut lower = Vec::new();
        loop {
            let master = OwnedFd::from(File::options().read(true).write(true).open("/dev/ptmx")?);
            match ioctl::index(&master)? {
                index if index == self.index => return Ok(master),
                index if index < self.index => lower.push(master),
                _ => return Err(io::Error::other("the number is taken")),
            }
        }
    }

    /// The last touch: what would have stood in our own way.
    pub(super) fn settle(&self, made: &Made) -> io::Result<()> {
        let (Some(state), Some(master)) = (&self.state, &made.master) else {
            return Ok(());
        };
        if state.packet {
            ioctl::set_packet(master, true)?;
        }
        if state.locked {
            ioctl::lock(master, true)?;
        }
        if state.exclusive {
            ioctl::set_exclusive(master)?;
        }
        Ok(())
    }
}

impl State {
    fn set(&self, end: &OwnedFd) -> io::Result<()> {
        ioctl::set_termios(end, &self.termios)?;
        ioctl::set_size(end, self.size)
    }
}
