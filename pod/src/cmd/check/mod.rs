//! `pod check`: what this host can do, what stands in the way of a pod's checkpoint, and what another host
//! lacks for it. Exit code 0 says
//! that nothing does, 1 that something does.

mod host;
mod probe;
mod there;

use anyhow::Result;
use restore::check::Report;

use crate::cli::{Check, Format};
use crate::failure::Failure;
use crate::messages::{Ask, Told};
use crate::output;
use crate::store::{Pod, Store};
use crate::supervise::Client;

/// Exit code for what does not fit.
const UNFIT: u8 = 1;

/// Runs the command.
pub(super) fn check(store: &Store, arguments: &Check, format: Format) -> Result<u8> {
    if let Some(to) = &arguments.to {
        return there::check(store, to, arguments.pod.as_deref(), format);
    }
    match &arguments.pod {
        Some(name) => pod(&store.find(name)?, format),
        None => host::check(format),
    }
}

fn pod(pod: &Pod, format: Format) -> Result<u8> {
    let (told, _) = Client::to_live(pod)?.ask(&Ask::Check)?;
    let Told::Checked(report) = told else {
        return Err(Failure::new("the supervisor gave an answer to another question").into());
    };
    match format {
        Format::Json => output::json(&report)?,
        Format::Table => show(&pod.config()?.name, &report)?,
    }
    Ok(if report.refusals.is_empty() { 0 } else { UNFIT })
}

fn show(name: &str, report: &Report) -> Result<()> {
    let number = |fd: Option<i32>| fd.map_or_else(|| "-".to_owned(), |fd| fd.to_string());
    let rows: Vec<_> = report
        .refusals
        .iter()
        .map(|r| {
            [
                r.pid.to_string(),
                number(r.fd),
                r.what.clone(),
                r.why.clone(),
                r.hint.clone(),
            ]
        })
        .collect();
    if rows.is_empty() {
        let count = report.processes;
        output::print(&format!(
            "{name}: {count} processes, all of it can be carried\n"
        ))?;
    } else {
        output::table(["PID", "FD", "WHAT", "WHY NOT", "ADVICE"], &rows)?;
    }
    for note in &report.notes {
        let of = number(note.fd);
        output::print(&format!(
            "note: process {}, descriptor {of}: {}: {}\n",
            note.pid, note.what, note.why
        ))?;
    }
    Ok(())
}
