//! Calls with a time-out that a stop interrupts.
//!
//! For nanosleep, poll and futex the kernel keeps how to go on in a *restart block* that nobody can
//! read, and after one interruption even the call's number is gone (`orig_rax` is then 219,
//! restart_syscall). Calls that signal(7) lists as never restarted return EINTR for a mere stop.
//!
//! ```text
//! before the stop   note: number, arguments, when the task last ran        /proc/TID/{syscall,sched}
//! at the stop       rax −516: deadline = time-out − time asleep, remembered until the call is over
//!                   rax −4:   rax = −514, so that the kernel gives EINTR only if a handler is due
//! at the restart    the task begins the call with the time that was left and is interrupted at
//!                   once: the kernel has the block again, the registers are the program's own
//! ```

use std::{cell::RefCell, collections::HashMap, fs};

use intercept::{
    stub,
    tracee::{Regs, Running, Stop, Stopped, TraceError},
};
use libc::pid_t;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// A call that waits, and how long it has still to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// The call's number.
    pub call: i64,
    /// The time, in nanoseconds.
    pub nanos: u64,
}

/// A call of a stopped task that the kernel would continue from its restart block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// The call's number.
    pub call: i64,
    /// When its time-out ends by CLOCK_MONOTONIC of this host, in nanoseconds; `None` when it has none or
    /// one that is a date: such a call can begin again as it was.
    pub deadline: Option<u64>,
}

impl Waiting {
    /// The time that is left now.
    #[must_use]
    pub fn left(&self) -> Option<Left> {
        let call = self.call;
        let nanos = self.deadline?.saturating_sub(now());
        Some(Left { call, nanos })
    }
}

const ERESTARTNOHAND: i64 = -514;
/// What a call returns that is continued from its restart block (include/linux/errno.h).
pub(crate) const ERESTART_RESTARTBLOCK: i64 = -516;
const EINTR: i64 = -(libc::EINTR as i64);

/// Calls that return EINTR for a mere stop, whatever handlers there are (signal(7)); those on
/// sockets do so when the socket has a time-out.
const NEVER_RESTARTED: &[i64] = &[
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_io_getevents,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
];

/// Calls whose time-out is relative, so that it matters how long they have waited already.
const TIMED: &[i64] = &[
    libc::SYS_poll,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_futex,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
];

/// A call as /proc/TID/syscall and as registers tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Call {
    nr: i64,
    args: [u64; 6],
    sp: u64,
    pc: u64,
}

impl Call {
    /// `nr arg0 … arg5 sp pc`; something else when the task does not wait in a call (proc_pid_syscall(5)).
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let nr = words.next()?.parse().ok()?;
        let hex = |w: &str| u64::from_str_radix(w.trim_start_matches("0x"), 16).ok();
        let rest: Vec<u64> = words.filter_map(hex).collect();
        let (args, sp, pc) = (
            rest.get(..6)?.try_into().ok()?,
            *rest.get(6)?,
            *rest.get(7)?,
        );
        Some(Self { nr, args, sp, pc })
    }

    fn of_regs(r: &Regs) -> Self {
        Self {
            nr: r.orig_rax as i64,
            args: [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9],
            sp: r.rsp,
            pc: r.rip,
        }
    }

    /// True when both are the same call, one of them perhaps under the number of its continuation.
    fn continues(&self, other: &Self) -> bool {
        let nr = self.nr == libc::SYS_restart_syscall || self.nr == other.nr;
        nr && (self.args, self.sp, self.pc) == (other.args, other.sp, other.pc)
    }
}

/// When a task last ran, and how often it has gone to sleep, by /proc/TID/sched.
#[derive(Debug, Clone, Copy)]
struct Ran {
    at: u64,
    sleeps: u64,
}

impl Ran {
    fn of(tid: pid_t) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{tid}/sched")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let value = |name: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(name))?;
            line.split_once(':').map(|(_, v)| v.trim())
        };
        // Milliseconds with six digits behind the point.
        let at = value("se.exec_start")?.replace('.', "").parse().ok()?;
        let sleeps = value("nr_voluntary_switches")?.parse().ok()?;
        Some(Self { at, sleeps })
    }

    /// How long the task had slept when our stop woke it; nothing when it was awake in between, because
    /// then it may have begun another call.
    fn asleep(self, tid: pid_t) -> u64 {
        match Self::of(tid) {
            Some(stopped) if stopped.sleeps == self.sleeps + 1 => {
                stopped.at.saturating_sub(self.at)
            }
            _ => 0,
        }
    }
}

