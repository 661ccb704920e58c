//! Every message that crosses a socket on one host. Descriptors that belong to a message are named in
//! its comment, in their order.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::migrate::authority::Verdict;
use crate::migrate::message::Needs;
use crate::migrate::report::{Progress, Report};
use crate::store::{Exit, Volume};

/// The outcome of a request.
pub(crate) type Outcome<T> = Result<T, Failure>;

/// From the command line to the supervisor, over `ctl.sock`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// Wait until the main program runs (or could not be started).
    Started,
    /// Wait for the main program's exit.
    Wait,
    /// Send a signal to the main program, or to the program with a pid in the pod.
    Kill { signal: i32, vpid: Option<i32> },
    /// Ask the main program to end (SIGTERM), after `seconds` end the pod.
    Stop { seconds: u64 },
    /// Stop the time of every program in the pod.
    Pause,
    /// Let them go on.
    Resume,
    /// Run a program in the pod. Descriptors: standard input, output and error output, unless it gets a
    /// terminal, which then has so many rows and columns.
    Exec {
        program: Program,
        window: Option<(u16, u16)>,
    },
    /// The pod's input. Answered with the terminal's master, or the writing end of standard input.
    Attach,
    /// Close the pod's standard input.
    CloseInput,
    /// What runs in the pod.
    Processes,
    /// What the pod holds that cannot be carried.
    Check,
    /// Write an image of the pod, and end it unless it is to go on.
    Checkpoint { image: PathBuf, leave_running: bool },
    /// Move the pod. `Progress` comes until it is over, then `Migrated` or `Undecided`. Descriptors: the
    /// connection to the destination, see [`Channel`].
    Migrate {
        to: String,
        mode: String,
        channel: Channel,
        /// Reset connections that cannot move, instead of refusing to move the pod.
        reset: bool,
        /// Trouble on demand (`migrate::fault`).
        faults: String,
    },
    /// Ask how a move ended whose outcome is unknown. Descriptors: a connection to the destination, if any.
    Resolve { channel: Option<Channel> },
    /// What the pod needs of a host, and what it holds that cannot be carried.
    Needs,
    /// A pod that has arrived: wait until it is rebuilt and held. Who asks decides about it with `Go` or
    /// `Vanish`; when he hangs up before, the journal of the move does.
    Guard,
    /// Let the pod that arrived run.
    Go,
    /// Remove it.
    Vanish,
}

/// How the descriptors of a connection are to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Channel {
    /// Two: to read from, to write to.
    Plain,
    /// One socket, with TLS on it.
    Tls,
}

/// From the supervisor to the command line.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Told {
    Done,
    /// The main program runs and this is its pid in the pod.
    Started(i32),
    /// It ended.
    Exited(Exit),
    /// A program was started by `Exec`; its terminal's master is beside it if it has one. `Exited` follows.
    Running(i32),
    /// `Attach`: a descriptor is beside it if the pod has an input.
    Input,
    Processes(Vec<Process>),
    /// `Check`.
    Checked(restore::check::Report),
    /// `Checkpoint`: the image is on disk.
    Checkpointed(Checkpointed),
    /// `Migrate`: it goes on.
    Progress(Progress),
    /// `Migrate`: the pod lives at the destination.
    Migrated(Box<Report>),
    /// `Migrate`, `Resolve`: the outcome is unknown, the pod stays frozen.
    Undecided(Failure),
    /// `Resolve`: the outcome; nothing was open if there is none.
    Resolved(Option<Verdict>),
    Needs(Box<Needs>),
}

/// What a checkpoint came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checkpointed {
    pub(crate) processes: usize,
    pub(crate) threads: usize,
    /// Length of the image's files.
    pub(crate) bytes: u64,
    /// How long the pod stood still.
    pub(crate) frozen_micros: u64,
    /// From the request to the image's name.
    pub(crate) total_micros: u64,
}

/// A program in the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// As the pod sees it.
    pub(crate) vpid: i32,
    /// On this host, now.
    pub(crate) pid: i32,
    pub(crate) command: String,
}

/// What to run, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Program {
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: String,
    /// `user[:group]`, resolved in the pod.
    pub(crate) user: Option<String>,
    pub(crate) umask: u32,
    /// It gets a terminal, not three descriptors.
    pub(crate) tty: bool,
}

/// From the supervisor to init. Init answers each with a [`FromInit::Answer`] of the same number.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) number: u64,
    pub(crate) body: ToInit,
}

