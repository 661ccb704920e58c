//! epoll(7): which descriptions are watched, under which number, for what.
//!
//! A registration is keyed by (file, number) and lives as long as the file, so it survives
//! the close of its number. The kernel tells the numbers, events and data in fdinfo, and
//! kcmp which file is behind each; that is asked when all descriptions are known.
//!
//! Registrations are made anew by a thread with a descriptor table of its own, where each
//! target can stand under the very number it was registered with. A registration that was
//! ready reports itself again: one more edge is what EPOLLET allows for.
//!
//! ```text
//! rebuild: epoll_create ─▶ connect: disarmed one-shots, let them fire once ─▶ the others
//! ```

use std::{
    collections::HashMap,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use intercept::sys;
use serde::{Deserialize, Serialize};

use super::{Description, ObjectId, Order, Room};
use crate::{
    builder::Builder,
    capture::{Capture, Probe},
    error::{Error, Result},
    image::Record,
};

/// An epoll instance; what it watches is in [`Watches`] under its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoll {
    number: u32,
}

impl Record for Epoll {
    const KIND: &'static str = "epoll";
    const VERSION: u16 = 1;
}

/// What an epoll instance watches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Watches(Vec<Watch>);

/// One registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Watch {
    /// The number it was registered under.
    fd: i32,
    /// The description it watches.
    target: ObjectId,
    /// `EPOLL*` bits, the private ones included; none but those when a one-shot has fired.
    events: u32,
    /// The program's own word.
    data: u64,
}

impl Record for Watches {
    const KIND: &'static str = "epoll-watches";
    const VERSION: u16 = 1;
}

/// A registration as fdinfo shows it.
struct Line {
    fd: u32,
    events: u32,
    data: u64,
    /// How many with the same number come before it.
    nth: u32,
}

impl Room for Epoll {
    fn capture(probe: &Probe, cx: &mut Capture<'_>) -> Result<Option<Self>> {
        if !probe.is_link("anon_inode:[eventpoll]") {
            return Ok(None);
        }
        let key = [u64::from(cx.count("epoll"))];
        let number = cx.number("epoll", &key);
        let lines = lines(&probe.fdinfo).ok_or_else(|| probe.unreadable("not a registration"))?;
        let again = probe
            .file
            .try_clone()
            .map_err(|e| Error::kernel("dup", probe.name(), e))?;
        let again = Probe::new(probe.pid, probe.number, again)?;
        cx.later(move |cx| {
            let watches = resolve(&again, &lines, cx)?;
            cx.writer.record(number, &watches)
        });
        Ok(Some(Self { number }))
    }
}

/// Reads `tfd: 5 events: 19 data: 5 …`; numbers but the first are hexadecimal.
fn lines(fdinfo: &str) -> Option<Vec<Line>> {
    let mut times = HashMap::new();
    fdinfo
        .lines()
        .filter(|l| l.starts_with("tfd:"))
        .map(|l| {
            let after = |key: &str| l.split_once(key)?.1.split_whitespace().next();
            let fd = after("tfd:")?.parse().ok()?;
            let nth: &mut u32 = times.entry(fd).or_default();
            *nth += 1;
            Some(Line {
                fd,
                events: u32::from_str_radix(after("events:")?, 16).ok()?,
                data: u64::from_str_radix(after("data:")?, 16).ok()?,
                nth: *nth - 1,
            })
        })
        .collect()
}

fn resolve(probe: &Probe, lines: &[Line], cx: &mut Capture<'_>) -> Result<Watches> {
    let mut watches = Vec::with_capacity(lines.len());
    for line in lines {
        match target(probe, line, cx)? {
            Some(target) => watches.push(Watch {
                fd: line.fd as i32,
                target,
                events: line.events,
                data: line.data,
            }),
            None => cx.refuse(
                probe,
                format!(
                    "it watches a file (number {}) that only a process outside the pod has",
                    line.fd
                ),
                "let that process close it",
            ),
        }
    }
    Ok(Watches(watches))
}

/// kcmp orders descriptions, so the target is found by a binary search among those known.
fn target(probe: &Probe, line: &Line, cx: &Capture<'_>) -> Result<Option<ObjectId>> {
    let epoll = probe.file.as_raw_fd();
    let failed = |e| Error::kernel("kcmp KCMP_EPOLL_TFD", probe.name(), e);
    cx.search(|known| compare(known, epoll, line).map_err(failed))
}

