//! `ctl.sock`: what the command line asks of a running pod.
//!
//! The socket is bound under another name and renamed when it listens, so whoever finds it can connect.
//! Only the pod's owner and root are answered (SO_PEERCRED); the directory keeps others out already.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, getsockopt, listen,
    socket, sockopt,
};
use restore::checkpoint::Pids;

use super::init_link::InitLink;
use super::{Supervised, is_live};
use crate::cgroup;
use crate::failure::Failure;
use crate::messages::{Answer, Ask, Outcome, Process, Program, ToInit, Told};
use crate::process::{command_line, descendants};
use crate::store::{Phase, State};
use crate::wire::Wire;

type Reply = Result<(Told, Vec<OwnedFd>)>;

/// Starts answering.
pub(super) fn start(supervised: &Arc<Supervised>) -> Result<()> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .context("socket")?;
    // A path may be longer than a socket address can hold.
    let directory = fs::File::open(&supervised.pod.dir).context("open the pod's directory")?;
    let path = format!("/proc/self/fd/{}/ctl.new", directory.as_raw_fd());
    let (new, name) = (
        supervised.pod.path("ctl.new"),
        supervised.pod.path("ctl.sock"),
    );
    if new.exists() {
        fs::remove_file(&new).context("remove ctl.new")?;
    }
    bind(socket.as_raw_fd(), &UnixAddr::new(path.as_str())?).context("bind ctl.sock")?;
    listen(&socket, Backlog::new(64)?).context("listen on ctl.sock")?;
    fs::rename(&new, &name).context("name ctl.sock")?;
    let supervised = Arc::clone(supervised);
    std::thread::spawn(move || accept_all(&supervised, &socket));
    Ok(())
}

fn accept_all(supervised: &Arc<Supervised>, socket: &OwnedFd) {
    loop {
        match accept4(socket.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Ok(fd) => {
                // SAFETY: accept4 has just made this descriptor for us alone.
                let client = unsafe { OwnedFd::from_raw_fd(fd) };
                let supervised = Arc::clone(supervised);
                std::thread::spawn(move || converse(&supervised, client));
            }
            Err(Errno::EINTR | Errno::ECONNABORTED) => {}
            Err(error) => {
                tracing::error!(%error, "accept on ctl.sock");
                return;
            }
        }
    }
}

fn converse(supervised: &Supervised, client: OwnedFd) {
    let us = nix::unistd::geteuid().as_raw();
    let peer = getsockopt(&client, sockopt::PeerCredentials).map(|peer| peer.uid());
    if !peer.is_ok_and(|uid| uid == us || uid == 0) {
        return;
    }
    let wire = Wire::from(client);
    let mut guards = false;
    while let Ok(Some((ask, fds))) = wire.receive::<Ask>() {
        guards |= matches!(ask, Ask::Guard);
        if reply(&wire, supervised.answer(ask, fds, &wire)).is_err() {
            break;
        }
    }
    if guards {
        supervised.unguarded();
    }
}

fn reply(wire: &Wire, reply: Reply) -> Result<(), crate::wire::WireError> {
    let (outcome, fds): (Outcome<Told>, _) = match reply {
        Ok((told, fds)) => (Ok(told), fds),
        Err(error) => (Err(Failure::of(&error)), Vec::new()),
    };
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    wire.send(&outcome, &fds)
}

/// The streams of an `exec`ed program, and the master of its terminal if it gets one.
fn exec_streams(
    init: &InitLink,
    program: &Program,
    window: Option<(u16, u16)>,
    given: Vec<OwnedFd>,
) -> Result<(Vec<OwnedFd>, Option<OwnedFd>)> {
    if !program.tty {
        return Ok((given, None));
    }
    let (_, mut fds) = init.order(ToInit::OpenTerminal { window }, &[])?;
    let slave = fds.pop().context("init sent no terminal")?;
    Ok((vec![slave], fds.pop()))
}

fn told(told: Told) -> Reply {
    Ok((told, Vec::new()))
}

