//! The supervisor: all logic of a running pod.
//!
//! ```text
//!                   ctl.sock                         control socket
//!   command line ──────────────▶ client threads ──────────────────▶ init (in the pod)
//!                                     │  ▲                               │ Exited
//!   holder ◀──── Keep, Pump, Finish ──┤  └── Pod (shared) ◀── reader ◀───┘
//!          ────▶ Finished ────────────┘             │
//!                                                   ▼
//!                                main thread: launch ─▶ wait for the end ─▶ release
//! ```
//!
//! Plain threads, one conversation each. What must survive the supervisor lies with the holder
//! (descriptors) and in `state.json` (facts); a new supervisor takes both over and goes on.

mod arriving;
mod check;
mod checkpoint;
mod client;
mod end;
mod holder_link;
mod image;
mod init_link;
mod launch;
mod leaving;
mod names;
mod needs;
mod numbers;
mod process;
mod publish;
mod restart;
mod serve;
mod streams;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};

use anyhow::{Context, Result};
use intercept::tracer::Tracer;

use crate::failure::Failure;
use crate::store::{Config, Exit, Phase, Pod, State, Store};
use crate::wire::Wire;
use holder_link::HolderLink;
use init_link::InitLink;

pub(crate) use client::Client;
pub(crate) use restart::pod_of;

/// Names under which the holder keeps descriptors; those of [`STREAMS`] besides.
const INIT: &str = "init";
const INIT_PROCESS: &str = "init-process";
/// Our ends of the pod's standard streams. The pod has either the first three or a terminal.
const STREAMS: [&str; 4] = [STDIN, STDOUT, STDERR, TERMINAL];
const STDIN: &str = "stdin";
const STDOUT: &str = "stdout";
const STDERR: &str = "stderr";
const TERMINAL: &str = "terminal";

/// What ends a pod.
#[derive(Debug)]
enum Event {
    MainExited(i32),
    InitGone,
    HolderGone,
    /// Its image is written.
    Checkpointed,
    /// It lives on another host now.
    Moved(String),
    /// It was to arrive here, and lives where it was.
    Returned,
}

/// A running pod, shared by the supervisor's threads.
struct Supervised {
    store: Store,
    pod: Pod,
    config: Config,
    holder: HolderLink,
    facts: Mutex<Facts>,
    changed: Condvar,
    events: Mutex<Sender<Event>>,
    tracer: OnceLock<Tracer>,
    /// What enforces the pod's names, once init has made its world.
    names: OnceLock<names::Names>,
    /// Held by whoever freezes the pod for longer than a moment: a move, its resolution, a checkpoint.
    moving: Mutex<()>,
}

/// What changes while the pod lives.
struct Facts {
    state: State,
    init: Option<Arc<InitLink>>,
    /// Our ends of its standard streams, by name (see [`STREAMS`]).
    streams: BTreeMap<&'static str, Arc<OwnedFd>>,
    /// Where the pod lives now, after a move.
    moved_to: Option<String>,
    /// How programs started by `exec` ended, by the number of their order.
    programs: BTreeMap<u64, Exit>,
}

impl Supervised {
    /// A panic of another thread does not make the facts less true.
    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, writes it, and tells whoever waits.
    fn change(&self, change: impl FnOnce(&mut State)) -> Result<()> {
        let mut facts = self.facts();
        change(&mut facts.state);
        let written = self.pod.write_state(&facts.state);
        drop(facts);
        self.changed.notify_all();
        written
    }

    fn raise(&self, event: Event) {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        // When the main thread is past waiting, the pod is ending already.
        let _ = events.send(event);
    }

    /// The thread that does all ptrace of this pod, started when it is first needed.
    fn tracer(&self) -> Result<&Tracer> {
        if let Some(tracer) = self.tracer.get() {
            return Ok(tracer);
        }
        let (tracer, _) = Tracer::spawn().context("start the tracer thread")?;
        Ok(self.tracer.get_or_init(|| tracer))
    }

    /// Keeps the pod from being moved, paused or checkpointed meanwhile.
    fn no_move(&self) -> Result<MutexGuard<'_, ()>> {
        match self.moving.try_lock() {
            Ok(guard) => Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {
                let hint = "wait until it is over; pod inspect tells the state";
                Err(Failure::new("the pod is being moved or checkpointed")
                    .hint(hint)
                    .into())
            }
        }
    }

    fn init(&self) -> Result<Arc<InitLink>> {
        self.facts()
            .init
            .clone()
            .ok_or_else(|| Failure::new("the pod is not running").into())
    }
}

/// Runs a supervisor. `wire` is its end of the holder's socket.
pub(crate) fn run(store: Store, pod: Pod, wire: Wire) -> Result<()> {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let (kept, first) = holder_link::greet(&wire)?;
    let (sender, events) = channel();
    let config = pod.config()?;
    let mut state = pod.written_state()?;
    state.supervisor = Some(std::process::id() as i32);
    let facts = Facts {
        state,
        init: None,
        streams: BTreeMap::new(),
        moved_to: None,
        programs: BTreeMap::new(),
    };
    let supervised = Arc::new(Supervised {
        store,
        pod,
        config,
        holder: HolderLink::new(wire.duplicate()?),
        facts: Mutex::new(facts),
        changed: Condvar::new(),
        events: Mutex::new(sender),
        tracer: OnceLock::new(),
        names: OnceLock::new(),
        moving: Mutex::new(()),
    });
    // Made while there is one thread only: a child of ours inherits nothing half-done.
    let begun = if first {
        launch::init(&supervised)
    } else {
        launch::take_over(&supervised, kept)
    };
    holder_link::listen(&supervised, wire);
    serve::start(&supervised)?;
    live(&supervised, &events, begun, first)
}

fn live(
    supervised: &Arc<Supervised>,
    events: &Receiver<Event>,
    begun: Result<launch::Begun>,
    first: bool,
) -> Result<()> {
    let started = begun.and_then(|begun| launch::go_on(supervised, begun, first));
    let publisher = started.and_then(|()| publish::Publisher::start(supervised));
    let (ending, publisher) = match publisher {
        Ok(publisher) => (wait(supervised, events).map(end::Ending::Over)?, publisher),
        Err(error) => (end::Ending::Failed(Failure::of(&error)), None),
    };
    end::end(supervised, ending, publisher)
}

fn wait(supervised: &Supervised, events: &Receiver<Event>) -> Result<Event> {
    tracing::info!(pod = supervised.pod.id, "supervising");
    let event = events.recv().context("the events ended")?;
    if let Event::MainExited(status) = event {
        // Before anything is ended: should we die meanwhile, the next supervisor finds init gone.
        supervised.change(|state| state.exit = Some(Exit::of(status)))?;
    }
    // A move that is under way knows better why the pod ends.
    let _over = supervised.moving.lock();
    let moved = supervised.facts().moved_to.clone();
    Ok(moved.map_or(event, Event::Moved))
}

/// Whether a program of the pod can still be spoken to.
fn is_live(phase: Phase) -> bool {
    matches!(
        phase,
        Phase::Running | Phase::Paused | Phase::Held | Phase::Undecided
    )
}
