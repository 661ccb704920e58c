//! The syscall table of x86-64 as data.
//!
//! Each syscall has one row: which argument carries which kind of name, whether it goes
//! in or comes out, what the result is, and which verb handles it when names of that
//! class are held by interception. The filter, the dispatch and the reference page are
//! made from these rows, so they cannot drift apart; a syscall number without a row does
//! not compile, because the rows are the arms of an exhaustive `match`.
//!
//! ```text
//!   rows ──▶ filter    which calls are notified under a plan
//!        ──▶ engine    which verb serves a notification, what a detour translates
//!        ──▶ page      docs/syscalls.md
//! ```

use serde::{Deserialize, Serialize};
pub use syscalls::Sysno;

mod page;
mod rows;

pub use page::markdown;
pub use rows::row;

/// Who holds a class of names: `kernel` (a namespace, no cost) or `notify` (interception).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backing {
    /// A namespace makes real and virtual names equal.
    #[default]
    Kernel,
    /// Calls that carry such names are intercepted.
    Notify,
}

/// What is intercepted for one pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Plan {
    /// Process, thread, group and session ids.
    pub pids: Backing,
    /// System V ids and keys.
    pub ipc: Backing,
    /// Host and domain name.
    pub hosts: Backing,
    /// Addresses of sockets: true under a shared network, in every backing.
    pub endpoints: bool,
}

impl Plan {
    /// Whether anything at all has to be intercepted.
    #[must_use]
    pub fn intercepts(&self) -> bool {
        [Class::Pids, Class::Ipc, Class::Hosts, Class::Endpoints]
            .into_iter()
            .any(|class| self.covers(class))
    }

    /// Whether calls that carry names of `class` are intercepted.
    #[must_use]
    pub fn covers(&self, class: Class) -> bool {
        match class {
            Class::None => false,
            Class::Always => true,
            Class::Pids => self.pids == Backing::Notify,
            Class::Ipc => self.ipc == Backing::Notify,
            Class::Hosts => self.hosts == Backing::Notify,
            Class::Endpoints => self.endpoints,
        }
    }
}

/// The class of names that decides whether a call is intercepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// No name that differs from host to host.
    None,
    /// Processes, threads, groups, sessions.
    Pids,
    /// System V shared memory, semaphores, queues.
    Ipc,
    /// Host and domain name.
    Hosts,
    /// Socket addresses.
    Endpoints,
    /// Handled under every plan that intercepts anything.
    Always,
}

/// How a call is handled when its class is intercepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Not intercepted.
    None,
    /// The supervisor returns the value.
    Answer,
    /// The supervisor does the call, which cannot block, on a duplicate of the descriptor.
    Perform,
    /// The task runs the call with translated arguments; the result is translated back.
    Detour,
    /// The call fails, because it would reach past the names (or past the filter).
    Refuse,
    /// The call carries such a name, which passes as it is; the reference page says so.
    Pass,
}

/// What an argument or a result means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Anything that is the same everywhere.
    Value,
    /// A file descriptor.
    Fd,
    /// A process id; 0 means the caller.
    Pid,
    /// A process id where 0 and −1 mean sets, and −n the process group n (kill, wait4).
    PidSet,
    /// A thread id; 0 means the caller.
    Tid,
    /// A process group id; 0 means the caller's.
    Pgid,
    /// A session id.
    Sid,
    /// A pid, group or user, as another argument says (waitid, getpriority, ioprio_get).
    Who,
    /// A System V key.
    Key,
    /// A shared memory id.
    Shm,
    /// A semaphore set id.
    Sem,
    /// A message queue id.
    Msg,
    /// Pointer to a socket address (its length is another argument).
    Sockaddr,
    /// Pointer to a `msghdr`, which may hold an address and descriptors.
    Msghdr,
    /// Pointer to a structure with pids in it (siginfo, clone_args, thread id words).
    PidBuf,
    /// Pointer to a System V status structure.
    IpcBuf,
    /// Pointer to host names.
    HostBuf,
}

/// Whether the program gives a name or is told one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dir {
    /// Program to kernel.
    In,
    /// Kernel to program.
    Out,
}

/// One argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arg {
    /// What it means.
    pub kind: Kind,
    /// Which way the name goes.
    pub dir: Dir,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// The call.
    pub nr: Sysno,
    /// Its arguments, in order.
    pub args: &'static [Arg],
    /// Its result.
    pub ret: Kind,
    /// The class of names that decides.
    pub class: Class,
    /// The verb when that class is intercepted.
    pub verb: Verb,
}

impl Row {
    /// The verb under this plan.
    #[must_use]
    pub fn verb_under(&self, plan: &Plan) -> Verb {
        if plan.covers(self.class) {
            self.verb
        } else {
            Verb::None
        }
    }
}

/// All rows, by syscall number.
pub fn all() -> impl Iterator<Item = &'static Row> {
    Sysno::iter().map(row)
}

/// The row of a raw syscall number, if there is such a call.
#[must_use]
pub fn by_number(nr: i64) -> Option<&'static Row> {
    usize::try_from(nr).ok().and_then(Sysno::new).map(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_has_its_own_row() {
        assert!(all().count() > 370);
        for r in all() {
            assert_eq!(row(r.nr).nr, r.nr);
            assert!(r.args.len() <= 6, "{}", r.nr);
        }
        assert_eq!(by_number(libc::SYS_kill).unwrap().nr, Sysno::kill);
        assert!(by_number(100_000).is_none());
    }

    #[test]
    fn no_pid_goes_in_unseen_under_notify() {
        let plan = Plan {
            pids: Backing::Notify,
            ipc: Backing::Notify,
            ..Plan::default()
        };
        let foreign = [Kind::Pid, Kind::PidSet, Kind::Tid, Kind::Pgid, Kind::Shm];
        for r in all() {
            let named = |a: &Arg| a.dir == Dir::In && foreign.contains(&a.kind);
            if r.args.iter().any(named) {
                let verb = r.verb_under(&plan);
                assert!(!matches!(verb, Verb::None | Verb::Pass), "{}", r.nr);
            }
        }
    }

    #[test]
    fn the_reference_page_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/syscalls.md");
        if std::env::var_os("POD_WRITE_DOCS").is_some() {
            std::fs::write(path, markdown()).unwrap();
        }
        let on_disk = std::fs::read_to_string(path).unwrap();
        assert!(
            on_disk == markdown(),
            "run the test with POD_WRITE_DOCS=1 to write docs/syscalls.md"
        );
    }
}