#[derive(Debug)]
struct Note {
    call: Call,
    ran: Option<Ran>,
    deadline: Option<u64>,
}

thread_local! {
    /// What the one thread that stops a pod's tasks knows of their calls, also of those it let go on.
    static NOTES: RefCell<HashMap<pid_t, Note>> = RefCell::default();
}

/// Notes what a task waits for, before it is stopped.
pub(crate) fn note(tid: pid_t) {
    let text = fs::read_to_string(format!("/proc/{tid}/syscall"));
    let call = text.ok().and_then(|text| Call::parse(&text));
    NOTES.with_borrow_mut(|notes| {
        let noted = call.and_then(|call| fresh(tid, call, notes.get(&tid)));
        match noted {
            Some(note) => drop(notes.insert(tid, note)),
            None => drop(notes.remove(&tid)),
        }
    });
}

/// A note under the call's own number, when it is one with a relative time-out.
fn fresh(tid: pid_t, mut call: Call, known: Option<&Note>) -> Option<Note> {
    let mut deadline = None;
    if call.nr == libc::SYS_restart_syscall {
        // A call whose time is up is not that one any more.
        let same =
            known.filter(|n| call.continues(&n.call) && n.deadline.is_none_or(|d| d > now()));
        deadline = same.and_then(|n| n.deadline);
        call.nr = same.map(|n| n.call.nr).or_else(|| guess(tid, &call))?;
    }
    let ran = Ran::of(tid);
    TIMED.contains(&call.nr).then_some(Note {
        call,
        ran,
        deadline,
    })
}

/// Which call was interrupted by somebody else before we came, by the kernel function it sleeps in.
fn guess(tid: pid_t, call: &Call) -> Option<i64> {
    let place = fs::read_to_string(format!("/proc/{tid}/wchan")).ok()?;
    // The first argument of clock_nanosleep is a small number, that of nanosleep an address.
    let clock = call.args[0] < 4096 || call.args[0] as i64 > -4096 && (call.args[0] as i64) < 0;
    Some(match place.as_str() {
        p if p.contains("nanosleep") && clock => libc::SYS_clock_nanosleep,
        p if p.contains("nanosleep") => libc::SYS_nanosleep,
        p if p.contains("poll") => libc::SYS_poll,
        p if p.contains("futex") => libc::SYS_futex,
        _ => return None,
    })
}

/// Makes the stop invisible to the call it interrupted; what the kernel's restart block holds, if it is used.
///
/// # Errors
/// The task is gone.
pub(crate) fn mend(stopped: &Stopped) -> Result<Option<Waiting>> {
    let mut regs = stopped.regs()?;
    if !behind_syscall(stopped, regs.rip) || (regs.orig_rax as i64) < 0 {
        return Ok(None);
    }
    match regs.rax as i64 {
        EINTR if NEVER_RESTARTED.contains(&(regs.orig_rax as i64)) => {
            regs.rax = ERESTARTNOHAND as u64;
            shorten(stopped.tid(), &mut regs);
            stopped.set_regs(&regs)?;
            Ok(None)
        }
        ERESTART_RESTARTBLOCK => Ok(waiting(stopped, &regs)),
        _ => Ok(None),
    }
}

/// True when the instruction before `rip` is `syscall`: no handler's frame lies in between.
fn behind_syscall(stopped: &Stopped, rip: u64) -> bool {
    let mut code = [0; 2];
    stopped.read(rip.wrapping_sub(2), &mut code).is_ok() && code == [0x0f, 0x05]
}

