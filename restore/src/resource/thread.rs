//! A thread: registers, extended state, its own signals and the addresses it told the kernel.

use intercept::tracee::{Regs, Stopped};
use serde::{Deserialize, Serialize};

use super::{
    restart_block::{self, Left, Waiting},
    signal::{self, AltStack, Pending},
};
use crate::{
    error::{Error, Result},
    remote::{Batch, Out, Results},
};

/// A thread, in a process's list of threads, the leader first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Thread {
    /// Its virtual tid.
    pub tid: i32,
    /// General registers, in the order of `struct user_regs_struct`.
    pub regs: Vec<u64>,
    /// The XSAVE area, in the layout of the CPU it was taken on.
    #[serde(with = "serde_bytes")]
    pub xstate: Vec<u8>,
    /// Blocked signals.
    pub mask: u64,
    /// Signals that wait for this thread alone.
    pub pending: Vec<Pending>,
    /// The alternate signal stack.
    pub altstack: AltStack,
    /// Head and length of the list of robust futexes.
    pub robust: (u64, u64),
    /// `set_tid_address`: where 0 is written when the thread ends.
    pub clear_tid: u64,
    /// rseq area: address, size, signature.
    pub rseq: (u64, u32, u32),
    /// Name.
    #[serde(with = "serde_bytes")]
    pub comm: Vec<u8>,
    /// Scheduling: policy, priority, nice value.
    pub sched: (i32, i32, i32),
    /// `PR_GET_TIMERSLACK`, in nanoseconds.
    pub timer_slack: u64,
    /// `PR_GET_PDEATHSIG`.
    pub death_signal: i32,
    /// The call it waits in and for how long still, where the kernel kept that for itself.
    pub left: Option<Left>,
}

const REGS: usize = size_of::<Regs>() / 8;

fn words_of(regs: &Regs) -> Vec<u64> {
    // SAFETY: user_regs_struct is 27 u64 without padding.
    let words: [u64; REGS] = unsafe { std::mem::transmute_copy(regs) };
    words.to_vec()
}

/// The registers of a record.
///
/// # Errors
/// [`Error::Unfit`] when their number is not this architecture's.
pub fn regs_of(thread: &Thread) -> Result<Regs> {
    let bad = |_| Error::Unfit {
        object: format!("thread {}", thread.tid),
        why: "its registers are of another kind".into(),
    };
    let words: [u64; REGS] = thread.regs.clone().try_into().map_err(bad)?;
    // SAFETY: user_regs_struct is 27 u64; every value is valid.
    Ok(unsafe { std::mem::transmute_copy(&words) })
}

/// What must be asked inside the thread.
pub struct Asked {
    altstack: (crate::remote::CallId, Out),
    clear_tid: Out,
    slack: crate::remote::CallId,
    death: Out,
}

/// Asks a thread for what only it can tell.
pub fn ask(batch: &mut Batch) -> Asked {
    let altstack = signal::ask_altstack(batch);
    let (clear_tid, death) = (batch.out(8), batch.out(8));
    let prctl = |batch: &mut Batch, what: i32, at: u64| {
        batch.call("prctl", libc::SYS_prctl, &[what as u64, at, 0, 0, 0])
    };
    batch.try_call(
        "prctl PR_GET_TID_ADDRESS",
        libc::SYS_prctl,
        &[libc::PR_GET_TID_ADDRESS as u64, clear_tid.addr],
    );
    prctl(batch, libc::PR_GET_PDEATHSIG, death.addr);
    let slack = prctl(batch, libc::PR_GET_TIMERSLACK, 0);
    Asked {
        altstack,
        clear_tid,
        slack,
        death,
    }
}

