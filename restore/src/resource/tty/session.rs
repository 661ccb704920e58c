//! A session's controlling terminal and its foreground group.

use std::{fs, os::unix::fs::OpenOptionsExt};

use serde::{Deserialize, Serialize};

use crate::{
    capture::{Capture, Probe},
    error::{Error, Result},
    image::Record,
    remote::Batch,
    resource::ObjectId,
};

/// A controlling terminal. Its number is the session's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// A description of the terminal.
    pub terminal: ObjectId,
    /// Its foreground group; `None` when that is not one of the pod's.
    pub foreground: Option<i32>,
}

impl Record for Session {
    const KIND: &'static str = "terminal-session";
    const VERSION: u16 = 1;
}

impl Session {
    /// Records the controlling terminal of process `pid`, a session leader known in the pod as `vpid`.
    ///
    /// # Errors
    /// What /proc or open(2) said; a terminal outside the pod goes to [`Capture::refuse_process`].
    pub fn capture(pid: i32, vpid: i32, cx: &mut Capture<'_>) -> Result<()> {
        let Some((device, foreground)) = controlling(pid)? else {
            return Ok(());
        };
        let index = device & 0xff | (device >> 12) & 0xf_ff00;
        let path = cx.process().join(format!("root/dev/pts/{index}"));
        if (device >> 8) & 0xfff != super::PTS_MAJOR || !path.exists() {
            let why = "its controlling terminal is outside the pod";
            let hint = "start the pod with -t, which gives it a terminal of its own";
            cx.refuse_process(vpid, "a session on a terminal", why, hint);
            return Ok(());
        }
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(&path)
            .map_err(|e| Error::file("open", &path, e))?;
        let terminal = cx.description(&Probe::new(vpid, None, file.into())?)?;
        let foreground = cx.virtual_pid(foreground);
        cx.writer.record(
            vpid as u32,
            &Self {
                terminal,
                foreground,
            },
        )
    }

    /// Lets a session leader take its terminal, of which `fd` is a description in it: before
    /// its children are born, because they inherit it.
    pub fn claim(fd: i32, batch: &mut Batch) {
        let args = [fd as u64, libc::TIOCSCTTY, 0];
        batch.call("ioctl TIOCSCTTY", libc::SYS_ioctl, &args);
    }

    /// Lets the leader name the foreground group, as the task sees it, when all groups exist.
    /// Job-control signals must be blocked.
    pub fn bring_to_front(fd: i32, group: i32, batch: &mut Batch) {
        let group = batch.bytes(&group.to_ne_bytes());
        let args = [fd as u64, libc::TIOCSPGRP, group];
        // A group whose members have all ended cannot be in the foreground again.
        batch.try_call("ioctl TIOCSPGRP", libc::SYS_ioctl, &args);
    }
}

/// Device and foreground group of the terminal of a process, fields 7 and 8 of its stat.
fn controlling(pid: i32) -> Result<Option<(u32, i32)>> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).map_err(|e| Error::file("read", &path, e))?;
    let rest = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let mut fields = rest.split(' ').skip(4);
    let mut field = || fields.next().and_then(|f| f.parse::<i32>().ok());
    match (field(), field()) {
        (Some(0), _) => Ok(None),
        (Some(device), Some(foreground)) => Ok(Some((device as u32, foreground))),
        _ => Err(Error::Proc {
            path: path.into(),
            why: "it has no terminal field".into(),
        }),
    }
}
