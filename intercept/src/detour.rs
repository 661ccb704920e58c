//! The detour: a task runs its own call with translated arguments.
//!
//! Where the supervisor cannot stand in for the task (the call blocks, or is about the
//! caller itself), a short ptrace visit sends the task to the stub page with other
//! arguments, and leaves nothing attached. All of it runs on the tracer thread.
//!
//! ```text
//!  notified ── SEIZE, INTERRUPT, SEND −512 ──▶ stop: rax −512, orig_rax nr
//!     ip := stub, arguments := real            │ a signal first: rax := −513, DETACH with it;
//!        │                                     │ the call has not begun and starts again
//!        ▼
//!  entry stop ──▶ (may block: the waiters call back) ──▶ exit stop
//!                                                │
//!     ip, arguments := the program's own; rax := virtual; DETACH
//! ```
//!
//! At the exit an error from −512 on is left to the kernel, which makes EINTR or a restart
//! of it as it would have; a restarted call is notified again. Syscall stops are used, not
//! single steps: a step ends in a forced SIGTRAP, which would unblock that signal and reset
//! its handler in a program that blocks everything, as libc does around thread creation.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use libc::{c_int, pid_t};

use crate::{
    listener::{ERESTARTSYS, Listener, Reply},
    names::Tables,
    stub,
    tracee::{Regs, Running, Stop, Stopped, TraceError, Waited},
    tracer::{Locals, Tracer},
    waiters::Waiters,
};

/// Translates the result of a call back; it sees the task at the exit of the call.
pub type Back = Box<dyn FnOnce(&Stopped, i64, &mut Tables) -> i64 + Send>;

/// The kernel's `ERESTARTNOINTR`: restart whatever the handlers say.
const ERESTARTNOINTR: i64 = 513;

/// What kind of call it is, for the way its end is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// It cannot block: the tracer thread waits for its end.
    Short,
    /// It may block: the tracer thread does other things meanwhile.
    Blocks,
    /// It makes a task. The words are where the kernel stores its id: in the parent, in the child.
    Forks {
        /// `CLONE_PARENT_SETTID`.
        parent_word: Option<u64>,
        /// `CLONE_CHILD_SETTID`.
        child_word: Option<u64>,
    },
}

/// A call to be run by the task itself.
pub struct Detour {
    /// Syscall number.
    pub nr: i64,
    /// Real arguments.
    pub args: [u64; 6],
    /// Bytes for the stub's scratch area and the argument that shall point at them.
    pub data: Option<(usize, Vec<u8>)>,
    /// How its end is awaited.
    pub course: Course,
    /// Translation of the result.
    pub back: Back,
    /// The answer when something in the pod traces the task already.
    pub untraceable: Reply,
}

/// A detour on its way.
pub(crate) struct Job {
    pub(crate) id: u64,
    pub(crate) tid: pid_t,
    pub(crate) detour: Detour,
    pub(crate) listener: Arc<Listener>,
    pub(crate) tables: Arc<Mutex<Tables>>,
}

/// A task between entry and exit of its call.
struct Visit {
    job: Job,
    original: Regs,
}

/// The detours that wait for the end of their calls, on the tracer thread.
#[derive(Default)]
struct Detours {
    away: HashMap<pid_t, Visit>,
    slots: u64,
}

/// Size of a slot for argument bytes in the scratch area.
const SLOT: u64 = 256;

/// Sends a task on a detour; returns at once.
pub(crate) fn start(tracer: &Tracer, waiters: &Arc<Waiters>, job: Job) {
    let (again, waiters) = (tracer.clone(), Arc::clone(waiters));
    tracer.submit(move |locals| {
        let tid = job.tid;
        match with(locals, |detours| detours.begin(job)) {
            Ok(true) => waiters.arm(tid, again),
            Ok(false) => {}
            Err(error) => report(tid, &error),
        }
    });
}

/// Goes on with a task whose call has come to a stop; called from the waiters.
pub(crate) fn proceed(tracer: &Tracer, waiters: &Arc<Waiters>, tid: pid_t) {
    let (again, waiters) = (tracer.clone(), Arc::clone(waiters));
    tracer.submit(
        move |locals| match with(locals, |detours| detours.proceed(tid)) {
            Ok(true) => waiters.arm(tid, again),
            Ok(false) => {}
            Err(error) => report(tid, &error),
        },
    );
}

/// Breaks off the calls that block, as a signal without a handler would: they start again and
/// are notified again. Returns how many tasks are still away (parents in vfork, which do not
/// stop before their child has executed a program). Call it on the tracer thread.
pub fn drain(locals: &mut Locals) -> usize {
    with(locals, |detours| {
        for tid in detours.away.keys().copied().collect::<Vec<_>>() {
            if let Err(error) = detours.break_off(tid) {
                report(tid, &error);
            }
        }
        detours.away.len()
    })
}

fn with<T>(locals: &mut Locals, f: impl FnOnce(&mut Detours) -> T) -> T {
    let mut detours = locals.take::<Detours>().unwrap_or_default();
    let result = f(&mut detours);
    locals.put(detours);
    result
}

