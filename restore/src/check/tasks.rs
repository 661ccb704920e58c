//! Tasks: who traces them, what confines them, what they share and what they wait for.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    time::{Duration, Instant},
};

use intercept::sys::{Kcmp, kcmp};
use libc::pid_t;

use super::{Looked, Reason, Report};

/// The fields of /proc/PID/task/TID/status.
struct Status(BTreeMap<String, String>);

impl Status {
    fn of(pid: pid_t, tid: pid_t) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).ok()?;
        let pair = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_owned(), value.trim().to_owned()))
        };
        Some(Self(text.lines().filter_map(pair).collect()))
    }

    fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &str) -> i64 {
        self.text(name).parse().unwrap_or(0)
    }
}

/// The state letter of a task; `None` when it is gone.
pub(super) fn state(pid: pid_t) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn threads(pid: pid_t) -> Vec<pid_t> {
    let entries = fs::read_dir(format!("/proc/{pid}/task"));
    let tids = entries.into_iter().flatten().flatten();
    tids.filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect()
}

/// Looks at the tasks of a process.
pub(super) fn check(process: Looked, (init, masks): (pid_t, i64), report: &mut Report) {
    let pid = process.real;
    let (Some(leader), Some(outer)) = (Status::of(pid, pid), Status::of(init, init)) else {
        return;
    };
    check_namespaces(process, init, report);
    for tid in threads(pid) {
        // A thread that ended meanwhile is no obstacle.
        let Some(status) = Status::of(pid, tid) else {
            continue;
        };
        let reasons = [
            traced(&status),
            filtered(&status, outer.number("Seccomp_filters") + masks),
            own_identity(&status, &leader),
            own_tables(pid, tid),
            stuck(pid, tid),
        ];
        for reason in reasons.into_iter().flatten() {
            report.refuse(process.virt, None, what(pid, tid, &status), reason);
        }
    }
}

fn what(pid: pid_t, tid: pid_t, status: &Status) -> String {
    let (name, kind) = (status.text("Name"), if pid == tid { "" } else { "thread " });
    format!("{kind}{name}")
}

fn traced(status: &Status) -> Option<Reason> {
    let tracer = status.number("TracerPid");
    // Our own thread traces a task for as long as it is away on a detour.
    let ours = fs::exists(format!("/proc/self/task/{tracer}")).unwrap_or(false);
    (tracer != 0 && !ours).then(|| {
        let name = fs::read_to_string(format!("/proc/{tracer}/comm")).unwrap_or_default();
        let why = format!("{} (process {tracer} of this host) traces it", name.trim());
        Reason::new(why, "end the debugger or strace before the checkpoint")
    })
}

/// Filters beyond those that we gave all programs of the pod are the program's own.
fn filtered(status: &Status, ours: i64) -> Option<Reason> {
    let own = match status.number("Seccomp") {
        1 => true,
        2 => status.number("Seccomp_filters") > ours,
        _ => false,
    };
    own.then(|| {
        Reason::new(
            "its own system call filter would not be there after the restart",
            "run the program without its sandbox (seccomp)",
        )
    })
}

/// A thread with rights of its own; a record has those of the whole process.
fn own_identity(status: &Status, leader: &Status) -> Option<Reason> {
    const IDENTITY: [&str; 8] = [
        "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb",
    ];
    let differs = |name: &&&str| status.text(name) != leader.text(name);
    IDENTITY.iter().find(differs).map(|name| {
        let why = format!("its {name} differs from that of its process");
        Reason::new(why, "retry when the thread has its rights back")
    })
}

fn own_tables(pid: pid_t, tid: pid_t) -> Option<Reason> {
    let (what, _) = TABLES[1..]
        .iter()
        .find(|(_, kind)| pid != tid && kcmp(pid, tid, *kind, 0, 0).is_ok_and(Ordering::is_ne))
        .map(|(what, kind)| (*what, kind))?;
    let why = format!("the thread has {what} of its own");
    Some(Reason::new(why, "end the thread before the checkpoint"))
}

