//! Making the tree of processes: parents, sessions and groups as they were.
//!
//! A session can only be inherited at birth, so the order of births tells the story again:
//!
//! ```text
//! process P:  memory filled
//!             ├─ children that are in the session P was born into (P was no leader then)
//!             ├─ setsid, if P leads its session; its terminal, which children inherit
//!             ├─ its other children, with P's memory shared copy-on-write
//!             └─ orphans of its session: born of a helper that ends, so that init adopts them
//! ```
//!
//! A session or group whose leader has died is led by a ghost: a task with the leader's pid
//! that exists only until the others have joined.

use std::collections::{BTreeMap, BTreeSet};

use intercept::tracee::{Running, Stopped, Waited};
use libc::pid_t;

use super::{Plan, Puppet, Site};
use crate::{
    error::{Error, Result},
    freeze::OPTIONS,
    remote::Batch,
    resource::{
        mm::{self, Inherited},
        process::{Process, State},
        tty,
    },
};

/// Puppets by virtual pid.
pub(super) struct Made {
    puppets: BTreeMap<i32, Puppet>,
    real: BTreeMap<i32, pid_t>,
}

impl Made {
    pub(super) fn pids(&self) -> BTreeMap<i32, pid_t> {
        self.real.clone()
    }

    /// The living, in the order of their pids.
    pub(super) fn alive(self, plan: &Plan) -> impl Iterator<Item = (i32, Puppet)> {
        self.puppets
            .into_iter()
            .filter(|(pid, _)| plan.processes[pid].is_alive())
    }

    fn puppet(&mut self, pid: i32) -> Result<&mut Puppet> {
        let missing = || Error::NoRecord {
            kind: "process".into(),
            id: pid as u32,
        };
        self.puppets.get_mut(&pid).ok_or_else(missing)
    }
}

/// The number of the pod's init, which is parent, group and session of what has none in the pod.
const INIT: i32 = 1;

struct Maker<'a> {
    plan: &'a Plan,
    site: &'a mut dyn Site,
    made: Made,
    /// The last pid given to a helper; none of the image's is above the first.
    spare: i32,
}

/// Makes all processes of the plan.
pub(super) fn make(plan: &Plan, site: &mut dyn Site) -> Result<Made> {
    let _span = tracing::debug_span!("tree").entered();
    let made = Made {
        puppets: BTreeMap::new(),
        real: BTreeMap::new(),
    };
    let spare = plan.last_pid() + 1;
    let mut maker = Maker {
        plan,
        site,
        made,
        spare,
    };
    for process in plan.children(INIT) {
        if maker.is_seed(process) {
            let puppet = maker.seed(process.place.pid)?;
            maker.grow(process, puppet, None)?;
        }
    }
    maker.lead_with_ghosts()?;
    maker.join_groups()?;
    Ok(maker.made)
}