fn report(tid: pid_t, error: &TraceError) {
    match error {
        TraceError::Gone(_) => tracing::trace!(tid, "task died on a detour"),
        _ => tracing::warn!(tid, %error, "detour"),
    }
}

fn arguments(regs: &mut Regs, args: [u64; 6]) {
    (regs.rdi, regs.rsi, regs.rdx) = (args[0], args[1], args[2]);
    (regs.r10, regs.r8, regs.r9) = (args[3], args[4], args[5]);
}

/// Lets a task go whose call has not begun: it is made again, whatever its signal handlers say.
fn retry(stopped: Stopped, mut original: Regs) -> Result<(), TraceError> {
    let signal = match stopped.stop() {
        Stop::Signal(s) => s,
        _ => 0,
    };
    original.rax = -ERESTARTNOINTR as u64;
    stopped.set_regs(&original)?;
    stopped.detach(signal)
}

/// Runs one call at `at` between its two syscall stops. `Err(stopped)` inside means that
/// something else stopped the task first and the call did not begin.
fn run_at(
    stopped: Stopped,
    at: u64,
    original: &Regs,
    nr: i64,
    args: [u64; 6],
) -> Result<Result<Stopped, Stopped>, TraceError> {
    let entered = match enter(stopped, at, original, nr, args)? {
        Ok(entered) => entered,
        Err(other) => return Ok(Err(other)),
    };
    Ok(Ok(entered.syscall(0)?.wait_stopped()?))
}

/// Brings the task to the entry stop of a call at `at`.
fn enter(
    stopped: Stopped,
    at: u64,
    original: &Regs,
    nr: i64,
    args: [u64; 6],
) -> Result<Result<Stopped, Stopped>, TraceError> {
    let mut regs = *original;
    (regs.rip, regs.rax, regs.orig_rax) = (at, nr as u64, u64::MAX);
    arguments(&mut regs, args);
    stopped.set_regs(&regs)?;
    let stopped = stopped.syscall(0)?.wait_stopped()?;
    Ok(match stopped.stop() {
        Stop::Syscall => Ok(stopped),
        _ => Err(stopped),
    })
}

/// Maps the stub page into a task that does not have it yet (after exec, say).
///
/// The calls that map it run at the program's own `syscall` instruction; the filter notifies none of them.
fn with_stub(stopped: Stopped, original: &Regs) -> Result<Result<Stopped, Stopped>, TraceError> {
    let mut head = [0u8; 2];
    if stopped.read(stub::ADDR, &mut head).is_ok() && head == stub::code()[..2] {
        return Ok(Ok(stopped));
    }
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let (rw, rx) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::PROT_READ | libc::PROT_EXEC,
    );
    let map = [stub::ADDR, stub::LEN, rw as u64, flags as u64, u64::MAX, 0];
    let protect = [stub::ADDR, stub::PAGE, rx as u64, 0, 0, 0];
    let at = original.rip - 2;
    let stopped = match run_at(stopped, at, original, libc::SYS_mmap, map)? {
        Ok(stopped) => stopped,
        Err(other) => return Ok(Err(other)),
    };
    stopped.write(stub::ADDR, stub::code())?;
    run_at(stopped, at, original, libc::SYS_mprotect, protect)
}

impl Detours {
    /// From the notification to the entry of the call; true when its end is still to come.
    fn begin(&mut self, job: Job) -> Result<bool, TraceError> {
        let running = match Running::seize(job.tid, options(job.detour.course)) {
            Ok(running) => running,
            Err(error) => {
                // ENOENT, the task being gone, is the only other way this can end.
                let _ = job.listener.send(job.id, job.detour.untraceable);
                return Err(error);
            }
        };
        running.interrupt()?;
        let _ = job.listener.send(job.id, Reply::Restart);
        let stopped = running.wait_stopped()?;
        let original = stopped.regs()?;
        let (nr, result) = (original.orig_rax as i64, original.rax as i64);
        if nr != job.detour.nr || result != -i64::from(ERESTARTSYS) {
            let signal = if let Stop::Signal(s) = stopped.stop() {
                s
            } else {
                0
            };
            return stopped.detach(signal).map(|()| false);
        }
        if stopped.stop() != Stop::Interrupt {
            return retry(stopped, original).map(|()| false);
        }
        self.depart(stopped, Visit { job, original })
    }

    fn depart(&mut self, stopped: Stopped, mut visit: Visit) -> Result<bool, TraceError> {
        let stopped = match with_stub(stopped, &visit.original)? {
            Ok(stopped) => stopped,
            Err(other) => return retry(other, visit.original).map(|()| false),
        };
        if let Some((index, data)) = visit.job.detour.data.take() {
            let at = self.slot(data.len() as u64);
            stopped.write(at, &data)?;
            visit.job.detour.args[index] = at;
        }
        let (nr, args) = (visit.job.detour.nr, visit.job.detour.args);
        match enter(stopped, stub::SINGLE, &visit.original, nr, args)? {
            Ok(entered) => self.go(entered, visit),
            Err(other) => retry(other, visit.original).map(|()| false),
        }
    }

