//! `pod inspect`: everything about a pod, as JSON. `pod names`: what holds its names.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::cli::Format;
use crate::failure::Failure;
use crate::messages::{Ask, Process, Told};
use crate::output;
use crate::store::{Base, Config, Exit, Phase, Pod, State};
use crate::supervise::Client;

#[derive(Debug, Serialize)]
struct Inspected {
    name: String,
    id: String,
    state: Phase,
    reason: Option<String>,
    host: String,
    address: Option<String>,
    hostname: String,
    command: Vec<String>,
    user: Option<String>,
    created: u64,
    started: Option<u64>,
    finished: Option<u64>,
    exit_code: Option<u8>,
    main: Option<i32>,
    init: Option<i32>,
    supervisor: Option<i32>,
    pids: Vec<Process>,
    names: BTreeMap<String, String>,
    net: String,
    files: Base,
    layer: Option<PathBuf>,
    image: Option<PathBuf>,
}

/// Runs `pod inspect`.
pub(super) fn inspect(pod: &Pod) -> Result<u8> {
    let (config, state) = (pod.config()?, pod.state()?);
    let pids = if state.phase.needs_a_holder() {
        processes(pod)?
    } else {
        Vec::new()
    };
    output::json(&inspected(pod, config, state, pids)?)?;
    Ok(0)
}

fn inspected(pod: &Pod, config: Config, state: State, pids: Vec<Process>) -> Result<Inspected> {
    let host = nix::unistd::gethostname()
        .context("the host's name")?
        .to_string_lossy()
        .into_owned();
    let layer = (config.base != Base::Host).then(|| pod.path("layer"));
    Ok(Inspected {
        name: config.name,
        id: config.id,
        state: state.phase,
        reason: state.reason,
        host,
        address: state.address,
        hostname: config.hostname,
        command: config.command,
        user: config.user,
        created: config.created,
        started: state.started,
        finished: state.finished,
        exit_code: state.exit.map(Exit::code),
        main: state.main,
        init: state.init,
        supervisor: state.supervisor,
        pids,
        names: state.names,
        net: config.net.to_string(),
        files: config.base,
        layer,
        image: config.image,
    })
}

fn processes(pod: &Pod) -> Result<Vec<Process>> {
    let Some(client) = Client::connect(pod)? else {
        return Ok(Vec::new());
    };
    match client.ask(&Ask::Processes)? {
        (Told::Processes(processes), _) => Ok(processes),
        _ => Err(Failure::new("the supervisor answered another question").into()),
    }
}

/// Runs `pod names`.
pub(super) fn names(pod: &Pod, format: Format) -> Result<u8> {
    let state = pod.state()?;
    match format {
        Format::Json => output::json(&state.names)?,
        Format::Table => {
            let rows: Vec<_> = state
                .names
                .into_iter()
                .map(|(kind, backing)| [kind, backing])
                .collect();
            output::table(["NAMES", "HELD BY"], &rows)?;
        }
    }
    Ok(0)
}
