//! `pod ps`: the pods of this host.

use anyhow::Result;
use serde::Serialize;

use crate::cli::{Format, List};
use crate::output;
use crate::store::{Phase, Pod, Store, now};

#[derive(Debug, Serialize)]
struct Row {
    id: String,
    name: String,
    state: Phase,
    command: Vec<String>,
    created: u64,
    started: Option<u64>,
    exit_code: Option<u8>,
    reason: Option<String>,
}

/// Runs the command.
pub(super) fn ps(store: &Store, arguments: &List, format: Format) -> Result<u8> {
    let mut rows: Vec<Row> = store.list()?.iter().filter_map(row).collect();
    rows.retain(|row| arguments.all || !is_over(row.state));
    rows.sort_by_key(|row| std::cmp::Reverse(row.created));
    match format {
        Format::Json => output::json(&rows)?,
        Format::Table => output::table(
            ["ID", "NAME", "STATE", "AGE", "COMMAND"],
            &rows.iter().map(cells).collect::<Vec<_>>(),
        )?,
    }
    Ok(0)
}

/// A pod that is being removed at this moment has no row.
fn row(pod: &Pod) -> Option<Row> {
    let (config, state) = (pod.config().ok()?, pod.state().ok()?);
    Some(Row {
        id: config.id,
        name: config.name,
        state: state.phase,
        command: config.command,
        created: config.created,
        started: state.started,
        exit_code: state.exit.map(crate::store::Exit::code),
        reason: state.reason,
    })
}

fn is_over(phase: Phase) -> bool {
    matches!(
        phase,
        Phase::Exited | Phase::Failed | Phase::Lost | Phase::Created
    )
}

fn cells(row: &Row) -> [String; 5] {
    let state = match (row.exit_code, &row.reason) {
        (Some(code), _) => format!("{} ({code})", row.state),
        (None, Some(reason)) if row.state == Phase::Lost => format!("{}: {reason}", row.state),
        _ => row.state.to_string(),
    };
    let age = output::ago(now().saturating_sub(row.created));
    [
        row.id.clone(),
        row.name.clone(),
        state,
        age,
        row.command.join(" "),
    ]
}
