//! Dressing a puppet: threads, descriptors, credentials, signals, timers, registers.

use intercept::tracee::{Regs, Stopped};

use super::{Plan, Puppet, Ready, Site};
use crate::{
    error::{Error, Result},
    remote::Batch,
    resource::{
        creds::{self, Creds},
        files,
        mm::Backing,
        process::{Alive, Process, State, set_limits},
        restart_block, signal,
        thread::{self, Thread, regs_of},
        timer, tty,
    },
};

/// A puppet that lacks only its registers.
pub(super) struct Dressed<'p> {
    pid: i32,
    alive: &'p Alive,
    puppets: Vec<Puppet>,
}

/// Adds a `clone3` call; it must be the batch's last.
pub(super) fn clone3(batch: &mut Batch, flags: u64, exit_signal: u64, wanted: Option<i32>) {
    let tid = batch.bytes(&wanted.unwrap_or(0).to_ne_bytes());
    let (tids, size) = if wanted.is_some() { (tid, 1) } else { (0, 0) };
    // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, size, tls, set_tid, size
    let args = batch.words(&[flags, 0, 0, 0, exit_signal, 0, 0, 0, tids, size]);
    batch.call("clone3", libc::SYS_clone3, &[args, 80]);
}

/// Gives a process everything but registers.
pub(super) fn dress<'p>(
    plan: &'p Plan,
    pid: i32,
    mut puppet: Puppet,
    site: &mut dyn Site,
) -> Result<Dressed<'p>> {
    let process = &plan.processes[&pid];
    let _span = tracing::debug_span!("dress", pid).entered();
    let State::Alive(alive) = &process.state else {
        return Err(Error::NoRecord {
            kind: "process".into(),
            id: pid as u32,
        });
    };
    files::rebuild(&alive.slots, &mut puppet, site)?;
    directories(alive, &mut puppet, site)?;
    if let Some(session) = plan.terminals.get(&pid) {
        name_foreground(session, &mut puppet, site)?;
    }
    let real = puppet.task()?.tid();
    set_limits(real, &alive.limits)?;
    set_oom_score(real, alive.oom_score_adj)?;
    let mut puppets = vec![puppet];
    for thread in &alive.threads[1..] {
        let task = bear_thread(&mut puppets[0], thread, site)?;
        let puppet = puppets[0].forked(task)?;
        puppets.push(puppet);
    }
    let mut batch = Batch::new();
    puppets[0].close_held(&mut batch);
    if let Some(locks) = plan.locks.get(&(pid as u32)) {
        locks.rebuild(&mut batch);
    }
    puppets[0].run(batch)?;
    let has = own_creds(&mut puppets[0])?;
    for (puppet, thread) in puppets.iter_mut().zip(&alive.threads) {
        dress_thread(alive, thread, &has, puppet)?;
    }
    dress_process(process, alive, &mut puppets[0], site)?;
    for (puppet, thread) in puppets.iter_mut().zip(&alive.threads) {
        let mut batch = Batch::new();
        let (process, tid) = (site.inner_pid(pid), site.inner_pid(thread.tid));
        signal::rebuild_pending(&thread.pending, process, Some(tid), &mut batch);
        puppet.run(batch)?;
    }
    Ok(Dressed {
        pid,
        alive,
        puppets,
    })
}

fn bear_thread(leader: &mut Puppet, thread: &Thread, site: &mut dyn Site) -> Result<Stopped> {
    const FLAGS: i32 = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM;
    let mut batch = Batch::new();
    clone3(&mut batch, FLAGS as u64, 0, site.wanted_pid(thread.tid));
    let task = leader.fork(batch)?;
    site.born(thread.tid, task.tid());
    Ok(task)
}

fn directories(alive: &Alive, puppet: &mut Puppet, site: &mut dyn Site) -> Result<()> {
    let wanted: Vec<u32> = alive.root.into_iter().chain([alive.cwd]).collect();
    let held = puppet.fetch(&wanted, site)?;
    let mut batch = Batch::new();
    if let (Some(_), Some(root)) = (alive.root, held.first()) {
        batch.call("fchdir to the root", libc::SYS_fchdir, &[*root as u64]);
        let here = batch.c_string(b".");
        batch.call("chroot", libc::SYS_chroot, &[here]);
    }
    if let Some(cwd) = held.last() {
        batch.call("fchdir", libc::SYS_fchdir, &[*cwd as u64]);
    }
    puppet.run(batch).map(drop)
}

/// A session's leader, which has its terminal, says who is in the foreground; the groups exist by now.
fn name_foreground(session: &tty::Session, puppet: &mut Puppet, site: &mut dyn Site) -> Result<()> {
    let Some(group) = session.foreground else {
        return Ok(());
    };
    let held = puppet.fetch(&[session.terminal], site)?;
    let mut batch = Batch::new();
    tty::Session::bring_to_front(held[0], site.inner_pid(group), &mut batch);
    puppet.run(batch).map(drop)
}