impl Maker<'_> {
    /// Init's own children begin as seeds, unless they must inherit another's session.
    fn is_seed(&self, process: &Process) -> bool {
        let place = process.place;
        place.session == place.pid || place.session == INIT
    }

    fn seed(&mut self, pid: i32) -> Result<Puppet> {
        let real = self.site.seed(pid)?;
        self.site.born(pid, real);
        self.made.real.insert(pid, real);
        let running = seize(real)?;
        running.interrupt()?;
        let task = running.wait_stopped()?;
        settle_seed(task, self.plan.feed(), self.site.feed_inode())
    }

    /// Gives a puppet its memory and its children.
    fn grow(&mut self, process: &Process, mut puppet: Puppet, parent: Option<i32>) -> Result<()> {
        let pid = process.place.pid;
        if process.is_alive() {
            let inherited = parent
                .and_then(|p| self.plan.memories.get(&p))
                .map(|parent| Inherited { parent });
            mm::rebuild(&self.plan.memories[&pid], inherited, &mut puppet, self.site)?;
        }
        let plan = self.plan;
        let (late, early): (Vec<_>, Vec<_>) = plan.children(pid).partition(|c| {
            [pid, c.place.pid].contains(&c.place.session) || process.place.session != pid
        });
        for child in early {
            self.bear(&mut puppet, pid, child)?;
        }
        if process.place.session == pid {
            call(&mut puppet, "setsid", libc::SYS_setsid, &[])?;
            self.take_terminal(pid, &mut puppet)?;
        }
        for child in late {
            self.bear(&mut puppet, pid, child)?;
        }
        self.bear_orphans(&mut puppet, pid)?;
        self.made.puppets.insert(pid, puppet);
        Ok(())
    }

    fn take_terminal(&mut self, session: i32, leader: &mut Puppet) -> Result<()> {
        let Some(terminal) = self.plan.terminals.get(&session) else {
            return Ok(());
        };
        let held = leader.fetch(&[terminal.terminal], self.site)?;
        let mut batch = Batch::new();
        tty::Session::claim(held[0], &mut batch);
        leader.run(batch).map(drop)
    }

    fn bear(&mut self, parent: &mut Puppet, parent_pid: i32, child: &Process) -> Result<()> {
        let task = self.fork(parent, child.place.pid)?;
        let puppet = parent.forked(task)?;
        self.grow(child, puppet, Some(parent_pid))
    }

    fn fork(&mut self, parent: &mut Puppet, pid: i32) -> Result<Stopped> {
        let task = fork(parent, self.site.wanted_pid(pid))?;
        self.site.born(pid, task.tid());
        self.made.real.insert(pid, task.tid());
        Ok(task)
    }

    /// Orphans of the session that `leader` leads: born of a helper, adopted by init when it ends.
    fn bear_orphans(&mut self, leader: &mut Puppet, session: i32) -> Result<()> {
        let plan = self.plan;
        for orphan in plan
            .children(INIT)
            .filter(|o| o.place.session == session && o.place.pid != session)
        {
            self.spare += 1;
            let helper = fork(leader, self.site.wanted_pid(self.spare))?;
            let mut helper = leader.forked(helper)?;
            let task = self.fork(&mut helper, orphan.place.pid)?;
            let puppet = helper.forked(task)?;
            end(helper, leader, None)?;
            self.grow(orphan, puppet, None)?;
        }
        Ok(())
    }

    /// Sessions of orphans whose leader is dead: a ghost leads them while they are born.
    fn lead_with_ghosts(&mut self) -> Result<()> {
        let plan = self.plan;
        let leaderless: BTreeSet<i32> = plan
            .processes
            .values()
            .map(|p| p.place.session)
            .filter(|s| *s != INIT && !plan.processes.contains_key(s))
            .collect();
        for session in leaderless {
            let mut ghost = self.seed(session)?;
            call(&mut ghost, "setsid", libc::SYS_setsid, &[])?;
            for orphan in plan.children(INIT).filter(|o| o.place.session == session) {
                let task = self.fork(&mut ghost, orphan.place.pid)?;
                let puppet = ghost.forked(task)?;
                self.grow(orphan, puppet, None)?;
            }
            self.made.real.remove(&session);
            kill(ghost)?;
        }
        Ok(())
    }

    fn join_groups(&mut self) -> Result<()> {
        let mut groups: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for process in self
            .plan
            .processes
            .values()
            .filter(|p| p.place.group != INIT)
        {
            groups
                .entry(process.place.group)
                .or_default()
                .push(process.place.pid);
        }
        for (group, members) in groups {
            if self.plan.processes.contains_key(&group) {
                self.join(group, group)?;
                self.join_all(group, &members)?;
            } else {
                self.follow_ghost(group, &members)?;
            }
        }
        Ok(())
    }

    fn join_all(&mut self, group: i32, members: &[i32]) -> Result<()> {
        members
            .iter()
            .filter(|m| **m != group)
            .try_for_each(|m| self.join(*m, group))
    }

    /// `setpgid` by the process itself; a session leader leads its group already.
    fn join(&mut self, pid: i32, group: i32) -> Result<()> {
        if self
            .plan
            .processes
            .get(&pid)
            .is_some_and(|p| p.place.session == pid)
        {
            return Ok(());
        }
        let group = if pid == group {
            0
        } else {
            self.site.inner_pid(group)
        };
        call(
            self.made.puppet(pid)?,
            "setpgid",
            libc::SYS_setpgid,
            &[0, group as u64],
        )
    }

    fn follow_ghost(&mut self, group: i32, members: &[i32]) -> Result<()> {
        let first = members[0];
        let wanted = self.site.wanted_pid(group);
        let parent = self.made.puppet(first)?;
        let ghost = fork(parent, wanted)?;
        let mut ghost = parent.forked(ghost)?;
        self.site.born(group, ghost.task()?.tid());
        call(&mut ghost, "setpgid", libc::SYS_setpgid, &[0, 0])?;
        self.join_all(group, members)?;
        let inner = self.site.inner_pid(group);
        end(ghost, self.made.puppet(first)?, Some(inner))
    }
}

/// What dies with us cannot begin to run before somebody decided that it may.
const PUPPET: i32 = OPTIONS | libc::PTRACE_O_EXITKILL;

fn seize(real: pid_t) -> Result<Running> {
    const PTRACE_O_SUSPEND_SECCOMP: i32 = 1 << 21;
    // Without CAP_SYS_ADMIN filters stay in force; calls from the stub pass by their address.
    Ok(Running::seize(real, PUPPET | PTRACE_O_SUSPEND_SECCOMP)
        .or_else(|_| Running::seize(real, PUPPET))?)
}

/// A seed comes with descriptors and registrations of init's: all go but the feed.
fn settle_seed(task: Stopped, feed: i32, inode: u64) -> Result<Puppet> {
    let real = task.tid();
    let (rseq, size, signature) = task.rseq().unwrap_or((0, 0, 0));
    let at = find_feed(real, inode)?;
    let mut puppet = Puppet::new(task, feed)?;
    let mut batch = Batch::new();
    if rseq != 0 {
        const RSEQ_FLAG_UNREGISTER: u64 = 1;
        let args = [rseq, size.into(), RSEQ_FLAG_UNREGISTER, signature.into()];
        batch.call("rseq", libc::SYS_rseq, &args);
    }
    batch.call("set_tid_address", libc::SYS_set_tid_address, &[0]);
    batch.call("set_robust_list", libc::SYS_set_robust_list, &[0, 24]);
    if at != feed {
        batch.call(
            "dup3",
            libc::SYS_dup3,
            &[at as u64, feed as u64, libc::O_CLOEXEC as u64],
        );
    }
    batch.call(
        "close_range",
        libc::SYS_close_range,
        &[0, feed as u64 - 1, 0],
    );
    batch.call(
        "close_range",
        libc::SYS_close_range,
        &[feed as u64 + 1, u64::from(u32::MAX), 0],
    );
    puppet.run(batch)?;
    Ok(puppet)
}

