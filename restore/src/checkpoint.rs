//! Taking a frozen pod's state: every process in turn, parents before their children.
//!
//! ```text
//! for each process:  map stub ─▶ ask its threads ─▶ unmap stub ─▶ memory ─▶ descriptors
//! then:              what was left for later (epoll targets, queues) ─▶ record the pod
//! ```

use std::{
    collections::HashMap,
    fs,
    os::fd::{AsFd, OwnedFd},
};

use intercept::{
    stub,
    tracee::{Regs, Stopped},
};
use libc::pid_t;

use crate::{
    capture::{Capture, Probe},
    check::HALF_A_THREAD,
    error::{Error, Refusals, Result},
    freeze::{Frozen, OPTIONS, Process as FrozenProcess, Task},
    remote::{Batch, Results, Scope},
    resource::{
        creds, files, ipc, lock,
        mm::{self, Mm},
        process::{Alive, Place, Process, State, limits, number_in},
        restart_block::Waiting,
        signal, thread, timer,
        tmpfs::{self, SHM},
        tty,
    },
};

/// Virtual names of processes: the other side of the pod's pid table.
pub trait Pids {
    /// The virtual number of a process, group or session of this host; `None` when it is outside the pod.
    fn virtual_of(&self, real: pid_t) -> Option<i32>;
    /// The virtual number of a process's group; 1 where it is not the pod's.
    fn group_of(&self, real: pid_t) -> i32;
    /// The virtual number of a process's session; 1 where it is not the pod's.
    fn session_of(&self, real: pid_t) -> i32;
}

/// Virtual pids where the pod has a pid namespace: the kernel knows them.
#[derive(Debug, Clone, Copy, Default)]
pub struct KernelPids;

impl Pids for KernelPids {
    fn virtual_of(&self, real: pid_t) -> Option<i32> {
        innermost(real, "NSpid")
    }

    fn group_of(&self, real: pid_t) -> i32 {
        innermost(real, "NSpgid").unwrap_or(0).max(1)
    }

    fn session_of(&self, real: pid_t) -> i32 {
        innermost(real, "NSsid").unwrap_or(0).max(1)
    }
}

fn innermost(pid: pid_t, field: &str) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(field)?.strip_prefix(':'))?;
    line.split_whitespace().next_back()?.parse().ok()
}

/// What is to be captured.
pub struct Subject<'a> {
    /// The pod's init, which itself is not captured.
    pub init: pid_t,
    /// Names of the pod's processes.
    pub pids: &'a dyn Pids,
    /// Streams between the pod and us, by name: either end of each.
    pub streams: Vec<(String, OwnedFd)>,
    /// Whether /dev/shm is the pod's own.
    pub own_shm: bool,
    /// How many system call filters of ours every program has beyond those of init: the mask.
    pub masks: i64,
}

/// Captures a frozen pod. It stays frozen, and whole, whatever happens here.
///
/// # Errors
/// [`Error::Refused`] with everything that cannot be carried; otherwise the step that failed.
pub fn capture(frozen: &mut Frozen, subject: &Subject<'_>, cx: &mut Capture<'_>) -> Result<()> {
    let _span = tracing::info_span!("capture", init = subject.init).entered();
    for (name, fd) in &subject.streams {
        cx.name_stream(fd.as_fd(), name)?;
    }
    let numbers = number_all(frozen, subject)?;
    cx.set_pids(numbers.clone());
    cx.set_process(subject.init);
    let mut memories: HashMap<pid_t, Mm> = HashMap::new();
    for process in &mut frozen.processes {
        capture_process(process, subject, &numbers, &mut memories, cx)?;
    }
    cx.complete()?;
    ipc::capture(subject.init, cx)?;
    if subject.own_shm {
        let shm = open_directory(&format!("/proc/{}/root/dev/shm", subject.init))?;
        tmpfs::capture(shm.as_fd(), SHM, cx.writer)?;
    }
    match cx.refusals() {
        [] => Ok(()),
        refusals => Err(Error::Refused(Refusals(refusals.to_vec()))),
    }
}

fn open_directory(path: &str) -> Result<fs::File> {
    fs::File::open(path).map_err(|e| Error::file("open", path, e))
}

