//! Bringing a pod to life, or taking over one that lives.
//!
//! ```text
//!   init ──────▶ go_on: groups, layer ─▶ Setup ─┬▶ pipes or terminal ─▶ Spawn ─▶ running
//!                                               └▶ held, when it comes from an image: seeds, builder, Adopt follow
//!   take_over ─▶ go_on: nothing to do
//! ```

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use intercept::table::Backing;

use super::holder_link::Kept;
use super::init_link::InitLink;
use super::{
    INIT, INIT_PROCESS, STREAMS, Supervised, image, is_live, names, process, restart, streams,
};
use crate::agent::arrival;
use crate::failure::Failure;
use crate::holder::LISTENER;
use crate::messages::{Answer, Program, Setup, ToInit};
use crate::store::{Config, Made, Net, Phase};
use crate::wire::Wire;
use crate::{cgroup, layer, net, userns};

/// The link to init.
pub(super) struct Begun(Arc<InitLink>);

/// Starts init. Must be called while the supervisor has one thread.
pub(super) fn init(supervised: &Arc<Supervised>) -> Result<Begun> {
    supervised.change(|state| state.phase = Phase::Starting)?;
    let process = process::start(process::namespaces(&supervised.config))?;
    supervised.holder.init(process.pid)?;
    supervised.holder.keep(INIT, &process.wire)?;
    supervised.holder.keep(INIT_PROCESS, &process.pidfd)?;
    supervised.change(|state| state.init = Some(process.pid))?;
    Ok(Begun(Arc::new(InitLink::new(process.wire, process.pidfd))))
}

/// Takes over from a supervisor that died.
pub(super) fn take_over(supervised: &Arc<Supervised>, mut kept: Kept) -> Result<Begun> {
    let mut take = |name: &str| {
        kept.remove(name)
            .with_context(|| format!("the holder has no {name}"))
    };
    let (wire, process) = (Wire::from(take(INIT)?), take(INIT_PROCESS)?);
    for name in STREAMS {
        let stream = take(name).ok().map(|fd| (name, Arc::new(fd)));
        supervised.facts().streams.extend(stream);
    }
    names::serve(supervised, kept.remove(LISTENER))?;
    // Whoever is answered by us finds no half of an image.
    let made = supervised.facts().state.made.clone();
    crate::cleanup::remove_images(&made)?;
    supervised.change(|state| state.made.images.clear())?;
    Ok(Begun(Arc::new(InitLink::new(wire, process))))
}

/// Goes on until the pod runs.
pub(super) fn go_on(supervised: &Arc<Supervised>, begun: Begun, first: bool) -> Result<()> {
    let link = begun.0;
    link.listen(supervised);
    supervised.facts().init = Some(Arc::clone(&link));
    if first {
        set_up(supervised, &link)?;
        return match supervised.config.image.clone() {
            None => spawn_main(supervised, &link),
            Some(image) => wake_main(supervised, &link, image),
        };
    }
    let phase = supervised.facts().state.phase;
    if !is_live(phase) {
        return Err(Failure::new("the supervisor died while the pod was being started").into());
    }
    if link.order(ToInit::Repeat, &[]).is_err() {
        // The pod is ending; its end is recorded when the loss of init is dealt with.
        tracing::debug!("init is gone");
    }
    supervised.take_up_arrival()?;
    supervised.take_up_move()
}

fn set_up(supervised: &Supervised, link: &InitLink) -> Result<()> {
    let config = &supervised.config;
    let groups = make_groups(supervised)?;
    make_network(supervised)?;
    let plan = names::plan(config);
    if let Some(image) = &config.image {
        image::unpack_layer(image, &supervised.pod.path("layer"))?;
    }
    let unprivileged = userns::needed();
    let root = layer::plan(&supervised.store, &supervised.pod, config, unprivileged)?;
    arrival::furnish(&supervised.pod, &root)?;
    let setup = Setup {
        hostname: config.hostname.clone(),
        loopback: config.net != Net::Shared,
        own_pids: plan.pids == Backing::Kernel,
        clocks: Some(clocks(config)?),
        root,
        mask: config.mask.profile().map(str::to_owned),
        filter: names::filter(&plan)?,
    };
    let (answer, _) = link.order(ToInit::Setup(Box::new(setup)), &groups)?;
    let Answer::Ready { listener, .. } = answer else {
        return Err(Failure::new("init gave an answer to another question").into());
    };
    names::begin(supervised, link, listener)?;
    supervised.change(|state| state.names = names::backings(config))
}

fn make_groups(supervised: &Supervised) -> Result<Vec<OwnedFd>> {
    let plan = cgroup::plan(supervised.store.root(), &supervised.config)?;
    supervised.change(|state| state.made.cgroups.clone_from(&plan.directories))?;
    plan.make()
}

fn make_network(supervised: &Supervised) -> Result<()> {
    let init = supervised
        .facts()
        .state
        .init
        .context("the pod has no init")?;
    let note = |note: &dyn Fn(&mut Made)| supervised.change(|state| note(&mut state.made));
    let (store, config) = (&supervised.store, &supervised.config);
    let address = net::make(&net::Site {
        store,
        config,
        init,
        note: &note,
    })?;
    supervised.change(|state| state.address = address)
}

fn spawn_main(supervised: &Supervised, link: &InitLink) -> Result<()> {
    let theirs = streams::make(supervised, link)?;
    let program = main_program(&supervised.config);
    let (answer, _) = link.order(
        ToInit::Spawn {
            program,
            main: true,
        },
        &theirs,
    )?;
    let Answer::Spawned { vpid } = answer else {
        return Err(Failure::new("init gave an answer to another question").into());
    };
    let vpid = supervised.held_by()?.of_init(vpid);
    supervised.change(|state| {
        state.phase = Phase::Running;
        state.main = Some(vpid);
        state.started = Some(crate::store::now());
    })
}

/// Offsets of the pod's clocks: they go on from where an image left them.
fn clocks(config: &Config) -> Result<(i64, i64)> {
    let Some(image) = &config.image else {
        return Ok((0, 0));
    };
    let (now, pod) = (image::clocks()?, restart::pod_of(image)?);
    Ok((pod.clocks.0 - now.0, pod.clocks.1 - now.1))
}

fn wake_main(supervised: &Supervised, link: &Arc<InitLink>, image: PathBuf) -> Result<()> {
    let theirs = streams::make(supervised, link)?;
    let named = streams::names(&supervised.config).iter().zip(theirs);
    let named = named.map(|(name, fd)| ((*name).to_owned(), fd)).collect();
    let main = restart::wake(supervised, link, image, named)?;
    supervised.change(|state| {
        state.phase = Phase::Held;
        state.main = Some(main);
    })?;
    if supervised.arrives()? {
        return Ok(());
    }
    supervised.let_run()
}

fn main_program(config: &Config) -> Program {
    Program {
        argv: config.command.clone(),
        env: config.env.clone(),
        cwd: config.cwd.clone(),
        user: config.user.clone(),
        umask: config.umask,
        tty: config.tty,
    }
}
