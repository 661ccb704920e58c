//! The holder: the small process a pod belongs to.
//!
//! It keeps what must outlive a supervisor (init's socket, the ends of standard input, output and error or
//! the terminal, the interception listener), writes the log, reaps, and starts the supervisor again when
//! that dies. It decides nothing about the pod.
//!
//! ```text
//!                 Kept*, Begin                 Keep, Drop, Pump, Init, Finish
//!   holder ─────────────────────▶ supervisor ─────────────────────────────▶ holder
//!      ▲ pipes or terminal of the pod                 │ dies
//!      └── log                                        └──▶ the holder starts another, which begins the same way
//! ```
//!
//! A supervisor that keeps dying is tried again after a pause; meanwhile the interception listener is let
//! go, so that the pod's intercepted calls fail with ENOSYS instead of waiting for ever.

mod pump;
mod start;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::log::{LogWriter, Stream};
use crate::messages::{FromHolder, ToHolder};
use crate::store::{Pod, Store};
use crate::wire::Wire;
use pump::Pump;

pub(crate) use start::{HANDED, spawn};

/// Name under which the interception listener is kept.
pub(crate) const LISTENER: &str = "listener";
/// A supervisor that lived less than this has failed to start.
const TOO_SHORT: Duration = Duration::from_secs(2);
/// How many failed starts the pod's intercepted calls wait for.
const PATIENCE: u32 = 3;

struct Holder {
    store: Store,
    pod: Pod,
    kept: BTreeMap<String, OwnedFd>,
    pumps: Vec<Pump>,
    log: LogWriter,
    supervisor: Option<Supervisor>,
    failures: u32,
    /// When to start the next supervisor, if one is due.
    due: Option<Instant>,
    init: Option<i32>,
    finished: bool,
}

struct Supervisor {
    pid: i32,
    wire: Wire,
    since: Instant,
}

/// Runs the holder of a pod until the pod is over. The caller holds the pod's lock.
pub(crate) fn run(store: Store, pod: Pod) -> Result<()> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block().context("block SIGCHLD")?;
    let children = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    nix::sys::prctl::set_child_subreaper(true).context("become a reaper")?;
    let log = LogWriter::open(&pod.path("log")).context("open the log")?;
    let mut holder = Holder {
        store,
        pod,
        kept: BTreeMap::new(),
        pumps: Vec::new(),
        log,
        supervisor: None,
        failures: 0,
        due: None,
        init: None,
        finished: false,
    };
    holder.start_supervisor(true)?;
    while holder.supervisor.is_some() || holder.due.is_some() {
        holder.turn(&children)?;
    }
    Ok(())
}

impl Holder {
    /// Waits for one thing to happen and deals with it.
    fn turn(&mut self, children: &SignalFd) -> Result<()> {
        let ready = self.wait(children)?;
        for index in ready.pumps.into_iter().rev() {
            self.pump(index)?;
        }
        if ready.supervisor {
            self.listen();
        }
        if ready.children {
            while children.read_signal()?.is_some() {}
            self.reap();
        }
        if self.due.is_some_and(|due| due <= Instant::now()) {
            self.due = None;
            self.start_supervisor(false)?;
        }
        Ok(())
    }

