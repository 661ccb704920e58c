//! Process calls under intercepted pids.
//!
//! ```text
//!  getpid, gettid, getppid, getpgid…   answered from /proc and the table
//!  kill(−1)                            performed, one task of the pod after the other
//!  fork, clone, clone3, vfork          detour; the child has its number before it runs
//!  wait4, waitid, kill, setpgid…       detour with real numbers in place of virtual ones
//! ```
//!
//! What goes in and comes out of a detour is read off the call's row. A number that stands
//! for nothing becomes one that no task has, so that the kernel itself says ESRCH, ECHILD
//! or EINVAL in its own order of checks.

use libc::{c_int, pid_t};

use super::call::{Call, Fail, Fault, Outcome, Served, process_of};
use crate::{
    detour::{Course, Detour},
    listener::Reply,
    names::{Tables, pids},
    table::{Kind, Row, Sysno},
    tracee::Stopped,
};

/// A number above the kernel's limit: no task ever has it.
const NOBODY: pid_t = (1 << 22) + 1;

/// Offset of `si_pid` in `siginfo_t` (`asm-generic/siginfo.h`).
const SI_PID: u64 = 16;

const fn value(v: pid_t) -> Served {
    Ok(Outcome::Reply(Reply::Value(v as i64)))
}

fn proc(call: &Call<'_>, what: &'static str) -> Fail {
    // A task that is gone has no entry; nobody waits for an answer then.
    if call.listener.is_valid(call.n.id) {
        let (tid, source) = (call.n.tid, std::io::ErrorKind::NotFound.into());
        Fail::Fault(Fault::Proc { tid, what, source })
    } else {
        Fail::Gone
    }
}

/// The caller's process, in real numbers.
fn own(call: &Call<'_>) -> Served<pid_t> {
    process_of(call.n.tid).map_err(|_| proc(call, "status"))
}

/// getpid, gettid, getppid, getpgrp, getpgid, getsid.
pub(crate) fn answer(row: &Row, call: &Call<'_>, tables: &mut Tables) -> Served {
    match row.nr {
        Sysno::gettid => value(tables.pids.virt_or_new(call.n.tid)),
        Sysno::getpid => value(tables.pids.virt_or_new(own(call)?)),
        Sysno::getppid => {
            let stat = pids::stat(call.n.tid).ok_or_else(|| proc(call, "stat"))?;
            // A parent outside is as one outside of a pid namespace.
            value(tables.pids.virt(stat.ppid).unwrap_or(0))
        }
        _ => group(row, call, tables),
    }
}

fn group(row: &Row, call: &Call<'_>, tables: &mut Tables) -> Served {
    let asked = if row.args.is_empty() { 0 } else { call.int(0) };
    let real = match asked {
        0 => call.n.tid,
        virt => tables.pids.real(virt).ok_or(Fail::Errno(libc::ESRCH))?,
    };
    let stat = match pids::stat(real) {
        Some(stat) => stat,
        None if asked == 0 => return Err(proc(call, "stat")),
        None => return Err(Fail::Errno(libc::ESRCH)),
    };
    let wanted = if row.nr == Sysno::getsid {
        stat.session
    } else {
        stat.pgrp
    };
    value(tables.pids.virt(wanted).unwrap_or(0))
}

/// The real number for one that the program gave; 0 keeps its meaning.
fn real(tables: &Tables, virt: pid_t) -> pid_t {
    match virt {
        0 => 0,
        _ => tables.pids.real(virt).unwrap_or(NOBODY),
    }
}

/// The real number where −n means a group and −1 everything.
fn real_set(tables: &Tables, virt: pid_t) -> pid_t {
    match virt {
        -1 | pid_t::MIN => virt,
        v if v < 0 => -real(tables, -v),
        v => real(tables, v),
    }
}

/// Whether another argument says that this one is a pid or a group (and not a user or a pidfd).
fn who_is_a_task(row: &Row, args: &[u64; 6]) -> bool {
    match row.nr {
        Sysno::waitid => matches!(args[0] as u32, libc::P_PID | libc::P_PGID),
        // PRIO_PROCESS and PRIO_PGRP of sys/resource.h.
        Sysno::getpriority | Sysno::setpriority => args[0] < 2,
        // IOPRIO_WHO_PROCESS and IOPRIO_WHO_PGRP of linux/ioprio.h.
        Sysno::ioprio_get | Sysno::ioprio_set => matches!(args[0] as c_int, 1 | 2),
        // PERF_FLAG_PID_CGROUP of linux/perf_event.h: the argument is a descriptor.
        Sysno::perf_event_open => args[4] & 4 == 0,
        _ => false,
    }
}

