//! Waking a pod: every process made anew, dressed in its state, and held until it may run.
//!
//! ```text
//!   us (tracer)                        init in the pod            builder in the pod
//!   ──────────                         ───────────────            ──────────────────
//!   plan the tree                                                 make descriptions
//!   ask for a seed ───────────────────▶ fork (wanted pid)
//!   seize it: a puppet; memory, forks of its children, sessions, groups
//!   tree stands ─────────────────────────────────────────────────▶ link descriptions
//!   dress each: descriptors ◀──── SCM_RIGHTS on the feed ──────── give
//!   threads, credentials, signals, timers                         settle
//!   registers: held
//! ```
//!
//! All or nothing: until [`Held::run`] the pod has not executed one instruction of its own,
//! and killing its init leaves nothing of it.

mod dress;
mod puppet;
mod tree;

use std::collections::{BTreeMap, BTreeSet};

use intercept::tracee::Stopped;
use libc::pid_t;
pub use puppet::{PAGES_OBJECT, Puppet};

use crate::{
    error::{Error, Result},
    image::Image,
    resource::{
        self, ObjectId, lock,
        mm::Mm,
        process::{Process, State},
        tty,
    },
};

/// What a restart needs of its surroundings on this host.
pub trait Site {
    /// Has init fork a task that waits to be seized, with this virtual pid; answers its pid on this host.
    ///
    /// # Errors
    /// The pid is taken, or init does not answer.
    fn seed(&mut self, virtual_pid: i32) -> Result<pid_t>;

    /// Inode of the socket on which seeds (and what is forked from them) receive descriptors.
    fn feed_inode(&self) -> u64;

    /// Has the builder send these descriptions, in one message, to whoever reads the feed next.
    ///
    /// # Errors
    /// The builder has none of that number, or died.
    fn give(&mut self, ids: &[ObjectId]) -> Result<()>;

    /// The pid to ask the kernel for when a task with this virtual pid is made; `None` where the
    /// pod's numbers are held by a table.
    fn wanted_pid(&self, virtual_pid: i32) -> Option<pid_t>;

    /// Notes which task of this host stands for a virtual pid.
    fn born(&mut self, virtual_pid: i32, real: pid_t);

    /// The number by which a call inside the pod, made past the interception, reaches a task.
    fn inner_pid(&self, virtual_pid: i32) -> pid_t;

    /// Says that the tree stands: descriptions that refer to processes can be made, and all linked.
    ///
    /// # Errors
    /// What the builder failed on.
    fn link(&mut self) -> Result<()>;

    /// Says that all is in place but the registers.
    ///
    /// # Errors
    /// What the builder failed on.
    fn settle(&mut self) -> Result<()>;
}

/// A thread that only waits to be let go.
struct Ready {
    task: Stopped,
    signal: i32,
}

/// A pod that is whole and has not run yet.
pub struct Held {
    ready: Vec<Ready>,
    pids: BTreeMap<i32, pid_t>,
}

impl Held {
    /// Pids on this host by virtual pid.
    #[must_use]
    pub fn pids(&self) -> &BTreeMap<i32, pid_t> {
        &self.pids
    }

    /// Lets the pod run.
    ///
    /// # Errors
    /// The first task that could not be let go, after trying all.
    pub fn run(self) -> Result<()> {
        let mut failed = None;
        for ready in self.ready {
            if let Err(e) = ready.task.detach(ready.signal) {
                failed.get_or_insert(e);
            }
        }
        failed.map_or(Ok(()), |e| Err(e.into()))
    }
}

/// Processes of an image by virtual pid, with their memory.
pub(crate) struct Plan {
    pub(crate) processes: BTreeMap<i32, Process>,
    pub(crate) memories: BTreeMap<i32, Mm>,
    /// Controlling terminals by session.
    terminals: BTreeMap<i32, tty::Session>,
    /// POSIX locks by virtual pid.
    locks: BTreeMap<u32, lock::ProcessLocks>,
}

