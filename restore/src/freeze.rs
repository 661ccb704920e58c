//! Stopping a pod: every thread of every process, until nothing is left that could start
//! another.
//!
//! ```text
//! list ─▶ seize + interrupt the new ones ─▶ wait for their stops ─▶ list again …
//!   … until a listing brings nothing new: all that exist stand still, so none can fork.
//! ```
//!
//! The stop must not be visible. Calls that the kernel restarts by itself are left alone;
//! those that return EINTR for a mere stop (signal(7), "never restarted") are made such calls,
//! so that the program waits on. A parent in vfork does not stop before its child has executed
//! or died: the child is let go on until then.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
};

use intercept::{
    sys::{self, Kcmp},
    tracee::{Running, Stop, Stopped, TraceError, Waited},
};
use libc::pid_t;
use tracing::debug;

use crate::{
    error::{Error, Result},
    resource::restart_block::{self, Waiting},
};

/// Options every tracee of ours has: forks we inject are attached by the kernel.
pub(crate) const OPTIONS: i32 = libc::PTRACE_O_TRACESYSGOOD
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEEXEC;

/// A thread that stands still.
#[derive(Debug)]
pub struct Task {
    /// Its tracee.
    pub stopped: Stopped,
    /// The job-control signal that had stopped it before we came.
    pub stopped_by: Option<i32>,
    /// The call it waits in, where the kernel keeps how to continue it.
    pub waiting: Option<Waiting>,
}

/// A process of which every thread stands still, or a zombie (which has none).
#[derive(Debug)]
pub struct Process {
    /// Its pid on this host.
    pub pid: pid_t,
    /// Its threads, the leader first; empty for a zombie.
    pub threads: Vec<Task>,
}

/// A pod that stands still. Dropped or let go, it runs on as if nothing had been.
#[derive(Debug, Default)]
pub struct Frozen {
    /// Its processes, parents before their children.
    pub processes: Vec<Process>,
}

/// The processes below `root`, itself left out, parents before children; threads' children included.
///
/// # Errors
/// [`Error::File`] when /proc cannot be read at all.
pub fn descendants(root: pid_t) -> Result<Vec<pid_t>> {
    let (mut all, mut next) = (Vec::new(), 0);
    let mut parent = root;
    loop {
        for tid in threads_of(parent) {
            let path = format!("/proc/{parent}/task/{tid}/children");
            match fs::read_to_string(&path) {
                Ok(list) => all.extend(
                    list.split_whitespace()
                        .filter_map(|p| p.parse::<pid_t>().ok()),
                ),
                Err(e) if gone(&e) => {}
                Err(e) => return Err(Error::file("read", path, e)),
            }
        }
        match all.get(next) {
            Some(pid) => parent = *pid,
            None => return Ok(all),
        }
        next += 1;
    }
}

fn gone(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH)
}

fn threads_of(pid: pid_t) -> Vec<pid_t> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let mut tids: Vec<pid_t> = entries
        .flatten()
        .filter_map(|e| e.file_name().to_string_lossy().parse().ok())
        .collect();
    tids.sort_by_key(|tid| (*tid != pid, *tid));
    tids
}

