//! A process: its place in the tree, its threads, and what belongs to it as a whole.

use std::fs;

use serde::{Deserialize, Serialize};

use super::{
    ObjectId,
    creds::Creds,
    files::Slot,
    signal::{Action, Pending},
    thread::Thread,
    timer::Timers,
};
use crate::{
    error::{Error, Result},
    image::Record,
};

/// A process or a zombie. Its number is its virtual pid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Where it stands among the others.
    pub place: Place,
    /// Alive, or waiting to be reaped.
    pub state: State,
}

impl Record for Process {
    const KIND: &'static str = "process";
    const VERSION: u16 = 1;
}

impl Process {
    /// True unless it is a zombie.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(self.state, State::Alive(_))
    }
}

/// A process's place in the tree, in virtual numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its pid.
    pub pid: i32,
    /// Its parent's; 1 for the pod's init.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
    /// Its session.
    pub session: i32,
}

/// Alive or not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum State {
    /// It runs, or is stopped by job control.
    Alive(Box<Alive>),
    /// It has ended and was not reaped yet.
    Zombie {
        /// The wait status.
        status: i32,
        /// Its name.
        #[serde(with = "serde_bytes")]
        comm: Vec<u8>,
    },
}

/// What a living process has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alive {
    /// Threads, the leader first.
    pub threads: Vec<Thread>,
    /// Descriptors.
    pub slots: Vec<Slot>,
    /// Working directory.
    pub cwd: ObjectId,
    /// Root directory, where it is not the pod's.
    pub root: Option<ObjectId>,
    /// Signal dispositions, from signal 1.
    pub actions: Vec<Action>,
    /// Signals that wait for the process.
    pub pending: Vec<Pending>,
    /// The job-control signal it is stopped by.
    pub stopped_by: Option<i32>,
    /// Timers.
    pub timers: Timers,
    /// Credentials.
    pub creds: Creds,
    /// Soft and hard resource limits, by `RLIMIT_*`; all ones for none.
    pub limits: Vec<(u64, u64)>,
    /// `personality(2)`.
    pub personality: u32,
    /// `PR_GET_CHILD_SUBREAPER`.
    pub subreaper: bool,
    /// `oom_score_adj`.
    pub oom_score_adj: i32,
}

/// Number of `RLIMIT_*`.
const LIMITS: u32 = 16;

/// The limits of process `pid`, in the order of `RLIMIT_*`. They are read from `/proc/PID/limits`:
/// prlimit(2) asks for `CAP_SYS_RESOURCE` when the process runs as another user.
///
/// # Errors
/// [`Error::File`] or [`Error::Proc`].
pub fn limits(pid: i32) -> Result<Vec<(u64, u64)>> {
    let path = format!("/proc/{pid}/limits");
    let text = fs::read_to_string(&path).map_err(|e| Error::file("read", &path, e))?;
    let all: Option<Vec<_>> = text.lines().skip(1).map(limit).collect();
    all.filter(|all| all.len() == LIMITS as usize)
        .ok_or_else(|| Error::Proc {
            path: path.into(),
            why: format!("{text:?} are not {LIMITS} limits"),
        })
}

/// Soft and hard limit in a line whose name takes 26 columns (`proc_pid_limits`, fs/proc/base.c).
fn limit(line: &str) -> Option<(u64, u64)> {
    let number = |word: &str| match word {
        "unlimited" => Some(libc::RLIM_INFINITY),
        word => word.parse().ok(),
    };
    let mut words = line.get(26..)?.split_whitespace();
    Some((number(words.next()?)?, number(words.next()?)?))
}

/// Sets limits where they differ from what the process has.
///
/// # Errors
/// `EPERM` when a hard limit would have to be raised without privilege.
pub fn set_limits(pid: i32, limits: &[(u64, u64)]) -> Result<()> {
    for (which, limit) in (0..LIMITS).zip(limits) {
        if prlimit(pid, which, None)? != *limit {
            prlimit(pid, which, Some(*limit))?;
        }
    }
    Ok(())
}

fn prlimit(pid: i32, which: u32, new: Option<(u64, u64)>) -> Result<(u64, u64)> {
    let to_c = |(cur, max)| libc::rlimit {
        rlim_cur: cur,
        rlim_max: max,
    };
    let new = new.map(to_c);
    let new_ptr = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let mut old = to_c((0, 0));
    // SAFETY: `new` is null or a live limit, `old` a live place.
    let r = unsafe { libc::prlimit(pid, which, new_ptr, &raw mut old) };
    intercept::sys::check(r.into())
        .map_err(|e| Error::kernel("prlimit", format!("limit {which} of task {pid}"), e))?;
    Ok((old.rlim_cur, old.rlim_max))
}

/// A number in a file of /proc/PID.
///
/// # Errors
/// [`Error::File`] or [`Error::Proc`].
pub fn number_in(pid: i32, file: &str, radix: u32) -> Result<i64> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path).map_err(|e| Error::file("read", &path, e))?;
    let why = |_| Error::Proc {
        path: (&path).into(),
        why: format!("{text:?} is no number"),
    };
    i64::from_str_radix(text.trim(), radix).map_err(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_that_prlimit_tells() {
        let own = std::process::id() as i32;
        let asked: Result<Vec<_>> = (0..LIMITS).map(|which| prlimit(own, which, None)).collect();
        assert_eq!(limits(own).unwrap(), asked.unwrap());
    }
}