impl Plan {
    fn read(image: &Image) -> Result<Self> {
        let by_pid = |(id, record)| (id as i32, record);
        let processes: BTreeMap<i32, Process> =
            image.all::<Process>()?.into_iter().map(by_pid).collect();
        let memories: BTreeMap<i32, Mm> = image
            .all::<Mm>()?
            .into_iter()
            .map(|(id, mm)| (id as i32, mm))
            .collect();
        let terminals = image.all::<tty::Session>()?;
        let terminals = terminals.into_iter().map(|(id, t)| (id as i32, t));
        let orphan = processes
            .iter()
            .find(|(pid, p)| p.is_alive() && !memories.contains_key(pid));
        match orphan {
            Some((pid, _)) => Err(Error::NoRecord {
                kind: "mm".into(),
                id: *pid as u32,
            }),
            None => Ok(Self {
                processes,
                memories,
                terminals: terminals.collect(),
                locks: image.all()?,
            }),
        }
    }

    /// The children of a process (1 is init), in the order of their pids.
    pub(crate) fn children(&self, parent: i32) -> impl Iterator<Item = &Process> {
        self.processes
            .values()
            .filter(move |p| p.place.parent == parent)
    }

    /// The highest number that a process, thread, group or session has.
    pub(crate) fn last_pid(&self) -> i32 {
        let of = |process: &Process| {
            let threads = match &process.state {
                State::Alive(alive) => alive.threads.iter().map(|t| t.tid).max(),
                State::Zombie { .. } => None,
            };
            let place = process.place;
            threads
                .into_iter()
                .chain([place.pid, place.group, place.session])
                .max()
        };
        self.processes.values().filter_map(of).max().unwrap_or(1)
    }

    /// A descriptor number above all slots of the image.
    fn feed(&self) -> i32 {
        let slots = self.processes.values().filter_map(|p| match &p.state {
            State::Alive(alive) => alive.slots.iter().map(|s| s.fd).max(),
            State::Zombie { .. } => None,
        });
        slots.max().unwrap_or(0).max(63) + 1
    }
}

/// A pid that no task of an image has, for our own process inside the pod.
///
/// # Errors
/// [`Error::Image`] when the records do not decode.
pub fn spare_pid(image: &Image) -> Result<i32> {
    Ok(Plan::read(image)?.last_pid() + 1)
}

/// Proves that nothing in an image would be lost unread; `others` are the kinds of records that the
/// caller heeds itself.
///
/// # Errors
/// [`Error::Image`] with the kinds that nobody knows.
pub fn all_known(image: &Image, others: &[&str]) -> Result<()> {
    let kinds = image.envelopes().map(|e| e.kind.as_str());
    let unknown: BTreeSet<&str> = kinds
        .filter(|kind| !resource::is_known(kind) && !others.contains(kind))
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let kinds = unknown.into_iter().collect::<Vec<_>>().join(", ");
    Err(Error::Image {
        path: image.path().to_owned(),
        why: format!("records of unknown kind: {kinds}"),
    })
}

/// Rebuilds the pod of an image. The builder has made its descriptions before.
///
/// # Errors
/// The step that failed; the caller then kills the pod's init, which takes everything with it.
pub fn restart(image: &Image, site: &mut dyn Site) -> Result<Held> {
    let _span = tracing::info_span!("restart").entered();
    let plan = Plan::read(image)?;
    let mut made = tree::make(&plan, site)?;
    site.link()?;
    tree::bury_zombies(&plan, &mut made)?;
    let pids = made.pids();
    let mut puppets = Vec::new();
    for (pid, puppet) in made.alive(&plan) {
        puppets.push(dress::dress(&plan, pid, puppet, site)?);
    }
    site.settle()?;
    let mut ready = Vec::new();
    for dressed in puppets {
        ready.extend(dressed.hold(&plan)?);
    }
    Ok(Held { ready, pids })
}
