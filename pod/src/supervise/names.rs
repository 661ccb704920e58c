//! The pod's names: what is intercepted, and the engine that serves it.
//!
//! ```text
//!   config ─▶ Plan ─▶ filter ─▶ Setup ─▶ init installs it ─▶ listener ─▶ Engine ◀─ tables
//! ```

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use intercept::engine::{Engine, Shared, Trusted};
use intercept::filter::Program;
use intercept::names::Tables;
use intercept::sys::pidfd_getfd;
use intercept::table::{Backing, Plan};

use super::Supervised;
use super::init_link::InitLink;
use super::pod_of;
use crate::failure::Failure;
use crate::holder::LISTENER;
use crate::messages::ToInit;
use crate::store::{Config, NamesChoice, Net};

/// Init's number in the pod.
const INIT: i32 = 1;

/// What enforces the names of one running pod.
pub(super) struct Names {
    pub(super) tables: Shared,
    /// Processes of ours in the pod, whose calls pass untouched.
    pub(super) trusted: Trusted,
    /// `None` where nothing is intercepted.
    pub(super) engine: Option<Engine>,
}

/// What has to be intercepted for a pod.
pub(super) fn plan(config: &Config) -> Plan {
    let backing = match config.names {
        NamesChoice::Auto | NamesChoice::Kernel => Backing::Kernel,
        NamesChoice::Notify => Backing::Notify,
    };
    Plan {
        pids: backing,
        ipc: backing,
        hosts: backing,
        endpoints: config.net == Net::Shared,
    }
}

/// The filter for init to install, in the kernel's layout.
pub(super) fn filter(plan: &Plan) -> Result<Option<Vec<u8>>> {
    let program = plan.intercepts().then(|| Program::new(plan)).transpose()?;
    Ok(program.map(|program| program.to_bytes()))
}

/// What holds each kind of name, for people.
pub(super) fn backings(config: &Config) -> BTreeMap<String, String> {
    let plan = plan(config);
    let word = |backing| match backing {
        Backing::Kernel => "kernel",
        Backing::Notify => "notify",
    };
    let endpoint = if plan.endpoints { "notify" } else { "kernel" };
    [
        ("process", word(plan.pids)),
        ("ipc", word(plan.ipc)),
        ("host", word(plan.hosts)),
        ("clock", "kernel"),
        ("endpoint", endpoint),
    ]
    .map(|(kind, holder)| (kind.to_owned(), holder.to_owned()))
    .into()
}

/// Takes the listener out of init and serves it from now on.
///
/// The holder keeps a copy, and init's is closed: were it left there, calls would wait for ever
/// when the last supervisor is gone.
pub(super) fn begin(supervised: &Supervised, link: &InitLink, listener: Option<i32>) -> Result<()> {
    let taken = listener
        .map(|number| pidfd_getfd(link.process().as_fd(), number))
        .transpose()
        .context("take the interception listener")?;
    if let Some(listener) = &taken {
        supervised.holder.keep(LISTENER, listener)?;
    }
    serve(supervised, taken)?;
    if listener.is_some() {
        link.order(ToInit::ListenerTaken, &[])?;
    }
    Ok(())
}

/// Serves a listener (one that an earlier supervisor left, say).
pub(super) fn serve(supervised: &Supervised, listener: Option<OwnedFd>) -> Result<()> {
    let tracer = supervised.tracer()?;
    let tables = Arc::new(Mutex::new(tables(&supervised.config)?));
    let trusted = Trusted::default();
    if let Some(init) = supervised.facts().state.init {
        trusted.insert(init);
        lock(&tables).pids.bind(INIT, init);
    }
    let start = |fd| Engine::start(fd, Arc::clone(&tables), trusted.clone(), tracer.clone());
    let engine = listener
        .map(start)
        .transpose()
        .context("start the interception engine")?;
    let names = Names {
        tables,
        trusted,
        engine,
    };
    // There is one beginning in the life of a supervisor.
    let _ = supervised.names.set(names);
    Ok(())
}

/// Interception stands still as long as this lives: no task of the pod is away on a detour, and
/// calls made meanwhile wait in the kernel, not yet begun.
pub(super) struct Pause<'a>(Option<&'a Engine>);

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        if let Some(engine) = self.0 {
            engine.resume();
        }
    }
}

impl Supervised {
    /// Has interception stand still, before the pod is frozen. Not on the tracer thread.
    pub(super) fn pause_names(&self) -> Result<Pause<'_>> {
        let engine = self.names.get().and_then(|names| names.engine.as_ref());
        let pause = Pause(engine);
        if engine.is_none_or(Engine::pause) {
            return Ok(pause);
        }
        let failure = Failure::new("a program waits for a child that it made with vfork");
        Err(failure
            .hint("try again when the child has started its program")
            .into())
    }
}

fn lock(tables: &Shared) -> MutexGuard<'_, Tables> {
    tables.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes what the pod leaves in tables of the kernel's that it shared with its host.
pub(super) fn clean(supervised: &Supervised) {
    if let Some(names) = supervised.names.get() {
        lock(&names.tables).ipc.remove_all();
    }
}

/// The tables a pod begins with: those of its image, if it comes from one.
fn tables(config: &Config) -> Result<Tables> {
    let of_image = config.image.as_ref().map(|image| pod_of(image));
    let mut tables = of_image
        .transpose()?
        .map(|pod| pod.names)
        .unwrap_or_default();
    tables.plan = plan(config);
    if tables.hosts.node.is_empty() {
        tables.hosts.node = config.hostname.clone().into_bytes();
        tables.hosts.domain = b"(none)".to_vec();
    }
    for published in &config.publish {
        tables.endpoints.publish(published.pod, published.host);
    }
    Ok(tables)
}
