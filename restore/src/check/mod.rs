//! What a running pod holds that cannot be carried, found while it runs.
//!
//! Nothing is stopped, peeked or set: /proc tells of descriptors, memory and tasks, and
//! only sockets are looked at through a duplicate, which is closed at once. What comes and
//! goes meanwhile is skipped: a capture looks again when all stands still, and refuses
//! what could only be seen then.
//!
//! ```text
//! for each process ─┬─ tasks        tracer, filters, namespaces, tables of their own, a wait that cannot be broken
//!                   ├─ descriptors  what has no room, by kind
//!                   └─ memory       what VmFlags say
//! between them      ─── address spaces and tables that two processes share
//! ```

mod descriptors;
mod tasks;

#[cfg(test)]
mod tests;

use libc::pid_t;
use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};
pub(crate) use tasks::HALF_A_THREAD;

use crate::{
    checkpoint::Subject,
    error::{Error, Refusal, Refusals, Result},
    freeze::descendants,
    resource::mm,
};

/// Something the user should know that is no obstacle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The process it is about, by its virtual pid.
    pub pid: i32,
    /// The descriptor, where it is about one.
    pub fd: Option<i32>,
    /// What it is.
    pub what: String,
    /// What will become of it.
    pub why: String,
}

/// What a look at a running pod brought.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How many processes were looked at.
    pub processes: usize,
    /// What cannot be carried.
    pub refusals: Vec<Refusal>,
    /// What else to know.
    pub notes: Vec<Note>,
}

impl Report {
    /// The report as an outcome.
    ///
    /// # Errors
    /// [`Error::Refused`] with all that cannot be carried.
    pub fn fit(self) -> Result<Self> {
        if self.refusals.is_empty() {
            return Ok(self);
        }
        Err(Error::Refused(Refusals(self.refusals)))
    }

    fn refuse(&mut self, pid: i32, fd: Option<i32>, what: impl Into<String>, reason: Reason) {
        let what = what.into();
        let (why, hint) = (reason.why.into_owned(), reason.hint.to_owned());
        self.refusals.push(Refusal {
            pid,
            fd,
            what,
            why,
            hint,
        });
    }
}

/// Why something cannot be carried, and what can be done.
struct Reason {
    why: std::borrow::Cow<'static, str>,
    hint: &'static str,
}

impl Reason {
    fn new(why: impl Into<std::borrow::Cow<'static, str>>, hint: &'static str) -> Self {
        let why = why.into();
        Self { why, hint }
    }
}

/// A process that is looked at: its pid on this host and in the pod.
#[derive(Debug, Clone, Copy)]
struct Looked {
    real: pid_t,
    virt: i32,
}

/// Looks at a running pod.
///
/// # Errors
/// /proc cannot be read, or the pod's processes are not ours to look at.
pub fn check(subject: &Subject<'_>) -> Result<Report> {
    let _span = tracing::info_span!("check", init = subject.init).entered();
    let mut report = Report::default();
    let looked = living(subject)?;
    report.processes = looked.len();
    let mut streams = Vec::new();
    for (name, fd) in &subject.streams {
        let stat = fstat(fd).map_err(|e| Error::kernel("fstat", name, e))?;
        streams.push((stat.st_dev, stat.st_ino));
    }
    for process in &looked {
        tasks::check(*process, (subject.init, subject.masks), &mut report);
        descriptors::check(*process, &streams, &mut report);
        memory(*process, &mut report);
    }
    tasks::check_sharing(&looked, &mut report);
    report.refusals.sort_by_key(|r| (r.pid, r.fd));
    Ok(report)
}

fn living(subject: &Subject<'_>) -> Result<Vec<Looked>> {
    let looked = |real| {
        let virt = subject.pids.virtual_of(real)?;
        (tasks::state(real)? != 'Z').then_some(Looked { real, virt })
    };
    Ok(descendants(subject.init)?
        .into_iter()
        .filter_map(looked)
        .collect())
}

fn memory(process: Looked, report: &mut Report) {
    // A process that ended meanwhile has none.
    for (what, why) in mm::uncarried(process.real).unwrap_or_default() {
        let reason = Reason::new(why, mm::HINT);
        report.refuse(process.virt, None, what, reason);
    }
}
