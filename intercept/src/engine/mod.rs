//! The engine: serves the notified calls of one pod.
//!
//! One plain thread receives calls and hands each to the handler of its row. No handler
//! blocks: what could block is done by the task itself on a detour, on the tracer thread.
//!
//! ```text
//!   pod ──▶ listener ──▶ engine thread ──▶ handler ──▶ SEND value, errno, CONTINUE
//!                             ▲                └─────▶ tracer thread: detour
//!                             └── pause, resume, stop (from whoever freezes the pod)
//! ```
//!
//! **Pause.** A task that is away on a detour is traced, and a second tracer is refused: so
//! before a freeze the engine stops receiving and the detours drain. Calls that are made
//! meanwhile wait in the kernel, where a freeze finds them interruptible and not yet begun.
//!
//! **What shows.** A signal whose handler lacks SA_RESTART and which lands after a call was
//! notified and before it was received ends that call with EINTR, also one that natively never
//! gives it: that wait lies in the kernel and is interruptible there, whoever listens. Measured
//! at 2 to 4 of 100 such signals (7 to 15 without real-time priority) in a program that does
//! nothing but intercepted calls, on a busy machine; most signals come elsewhere.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use libc::pid_t;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use crate::{
    detour::{self, Job},
    diag,
    listener::{Listener, Notification, Reply},
    names::{Tables, endpoints::Bound},
    table::{self, Verb},
    tracer::Tracer,
    waiters::Waiters,
};
use call::{Call, Fail, Fault, Outcome};

mod call;
mod dispatch;
mod endpoints;
mod hosts;
mod ipc;
mod pids;

/// Processes of ours inside the pod, by real pid: their calls pass as they are.
#[derive(Debug, Clone, Default)]
pub struct Trusted(Arc<Mutex<BTreeSet<pid_t>>>);

impl Trusted {
    fn set(&self) -> MutexGuard<'_, BTreeSet<pid_t>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Trusts a process (init, a builder) with all its threads from now on.
    pub fn insert(&self, pid: pid_t) {
        self.set().insert(pid);
    }

    /// Ends the trust.
    pub fn remove(&self, pid: pid_t) {
        self.set().remove(&pid);
    }

    fn contains(&self, tid: pid_t) -> bool {
        let set = self.set();
        // Init has one thread; only while a builder is there can a thread of ours have another number.
        set.contains(&tid)
            || (set.len() > 1 && call::process_of(tid).is_ok_and(|pid| set.contains(&pid)))
    }
}

/// The tables as the engine and others share them.
pub type Shared = Arc<Mutex<Tables>>;

enum Command {
    Pause(Sender<()>),
    Resume,
    Stop,
}

/// A running engine; it stops when dropped.
pub struct Engine {
    commands: Sender<Command>,
    bell: Arc<EventFd>,
    tracer: Tracer,
    tables: Shared,
    thread: Option<JoinHandle<()>>,
}

/// How long parents in vfork may take before a pause gives up on them, in steps of a millisecond.
const VFORK_STEPS: u32 = 5000;