/// Virtual numbers of all processes and threads.
fn number_all(frozen: &Frozen, subject: &Subject<'_>) -> Result<HashMap<pid_t, i32>> {
    let tids = frozen.processes.iter().flat_map(|p| {
        [p.pid]
            .into_iter()
            .chain(p.threads.iter().map(|t| t.stopped.tid()))
    });
    let number = |tid| {
        let gone = || Error::Proc {
            path: format!("/proc/{tid}/status").into(),
            why: "the task has no number in the pod".into(),
        };
        Ok((tid, subject.pids.virtual_of(tid).ok_or_else(gone)?))
    };
    tids.map(number).collect()
}

fn capture_process(
    process: &mut FrozenProcess,
    subject: &Subject<'_>,
    numbers: &HashMap<pid_t, i32>,
    memories: &mut HashMap<pid_t, Mm>,
    cx: &mut Capture<'_>,
) -> Result<()> {
    let place = place(process.pid, subject, numbers);
    let _span = tracing::debug_span!("process", pid = place.pid).entered();
    if process.threads.is_empty() {
        let state = zombie(process.pid)?;
        return cx
            .writer
            .record(place.pid as u32, &Process { place, state });
    }
    check_sharing(process.pid, place.pid, cx);
    let (asked, brk) = ask(process, numbers)?;
    let parent = parent_of(process.pid).and_then(|pid| {
        Some(mm::Parent {
            pid,
            mm: memories.get(&pid)?,
        })
    });
    let memory = mm::capture(process.pid, place.pid, brk, parent, cx)?;
    cx.writer.record(place.pid as u32, &memory)?;
    memories.insert(process.pid, memory);
    let alive = finish(process, asked, subject, place.pid, cx)?;
    if place.session == place.pid {
        tty::Session::capture(process.pid, place.pid, cx)?;
    }
    cx.writer.record(
        place.pid as u32,
        &Process {
            place,
            state: State::Alive(Box::new(alive)),
        },
    )
}

fn stat_field(pid: pid_t, n: usize) -> Result<i64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).map_err(|e| Error::file("read", &path, e))?;
    let rest = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let why = || Error::Proc {
        path: path.into(),
        why: format!("field {n} is missing"),
    };
    rest.split_whitespace()
        .nth(n - 3)
        .and_then(|f| f.parse().ok())
        .ok_or_else(why)
}

fn parent_of(pid: pid_t) -> Option<pid_t> {
    stat_field(pid, 4).ok().map(|p| p as pid_t)
}

fn place(pid: pid_t, subject: &Subject<'_>, numbers: &HashMap<pid_t, i32>) -> Place {
    // A parent outside the pod's processes is init, whose number is 1.
    let parent = parent_of(pid)
        .and_then(|p| numbers.get(&p))
        .copied()
        .unwrap_or(1);
    let (group, session) = (subject.pids.group_of(pid), subject.pids.session_of(pid));
    Place {
        pid: numbers[&pid],
        parent,
        group,
        session,
    }
}

fn zombie(pid: pid_t) -> Result<State> {
    let path = format!("/proc/{pid}/comm");
    let mut comm = fs::read(&path).map_err(|e| Error::file("read", path, e))?;
    comm.pop_if(|c| *c == b'\n');
    Ok(State::Zombie {
        status: stat_field(pid, 52)? as i32,
        comm,
    })
}

/// Processes that share memory, descriptors or directories (CLONE_VM and its like without CLONE_THREAD).
fn check_sharing(pid: pid_t, vpid: i32, cx: &mut Capture<'_>) {
    use intercept::sys::{Kcmp, kcmp};
    let Some(parent) = parent_of(pid) else { return };
    for (what, name) in [
        (Kcmp::Vm, "memory"),
        (Kcmp::Files, "descriptors"),
        (Kcmp::Fs, "directories"),
    ] {
        if kcmp(pid, parent, what, 0, 0).is_ok_and(std::cmp::Ordering::is_eq) {
            let why = format!("it shares its {name} with its parent");
            cx.refuse_process(vpid, HALF_A_THREAD, &why, "end it before the checkpoint");
        }
    }
}

/// What the threads of a process told.
struct Asked {
    threads: Vec<thread::Thread>,
    actions: Vec<signal::Action>,
    timers: timer::Timers,
    creds: creds::Creds,
    personality: u32,
    subreaper: bool,
}