impl Supervised {
    fn answer(&self, ask: Ask, fds: Vec<OwnedFd>, wire: &Wire) -> Reply {
        match ask {
            Ask::Started => self.started(),
            Ask::Wait => self.ended(None),
            Ask::Kill { signal, vpid } => self.kill(signal, vpid),
            Ask::Stop { seconds } => self.stop(Duration::from_secs(seconds)),
            Ask::Pause => self.pause(),
            Ask::Resume => self.resume(),
            Ask::Exec { program, window } => self.exec(program, window, fds, wire),
            Ask::Attach => self.attach(),
            Ask::CloseInput => self.close_input(),
            Ask::Processes => told(Told::Processes(self.processes()?)),
            Ask::Check => told(Told::Checked(self.check()?)),
            Ask::Migrate { .. } => {
                let tell = |news| drop(reply(wire, told(news)));
                self.migrate(ask, fds, &tell)?;
                told(Told::Done)
            }
            Ask::Resolve { channel } => told(self.resolve(channel, fds)?),
            Ask::Needs => told(Told::Needs(Box::new(self.needs()?))),
            Ask::Guard => told(self.guard()?),
            Ask::Go => told(self.go()?),
            Ask::Vanish => told(self.vanish()?),
            Ask::Checkpoint {
                image,
                leave_running,
            } => told(Told::Checkpointed(self.checkpoint(image, leave_running)?)),
        }
    }

