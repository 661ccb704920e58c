//! Terminals of the pod: its own (`-t`), and pairs whose both ends are inside (tmux, expect).
//!
//! A slave is a name in the pod's devpts, and a master has no other description than its
//! own; what both have together (modes, size, what waits) is a *pair*, recorded when all
//! ends are known. The master of the pod's own terminal is our holder's: such a pair is a
//! stream, bound to the new holder's terminal at restart.
//!
//! ```text
//! record:   tty (an end) ──▶ terminal-pair ◀── terminal-session (who is in the foreground)
//! rebuild:  pair: open /dev/ptmx till the number comes ─▶ modes, size, queues
//!           ends: the master itself; slaves opened through it
//!           tasks: the session's leader takes the terminal, and names the foreground group
//! ```

mod ioctl;
mod pair;
mod queue;
mod session;

use std::{
    collections::HashMap,
    fs, io,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
};

use serde::{Deserialize, Serialize};

use self::pair::{Made, Pair};
use super::{Description, Room, reopen::reopen};
use crate::{
    builder::Builder,
    capture::{Capture, Probe},
    error::{Error, Result},
    image::Record,
};

pub use self::session::Session;

/// An end of a terminal pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tty {
    /// Which pair.
    pair: u32,
    /// The master, of which there is one; else a slave.
    master: bool,
    /// `F_GETFL`.
    flags: i32,
}

impl Record for Tty {
    const KIND: &'static str = "tty";
    const VERSION: u16 = 1;
}

/// Major number of slaves (`UNIX98_PTY_SLAVE_MAJOR`); the minor is the pair's number.
const PTS_MAJOR: u32 = 136;
/// /dev/tty, whichever terminal that was when it was opened.
const DEV_TTY: (u32, u32) = (5, 0);

/// The number of a master's pair; fails for all other files.
///
/// # Errors
/// `ENOTTY` for what is no master.
pub(crate) fn index(fd: BorrowedFd<'_>) -> io::Result<u32> {
    ioctl::index(fd)
}

/// What a descriptor is an end of: the slave's (device, inode), the pair's number, whether it is the master.
type End = ([u64; 2], u32, bool);

impl Room for Tty {
    fn capture(probe: &Probe, cx: &mut Capture<'_>) -> Result<Option<Self>> {
        if probe.file_type() != libc::S_IFCHR || probe.flags & libc::O_PATH != 0 {
            return Ok(None);
        }
        let Some(end) = end(probe, cx) else {
            return Ok(None);
        };
        let Ok((key, index, master)) = end else {
            let hint = "start the pod with -t, which gives it a terminal of its own";
            cx.refuse(probe, "a terminal that is not in the pod's /dev/pts", hint);
            return Ok(None);
        };
        let pair = pair::note(probe, key, index, master, cx)?;
        let flags = probe.flags;
        Ok(Some(Self {
            pair,
            master,
            flags,
        }))
    }
}

fn end(probe: &Probe, cx: &Capture<'_>) -> Option<io::Result<End>> {
    let device = probe.stat.st_rdev;
    let device = (libc::major(device), libc::minor(device));
    if device.0 == PTS_MAJOR {
        let key = [probe.stat.st_dev, probe.stat.st_ino];
        return Some(Ok((key, device.1, false)));
    }
    if let Ok(index) = ioctl::index(&probe.file) {
        return Some(slave_name(index, cx).map(|key| (key, index, true)));
    }
    (device == DEV_TTY).then(|| {
        let (_, index) = ioctl::device(&probe.file)?;
        Ok((slave_name(index, cx)?, index, false))
    })
}

/// (Device, inode) of a slave, by its name in the pod: opening it would leave a trace.
fn slave_name(index: u32, cx: &Capture<'_>) -> io::Result<[u64; 2]> {
    let stat = fs::metadata(cx.process().join(format!("root/dev/pts/{index}")))?;
    Ok([stat.dev(), stat.ino()])
}

/// Pairs made or bound so far, by number.
#[derive(Default)]
struct Pairs(HashMap<u32, (Pair, Made)>);

impl Tty {
    fn failed(&self, step: &'static str, e: io::Error) -> Error {
        let end = if self.master { "master" } else { "slave" };
        Error::kernel(step, format!("{end} of terminal {}", self.pair), e)
    }

    fn make_pair(&self, builder: &mut Builder<'_>) -> Result<(Pair, Made)> {
        let pair: Pair = builder.image.get(self.pair)?;
        let made = match &pair.stream {
            None => pair.make(),
            Some(name) => {
                let missing = || Error::Unfit {
                    object: format!("stream {name}"),
                    why: "nothing was given to bind it to".into(),
                };
                pair.bind(builder.stream(name).ok_or_else(missing)?)
            }
        };
        let object = || format!("terminal /dev/pts/{}", pair.index);
        let made = made.map_err(|e| Error::kernel("make", object(), e))?;
        Ok((pair, made))
    }
}

impl Description for Tty {
    fn rebuild(&self, builder: &mut Builder<'_>) -> Result<OwnedFd> {
        if !builder.shared::<Pairs>().0.contains_key(&self.pair) {
            let made = self.make_pair(builder)?;
            builder.shared::<Pairs>().0.insert(self.pair, made);
        }
        let made = &builder.shared::<Pairs>().0[&self.pair].1;
        let fd = match (&made.master, &made.slave) {
            (Some(master), _) if self.master => master.try_clone(),
            (Some(master), _) => ioctl::slave_of(master, self.flags),
            (None, Some(slave)) => reopen(slave, self.flags),
            (None, None) => Err(io::ErrorKind::NotFound.into()),
        };
        fd.map_err(|e| self.failed("open", e))
    }

    fn settle(&self, _fd: BorrowedFd<'_>, builder: &mut Builder<'_>) -> Result<()> {
        let Some((pair, made)) = builder.shared::<Pairs>().0.get_mut(&self.pair) else {
            return Ok(());
        };
        if pair.state.is_none() {
            // All slaves are open: now their master goes, as it did.
            made.master = None;
        }
        // What held the slave open is needed no more.
        if made.master.is_some() {
            made.slave = None;
        }
        pair.settle(made).map_err(|e| self.failed("set modes", e))
    }
}

#[cfg(test)]
mod tests;
