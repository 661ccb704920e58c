//! The pod's own init: process 1 of the pod (or, without a pid namespace, the reaper of its programs).
//!
//! It is single-threaded and does only what must be done from inside: it makes the pod's world, is the
//! parent of the programs that are started, reaps, and forwards signals. What to do comes from the
//! supervisor, one packet at a time:
//!
//! ```text
//!   supervisor ── Order{number, body} + descriptors ─▶ init
//!   supervisor ◀─ Answer{number, outcome} + descriptors ── init
//!   supervisor ◀─ Exited{order, main, status} ── init      at any time; they queue while no supervisor lives
//! ```
//!
//! When the last holder of the other end is gone, nobody can tell the pod anything any more: init ends it.

mod devices;
mod mounts;
mod spawn;
mod terminal;
mod user;
mod world;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use intercept::mask::Mask;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::WaitPidFlag;
use nix::unistd::Pid;

use crate::failure::Failure;
use crate::messages::{Answer, FromInit, Order, Setup, ToInit};
use crate::wire::Wire;

pub(crate) use mounts::assemble_privately;

/// What an order comes to: an answer and the descriptors beside it.
type Answered = Result<(Answer, Vec<OwnedFd>)>;

/// A program somebody waits for.
#[derive(Clone, Copy, Debug)]
struct Known {
    main: bool,
    /// The number of the order that began it.
    order: u64,
}

/// What every program of the pod is put behind.
#[derive(Debug, Default)]
struct Walls {
    /// `cgroup.procs` of the groups it belongs to.
    groups: Vec<OwnedFd>,
    /// Calls it must not make.
    mask: Option<Mask>,
}

#[derive(Debug)]
struct Init {
    wire: Wire,
    /// Programs whose exit is reported, by pid.
    known: BTreeMap<i32, Known>,
    walls: Walls,
    listener: Option<OwnedFd>,
    /// The main program's end: its order and its status.
    ended: Option<(u64, i32)>,
    over: bool,
}

/// Runs init until the pod is over. `wire` is its end of the control socket.
pub(crate) fn run(wire: Wire) -> Result<()> {
    let mut mask = SigSet::all();
    mask.remove(Signal::SIGSEGV);
    mask.remove(Signal::SIGBUS);
    mask.thread_block().context("block signals")?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("signalfd")?;
    nix::sys::prctl::set_child_subreaper(true).context("become the reaper")?;
    let mut init = Init {
        wire,
        known: BTreeMap::new(),
        walls: Walls::default(),
        listener: None,
        ended: None,
        over: false,
    };
    while !init.over {
        let (told, signalled) = wait(&init.wire, &signals)?;
        if signalled {
            init.take_signals(&signals)?;
        }
        if told {
            init.take_order()?;
        }
    }
    end_everything();
    Ok(())
}

fn wait(wire: &Wire, signals: &SignalFd) -> Result<(bool, bool)> {
    let mut fds = [
        PollFd::new(wire.as_fd(), PollFlags::POLLIN),
        PollFd::new(signals.as_fd(), PollFlags::POLLIN),
    ];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) => Ok((fds[0].any().unwrap_or(true), fds[1].any().unwrap_or(true))),
        Err(Errno::EINTR) => Ok((false, false)),
        Err(e) => Err(e).context("poll"),
    }
}

impl Init {
    fn take_order(&mut self) -> Result<()> {
        let Some((order, fds)) = self.wire.receive::<Order>()? else {
            self.over = true;
            return Ok(());
        };
        let answered = self.obey(order.number, order.body, fds);
        let (outcome, fds) = match answered {
            Ok((answer, fds)) => (Ok(answer), fds),
            Err(error) => (Err(Failure::of(&error)), Vec::new()),
        };
        self.tell(
            &FromInit::Answer {
                number: order.number,
                outcome,
            },
            &fds,
        );
        Ok(())
    }