/// The state letter of a task: `R`, `S`, `Z`…
fn state(tid: pid_t) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{tid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Stops every process below `init` except those in `spared` (our own).
///
/// # Errors
/// A task that cannot be traced; everything stopped so far goes on.
pub fn freeze(init: pid_t, spared: &[pid_t]) -> Result<Frozen> {
    let _span = tracing::info_span!("freeze", init).entered();
    let mut stopped = BTreeMap::new();
    loop {
        let fresh = seize_new(init, spared, &stopped)?;
        if fresh.is_empty() {
            return arrange(init, spared, stopped);
        }
        settle(fresh, &mut stopped)?;
    }
}

fn seize_new(
    init: pid_t,
    spared: &[pid_t],
    stopped: &BTreeMap<pid_t, Task>,
) -> Result<Vec<Running>> {
    let mut fresh: Vec<Running> = Vec::new();
    let mut known: BTreeSet<pid_t> = stopped.keys().copied().collect();
    for pid in descendants(init)?
        .into_iter()
        .filter(|p| !spared.contains(p))
    {
        for tid in threads_of(pid).into_iter().filter(|t| known.insert(*t)) {
            restart_block::note(tid);
            match Running::seize(tid, OPTIONS) {
                Ok(running) => fresh.push(running),
                Err(TraceError::Gone(_)) => {}
                Err(_) if matches!(state(tid), Some('Z' | 'X') | None) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    for running in &fresh {
        match running.interrupt() {
            Ok(()) | Err(TraceError::Gone(_)) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(fresh)
}

/// Waits until each of `running` has stopped or died.
fn settle(running: Vec<Running>, stopped: &mut BTreeMap<pid_t, Task>) -> Result<()> {
    let mut waiting = running;
    let mut turns = 0_u32;
    while !waiting.is_empty() {
        let mut still = Vec::new();
        for running in waiting {
            match running.try_wait() {
                Ok(Ok(Waited::Stopped(s))) => match note(s)? {
                    Noted::Stands(task) => drop(stopped.insert(task.stopped.tid(), task)),
                    Noted::GoesOn(running) => still.push(running),
                },
                Ok(Err(running)) => still.push(running),
                Ok(Ok(Waited::Gone(_))) | Err(TraceError::Gone(_)) => {}
                Err(e) => return Err(e.into()),
            }
        }
        waiting = still;
        turns += 1;
        if turns.is_multiple_of(64) {
            release_vfork_children(&waiting, stopped)?;
            std::thread::sleep(std::time::Duration::from_micros(200));
        } else if !waiting.is_empty() {
            std::thread::yield_now();
        }
    }
    Ok(())
}

enum Noted {
    Stands(Task),
    GoesOn(Running),
}

fn note(stopped: Stopped) -> Result<Noted> {
    match stopped.stop() {
        Stop::Interrupt => {
            let waiting = restart_block::mend(&stopped)?;
            Ok(Noted::Stands(Task {
                stopped,
                stopped_by: None,
                waiting,
            }))
        }
        Stop::Group(signal) => {
            let waiting = restart_block::mend(&stopped)?;
            Ok(Noted::Stands(Task {
                stopped,
                stopped_by: Some(signal),
                waiting,
            }))
        }
        // The signal takes effect now; the interrupt's stop comes right after it.
        Stop::Signal(signal) => Ok(Noted::GoesOn(stopped.cont(signal)?)),
        Stop::Event(_) | Stop::Syscall => Ok(Noted::GoesOn(stopped.cont(0)?)),
    }
}

/// Lets the stopped children of parents that wait in vfork go on; they stop again at their exec.
fn release_vfork_children(waiting: &[Running], stopped: &mut BTreeMap<pid_t, Task>) -> Result<()> {
    for parent in waiting
        .iter()
        .map(Running::tid)
        .filter(|tid| state(*tid) == Some('D'))
    {
        let child = stopped
            .keys()
            .copied()
            .find(|child| is_vfork_child(parent, *child));
        let Some(task) = child.and_then(|c| stopped.remove(&c)) else {
            continue;
        };
        debug!(parent, child, "letting a vfork child go on");
        let running = task.stopped.cont(0)?;
        let child = running.tid();
        wait_for_exec(running)?;
        debug!(child, "vfork child has executed or died");
        if state(child).is_some_and(|s| s != 'Z') {
            let again = Running::attached(child);
            again.interrupt().or_else(ignore_gone)?;
            settle_one(again, stopped)?;
        }
    }
    Ok(())
}

fn ignore_gone(e: TraceError) -> Result<(), TraceError> {
    if matches!(e, TraceError::Gone(_)) {
        Ok(())
    } else {
        Err(e)
    }
}

fn is_vfork_child(parent: pid_t, child: pid_t) -> bool {
    parent != child
        && !threads_of(parent).contains(&child)
        && sys::kcmp(parent, child, Kcmp::Vm, 0, 0).is_ok_and(std::cmp::Ordering::is_eq)
}

fn wait_for_exec(mut running: Running) -> Result<()> {
    loop {
        match running.wait() {
            Ok(Waited::Stopped(s)) => match s.stop() {
                Stop::Event(libc::PTRACE_EVENT_EXEC) => {
                    return s.cont(0).map(drop).map_err(Into::into);
                }
                Stop::Signal(signal) => running = s.cont(signal)?,
                _ => running = s.cont(0)?,
            },
            Ok(Waited::Gone(_)) | Err(TraceError::Gone(_)) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

fn settle_one(mut running: Running, stopped: &mut BTreeMap<pid_t, Task>) -> Result<()> {
    loop {
        match running.wait() {
            Ok(Waited::Stopped(s)) => match note(s)? {
                Noted::Stands(task) => {
                    stopped.insert(task.stopped.tid(), task);
                    return Ok(());
                }
                Noted::GoesOn(again) => running = again,
            },
            Ok(Waited::Gone(_)) | Err(TraceError::Gone(_)) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

fn arrange(init: pid_t, spared: &[pid_t], mut stopped: BTreeMap<pid_t, Task>) -> Result<Frozen> {
    let mut processes = Vec::new();
    for pid in descendants(init)?
        .into_iter()
        .filter(|p| !spared.contains(p))
    {
        let threads: Vec<Task> = threads_of(pid)
            .iter()
            .filter_map(|tid| stopped.remove(tid))
            .collect();
        if !threads.is_empty() || state(pid) == Some('Z') {
            processes.push(Process { pid, threads });
        }
    }
    Ok(Frozen { processes })
}

impl Frozen {
    /// Lets everything go on as it was.
    ///
    /// # Errors
    /// Never for a task that died meanwhile; otherwise the first detach that failed, after trying all.
    pub fn resume(mut self) -> Result<()> {
        self.let_go()
    }

    fn let_go(&mut self) -> Result<()> {
        let mut failed = None;
        let processes = std::mem::take(&mut self.processes);
        for task in processes.into_iter().flat_map(|p| p.threads) {
            if let Err(e) = task.stopped.detach(0).or_else(ignore_gone) {
                failed.get_or_insert(e);
            }
        }
        failed.map_or(Ok(()), |e| Err(e.into()))
    }

    /// Ends it: no process of it runs another instruction.
    pub fn kill(mut self) {
        let pids = self.processes.iter().map(|p| p.pid).collect::<Vec<_>>();
        self.processes.clear();
        kill_traced(&pids);
    }

    /// Sees to it that our death would let every task go on unharmed: see [`Stopped::calm`].
    ///
    /// # Errors
    /// A task that died meanwhile; the others still stand.
    pub fn calm(&mut self) -> Result<()> {
        let mut first = Ok(());
        for process in &mut self.processes {
            for task in std::mem::take(&mut process.threads) {
                match task.stopped.calm() {
                    Ok(stopped) => process.threads.push(Task { stopped, ..task }),
                    Err(error) => first = first.and(Err(error.into())),
                }
            }
        }
        first
    }

    /// Has the kernel kill every task when this process dies, instead of letting it go on.
    ///
    /// # Errors
    /// A task that died meanwhile.
    pub fn die_with_us(&mut self) -> Result<()> {
        for task in self.processes.iter().flat_map(|p| &p.threads) {
            task.stopped
                .set_options(OPTIONS | libc::PTRACE_O_EXITKILL)?;
        }
        Ok(())
    }

    /// How many threads stand still.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.processes.iter().map(|p| p.threads.len()).sum()
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = self.let_go() {
            tracing::error!(%error, "a task could not be let go");
        }
    }
}

/// Kills all processes below `init` and takes leave of those that this thread traces: a tracee that
/// died stays in the way of its pid namespace's end until its tracer has seen it.
///
/// # Errors
/// [`Error::File`] when /proc cannot be read.
pub fn kill_all(init: pid_t) -> Result<()> {
    kill_traced(&descendants(init)?);
    Ok(())
}

fn kill_traced(pids: &[pid_t]) {
    for pid in pids {
        // SAFETY: plain values. Tracees and their zombies keep their pids until we wait for them.
        unsafe { libc::kill(*pid, libc::SIGKILL) };
    }
    let mut status = 0;
    loop {
        // SAFETY: `status` is a live int. Only this thread's own children and tracees are meant.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        if pid < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
        if pid > 0 && libc::WIFSTOPPED(status) {
            // A birth or an exit that was on the way when the signal came.
            // SAFETY: plain values; the task is a stopped tracee of this thread.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
                libc::ptrace(libc::PTRACE_CONT, pid, 0, 0);
            }
        }
    }
}