/// The arguments with real numbers in place of virtual ones.
fn arguments(row: &Row, call: &Call<'_>, tables: &Tables) -> [u64; 6] {
    let mut args = call.n.args;
    for (i, arg) in row.args.iter().enumerate() {
        let virt = call.int(i);
        let new = match arg.kind {
            Kind::Pid | Kind::Tid | Kind::Pgid => real(tables, virt),
            Kind::PidSet => real_set(tables, virt),
            Kind::Who if who_is_a_task(row, &call.n.args) => real_set(tables, virt),
            _ => continue,
        };
        // A negative number is an int in a 64-bit register, as the program's own was.
        args[i] = i64::from(new) as u64;
    }
    args
}

fn course(row: &Row) -> Course {
    match row.nr {
        Sysno::wait4 | Sysno::waitid => Course::Blocks,
        _ => Course::Short,
    }
}

/// `PTRACE_TRACEME` of `linux/ptrace.h`.
const TRACEME: u64 = 0;

/// What a task gets that a debugger in the pod traces, so that we cannot: its children under
/// their real numbers, as it makes and awaits them; and no way to name a task of the host.
fn untraceable(row: &Row) -> Reply {
    match row.nr {
        Sysno::wait4 | Sysno::waitid | Sysno::setsid | Sysno::set_tid_address => Reply::Continue,
        _ => Reply::Errno(libc::EPERM),
    }
}

/// Everything that is a call of the task itself with numbers in and out.
pub(crate) fn detour(row: &'static Row, call: &Call<'_>, tables: &mut Tables) -> Served {
    if row.nr == Sysno::kill && call.int(0) == -1 {
        return broadcast(call, tables);
    }
    if row.nr == Sysno::ptrace && call.n.args[0] == TRACEME {
        // It is about the caller alone, and cannot be made while we trace the caller.
        return Ok(Outcome::Reply(Reply::Continue));
    }
    // So that the caller, too, is known when somebody asks for its parent's children.
    tables.pids.virt_or_new(own(call)?);
    let info = (row.nr == Sysno::waitid).then_some(call.n.args[2]);
    Ok(Outcome::Detour(Box::new(Detour {
        nr: call.n.nr,
        args: arguments(row, call, tables),
        data: None,
        course: course(row),
        back: Box::new(move |task, result, tables| back(row, info, task, result, tables)),
        untraceable: untraceable(row),
    })))
}

/// The virtual number for a result.
fn back(row: &Row, info: Option<u64>, task: &Stopped, result: i64, tables: &mut Tables) -> i64 {
    if let Some(at) = info.filter(|at| *at != 0) {
        told(task, at + SI_PID, tables);
    }
    match row.ret {
        Kind::Pid | Kind::Tid | Kind::Pgid | Kind::Sid if result > 0 => {
            // A child that a debugger saw born, and not we, gets its number now.
            i64::from(tables.pids.virt_or_new(result as pid_t))
        }
        _ => result,
    }
}

/// Replaces a real number that the kernel has just told. A siginfo of no child has 0 there.
fn told(task: &Stopped, at: u64, tables: &Tables) -> Option<()> {
    let mut number = [0u8; 4];
    task.read(at, &mut number).ok()?;
    let virt = tables.pids.virt(pid_t::from_ne_bytes(number))?;
    task.write(at, &virt.to_ne_bytes()).ok()
}