    /// A place for argument bytes: slots go round, and the kernel copies them at the entry.
    fn slot(&mut self, len: u64) -> u64 {
        debug_assert!(len <= SLOT, "argument bytes fit a slot");
        self.slots = (self.slots + 1) % (stub::SCRATCH_LEN / SLOT);
        stub::SCRATCH + self.slots * SLOT
    }

    /// From the entry stop on.
    fn go(&mut self, entered: Stopped, visit: Visit) -> Result<bool, TraceError> {
        let running = entered.syscall(0)?;
        match visit.job.detour.course {
            Course::Short => arrive(running.wait_stopped()?, visit).map(|()| false),
            Course::Blocks => self.park(running, visit),
            Course::Forks { .. } => match running.wait_stopped()? {
                stopped if matches!(stopped.stop(), Stop::Event(_)) => {
                    let running = born(stopped, &visit)?.syscall(0)?;
                    self.park(running, visit)
                }
                stopped => arrive(stopped, visit).map(|()| false),
            },
        }
    }

    /// Looks whether the end has come already; else leaves the task to the waiters.
    fn park(&mut self, running: Running, visit: Visit) -> Result<bool, TraceError> {
        match running.try_wait()? {
            Ok(Waited::Stopped(stopped)) => arrive(stopped, visit).map(|()| false),
            Ok(Waited::Gone(_)) => Ok(false),
            Err(running) => {
                self.away.insert(running.tid(), visit);
                Ok(true)
            }
        }
    }

    fn proceed(&mut self, tid: pid_t) -> Result<bool, TraceError> {
        match self.away.remove(&tid) {
            Some(visit) => self.park(Running::attached(tid), visit),
            None => Ok(false),
        }
    }

    fn break_off(&mut self, tid: pid_t) -> Result<(), TraceError> {
        let Some(visit) = self.away.remove(&tid) else {
            return Ok(());
        };
        let running = Running::attached(tid);
        if matches!(visit.job.detour.course, Course::Forks { .. }) {
            return self.park(running, visit).map(drop);
        }
        running.interrupt()?;
        let stopped = running.wait_stopped()?;
        let eintr = stopped.regs()?.rax as i64 == -i64::from(libc::EINTR);
        if eintr && !signalled(&stopped)? {
            // One of the calls that are never restarted (signal(7)), and only we disturbed it.
            return retry(stopped, visit.original);
        }
        arrive(stopped, visit)
    }
}

/// Whether a signal is due that the task does not block.
fn signalled(stopped: &Stopped) -> Result<bool, TraceError> {
    let blocked = stopped.sigmask()?;
    let mut pending = stopped.pending(false)?;
    pending.extend(stopped.pending(true)?);
    let due = |info: &libc::siginfo_t| blocked >> (info.si_signo - 1) & 1 == 0;
    Ok(pending.iter().any(due))
}

fn options(course: Course) -> c_int {
    let forks = libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK | libc::PTRACE_O_TRACECLONE;
    match course {
        Course::Forks { .. } => libc::PTRACE_O_TRACESYSGOOD | forks,
        Course::Short | Course::Blocks => libc::PTRACE_O_TRACESYSGOOD,
    }
}

/// The exit of the call: everything back as the program left it, with the virtual result.
fn arrive(stopped: Stopped, visit: Visit) -> Result<(), TraceError> {
    let Visit { job, mut original } = visit;
    if stopped.stop() != Stop::Syscall {
        // Only death can come before the exit stop; anything else leaves the call undone.
        return retry(stopped, original);
    }
    let result = stopped.regs()?.rax as i64;
    let answer = if (-4095..0).contains(&result) {
        result
    } else {
        let mut tables = job.tables.lock().unwrap_or_else(PoisonError::into_inner);
        (job.detour.back)(&stopped, result, &mut tables)
    };
    original.rax = answer as u64;
    stopped.set_regs(&original)?;
    stopped.detach(0)
}

/// A task was made: gives it its number before its first instruction and sends it off.
fn born(parent: Stopped, visit: &Visit) -> Result<Stopped, TraceError> {
    let tid = parent.event_message()? as pid_t;
    let child = match Running::attached(tid).wait()? {
        Waited::Stopped(child) => child,
        Waited::Gone(_) => return Ok(parent),
    };
    let virt = {
        let tables = &visit.job.tables;
        let mut tables = tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.pids.born(tid)
    };
    if let Course::Forks {
        parent_word,
        child_word,
    } = visit.job.detour.course
    {
        let words = [(parent_word, &parent), (child_word, &child)];
        for (word, task) in words {
            // The kernel ignores a bad address, too.
            let _ = word.map(|at| task.write(at, &virt.to_ne_bytes()));
        }
    }
    let mut regs = child.regs()?;
    let (rsp, rax, fs, gs) = (regs.rsp, regs.rax, regs.fs_base, regs.gs_base);
    regs = visit.original;
    (regs.rsp, regs.rax, regs.fs_base, regs.gs_base) = (rsp, rax, fs, gs);
    regs.orig_rax = u64::MAX;
    child.set_regs(&regs)?;
    child.detach(0)?;
    Ok(parent)
}