fn find_feed(pid: pid_t, inode: u64) -> Result<i32> {
    let path = format!("/proc/{pid}/fd");
    let wanted = format!("socket:[{inode}]");
    let entries = std::fs::read_dir(&path).map_err(|e| Error::file("read", &path, e))?;
    let found = entries.flatten().find(|e| {
        std::fs::read_link(e.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str())
    });
    let number = found.and_then(|e| e.file_name().to_str()?.parse().ok());
    number.ok_or_else(|| Error::Proc {
        path: path.into(),
        why: "the seed has no feed".into(),
    })
}

fn call(puppet: &mut Puppet, name: &'static str, nr: i64, args: &[u64]) -> Result<()> {
    let mut batch = Batch::new();
    batch.call(name, nr, args);
    puppet.run(batch).map(drop)
}

fn fork(parent: &mut Puppet, wanted: Option<pid_t>) -> Result<Stopped> {
    let mut batch = Batch::new();
    super::dress::clone3(&mut batch, 0, libc::SIGCHLD as u64, wanted);
    parent.fork(batch)
}

/// Kills a task of ours that nobody in the pod shall see.
fn kill(puppet: Puppet) -> Result<()> {
    let task = puppet.into_task()?;
    // SAFETY: plain values; the task is a stopped tracee of ours, so its pid is not reused.
    unsafe { libc::kill(task.tid(), libc::SIGKILL) };
    wait_for_death(Running::attached(task.tid()))
}

fn wait_for_death(mut running: Running) -> Result<()> {
    loop {
        match running.wait()? {
            Waited::Gone(_) => return Ok(()),
            Waited::Stopped(stopped) => running = stopped.cont(0)?,
        }
    }
}

/// Kills a helper and has its parent reap it.
fn end(helper: Puppet, parent: &mut Puppet, inner: Option<pid_t>) -> Result<()> {
    kill(helper)?;
    let whom = inner.map_or(-1, i64::from) as u64;
    let mut batch = Batch::new();
    batch.call("wait4", libc::SYS_wait4, &[whom, 0, libc::__WALL as u64, 0]);
    parent.run(batch).map(drop)
}

/// Lets zombies die the way they died, and waits until they have.
pub(super) fn bury_zombies(plan: &Plan, made: &mut Made) -> Result<()> {
    for process in plan.processes.values() {
        if let State::Zombie { status, comm } = &process.state {
            let missing = || Error::NoRecord {
                kind: "process".into(),
                id: process.place.pid as u32,
            };
            let puppet = made
                .puppets
                .remove(&process.place.pid)
                .ok_or_else(missing)?;
            bury(puppet, *status, comm)?;
        }
    }
    Ok(())
}

fn bury(mut puppet: Puppet, status: i32, comm: &[u8]) -> Result<()> {
    let mut batch = Batch::new();
    let name = batch.c_string(comm);
    batch.call(
        "prctl PR_SET_NAME",
        libc::SYS_prctl,
        &[libc::PR_SET_NAME as u64, name],
    );
    let no_core = batch.words(&[0, 0]);
    batch.call(
        "setrlimit",
        libc::SYS_setrlimit,
        &[u64::from(libc::RLIMIT_CORE), no_core],
    );
    puppet.run(batch)?;
    let task = puppet.into_task()?;
    let tid = task.tid();
    if libc::WIFSIGNALED(status) {
        task.set_sigmask(0)?;
        task.detach(libc::WTERMSIG(status))?;
    } else {
        let mut regs = task.regs()?;
        (regs.rip, regs.orig_rax) = (intercept::stub::SINGLE, u64::MAX);
        regs.rax = libc::SYS_exit_group as u64;
        regs.rdi = libc::WEXITSTATUS(status) as u64;
        task.set_regs(&regs)?;
        task.detach(0)?;
    }
    wait_until_zombie(tid)
}

fn wait_until_zombie(pid: pid_t) -> Result<()> {
    let pidfd = intercept::sys::pidfd_open(pid)
        .map_err(|e| Error::kernel("pidfd_open", format!("task {pid}"), e))?;
    let mut poll = [nix::poll::PollFd::new(
        std::os::fd::AsFd::as_fd(&pidfd),
        nix::poll::PollFlags::POLLIN,
    )];
    // A pidfd is readable when its process has become a zombie (pidfd_open(2)).
    nix::poll::poll(&mut poll, nix::poll::PollTimeout::NONE)
        .map(drop)
        .map_err(|e| Error::kernel("poll", format!("task {pid}"), e))
}