    /// A supervisor that is gone misses nothing: the next one asks again.
    fn tell(&self, message: &FromInit, fds: &[OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        if let Err(error) = self.wire.send(message, &fds) {
            tracing::warn!(%error, "tell the supervisor");
        }
    }

    fn obey(&mut self, number: u64, order: ToInit, fds: Vec<OwnedFd>) -> Answered {
        match order {
            ToInit::Setup(setup) => self.set_up(&setup, fds),
            ToInit::ListenerTaken => {
                self.listener = None;
                done()
            }
            ToInit::OpenTerminal { window } => {
                let (master, slave) = terminal::open(window)?;
                Ok((Answer::Terminal, vec![master, slave]))
            }
            ToInit::Spawn { program, main } => {
                let spawned = spawn::program(&program, &fds, &self.walls)?;
                let order = number;
                self.known.insert(spawned.vpid, Known { main, order });
                Ok((Answer::Spawned { vpid: spawned.vpid }, vec![spawned.pidfd]))
            }
            ToInit::SpawnSeed { vpid } => {
                let spawned = spawn::seed(vpid, &self.walls, fds)?;
                Ok((Answer::Spawned { vpid: spawned.vpid }, vec![spawned.pidfd]))
            }
            ToInit::Builder { vpid } => {
                let spawned = spawn::builder(vpid, fds)?;
                Ok((Answer::Spawned { vpid: spawned.vpid }, vec![spawned.pidfd]))
            }
            ToInit::Adopt { vpid } => {
                self.known.retain(|_, known| !known.main);
                let (main, order) = (true, number);
                self.known.insert(vpid, Known { main, order });
                done()
            }
            ToInit::Kill { vpid, signal } => {
                send_signal(vpid, signal)?;
                done()
            }
            ToInit::Repeat => {
                if let Some((order, status)) = self.ended {
                    self.exited(Known { main: true, order }, status);
                }
                done()
            }
            ToInit::Shutdown => {
                self.over = true;
                done()
            }
        }
    }

    fn set_up(&mut self, setup: &Setup, groups: Vec<OwnedFd>) -> Answered {
        let mask = setup.mask.as_deref().map(Mask::from_json).transpose();
        self.walls.mask = mask.context("make the mask")?;
        self.walls.groups = groups;
        let (listener, read_only) = world::make(setup)?;
        self.listener = listener;
        let listener = self.listener.as_ref().map(std::os::fd::AsRawFd::as_raw_fd);
        let ready = Answer::Ready {
            listener,
            read_only,
        };
        Ok((ready, Vec::new()))
    }

    fn take_signals(&mut self, signals: &SignalFd) -> Result<()> {
        while let Some(info) = signals.read_signal().context("read a signal")? {
            match Signal::try_from(info.ssi_signo as i32) {
                Ok(Signal::SIGCHLD) | Err(_) => {}
                Ok(signal) => self.forward(signal),
            }
        }
        self.reap()
    }

    /// A signal for init is meant for the program people started.
    fn forward(&self, signal: Signal) {
        for (vpid, known) in &self.known {
            if known.main && kill(Pid::from_raw(*vpid), signal).is_err() {
                tracing::debug!(vpid, %signal, "the main program is gone");
            }
        }
    }

    fn exited(&mut self, Known { main, order }: Known, status: i32) {
        if main {
            self.ended = Some((order, status));
        }
        let told = FromInit::Exited {
            order,
            main,
            status,
        };
        self.tell(&told, &[]);
    }

    fn reap(&mut self) -> Result<()> {
        loop {
            let mut status = 0;
            // SAFETY: status outlives the call.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, WaitPidFlag::WNOHANG.bits()) };
            match Errno::result(pid) {
                Ok(0) | Err(Errno::ECHILD) => return Ok(()),
                Ok(vpid) => {
                    if let Some(known) = self.known.remove(&vpid) {
                        self.exited(known, status);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e).context("reap"),
            }
        }
    }
}

fn done() -> Answered {
    Ok((Answer::Done, Vec::new()))
}

fn send_signal(vpid: i32, signal: i32) -> Result<()> {
    // SAFETY: no memory is passed.
    Errno::result(unsafe { libc::kill(vpid, signal) })
        .map(drop)
        .map_err(|errno| match errno {
            Errno::ESRCH => Failure::new(format!("no process {vpid} in the pod")).into(),
            other => anyhow::Error::from(other).context(format!("signal process {vpid}")),
        })
}

/// In a pid namespace the kernel kills what is left when process 1 exits; without one, we do.
fn end_everything() {
    if nix::unistd::getpid().as_raw() == 1 {
        return;
    }
    loop {
        for pid in crate::process::descendants(nix::unistd::getpid().as_raw()) {
            // A process that has just ended is what we want.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        // SAFETY: a null status is allowed.
        if unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } < 0
            && Errno::last() == Errno::ECHILD
        {
            return;
        }
    }
}