    fn wait(&self, children: &SignalFd) -> Result<Ready> {
        let mut fds = vec![PollFd::new(children.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            self.pumps
                .iter()
                .map(|pump| PollFd::new(pump.as_fd(), PollFlags::POLLIN)),
        );
        fds.extend(
            self.supervisor
                .iter()
                .map(|s| PollFd::new(s.wire.as_fd(), PollFlags::POLLIN)),
        );
        match poll(&mut fds, self.time_left()) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e).context("poll"),
        }
        let ready = |index: usize| fds.get(index).and_then(PollFd::any).unwrap_or(false);
        let pumps = (0..self.pumps.len())
            .filter(|index| ready(index + 1))
            .collect();
        Ok(Ready {
            children: ready(0),
            pumps,
            supervisor: ready(self.pumps.len() + 1),
        })
    }

    fn time_left(&self) -> PollTimeout {
        let Some(due) = self.due else {
            return PollTimeout::NONE;
        };
        let left = due.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }

    fn pump(&mut self, index: usize) -> Result<()> {
        if !self.pumps[index]
            .once(&mut self.log)
            .context("write the log")?
        {
            self.pumps.remove(index);
        }
        Ok(())
    }

    fn start_supervisor(&mut self, first: bool) -> Result<()> {
        let (pid, wire) =
            start::supervisor(&self.store, &self.pod).context("start the supervisor")?;
        for (name, fd) in &self.kept {
            let sent = wire.send(&FromHolder::Kept { name: name.clone() }, &[fd.as_fd()]);
            sent.context("hand over a descriptor")?;
        }
        wire.send(&FromHolder::Begin { first }, &[])
            .context("greet the supervisor")?;
        self.supervisor = Some(Supervisor {
            pid,
            wire,
            since: Instant::now(),
        });
        Ok(())
    }

    fn listen(&mut self) {
        let Some(supervisor) = &self.supervisor else {
            return;
        };
        match supervisor.wire.receive::<ToHolder>() {
            Ok(Some((message, fds))) => self.obey(message, fds),
            // Its end is closed: it is dying, and SIGCHLD will say so.
            Ok(None) => self.await_supervisor(),
            Err(error) => tracing::warn!(%error, "a message of the supervisor"),
        }
    }

    fn obey(&mut self, message: ToHolder, fds: Vec<OwnedFd>) {
        let fd = fds.into_iter().next();
        match message {
            ToHolder::Keep { name } => {
                if let Some(fd) = fd {
                    self.kept.insert(name, fd);
                }
            }
            ToHolder::Drop { name } => drop(self.kept.remove(&name)),
            ToHolder::Pump { terminal, error } => {
                self.pumps
                    .extend(fd.map(|fd| Pump::new(fd, terminal, error)));
            }
            ToHolder::Init { pid } => self.init = Some(pid),
            ToHolder::Finish => self.finish(),
        }
    }

    fn finish(&mut self) {
        for pump in &mut self.pumps {
            if let Err(error) = pump.rest(&mut self.log) {
                tracing::warn!(%error, "the end of the log");
            }
        }
        self.pumps.clear();
        self.kept.clear();
        if let Err(error) = self.log.write(Stream::End, b"") {
            tracing::warn!(%error, "end the log");
        }
        self.finished = true;
        if let Some(supervisor) = &self.supervisor {
            // A supervisor that died just now is not waiting for this.
            let _ = supervisor.wire.send(&FromHolder::Finished, &[]);
        }
    }

    fn await_supervisor(&mut self) {
        if let Some(supervisor) = &self.supervisor {
            let pid = supervisor.pid;
            // SAFETY: a null status is allowed.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            self.lost_supervisor();
        }
    }

    fn reap(&mut self) {
        loop {
            // SAFETY: a null status is allowed.
            let pid = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) };
            match pid {
                pid if pid <= 0 => return,
                pid if self.supervisor.as_ref().is_some_and(|s| s.pid == pid) => {
                    self.lost_supervisor();
                }
                pid => tracing::debug!(pid, init = self.init == Some(pid), "reaped"),
            }
        }
    }

    fn lost_supervisor(&mut self) {
        let Some(supervisor) = self.supervisor.take() else {
            return;
        };
        if self.finished {
            return;
        }
        tracing::warn!(pid = supervisor.pid, "the supervisor died");
        let short = supervisor.since.elapsed() < TOO_SHORT;
        self.failures = if short { self.failures + 1 } else { 0 };
        if self.failures >= PATIENCE {
            self.kept.remove(LISTENER);
        }
        let pause = if self.failures < PATIENCE {
            Duration::ZERO
        } else {
            TOO_SHORT
        };
        self.due = Some(Instant::now() + pause);
    }
}

struct Ready {
    children: bool,
    pumps: Vec<usize>,
    supervisor: bool,
}