/// A thread's record from what it told and what the kernel tells about `task`; `regs` and `mask` are
/// those it will go on with.
///
/// # Errors
/// The task is gone, or /proc does not read.
pub fn read(
    asked: &Asked,
    results: &Results,
    task: &Stopped,
    tid: i32,
    regs: &Regs,
    mask: u64,
    waiting: Option<Waiting>,
) -> Result<Thread> {
    let real = task.tid();
    let comm = format!("/proc/{real}/task/{real}/comm");
    let mut comm = std::fs::read(&comm).map_err(|e| Error::file("read", comm, e))?;
    comm.pop_if(|c| *c == b'\n');
    Ok(Thread {
        tid,
        regs: words_of(&restart_block::registers(*regs, waiting)),
        xstate: task.xstate()?,
        mask,
        pending: signal::capture_pending(task, false)?,
        altstack: signal::read_altstack(asked.altstack, results),
        robust: robust_list(real)?,
        clear_tid: results.words(asked.clear_tid).next().unwrap_or(0),
        rseq: task.rseq().unwrap_or((0, 0, 0)),
        comm,
        sched: scheduling(real)?,
        timer_slack: results.value(asked.slack) as u64,
        death_signal: results.words(asked.death).next().unwrap_or(0) as i32,
        left: waiting.and_then(|w| w.left()),
    })
}

fn robust_list(tid: i32) -> Result<(u64, u64)> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: two live places for the call to fill.
    let r = unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) };
    intercept::sys::check(r)
        .map_err(|e| Error::kernel("get_robust_list", format!("task {tid}"), e))?;
    Ok((head, len))
}

fn scheduling(tid: i32) -> Result<(i32, i32, i32)> {
    let failed = |step| move |e| Error::kernel(step, format!("task {tid}"), e);
    let mut param = libc::sched_param { sched_priority: 0 };
    // SAFETY: plain values.
    let policy = unsafe { libc::sched_getscheduler(tid) };
    intercept::sys::check(policy.into()).map_err(failed("sched_getscheduler"))?;
    // SAFETY: `param` is a live place for the call to fill.
    let r = unsafe { libc::sched_getparam(tid, &raw mut param) };
    intercept::sys::check(r.into()).map_err(failed("sched_getparam"))?;
    // SAFETY: plain values; the raw call answers 20 - nice, so that it is never negative.
    let nice = unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, tid) };
    Ok((policy, param.sched_priority, 20 - nice as i32))
}

/// Calls that give a puppet what the thread had, except registers and mask.
pub fn rebuild(thread: &Thread, batch: &mut Batch) {
    let prctl = |batch: &mut Batch, name, what: i32, value: u64| {
        batch.call(name, libc::SYS_prctl, &[what as u64, value, 0, 0, 0]);
    };
    let comm = batch.c_string(&thread.comm);
    prctl(batch, "prctl PR_SET_NAME", libc::PR_SET_NAME, comm);
    if thread.timer_slack != 0 {
        prctl(
            batch,
            "prctl PR_SET_TIMERSLACK",
            libc::PR_SET_TIMERSLACK,
            thread.timer_slack,
        );
    }
    batch.call(
        "set_tid_address",
        libc::SYS_set_tid_address,
        &[thread.clear_tid],
    );
    if thread.robust.1 != 0 {
        batch.call(
            "set_robust_list",
            libc::SYS_set_robust_list,
            &[thread.robust.0, thread.robust.1],
        );
    }
    signal::rebuild_altstack(thread.altstack, batch);
    let (address, size, signature) = thread.rseq;
    if address != 0 {
        batch.call(
            "rseq",
            libc::SYS_rseq,
            &[address, size.into(), 0, signature.into()],
        );
    }
    rebuild_scheduling(thread.sched, batch);
}

fn rebuild_scheduling((policy, priority, nice): (i32, i32, i32), batch: &mut Batch) {
    if policy != libc::SCHED_OTHER {
        let param = batch.bytes(&priority.to_ne_bytes());
        batch.call(
            "sched_setscheduler",
            libc::SYS_sched_setscheduler,
            &[0, policy as u64, param],
        );
    }
    if nice != 0 {
        let args = [u64::from(libc::PRIO_PROCESS), 0, i64::from(nice) as u64];
        batch.call("setpriority", libc::SYS_setpriority, &args);
    }
}