pub(crate) fn vdso_range(pid: pid_t) -> Result<(u64, u64)> {
    let path = format!("/proc/{pid}/maps");
    let text = fs::read_to_string(&path).map_err(|e| Error::file("read", &path, e))?;
    let line = text
        .lines()
        .find(|l| l.ends_with("[vdso]"))
        .and_then(|l| l.split_once(' '));
    let range = line.and_then(|(range, _)| range.split_once('-'));
    let hex = |s| u64::from_str_radix(s, 16).ok();
    let why = || Error::Proc {
        path: path.into(),
        why: "it has no vDSO".into(),
    };
    range
        .and_then(|(a, b)| Some((hex(a)?, hex(b)?)))
        .ok_or_else(why)
}

/// Asks all threads of a process; the stub is there only meanwhile. Returns the program break too.
///
/// # Errors
/// The step that failed; the threads are then as they were.
fn ask(process: &mut FrozenProcess, numbers: &HashMap<pid_t, i32>) -> Result<(Asked, u64)> {
    let lent = process.threads.iter().map(Lent::of);
    let lent = lent.collect::<Result<Vec<_>>>()?;
    let asked = ask_all(process, numbers);
    if asked.is_err() {
        let leader = lent.first().map(|l| Stopped::again(l.tid));
        let mut gate = leader.and_then(|l| find_gate(process.pid, &l).ok());
        let back = lent.into_iter().filter_map(|l| l.take_back(gate.take()));
        process.threads = back.collect();
    }
    asked
}

/// A thread as it was before it was lent to a scope.
struct Lent {
    tid: pid_t,
    regs: Regs,
    mask: u64,
    stopped_by: Option<i32>,
    waiting: Option<Waiting>,
}

impl Lent {
    fn of(task: &Task) -> Result<Self> {
        Ok(Self {
            tid: task.stopped.tid(),
            regs: task.stopped.regs()?,
            mask: task.stopped.sigmask()?,
            stopped_by: task.stopped_by,
            waiting: task.waiting,
        })
    }

    /// The thread, put back; `None` when it died. With the address of a `syscall` instruction it
    /// unmaps the stub first, if it is there.
    fn take_back(self, gate: Option<u64>) -> Option<Task> {
        let mut stopped = Stopped::again(self.tid);
        if let Some(gate) = gate {
            let args = [stub::ADDR, stub::LEN, 0, 0, 0, 0];
            stopped = stopped.inject(gate, libc::SYS_munmap, args).ok()?.1;
        }
        stopped.set_regs(&self.regs).ok()?;
        stopped.set_sigmask(self.mask).ok()?;
        let (stopped_by, waiting) = (self.stopped_by, self.waiting);
        Some(Task {
            stopped,
            stopped_by,
            waiting,
        })
    }
}

fn ask_all(process: &mut FrozenProcess, numbers: &HashMap<pid_t, i32>) -> Result<(Asked, u64)> {
    let mut tasks = std::mem::take(&mut process.threads).into_iter();
    let Some(leader) = tasks.next() else {
        return Err(intercept::tracee::TraceError::Gone(process.pid).into());
    };
    let gate = find_gate(process.pid, &leader.stopped)?;
    suspend_filters(&leader);
    let scope = Scope::map_stub(leader.stopped, gate)?;
    let (mut asked, brk, scope) = ask_leader(scope, leader.waiting, process.pid, numbers)?;
    let mut threads = Vec::new();
    for task in tasks {
        let (thread, stopped) = ask_thread(task.stopped, task.waiting, numbers)?;
        asked.threads.push(thread);
        threads.push(Task {
            stopped,
            stopped_by: task.stopped_by,
            waiting: task.waiting,
        });
    }
    let stopped = scope.unmap_stub(gate)?.rest()?;
    process.threads.push(Task {
        stopped,
        stopped_by: leader.stopped_by,
        waiting: leader.waiting,
    });
    process.threads.extend(threads);
    Ok((asked, brk))
}

/// The address of a `syscall` instruction of the process: its vDSO has one.
fn find_gate(pid: pid_t, leader: &Stopped) -> Result<u64> {
    let (start, end) = vdso_range(pid)?;
    let why = || Error::Proc {
        path: format!("/proc/{pid}/maps").into(),
        why: "its vDSO has no syscall instruction".into(),
    };
    leader.find_syscall(start, end)?.ok_or_else(why)
}

