//! The end of a pod: everything in it is ended, what it made is released, the log is completed, and only
//! then does the state say how it ended.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::init_link::InitLink;
use super::publish::Publisher;
use super::{Event, Supervised, names};
use crate::cleanup;
use crate::failure::Failure;
use crate::messages::ToInit;
use crate::store::{Exit, Phase, State};

/// Why a pod ends.
pub(super) enum Ending {
    Over(Event),
    Failed(Failure),
}

impl Ending {
    /// Whether the pod lives on another host, which has its name.
    fn is_elsewhere(&self) -> bool {
        matches!(self, Self::Over(Event::Moved(_) | Event::Returned))
    }
}

/// Ends the pod.
pub(super) fn end(
    supervised: &Supervised,
    ending: Ending,
    publisher: Option<Publisher>,
) -> Result<()> {
    let init = supervised.facts().init.clone();
    if let Some(init) = init {
        supervised.end_traced()?;
        end_init(&init)?;
    }
    if let Some(publisher) = publisher {
        publisher.end(!ending.is_elsewhere());
    }
    names::clean(supervised);
    let made = supervised.facts().state.made.clone();
    let released = cleanup::release(&supervised.pod, &made);
    let finished = supervised.holder.finish();
    supervised.change(|state| {
        conclude(state, ending);
        if released.is_ok() {
            state.made = crate::store::Made::default();
        }
    })?;
    released.and(finished)
}

/// Asks init to end the pod, and kills it where it does not hear. Returns when it is gone, and with it, in
/// a pid namespace, every program of the pod.
fn end_init(init: &InitLink) -> Result<()> {
    if init.order(ToInit::Shutdown, &[]).is_err() {
        let killed = intercept::sys::pidfd_send_signal(init.process().as_fd(), libc::SIGKILL);
        if killed.is_err_and(|e| e.raw_os_error() != Some(libc::ESRCH)) {
            tracing::warn!("init could not be killed");
        }
    }
    let mut fds = [PollFd::new(init.process().as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e).context("wait for init"),
        }
    }
}

fn conclude(state: &mut State, ending: Ending) {
    state.finished = Some(crate::store::now());
    (state.holder, state.supervisor, state.init) = (None, None, None);
    match ending {
        Ending::Over(Event::MainExited(status)) => {
            state.phase = Phase::Exited;
            state.exit = Some(Exit::of(status));
        }
        Ending::Over(Event::Checkpointed) => {
            state.phase = Phase::Exited;
            state.exit = Some(Exit::Signal(libc::SIGKILL));
            state.reason = Some("it sleeps in its image".to_owned());
        }
        Ending::Over(Event::Moved(to)) => {
            state.phase = Phase::Exited;
            state.exit = Some(Exit::Code(0));
            state.reason = Some(format!("it lives on {to} now"));
        }
        Ending::Over(Event::Returned) => {
            state.phase = Phase::Failed;
            state.reason = Some("its move was aborted; it lives where it was".to_owned());
        }
        Ending::Over(event) => {
            state.phase = Phase::Exited;
            if state.exit.is_some() {
                return;
            }
            state.exit = Some(Exit::Signal(libc::SIGKILL));
            let reason = match event {
                Event::HolderGone => "the holder was killed",
                _ => "init was killed",
            };
            state.reason = Some(reason.to_owned());
        }
        Ending::Failed(failure) => {
            state.phase = Phase::Failed;
            state.reason = Some(failure.to_string());
            state.failure = Some(failure);
        }
    }
}