impl Engine {
    /// Starts to serve `listener`. The thread ends with the last task of the pod.
    ///
    /// # Errors
    /// What `eventfd` or `pthread_create` said.
    pub fn start(
        listener: OwnedFd,
        tables: Shared,
        trusted: Trusted,
        tracer: Tracer,
    ) -> io::Result<Self> {
        let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let (commands, orders) = channel();
        let server = Server {
            listener: Arc::new(Listener::new(listener)),
            tables: Arc::clone(&tables),
            waiters: Arc::default(),
            tracer: tracer.clone(),
            bell: Arc::clone(&bell),
            trusted,
            orders,
        };
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || server.serve())?;
        Ok(Self {
            commands,
            bell,
            tracer,
            tables,
            thread: Some(thread),
        })
    }

    fn command(&self, command: Command) {
        // Both fail only when the thread has ended with the last task of the pod.
        drop(self.commands.send(command));
        let _ = self.bell.write(1);
    }

    /// The tables; keep the lock short, each call waits for it.
    pub fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the pod listens on now.
    ///
    /// # Errors
    /// What `sock_diag` said.
    pub fn listeners(&self) -> io::Result<Vec<Bound>> {
        let alive = diag::listeners(0)?.iter().map(|l| l.cookie).collect();
        let mut tables = self.tables();
        tables.endpoints.retain_listeners(&alive);
        Ok(tables.endpoints.listeners().cloned().collect())
    }

    /// Stops receiving and brings every task back from its detour. False when a parent in
    /// vfork did not come back in time: resume then, and refuse the freeze.
    ///
    /// Must not be called on the tracer thread.
    #[must_use]
    pub fn pause(&self) -> bool {
        for _ in 0..VFORK_STEPS {
            let (done, paused) = channel();
            self.command(Command::Pause(done));
            let _ = paused.recv();
            if self.tracer.run(detour::drain).unwrap_or(0) == 0 {
                return true;
            }
            // The child of a vfork needs us to reach its exec: nothing tells when it has.
            self.resume();
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    }

    /// Goes on after a pause.
    pub fn resume(&self) {
        self.command(Command::Resume);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.command(Command::Stop);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// What the engine thread owns.
struct Server {
    listener: Arc<Listener>,
    tables: Shared,
    trusted: Trusted,
    tracer: Tracer,
    waiters: Arc<Waiters>,
    bell: Arc<EventFd>,
    orders: Receiver<Command>,
}

/// Puts the calling thread before ordinary ones, where that is allowed: as long as a call is
/// notified and not received, a signal shows in it (see the head of this file), and that time is
/// mostly the time this thread waits for a CPU. It works for microseconds and sleeps again.
fn hurry() {
    let param = libc::sched_param { sched_priority: 1 };
    let policy = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
    // SAFETY: `param` outlives the call. Its failure (no CAP_SYS_NICE) costs speed only.
    unsafe { libc::sched_setscheduler(0, policy, &raw const param) };
}

impl Server {
    fn serve(self) {
        hurry();
        while let Some(ready) = self.ready() {
            if ready && !self.receive() {
                return;
            }
        }
    }

    /// Waits for a call (true) or has obeyed a command (false); `None` ends the engine.
    fn ready(&self) -> Option<bool> {
        let mut fds = [
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.bell.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => {
                tracing::error!(%error, "poll of the seccomp listener");
                return None;
            }
        }
        let [calls, bell] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        if bell.contains(PollFlags::POLLIN) {
            let _ = self.bell.read();
            return self.obey().then_some(false);
        }
        if calls.contains(PollFlags::POLLIN) {
            return Some(true);
        }
        (!calls.contains(PollFlags::POLLHUP)).then_some(false)
    }

    /// Obeys all commands there are; false for stop. A pause lasts until the resume.
    fn obey(&self) -> bool {
        let mut paused = false;
        loop {
            let next = if paused {
                self.orders.recv().ok()
            } else {
                self.orders.try_recv().ok()
            };
            match next {
                Some(Command::Pause(done)) => {
                    let _ = done.send(());
                    paused = true;
                }
                Some(Command::Resume) => paused = false,
                Some(Command::Stop) => return false,
                None => return !paused,
            }
        }
    }

    /// Receives and serves one call; false when the listener is broken.
    fn receive(&self) -> bool {
        match self.listener.recv() {
            Ok(Some(notification)) => self.call(notification),
            Ok(None) => {}
            Err(error) => {
                tracing::error!(%error, "seccomp listener");
                return false;
            }
        }
        true
    }

    fn call(&self, n: Notification) {
        let (id, tid, nr) = (n.id, n.tid, n.nr);
        let reply = match self.handle(n) {
            Ok(Outcome::Reply(reply)) => reply,
            Ok(Outcome::Detour(detour)) => return self.detour(n, *detour),
            Err(Fail::Errno(errno)) => Reply::Errno(errno),
            Err(Fail::Gone) => return,
            Err(Fail::Fault(error)) => {
                tracing::warn!(tid, nr, %error, "call not served");
                Reply::Errno(libc::ENOSYS)
            }
        };
        if let Err(error) = self.listener.send(id, reply) {
            tracing::warn!(tid, nr, %error, "answer not taken");
        }
    }

    fn handle(&self, n: Notification) -> Result<Outcome, Fail> {
        if self.trusted.contains(n.tid) {
            return Ok(Outcome::Reply(Reply::Continue));
        }
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let row = table::by_number(n.nr).ok_or(Fail::Fault(Fault::Unhandled(n.nr)))?;
        // The filter was made for another plan than ours: after a restart under other backings.
        if matches!(row.verb_under(&tables.plan), Verb::None | Verb::Pass) {
            return Ok(Outcome::Reply(Reply::Continue));
        }
        let call = Call {
            n,
            listener: &self.listener,
        };
        dispatch::serve(row, &call, &mut tables)
    }

    fn detour(&self, n: Notification, detour: detour::Detour) {
        let job = Job {
            id: n.id,
            tid: n.tid,
            detour,
            listener: Arc::clone(&self.listener),
            tables: Arc::clone(&self.tables),
        };
        detour::start(&self.tracer, &self.waiters, job);
    }
}