/// Our calls are not the program's: its filters do not see them where we may say so.
fn suspend_filters(task: &Task) {
    const PTRACE_O_SUSPEND_SECCOMP: i32 = 1 << 21;
    // Refused without CAP_SYS_ADMIN; calls from the stub then pass by their address.
    drop(task.stopped.set_options(OPTIONS | PTRACE_O_SUSPEND_SECCOMP));
}

fn ask_leader(
    scope: Scope,
    waiting: Option<Waiting>,
    pid: pid_t,
    numbers: &HashMap<pid_t, i32>,
) -> Result<(Asked, u64, Scope)> {
    let mut batch = Batch::new();
    let actions = signal::ask_actions(&mut batch);
    let timers = timer::ask(pid, &mut batch)?;
    let creds = creds::ask(&mut batch);
    let own = thread::ask(&mut batch);
    let brk = batch.call("brk", libc::SYS_brk, &[0]);
    let personality = batch.call("personality", libc::SYS_personality, &[0xffff_ffff]);
    let subreaper = batch.out(8);
    let args = [libc::PR_GET_CHILD_SUBREAPER as u64, subreaper.addr, 0, 0, 0];
    batch.call("prctl PR_GET_CHILD_SUBREAPER", libc::SYS_prctl, &args);
    let (results, scope) = scope.run(batch)?;
    let asked = Asked {
        threads: vec![read_thread(&own, &results, &scope, waiting, numbers)?],
        actions: signal::read_actions(&actions, &results),
        timers: timer::read(timers, &results, |real| {
            numbers.get(&real).copied().unwrap_or(real)
        }),
        creds: creds::read(pid, &creds, &results)?,
        personality: results.value(personality) as u32,
        subreaper: results.words(subreaper).next().unwrap_or(0) as u32 != 0,
    };
    Ok((asked, results.value(brk) as u64, scope))
}

fn ask_thread(
    stopped: intercept::tracee::Stopped,
    waiting: Option<Waiting>,
    numbers: &HashMap<pid_t, i32>,
) -> Result<(thread::Thread, intercept::tracee::Stopped)> {
    let scope = Scope::with_stub(stopped)?;
    let mut batch = Batch::new();
    let own = thread::ask(&mut batch);
    let (results, scope) = scope.run(batch)?;
    let record = read_thread(&own, &results, &scope, waiting, numbers)?;
    Ok((record, scope.end()?.rest()?))
}

fn read_thread(
    asked: &thread::Asked,
    results: &Results,
    scope: &Scope,
    waiting: Option<Waiting>,
    numbers: &HashMap<pid_t, i32>,
) -> Result<thread::Thread> {
    let tid = numbers[&scope.task().tid()];
    thread::read(
        asked,
        results,
        scope.task(),
        tid,
        scope.saved(),
        scope.mask(),
        waiting,
    )
}

fn finish(
    process: &FrozenProcess,
    asked: Asked,
    subject: &Subject<'_>,
    vpid: i32,
    cx: &mut Capture<'_>,
) -> Result<Alive> {
    let pid = process.pid;
    let leader = &process.threads[0];
    let slots = files::capture(pid, vpid, cx)?;
    lock::capture_process(pid, vpid, &slots, cx)?;
    Ok(Alive {
        threads: asked.threads,
        slots,
        cwd: directory(pid, vpid, "cwd", cx)?,
        root: other_root(pid, subject.init)?
            .then(|| directory(pid, vpid, "root", cx))
            .transpose()?,
        actions: asked.actions,
        pending: signal::capture_pending(&leader.stopped, true)?,
        stopped_by: leader.stopped_by,
        timers: asked.timers,
        creds: asked.creds,
        limits: limits(pid)?,
        personality: asked.personality,
        subreaper: asked.subreaper,
        oom_score_adj: number_in(pid, "oom_score_adj", 10)? as i32,
    })
}

fn directory(pid: pid_t, vpid: i32, which: &str, cx: &mut Capture<'_>) -> Result<u32> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = format!("/proc/{pid}/{which}");
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(&path);
    cx.description(&Probe::new(
        vpid,
        None,
        file.map_err(|e| Error::file("open", path, e))?.into(),
    )?)
}

fn other_root(pid: pid_t, init: pid_t) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let stat = |pid| {
        let path = format!("/proc/{pid}/root/.");
        fs::metadata(&path)
            .map(|m| (m.dev(), m.ino()))
            .map_err(|e| Error::file("stat", path, e))
    };
    Ok(stat(pid)? != stat(init)?)
}