/// How long a task may stay in a wait that no signal breaks before it counts as stuck.
const PATIENCE: Duration = Duration::from_millis(500);

/// A task that a stop would wait for without end. Disk waits are short: they are given some time. A
/// parent in vfork waits so too, and is let go on by the freeze.
fn stuck(pid: pid_t, tid: pid_t) -> Option<Reason> {
    let begun = Instant::now();
    let task = format!("/proc/{pid}/task/{tid}");
    while state(tid) == Some('D') && !in_vfork(pid, tid) {
        if begun.elapsed() > PATIENCE {
            let place = fs::read_to_string(format!("{task}/wchan")).unwrap_or_default();
            let why = format!("it is in an uninterruptible wait ({})", place.trim());
            return Some(Reason::new(
                why,
                "see to what it waits for: a disk, a network file system",
            ));
        }
        // The kernel has no event for the end of such a wait.
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

fn in_vfork(pid: pid_t, tid: pid_t) -> bool {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{tid}/children"));
    let children = children.unwrap_or_default();
    let mut children = children.split_whitespace().filter_map(|c| c.parse().ok());
    children.any(|child| kcmp(pid, child, Kcmp::Vm, 0, 0).is_ok_and(Ordering::is_eq))
}

const NAMESPACES: [&str; 9] = [
    "cgroup",
    "ipc",
    "mnt",
    "net",
    "pid",
    "pid_for_children",
    "time",
    "user",
    "uts",
];

fn check_namespaces(process: Looked, init: pid_t, report: &mut Report) {
    let of = |pid: pid_t, kind: &str| {
        let stat = fs::metadata(format!("/proc/{pid}/ns/{kind}")).ok()?;
        Some((stat.dev(), stat.ino()))
    };
    for kind in NAMESPACES {
        // Init itself stays in the time namespace in which it made the pod's.
        let inherited = if kind == "time" {
            "time_for_children"
        } else {
            kind
        };
        let (own, pods) = (of(process.real, kind), of(init, inherited));
        if own.is_some() && pods.is_some() && own != pods {
            let why = "namespaces that a program made for itself have no room";
            let reason = Reason::new(why, "run the program without its own containers or sandbox");
            report.refuse(process.virt, None, format!("a {kind} namespace"), reason);
        }
    }
}

/// What two processes may share without being threads of one.
const TABLES: [(&str, Kcmp); 3] = [
    ("memory", Kcmp::Vm),
    ("descriptors", Kcmp::Files),
    ("directories", Kcmp::Fs),
];

/// Finds processes that share memory, descriptors or directories, by the kernel's order of objects.
pub(super) fn check_sharing(all: &[Looked], report: &mut Report) {
    for (what, kind) in TABLES {
        let mut sorted: Vec<Looked> = all.to_vec();
        sort(&mut sorted, kind);
        for pair in sorted.windows(2).filter(|p| same(p[0], p[1], kind)) {
            let [one, other] = pair else { continue };
            if in_vfork(one.real, one.real) || in_vfork(other.real, other.real) {
                continue;
            }
            report.refuse(one.virt, None, HALF_A_THREAD, shares(what, other.virt));
        }
    }
}

/// What messages call a process that shares with another what threads share.
pub(crate) const HALF_A_THREAD: &str = "a process that is half a thread";

fn shares(what: &str, other: i32) -> Reason {
    let why = format!("it shares its {what} with process {other}");
    Reason::new(why, "end it before the checkpoint")
}

fn same(a: Looked, b: Looked, kind: Kcmp) -> bool {
    kcmp(a.real, b.real, kind, 0, 0).is_ok_and(Ordering::is_eq)
}

/// Sorts by the kernel's order. Not `sort_by`: a process that ends meanwhile has no place in any order.
fn sort(all: &mut [Looked], kind: Kcmp) {
    for end in 1..all.len() {
        let at = all[..end].partition_point(|p| {
            kcmp(p.real, all[end].real, kind, 0, 0).is_ok_and(Ordering::is_lt)
        });
        all[at..=end].rotate_right(1);
    }
}