/// fork, vfork, clone, clone3.
pub(crate) fn fork(row: &Row, call: &Call<'_>, tables: &mut Tables) -> Served {
    tables.pids.virt_or_new(own(call)?);
    let mut args = call.n.args;
    let (mut flags, mut words, mut data) = (0, (0, 0), None);
    match row.nr {
        Sysno::clone => {
            args[0] &= !UNTRACED;
            (flags, words) = (args[0], (args[2], args[3]));
        }
        Sysno::clone3 => {
            let bytes = clone_args(call)?;
            let field =
                |i: usize| u64::from_ne_bytes(bytes[8 * i..][..8].try_into().unwrap_or_default());
            // flags, pidfd, child_tid, parent_tid of struct clone_args.
            (flags, words) = (field(0), (field(3), field(2)));
            data = Some((0, bytes));
        }
        _ => {}
    }
    let word = |flag: c_int, at: u64| (flags & flag as u64 != 0).then_some(at);
    Ok(Outcome::Detour(Box::new(Detour {
        nr: call.n.nr,
        args,
        data,
        course: Course::Forks {
            parent_word: word(libc::CLONE_PARENT_SETTID, words.0),
            child_word: word(libc::CLONE_CHILD_SETTID, words.1),
        },
        back: Box::new(|_, child, tables| i64::from(tables.pids.virt(child as pid_t).unwrap_or(0))),
        untraceable: Reply::Continue,
    })))
}

/// `CLONE_UNTRACED`: under it nobody would tell us of the child.
const UNTRACED: u64 = libc::CLONE_UNTRACED as u64;
/// `CLONE_ARGS_SIZE_VER0` of `linux/sched.h`.
const SMALLEST: usize = 64;
/// Size of today's `struct clone_args` (`CLONE_ARGS_SIZE_VER2`).
const LARGEST: usize = 88;

/// The caller's clone_args, copied once: what the kernel sees is what we saw.
fn clone_args(call: &Call<'_>) -> Served<Vec<u8>> {
    let size = call.n.args[1] as usize;
    if size < SMALLEST {
        return Err(Fail::Errno(libc::EINVAL));
    }
    if size > LARGEST {
        return Err(Fail::Errno(libc::E2BIG));
    }
    let mut bytes = vec![0u8; size];
    call.read(call.n.args[0], &mut bytes)?;
    let mut flags = [0u8; 8];
    flags.copy_from_slice(&bytes[..8]);
    let flags = u64::from_ne_bytes(flags) & !UNTRACED;
    bytes[..8].copy_from_slice(&flags.to_ne_bytes());
    Ok(bytes)
}

/// `CAP_KILL` of `linux/capability.h`.
const CAP_KILL: u32 = 5;

/// kill(−1): everything in the pod that the caller may signal, but for init and itself.
///
/// The kernel would mean the host's processes, so it is done here, with the caller's rights.
fn broadcast(call: &Call<'_>, tables: &Tables) -> Served {
    let signal = call.int(1);
    if !(0..=64).contains(&signal) {
        return Err(Fail::Errno(libc::EINVAL));
    }
    let (me, any) = (own(call)?, call.capable(CAP_KILL)?);
    let mine = uids(me).ok_or_else(|| proc(call, "status"))?;
    let (mut found, mut sent) = (false, false);
    for (virt, real) in tables.pids.all() {
        let process = process_of(real).is_ok_and(|process| process == real);
        if virt == 1 || real == me || !process || tables.pids.real(virt).is_none() {
            continue;
        }
        found = true;
        sent |= (any || may_signal(mine, real)) && signal_to(real, signal);
    }
    match (found, sent) {
        (_, true) => value(0),
        (true, false) => Err(Fail::Errno(libc::EPERM)),
        (false, false) => Err(Fail::Errno(libc::ESRCH)),
    }
}

/// Real, effective and saved user of a process.
fn uids(pid: pid_t) -> Option<[u32; 3]> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("Uid:"))?;
    let mut ids = line.split_whitespace().map_while(|n| n.parse().ok());
    Some([ids.next()?, ids.next()?, ids.next()?])
}

/// The rule of kill(2): the sender's real or effective user is the target's real or saved one.
fn may_signal([real, effective, _]: [u32; 3], target: pid_t) -> bool {
    uids(target).is_some_and(|[r, _, s]| [r, s].contains(&real) || [r, s].contains(&effective))
}

fn signal_to(pid: pid_t, signal: c_int) -> bool {
    use std::os::fd::AsFd;
    crate::sys::pidfd_open(pid)
        .and_then(|fd| crate::sys::pidfd_send_signal(fd.as_fd(), signal))
        .is_ok()
}
