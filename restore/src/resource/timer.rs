//! Timers of a process: the three of setitimer(2) and those of timer_create(2).
//!
//! Remaining times are recorded, not dates: a pod that slept for a day does not find every
//! timer due. Timers on CLOCK_REALTIME that were set to a date keep the remaining time too.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    remote::{Batch, Out, Results},
};

/// Interval and remaining time as the kernel's struct holds them: (seconds, micro- or nanoseconds) twice.
pub type Setting = [u64; 4];

/// A timer of timer_create(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixTimer {
    /// Its id, which the program holds.
    pub id: i32,
    /// The clock.
    pub clock: i32,
    /// The signal; 0 for none.
    pub signal: i32,
    /// `sigev_value`.
    pub value: u64,
    /// `sigev_notify`.
    pub notify: i32,
    /// Virtual tid to be told, with `SIGEV_THREAD_ID`.
    pub thread: i32,
    /// Interval and remaining time, in seconds and nanoseconds.
    pub setting: Setting,
}

/// All timers of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timers {
    /// `ITIMER_REAL`, `ITIMER_VIRTUAL`, `ITIMER_PROF`, in seconds and microseconds.
    pub interval: [Setting; 3],
    /// Timers of timer_create(2).
    pub posix: Vec<PosixTimer>,
}

/// Calls that ask for all timers.
pub struct Asked {
    interval: [Out; 3],
    posix: Vec<(PosixTimer, Out)>,
}

/// Asks for the timers of process `pid`, whose POSIX timers /proc lists.
///
/// # Errors
/// [`Error::Proc`] when the list does not read as expected.
pub fn ask(pid: i32, batch: &mut Batch) -> Result<Asked> {
    let interval = [0, 1, 2].map(|which| {
        let out = batch.out(32);
        batch.call("getitimer", libc::SYS_getitimer, &[which, out.addr]);
        out
    });
    let mut posix = Vec::new();
    for timer in listed(pid)? {
        let out = batch.out(32);
        batch.call(
            "timer_gettime",
            libc::SYS_timer_gettime,
            &[timer.id as u64, out.addr],
        );
        posix.push((timer, out));
    }
    Ok(Asked { interval, posix })
}

fn listed(pid: i32) -> Result<Vec<PosixTimer>> {
    let path = format!("/proc/{pid}/timers");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::file("read", path, e)),
    };
    let bad = |line: &str| Error::Proc {
        path: (&path).into(),
        why: format!("{line:?}"),
    };
    let mut timers: Vec<PosixTimer> = Vec::new();
    for line in text.lines() {
        let (key, value) = line.split_once(':').ok_or_else(|| bad(line))?;
        parse_line(&mut timers, key.trim(), value.trim()).ok_or_else(|| bad(line))?;
    }
    Ok(timers)
}

/// `ID: 1`, `signal: 14/00000000deadbeef`, `notify: signal/pid.42`, `ClockID: 1` (proc_pid_timers(5)).
fn parse_line(timers: &mut Vec<PosixTimer>, key: &str, value: &str) -> Option<()> {
    if key == "ID" {
        let id = value.parse().ok()?;
        let (setting, clock, signal, value) = ([0; 4], 0, 0, 0);
        timers.push(PosixTimer {
            id,
            clock,
            signal,
            value,
            notify: 0,
            thread: 0,
            setting,
        });
        return Some(());
    }
    let timer = timers.last_mut()?;
    match key {
        "signal" => {
            let (signal, pointer) = value.split_once('/')?;
            timer.signal = signal.parse().ok()?;
            timer.value = u64::from_str_radix(pointer, 16).ok()?;
        }
        "notify" => {
            let (how, whom) = value.split_once('/')?;
            timer.notify = ["signal", "none", "thread"]
                .iter()
                .position(|n| *n == how)? as i32;
            if let Some(tid) = whom.strip_prefix("tid.") {
                timer.notify |= libc::SIGEV_THREAD_ID;
                timer.thread = tid.parse().ok()?;
            }
        }
        "ClockID" => timer.clock = value.parse().ok()?,
        _ => {}
    }
    Some(())
}

/// The timers that were asked for; `virtual_of` names the threads that are told.
pub fn read(asked: Asked, results: &Results, virtual_of: impl Fn(i32) -> i32) -> Timers {
    let setting = |out: Out| -> Setting {
        let words: Vec<u64> = results.words(out).collect();
        [words[0], words[1], words[2], words[3]]
    };
    let posix = asked.posix.into_iter().map(|(mut timer, out)| {
        timer.setting = setting(out);
        if timer.thread != 0 {
            timer.thread = virtual_of(timer.thread);
        }
        timer
    });
    Timers {
        posix: posix.collect(),
        interval: asked.interval.map(setting),
    }
}

/// Creates and starts the timers. `real_of` gives a thread's number where calls are not translated.
pub fn rebuild(timers: &Timers, real_of: impl Fn(i32) -> i32, batch: &mut Batch) {
    for (which, setting) in (0..).zip(&timers.interval) {
        if setting[2..] != [0, 0] {
            let value = batch.words(setting);
            batch.call("setitimer", libc::SYS_setitimer, &[which, value, 0]);
        }
    }
    if timers.posix.is_empty() {
        return;
    }
    restore_ids(batch, true);
    for timer in &timers.posix {
        create(timer, real_of(timer.thread), batch);
    }
    restore_ids(batch, false);
}

/// `PR_TIMER_CREATE_RESTORE_IDS` (Linux 6.15): timer_create takes the id it is given.
fn restore_ids(batch: &mut Batch, on: bool) {
    const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
    let args = [PR_TIMER_CREATE_RESTORE_IDS, u64::from(on), 0, 0, 0];
    batch.call("prctl PR_TIMER_CREATE_RESTORE_IDS", libc::SYS_prctl, &args);
}

fn create(timer: &PosixTimer, thread: i32, batch: &mut Batch) {
    let mut event = [0u64; 8];
    event[0] = timer.value;
    event[1] = u64::from(timer.signal as u32) | u64::from(timer.notify as u32) << 32;
    event[2] = u64::from(thread as u32);
    let event = batch.words(&event);
    let id = batch.words(&[u64::from(timer.id as u32)]);
    batch.call(
        "timer_create",
        libc::SYS_timer_create,
        &[timer.clock as u64, event, id],
    );
    if timer.setting[2..] != [0, 0] {
        let value = batch.words(&timer.setting);
        batch.call(
            "timer_settime",
            libc::SYS_timer_settime,
            &[timer.id as u64, 0, value, 0],
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listed_timer_is_read_whole() {
        let mut timers = Vec::new();
        for (k, v) in [
            ("ID", "3"),
            ("signal", "40/00000000000004d2"),
            ("notify", "signal/tid.77"),
            ("ClockID", "1"),
        ] {
            parse_line(&mut timers, k, v).unwrap();
        }
        let t = &timers[0];
        assert_eq!(
            (t.id, t.signal, t.value, t.thread, t.clock),
            (3, 40, 0x4d2, 77, 1)
        );
        assert_eq!(t.notify, libc::SIGEV_SIGNAL | libc::SIGEV_THREAD_ID);
    }
}