    /// Waits until the state is as wanted; `None` when the time is up.
    pub(super) fn until<T>(
        &self,
        deadline: Option<Instant>,
        wanted: impl Fn(&State) -> Option<T>,
    ) -> Option<T> {
        let mut facts = self.facts();
        loop {
            if let Some(found) = wanted(&facts.state) {
                return Some(found);
            }
            facts = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                None => self
                    .changed
                    .wait(facts)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return None,
                Some(left) => {
                    self.changed
                        .wait_timeout(facts, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    fn started(&self) -> Reply {
        let begun = |state: &State| match state.phase {
            Phase::Created | Phase::Starting => None,
            Phase::Failed => Some(Err(state
                .failure
                .clone()
                .unwrap_or_else(|| Failure::new("the pod failed")))),
            _ => Some(Ok(state.main.unwrap_or(0))),
        };
        match self.until(None, begun) {
            Some(Ok(vpid)) => told(Told::Started(vpid)),
            Some(Err(failure)) => Err(failure.into()),
            None => Err(Failure::new("the pod did not start").into()),
        }
    }

    fn ended(&self, deadline: Option<Instant>) -> Reply {
        let ended = |state: &State| match state.phase {
            Phase::Failed => Some(Err(state
                .failure
                .clone()
                .unwrap_or_else(|| Failure::new("the pod failed")))),
            _ => state.finished.and(state.exit).map(Ok),
        };
        match self.until(deadline, ended) {
            Some(Ok(exit)) => told(Told::Exited(exit)),
            Some(Err(failure)) => Err(failure.into()),
            None => Err(Failure::new("the time is up").into()),
        }
    }

    fn main(&self) -> Result<i32> {
        self.facts()
            .state
            .main
            .ok_or_else(|| Failure::new("the pod has no main program").into())
    }

    fn kill(&self, signal: i32, vpid: Option<i32>) -> Reply {
        let vpid = vpid.map_or_else(|| self.main(), Ok)?;
        let vpid = self
            .held_by()?
            .for_init(vpid)
            .ok_or_else(|| Failure::new(format!("no process {vpid} in the pod")))?;
        self.init()?.order(ToInit::Kill { vpid, signal }, &[])?;
        told(Told::Done)
    }

    /// SIGTERM, and after a while the end of everything. A paused pod must run to hear it.
    fn stop(&self, patience: Duration) -> Reply {
        self.resume()?;
        // A main program that has just ended is what we want.
        let asked = self.kill(libc::SIGTERM, None);
        let ended = self.ended(Some(
            Instant::now()
                + if asked.is_ok() {
                    patience
                } else {
                    Duration::ZERO
                },
        ));
        if ended.is_ok() {
            return ended;
        }
        // It may have ended between the two.
        let killed = self.kill(libc::SIGKILL, None);
        tracing::debug!(failed = killed.is_err(), "killed");
        self.ended(None)
    }

    fn set_frozen(&self, frozen: bool) -> Result<()> {
        let (phase, groups) = {
            let facts = self.facts();
            (facts.state.phase, facts.state.made.cgroups.clone())
        };
        anyhow::ensure!(
            is_live(phase) && phase != Phase::Undecided,
            Failure::new(format!("the pod is {phase}"))
        );
        let group = cgroup::freezer(&groups).ok_or_else(|| {
            Failure::new("this pod cannot be paused: it has no control group of version 2")
                .hint("pausing needs a cgroup2 hierarchy that is writable for you; pod checkpoint works without")
        })?;
        if frozen {
            self.stop_unseen(group)?;
        } else {
            cgroup::set_frozen(group, false)?;
        }
        self.change(|state| {
            if is_live(state.phase) {
                state.phase = if frozen {
                    Phase::Paused
                } else {
                    Phase::Running
                };
            }
        })
    }

    /// Freezes a control group while the tracer holds its tasks: the group alone would end some calls with
    /// EINTR (epoll_wait, sigtimedwait…), the tracer mends them before the group takes over.
    fn stop_unseen(&self, group: &Path) -> Result<()> {
        let init = self.facts().state.init.context("the pod has no init")?;
        let group = group.to_owned();
        let stopped = self.tracer()?.run(move |_| -> Result<()> {
            let held = restore::freeze::freeze(init, &[])?;
            cgroup::set_frozen(&group, true)?;
            Ok(held.resume()?)
        });
        stopped.context("the tracer thread is gone")?
    }

    fn pause(&self) -> Reply {
        self.set_frozen(true)?;
        told(Told::Done)
    }

    fn resume(&self) -> Reply {
        if self.facts().state.phase == Phase::Paused {
            self.set_frozen(false)?;
        }
        told(Told::Done)
    }

    /// Answers twice: when the program runs, and when it has ended.
    fn exec(
        &self,
        program: Program,
        window: Option<(u16, u16)>,
        fds: Vec<OwnedFd>,
        wire: &Wire,
    ) -> Reply {
        let phase = self.facts().state.phase;
        anyhow::ensure!(
            phase == Phase::Running,
            Failure::new(format!("the pod is {phase}"))
        );
        let init = self.init()?;
        let (theirs, master) = exec_streams(&init, &program, window, fds)?;
        let number = init.number();
        let (answer, _) = init.order_as(
            number,
            ToInit::Spawn {
                program,
                main: false,
            },
            &theirs,
        )?;
        drop(theirs);
        let Answer::Spawned { vpid } = answer else {
            return Err(Failure::new("init gave an answer to another question").into());
        };
        let vpid = self.held_by()?.of_init(vpid);
        // Without a listener the program goes on, as it would when a terminal is closed.
        let _ = reply(
            wire,
            Ok((Told::Running(vpid), master.into_iter().collect())),
        );
        let mut facts = self.facts();
        loop {
            if let Some(exit) = facts.programs.remove(&number) {
                return told(Told::Exited(exit));
            }
            facts = self
                .changed
                .wait(facts)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn attach(&self) -> Reply {
        Ok((Told::Input, self.input()?.into_iter().collect()))
    }

    fn close_input(&self) -> Reply {
        self.close_stdin()?;
        told(Told::Done)
    }

    fn processes(&self) -> Result<Vec<Process>> {
        let init = self.facts().state.init.context("the pod has no init")?;
        let held_by = self.held_by()?;
        let process = |pid| {
            Some(Process {
                vpid: held_by.virtual_of(pid)?,
                pid,
                command: command_line(pid),
            })
        };
        let mut processes: Vec<_> = descendants(init).into_iter().filter_map(process).collect();
        processes.sort_by_key(|process| process.vpid);
        Ok(processes)
    }
}