/// `KCMP_EPOLL_TFD` of linux/kcmp.h, with its order.
fn compare(known: BorrowedFd<'_>, epoll: i32, line: &Line) -> io::Result<std::cmp::Ordering> {
    const KCMP_EPOLL_TFD: i32 = 7;
    let (own, slot) = (std::process::id(), [epoll as u32, line.fd, line.nth]);
    let known = known.as_raw_fd();
    // SAFETY: `slot` has the layout of struct kcmp_epoll_slot and outlives the call.
    let r = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            own,
            own,
            KCMP_EPOLL_TFD,
            known,
            slot.as_ptr(),
        )
    };
    Ok(match sys::check(r)? {
        0 => std::cmp::Ordering::Equal,
        1 => std::cmp::Ordering::Less,
        _ => std::cmp::Ordering::Greater,
    })
}

impl Description for Epoll {
    fn order(&self) -> Order {
        Order::Last
    }

    fn rebuild(&self, _builder: &mut Builder<'_>) -> Result<OwnedFd> {
        // SAFETY: plain values only.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        let fd = sys::check(fd.into()).map_err(|e| self.failed("epoll_create1", e))?;
        // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    fn connect(&self, fd: BorrowedFd<'_>, builder: &mut Builder<'_>) -> Result<()> {
        let watches: Watches = builder.image.get(self.number)?;
        let mut targets = Vec::with_capacity(watches.0.len());
        for watch in &watches.0 {
            targets.push((*watch, builder.object(watch.target)?.as_raw_fd()));
        }
        // Those that have fired come first, while nothing else can be taken off by the wait.
        targets.sort_by_key(|(watch, _)| !watch.has_fired());
        let epoll = fd.as_raw_fd();
        std::thread::scope(|s| s.spawn(|| register(epoll, &targets)).join())
            .unwrap_or_else(|_| Err(io::Error::other("the registering thread died")))
            .map_err(|e| self.failed("epoll_ctl", e))
    }
}

impl Epoll {
    fn failed(&self, step: &'static str, e: io::Error) -> Error {
        Error::kernel(step, format!("epoll instance {}", self.number), e)
    }
}

impl Watch {
    /// True for a one-shot that has fired and waits to be armed again.
    fn has_fired(&self) -> bool {
        const PRIVATE: i32 =
            libc::EPOLLET | libc::EPOLLONESHOT | libc::EPOLLWAKEUP | libc::EPOLLEXCLUSIVE;
        let one_shot = self.events & libc::EPOLLONESHOT as u32 != 0;
        one_shot && self.events & !(PRIVATE as u32) == 0
    }

    /// What to ask for: a one-shot that has fired asks for anything that will make it fire again.
    fn wanted(&self) -> u32 {
        const ANY: i32 = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLPRI | libc::EPOLLRDHUP;
        self.events | if self.has_fired() { ANY as u32 } else { 0 }
    }
}

/// Registers all targets, in a descriptor table that is this thread's own.
fn register(epoll: i32, targets: &[(Watch, i32)]) -> io::Result<()> {
    // SAFETY: plain values only; the thread ends with this table.
    sys::check(unsafe { libc::unshare(libc::CLONE_FILES) }.into())?;
    let above = targets.iter().map(|(w, _)| w.fd).max().unwrap_or(0) + 1;
    allow_numbers(above + 1 + targets.len() as i32)?;
    // Out of the way of the numbers, which may be those of the epoll or of other targets.
    let epoll = duplicate(epoll, above)?;
    let mut high = HashMap::new();
    for (_, target) in targets {
        if !high.contains_key(target) {
            high.insert(*target, duplicate(*target, above)?);
        }
    }
    for (watch, target) in targets {
        add(epoll, watch, high[target])?;
        if watch.has_fired() {
            let mut fired = [libc::epoll_event { events: 0, u64: 0 }];
            // SAFETY: room for one event; does not wait.
            unsafe { libc::epoll_wait(epoll, fired.as_mut_ptr(), 1, 0) };
        }
    }
    Ok(())
}

fn duplicate(fd: i32, above: i32) -> io::Result<i32> {
    // SAFETY: plain values only; the thread's table owns the result.
    sys::check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, above) }.into()).map(|r| r as i32)
}

fn add(epoll: i32, watch: &Watch, target: i32) -> io::Result<()> {
    let mut event = libc::epoll_event {
        events: watch.wanted(),
        u64: watch.data,
    };
    // SAFETY: every number below `above` in this table is free to be replaced.
    sys::check(unsafe { libc::dup2(target, watch.fd) }.into())?;
    // SAFETY: `event` outlives the call.
    let r = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, watch.fd, &raw mut event) };
    sys::check(r.into()).map(drop)
}