fn set_oom_score(real: i32, score: i32) -> Result<()> {
    let path = format!("/proc/{real}/oom_score_adj");
    let has = std::fs::read_to_string(&path).map_err(|e| Error::file("read", &path, e))?;
    if has.trim() == score.to_string() {
        return Ok(());
    }
    std::fs::write(&path, score.to_string()).map_err(|e| Error::file("write", path, e))
}

/// The credentials a puppet has from init.
fn own_creds(puppet: &mut Puppet) -> Result<Creds> {
    let mut batch = Batch::new();
    let asked = creds::ask(&mut batch);
    let results = puppet.run(batch)?;
    creds::read(puppet.task()?.tid(), &asked, &results)
}

fn dress_thread(alive: &Alive, thread: &Thread, has: &Creds, puppet: &mut Puppet) -> Result<()> {
    let mut batch = Batch::new();
    thread::rebuild(thread, &mut batch);
    if alive.creds != *has {
        creds::rebuild(&alive.creds, has, &mut batch);
    }
    // Changed credentials clear it.
    if thread.death_signal != 0 {
        let args = [
            libc::PR_SET_PDEATHSIG as u64,
            thread.death_signal as u64,
            0,
            0,
            0,
        ];
        batch.call("prctl PR_SET_PDEATHSIG", libc::SYS_prctl, &args);
    }
    puppet.run(batch).map(drop)
}

fn dress_process(
    process: &Process,
    alive: &Alive,
    puppet: &mut Puppet,
    site: &mut dyn Site,
) -> Result<()> {
    let mut batch = Batch::new();
    batch.call(
        "personality",
        libc::SYS_personality,
        &[alive.personality.into()],
    );
    if alive.subreaper {
        let args = [libc::PR_SET_CHILD_SUBREAPER as u64, 1, 0, 0, 0];
        batch.call("prctl PR_SET_CHILD_SUBREAPER", libc::SYS_prctl, &args);
    }
    signal::rebuild_actions(&alive.actions, &mut batch);
    signal::rebuild_pending(
        &alive.pending,
        site.inner_pid(process.place.pid),
        None,
        &mut batch,
    );
    timer::rebuild(&alive.timers, |tid| site.inner_pid(tid), &mut batch);
    puppet.run(batch).map(drop)
}

impl Dressed<'_> {
    /// Takes the stub away and sets registers: only a detach is missing then.
    pub(super) fn hold(self, plan: &Plan) -> Result<Vec<Ready>> {
        let stop = self.alive.stopped_by.map_or(0, |_| libc::SIGSTOP);
        let threads = &self.alive.threads;
        let continued = self.puppets.into_iter().zip(threads).map(continued);
        let mut ready = Vec::new();
        // The leader's stub is every thread's: it goes when the last of them has made its call.
        for ((regs, mut task), thread) in continued
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .zip(threads)
        {
            let leader = ready.is_empty();
            if leader {
                task = unmap_stub(task, self.pid, plan)?;
            }
            task.set_xstate(&thread.xstate)?;
            task.set_regs(&regs)?;
            task.set_sigmask(thread.mask)?;
            let signal = if leader { stop } else { 0 };
            ready.push(Ready { task, signal });
        }
        Ok(ready)
    }
}

/// The registers a thread goes on with, in the middle of the call it waits in.
fn continued((puppet, thread): (Puppet, &Thread)) -> Result<(Regs, Stopped)> {
    let (regs, task) = (regs_of(thread)?, puppet.into_task()?);
    match thread.left {
        Some(left) => restart_block::rebuild(left, regs, task),
        None => Ok((regs, task)),
    }
}

fn unmap_stub(task: Stopped, pid: i32, plan: &Plan) -> Result<Stopped> {
    let vdso = plan
        .memories
        .get(&pid)
        .and_then(|mm| mm.vmas.iter().find(|v| v.backing == Backing::Vdso));
    let gate = match vdso {
        Some(vma) => task.find_syscall(vma.start, vma.end)?,
        None => None,
    };
    let Some(gate) = gate else { return Ok(task) };
    let args = [intercept::stub::ADDR, intercept::stub::LEN, 0, 0, 0, 0];
    let tid = task.tid();
    let (value, task) = task.inject(gate, libc::SYS_munmap, args)?;
    match value {
        0 => Ok(task),
        e => Err(Error::Remote {
            call: "munmap of the stub",
            tid,
            source: std::io::Error::from_raw_os_error(-e as i32),
        }),
    }
}
