//! What all System V objects have: key, owner, creator, permissions, and an id to ask for.

use std::{fs, io};

use intercept::sys;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// `struct ipc_perm` without what the kernel counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Perm {
    /// 0 for a private object.
    pub(super) key: i32,
    /// Permission bits, and of segments `SHM_DEST` and `SHM_LOCKED`.
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    pub(super) creator: (u32, u32),
}

/// Numbers of one line of /proc/sysvipc/KIND.
pub(super) struct Row(Vec<i64>);

impl Row {
    pub(super) fn id(&self) -> i32 {
        self.0[1] as i32
    }

    pub(super) fn column(&self, n: usize) -> i64 {
        self.0[n]
    }

    /// Permissions, with the column in which the owner's uid stands.
    pub(super) fn perm(&self, uid: usize) -> Perm {
        let n = |i: usize| self.0[uid + i] as u32;
        Perm {
            key: self.0[0] as i32,
            // Printed in octal.
            mode: u32::from_str_radix(&self.0[2].to_string(), 8).unwrap_or(0),
            owner: (n(0), n(1)),
            creator: (n(2), n(3)),
        }
    }
}

/// The lines of /proc/sysvipc/`kind`, of the calling thread's namespace.
pub(super) fn rows(kind: &str) -> Result<Vec<Row>> {
    let path = format!("/proc/sysvipc/{kind}");
    let text = match fs::read_to_string(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.map_err(|e| Error::file("read", &path, e))?,
    };
    let bad = || Error::Proc {
        path: (&path).into(),
        why: "a line is not of numbers".into(),
    };
    let row = |line: &str| {
        let words = line.split_whitespace().map(|w| w.parse().ok());
        let row: Option<Vec<i64>> = words.collect();
        row.filter(|r| r.len() >= 10).map(Row).ok_or_else(bad)
    };
    text.lines().skip(1).map(row).collect()
}

/// Makes an object of `kind` (`shm`, `sem`, `msg`) by `get`, with a wanted id and its creator's name.
pub(super) fn make(kind: &str, id: i32, perm: &Perm, get: impl Fn() -> i32) -> Result<()> {
    let object = || format!("{kind} {id}");
    let next = format!("/proc/sys/kernel/{kind}_next_id");
    fs::write(&next, id.to_string()).map_err(|e| Error::file("write", &next, e))?;
    let made = as_creator(perm.creator, get).map_err(|e| Error::kernel("make", object(), e))?;
    if made == id {
        return Ok(());
    }
    Err(Error::Unfit {
        object: object(),
        why: format!("the kernel gave it the number {made}"),
    })
}

/// Runs `get` under the creator's ids, which an object keeps for ever.
fn as_creator(creator: (u32, u32), get: impl Fn() -> i32) -> io::Result<i32> {
    let own = (
        nix::unistd::geteuid().as_raw(),
        nix::unistd::getegid().as_raw(),
    );
    if own != creator {
        effective(libc::SYS_setresgid, creator.1)?;
        effective(libc::SYS_setresuid, creator.0)?;
    }
    let made = sys::check(get().into());
    if own != creator {
        effective(libc::SYS_setresuid, own.0)?;
        effective(libc::SYS_setresgid, own.1)?;
    }
    made.map(|id| id as i32)
}

/// Changes the effective id of this thread only: the raw call, not libc's, which changes all.
fn effective(call: i64, id: u32) -> io::Result<()> {
    const SAME: u32 = u32::MAX;
    // SAFETY: plain values only.
    sys::check(unsafe { libc::syscall(call, SAME, id, SAME) }).map(drop)
}
