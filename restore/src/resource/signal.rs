//! Signals of a process and of a thread: dispositions, pending signals with what came with
//! them, the alternate stack.

use intercept::tracee::Stopped;
use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    remote::{Batch, CallId, Out, Results},
};

/// Number of signals.
const SIGNALS: u64 = 64;
/// Size of the kernel's `struct sigaction` (handler, flags, restorer, mask), in bytes.
const ACTION: usize = 32;
/// Size of the kernel's signal set, in bytes.
const SET: u64 = 8;

/// `struct sigaction` as the kernel has it on x86-64.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// `SIG_DFL`, `SIG_IGN` or an address.
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// The trampoline.
    pub restorer: u64,
    /// Blocked meanwhile.
    pub mask: u64,
}

/// Calls that ask for all dispositions.
pub struct AskedActions(Vec<Out>);

/// Asks for all dispositions.
pub fn ask_actions(batch: &mut Batch) -> AskedActions {
    let ask = |signal| {
        let out = batch.out(ACTION);
        batch.try_call(
            "rt_sigaction",
            libc::SYS_rt_sigaction,
            &[signal, 0, out.addr, SET],
        );
        out
    };
    AskedActions((1..=SIGNALS).map(ask).collect())
}

/// Dispositions by signal, from 1.
pub fn read_actions(asked: &AskedActions, results: &Results) -> Vec<Action> {
    let read = |out: &Out| {
        let words: Vec<u64> = results.words(*out).collect();
        Action {
            handler: words[0],
            flags: words[1],
            restorer: words[2],
            mask: words[3],
        }
    };
    asked.0.iter().map(read).collect()
}

/// Sets all dispositions. Ignoring everything first also drops what was queued while we worked.
pub fn rebuild_actions(actions: &[Action], batch: &mut Batch) {
    let can_be_set = |signal: u64| ![libc::SIGKILL as u64, libc::SIGSTOP as u64].contains(&signal);
    let ignore = batch.words(&[libc::SIG_IGN as u64, 0, 0, 0]);
    for signal in (1..=SIGNALS).filter(|s| can_be_set(*s)) {
        batch.call(
            "rt_sigaction",
            libc::SYS_rt_sigaction,
            &[signal, ignore, 0, SET],
        );
    }
    for (signal, a) in (1..).zip(actions).filter(|(s, _)| can_be_set(*s)) {
        let action = batch.words(&[a.handler, a.flags, a.restorer, a.mask]);
        batch.call(
            "rt_sigaction",
            libc::SYS_rt_sigaction,
            &[signal, action, 0, SET],
        );
    }
}

/// A signal that waits, with its siginfo (raw: 128 bytes).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The signal.
    pub signal: i32,
    /// `siginfo_t`.
    #[serde(with = "serde_bytes")]
    pub info: Vec<u8>,
}

/// Pending signals of a stopped thread, or of its process (`shared`).
///
/// # Errors
/// The task is gone.
pub fn capture_pending(task: &Stopped, shared: bool) -> Result<Vec<Pending>> {
    let to_pending = |info: &libc::siginfo_t| {
        // SAFETY: siginfo_t is plain data of this size.
        let bytes = unsafe {
            std::slice::from_raw_parts(
                std::ptr::from_ref(info).cast::<u8>(),
                size_of::<libc::siginfo_t>(),
            )
        };
        Pending {
            signal: info.si_signo,
            info: bytes.to_vec(),
        }
    };
    Ok(task.pending(shared)?.iter().map(to_pending).collect())
}

/// Queues signals again: to the process, or to one thread of it. All signals are blocked meanwhile.
pub fn rebuild_pending(pending: &[Pending], process: i32, thread: Option<i32>, batch: &mut Batch) {
    for p in pending {
        let info = batch.bytes(&p.info);
        let (process, signal) = (process as u64, p.signal as u64);
        match thread {
            None => batch.call(
                "rt_sigqueueinfo",
                libc::SYS_rt_sigqueueinfo,
                &[process, signal, info],
            ),
            Some(tid) => {
                let args = [process, tid as u64, signal, info];
                batch.call("rt_tgsigqueueinfo", libc::SYS_rt_tgsigqueueinfo, &args)
            }
        };
    }
}

/// `stack_t`: address, flags, size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AltStack {
    /// Lowest address.
    pub sp: u64,
    /// `SS_*`.
    pub flags: u64,
    /// Length, in bytes.
    pub size: u64,
}

/// Asks for the alternate stack.
pub fn ask_altstack(batch: &mut Batch) -> (CallId, Out) {
    let out = batch.out(24);
    (
        batch.call("sigaltstack", libc::SYS_sigaltstack, &[0, out.addr]),
        out,
    )
}

/// The alternate stack that was asked for.
pub fn read_altstack(asked: (CallId, Out), results: &Results) -> AltStack {
    let words: Vec<u64> = results.words(asked.1).collect();
    AltStack {
        sp: words[0],
        flags: words[1] & 0xffff_ffff,
        size: words[2],
    }
}

/// Sets the alternate stack. Being on it is a matter of the stack pointer, not of a flag.
pub fn rebuild_altstack(stack: AltStack, batch: &mut Batch) {
    const SS_ONSTACK: u64 = 1;
    let at = batch.words(&[stack.sp, stack.flags & !SS_ONSTACK, stack.size]);
    batch.call("sigaltstack", libc::SYS_sigaltstack, &[at, 0]);
}