/// Raises our own limit of descriptors where the numbers need it.
fn allow_numbers(needed: i32) -> io::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < needed as u64 {
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(needed as u64), hard)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use libc::{EPOLLET, EPOLLIN, EPOLLONESHOT, EPOLLOUT};
    use nix::unistd::{pipe, write};

    use super::*;
    use crate::testing::round_trip;

    fn new() -> OwnedFd {
        // SAFETY: plain values only; the result is nobody else's.
        unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC)) }
    }

    fn ctl(epoll: &OwnedFd, op: i32, fd: i32, events: i32, data: u64) -> io::Result<()> {
        let (epoll, events) = (epoll.as_raw_fd(), events as u32);
        let mut event = libc::epoll_event { events, u64: data };
        // SAFETY: `event` outlives the call.
        sys::check(unsafe { libc::epoll_ctl(epoll, op, fd, &raw mut event) }.into()).map(drop)
    }

    fn watch(epoll: &OwnedFd, fd: &OwnedFd, events: i32, data: u64) {
        ctl(epoll, libc::EPOLL_CTL_ADD, fd.as_raw_fd(), events, data).unwrap();
    }

    /// What is ready now: (data, events).
    fn wait(epoll: &OwnedFd) -> Vec<(u64, i32)> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 8];
        // SAFETY: room for eight events; does not wait.
        let n = unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), 8, 0) };
        let mut seen: Vec<_> = events[..n as usize]
            .iter()
            .map(|e| (e.u64, e.events as i32))
            .collect();
        seen.sort_unstable();
        seen
    }

    /// A duplicate under a number so high that nobody else is given it.
    fn duplicate_at(fd: &OwnedFd, number: i32) -> OwnedFd {
        // SAFETY: no other test uses these numbers.
        unsafe { OwnedFd::from_raw_fd(libc::dup2(fd.as_raw_fd(), number)) }
    }

    #[test]
    fn targets_survive_closed_numbers_and_clashes() {
        let poll = new();
        let (read, into) = pipe().unwrap();
        watch(&poll, &duplicate_at(&read, 700), EPOLLIN, 10);
        // The number is closed; now the same one for another file.
        let (read2, into2) = pipe().unwrap();
        watch(&poll, &duplicate_at(&read2, 700), EPOLLIN | EPOLLET, 20);
        watch(&poll, &into, EPOLLOUT, 30);
        let back = round_trip(vec![poll, read, into, read2, into2]).unwrap();
        assert_eq!(wait(&back[0]), [(30, EPOLLOUT)]);
        write(&back[2], b"x").unwrap();
        write(&back[4], b"y").unwrap();
        let level = [(10, EPOLLIN), (30, EPOLLOUT)];
        assert_eq!(wait(&back[0]), [level[0], (20, EPOLLIN), level[1]]);
        assert_eq!(wait(&back[0]), level, "20 is edge-triggered");
        let number = duplicate_at(&back[1], 700);
        ctl(&back[0], libc::EPOLL_CTL_DEL, number.as_raw_fd(), 0, 0).unwrap();
        assert_eq!(wait(&back[0]), [level[1]]);
    }

    #[test]
    fn a_fired_one_shot_stays_quiet_and_epolls_nest() {
        let (inner, outer) = (new(), new());
        let (read, into) = pipe().unwrap();
        let once = EPOLLIN | EPOLLONESHOT;
        watch(&inner, &duplicate_at(&read, 701), once, 1);
        watch(&outer, &inner, EPOLLIN, 2);
        write(&into, b"x").unwrap();
        assert_eq!(wait(&inner), [(1, EPOLLIN)]);
        let back = round_trip(vec![outer, inner, read, into]).unwrap();
        assert_eq!((wait(&back[0]), wait(&back[1])), (vec![], vec![]));
        let number = duplicate_at(&back[2], 701);
        ctl(&back[1], libc::EPOLL_CTL_MOD, number.as_raw_fd(), once, 1).unwrap();
        assert_eq!(wait(&back[0]), [(2, EPOLLIN)]);
        assert_eq!(wait(&back[1]), [(1, EPOLLIN)]);
    }

    #[test]
    fn a_file_outside_the_pod_is_refused() {
        let poll = new();
        let (read, _into) = pipe().unwrap();
        watch(&poll, &read, EPOLLIN, 1);
        let dir = tempfile::tempdir().unwrap();
        let (_, refused) = crate::testing::capture(dir.path(), &[poll.as_fd()]).unwrap();
        assert!(refused[0].why.contains("outside the pod"), "{refused:?}");
    }
}