/// Takes the time that epoll_wait has waited off its time-out, which is in a register that no caller keeps
/// over a call. Time-outs in memory that the program may not expect to change begin again.
fn shorten(tid: pid_t, regs: &mut Regs) {
    let epoll = [libc::SYS_epoll_wait, libc::SYS_epoll_pwait].contains(&(regs.orig_rax as i64));
    let timeout = regs.r10 as i32;
    if epoll && timeout > 0 {
        let millis = asleep(tid, &Call::of_regs(regs)) / 1_000_000;
        regs.r10 = u64::from((timeout as u32).saturating_sub(millis as u32));
    }
}

fn asleep(tid: pid_t, call: &Call) -> u64 {
    NOTES.with_borrow(|notes| {
        let note = notes.get(&tid).filter(|n| call.continues(&n.call));
        note.and_then(|n| n.ran).map_or(0, |ran| ran.asleep(tid))
    })
}

fn waiting(stopped: &Stopped, regs: &Regs) -> Option<Waiting> {
    let (tid, mut call) = (stopped.tid(), Call::of_regs(regs));
    let known = NOTES.with_borrow(|notes| {
        let note = notes.get(&tid).filter(|n| call.continues(&n.call))?;
        Some((note.call.nr, note.deadline))
    });
    let continued = call.nr == libc::SYS_restart_syscall;
    let slept = asleep(tid, &call);
    if continued {
        call.nr = known?.0;
    }
    let deadline = known
        .and_then(|(_, deadline)| deadline)
        .filter(|_| continued)
        .or_else(|| time_left(stopped, &call, slept).map(|left| now().saturating_add(left)));
    let note = Note {
        call,
        ran: None,
        deadline,
    };
    NOTES.with_borrow_mut(|notes| notes.insert(tid, note));
    Some(Waiting {
        call: call.nr,
        deadline,
    })
}

/// What is left of a relative time-out after `slept` nanoseconds; `None` where there is none.
fn time_left(stopped: &Stopped, call: &Call, slept: u64) -> Option<u64> {
    let time = |at: u64| -> Option<u64> {
        let mut both = [0u8; 16];
        stopped.read(at, &mut both).ok()?;
        let (s, ns) = both.split_at(8);
        let word = |w: &[u8]| w.try_into().map(i64::from_ne_bytes).unwrap_or(0).max(0) as u64;
        Some(
            word(s)
                .saturating_mul(1_000_000_000)
                .saturating_add(word(ns)),
        )
    };
    let asked = |at: u64| time(at).map(|t| t.saturating_sub(slept));
    // The kernel has written what is left to the program's own place for it, when there is one.
    let sleep = |wanted: u64, left: u64| if left == 0 { asked(wanted) } else { time(left) };
    let [a0, a1, a2, a3, ..] = call.args;
    match call.nr {
        libc::SYS_poll if a2 as i32 > 0 => Some((a2 * 1_000_000).saturating_sub(slept)),
        libc::SYS_nanosleep => sleep(a0, a1),
        libc::SYS_clock_nanosleep if a1 & libc::TIMER_ABSTIME as u64 == 0 => sleep(a2, a3),
        libc::SYS_futex if a1 as i32 & libc::FUTEX_CMD_MASK == libc::FUTEX_WAIT && a3 != 0 => {
            asked(a3)
        }
        _ => None,
    }
}

fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a live place for the call to fill.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Registers with which a call that was continued from its restart block goes on after a restart: as it
/// was interrupted where [`rebuild`] makes the block anew, else from its beginning.
pub(crate) fn registers(mut regs: Regs, waiting: Option<Waiting>) -> Regs {
    if (regs.orig_rax as i64) < 0 || regs.rax as i64 != ERESTART_RESTARTBLOCK {
        return regs;
    }
    match waiting {
        Some(w) if w.deadline.is_some() => regs.orig_rax = w.call as u64,
        Some(w) => begin_again(&mut regs, w.call),
        None if regs.orig_rax as i64 != libc::SYS_restart_syscall => {
            let nr = regs.orig_rax as i64;
            begin_again(&mut regs, nr);
        }
        // Somebody interrupted it before the pod was ours to look at.
        None => (regs.rax, regs.orig_rax) = (EINTR as u64, u64::MAX),
    }
    regs
}

fn begin_again(regs: &mut Regs, nr: i64) {
    regs.rip -= 2;
    (regs.rax, regs.orig_rax) = (nr as u64, u64::MAX);
}