/// What init is asked to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToInit {
    /// Make the pod's world. Descriptors: `cgroup.procs` of each group its programs belong to.
    Setup(Box<Setup>),
    /// The supervisor has taken the interception listener: close init's copy of it.
    ListenerTaken,
    /// Make a terminal in the pod.
    OpenTerminal { window: Option<(u16, u16)> },
    /// Start a program. Descriptors: standard input, output, error output; or its terminal.
    Spawn { program: Program, main: bool },
    /// Fork a task for a restart, with this pid if one is given. It waits with the stub page mapped.
    /// Descriptor: the feed's receiving end, which it keeps.
    SpawnSeed { vpid: Option<i32> },
    /// Fork the builder of a restart, with a pid that no task of the image has. Descriptor: its socket.
    Builder { vpid: Option<i32> },
    /// A restored task is the pod's main program.
    Adopt { vpid: i32 },
    /// Send a signal from inside the pod.
    Kill { vpid: i32, signal: i32 },
    /// Say again how the main program ended, if it has: a supervisor may have died of hearing it.
    Repeat,
    /// End everything and exit.
    Shutdown,
}

/// What init says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromInit {
    /// Descriptors: see [`Answer`].
    Answer {
        number: u64,
        outcome: Outcome<Answer>,
    },
    /// A program has ended, with this status of wait(2). `order` is the number of the one that began it.
    Exited { order: u64, main: bool, status: i32 },
}

/// The outcome of an order.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    /// `Setup`: the number, in init, of the interception listener, if a filter was installed.
    Ready {
        listener: Option<i32>,
        read_only: Vec<String>,
    },
    /// `OpenTerminal`. Descriptors: the terminal's master, then the terminal itself.
    Terminal,
    /// `Spawn`, `SpawnSeed`, `Builder`. Descriptor: a pidfd.
    Spawned {
        vpid: i32,
    },
}

/// The pod's world, as init has to make it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) hostname: String,
    /// Bring the loopback device up.
    pub(crate) loopback: bool,
    /// Own process id namespace: /proc is mounted anew. Else init is a subreaper.
    pub(crate) own_pids: bool,
    /// Offsets of CLOCK_MONOTONIC and CLOCK_BOOTTIME in nanoseconds, in a new time namespace.
    pub(crate) clocks: Option<(i64, i64)>,
    pub(crate) root: Root,
    /// The profile of calls that programs must not make.
    pub(crate) mask: Option<String>,
    /// The interception filter: an array of `struct sock_filter`.
    pub(crate) filter: Option<Vec<u8>>,
}

/// The pod's files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Root {
    /// The store, which the pod must not see.
    pub(crate) hide: PathBuf,
    /// An empty directory to assemble the new root on.
    pub(crate) mount_point: PathBuf,
    /// A plain directory to be the root, under the overlays; without privilege.
    pub(crate) base: Option<PathBuf>,
    /// `None`: the host's files themselves.
    pub(crate) overlays: Option<Vec<Overlay>>,
    /// Mounted file systems that are shown read-only, because they cannot lie under a layer.
    pub(crate) read_only: Vec<PathBuf>,
    /// Without privilege on the host: `userxattr`, device nodes bound and not made.
    pub(crate) unprivileged: bool,
    /// Files of our own, bound over the pod's: (ours, where in the pod).
    pub(crate) files: Vec<(PathBuf, PathBuf)>,
    pub(crate) volumes: Vec<Volume>,
}

/// One file system of the host with the pod's writes on top.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Overlay {
    /// Where in the pod.
    pub(crate) at: PathBuf,
    /// On the host.
    pub(crate) lower: PathBuf,
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
}

/// From the supervisor to the holder.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToHolder {
    /// Keep a descriptor under a name, for the next supervisor. Descriptor: it.
    Keep { name: String },
    /// Close what is kept under a name.
    Drop { name: String },
    /// Write what comes from a descriptor to the log. Descriptor: it.
    Pump { terminal: bool, error: bool },
    /// Init's real pid: wait for it and no longer if the supervisor dies.
    Init { pid: i32 },
    /// The pod is over: write what is left, end the log, answer, and exit once the supervisor has.
    Finish,
}

/// From the holder to the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromHolder {
    /// A descriptor that was kept. Descriptor: it.
    Kept { name: String },
    /// All were sent. `first` is whether no supervisor ran before this one.
    Begin { first: bool },
    /// The log is complete.
    Finished,
}