/// Begins a call in a task that has the stub, with the time that is left, and interrupts it at once: the
/// kernel has its restart block then. Returns the registers to go on with, made from the recorded ones.
///
/// # Errors
/// The task is gone or did not stop where it should.
pub(crate) fn rebuild(left: Left, recorded: Regs, task: Stopped) -> Result<(Regs, Stopped)> {
    let mut regs = aim(left, recorded, &task)?;
    (regs.rip, regs.rax, regs.orig_rax) = (stub::SINGLE, left.call as u64, u64::MAX);
    task.set_regs(&regs)?;
    let task = task.syscall(0)?.wait_stopped()?;
    // The interrupt is pending before the call begins, so it cannot come late.
    Running::attached(task.tid()).interrupt()?;
    let task = task.cont(0)?.wait_stopped()?;
    let result = task.regs()?.rax;
    if task.stop() != Stop::Interrupt {
        let (tid, stop, rip) = (task.tid(), task.stop(), task.regs()?.rip);
        return Err(TraceError::Astray { tid, stop, rip }.into());
    }
    let mut regs = recorded;
    if result as i64 == ERESTART_RESTARTBLOCK {
        regs.orig_rax = left.call as u64;
        regs.rax = result;
    } else {
        // It was over at once: this is what it brought.
        (regs.rax, regs.orig_rax) = (result, u64::MAX);
    }
    Ok((regs, task))
}

/// The recorded arguments, with the time-out replaced by what is left.
fn aim(left: Left, mut regs: Regs, task: &Stopped) -> Result<Regs> {
    let (s, ns) = (left.nanos / 1_000_000_000, left.nanos % 1_000_000_000);
    task.write(stub::SCRATCH, &[s.to_ne_bytes(), ns.to_ne_bytes()].concat())?;
    match left.call {
        libc::SYS_poll => regs.rdx = left.nanos.div_ceil(1_000_000),
        libc::SYS_nanosleep => regs.rdi = stub::SCRATCH,
        libc::SYS_clock_nanosleep => regs.rdx = stub::SCRATCH,
        _ => regs.r10 = stub::SCRATCH,
    }
    Ok(regs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_read_and_known_again_under_its_continuation() {
        let text = "7 0x7ffd01 0x1 0x7530 0x0 0x8 0x9 0x7ffd00 0x7f0011\n";
        let poll = Call::parse(text).unwrap();
        assert_eq!((poll.nr, poll.args[2], poll.pc), (7, 30_000, 0x7f_0011));
        let again = Call {
            nr: libc::SYS_restart_syscall,
            ..poll
        };
        assert!(again.continues(&poll) && !poll.continues(&again));
        assert!(!Call { sp: 1, ..again }.continues(&poll));
        assert_eq!(Call::parse("running\n"), None);
        assert_eq!(Call::parse("-1 0x7ffd00 0x7f0011\n"), None);
    }

    #[test]
    fn the_time_a_task_ran_is_read_in_nanoseconds() {
        let text = "x (1, #threads: 1)\nse.exec_start      :   4816213.698896\n\
                    nr_voluntary_switches      :       17\n";
        let ran = Ran::parse(text).unwrap();
        assert_eq!((ran.at, ran.sleeps), (4_816_213_698_896, 17));
    }

    #[test]
    fn a_call_without_a_deadline_begins_again() {
        // SAFETY: plain integers.
        let mut regs: Regs = unsafe { std::mem::zeroed() };
        regs.rip = 0x1002;
        regs.orig_rax = libc::SYS_restart_syscall as u64;
        regs.rax = ERESTART_RESTARTBLOCK as u64;
        let dated = Waiting {
            call: libc::SYS_futex,
            deadline: None,
        };
        let again = registers(regs, Some(dated));
        assert_eq!((again.rip, again.rax), (0x1000, libc::SYS_futex as u64));
        let due = Waiting {
            deadline: Some(1),
            ..dated
        };
        assert_eq!(registers(regs, Some(due)).orig_rax, libc::SYS_futex as u64);
        assert_eq!(registers(regs, None).rax as i64, EINTR);
    }
}
