//! What each command does, one file each. A command returns the exit code.

mod agent;
mod attach;
mod check;
mod checkpoint;
mod cp;
mod diff;
mod exec;
mod follow;
mod generate;
mod image;
mod inspect;
mod kill;
mod logs;
mod migrate;
mod pause;
mod ps;
mod restore;
mod rm;
mod run;
mod stop;
mod wait;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::agent::{name_server, worker};
use crate::cli::{Cli, Command, Globals, Internal};
use crate::messages::Channel;
use crate::store::{Pod, Store};
use crate::{holder, init, supervise};

/// Runs the command line.
pub(crate) fn run(cli: Cli) -> Result<u8> {
    let globals = cli.globals;
    if let Command::Internal(internal) = cli.command {
        return self::internal(internal, &globals).map(|()| 0);
    }
    if let Command::Generate(what) = &cli.command {
        return generate::generate(what);
    }
    let store = open_store(&globals)?;
    match cli.command {
        Command::Run(arguments) => run::run(&store, *arguments),
        Command::Ps(arguments) => ps::ps(&store, &arguments, globals.format),
        Command::Inspect(one) => inspect::inspect(&store.find(&one.pod)?),
        Command::Names(one) => inspect::names(&store.find(&one.pod)?, globals.format),
        Command::Logs(arguments) => logs::logs(&store.find(&arguments.pod)?, &arguments),
        Command::Exec(arguments) => exec::exec(&store.find(&arguments.pod)?, *arguments),
        Command::Attach(one) => attach::attach(&store.find(&one.pod)?),
        Command::Wait(one) => wait::wait(&store.find(&one.pod)?),
        Command::Kill(arguments) => kill::kill(&store.find(&arguments.pod)?, &arguments),
        Command::Stop(arguments) => stop::stop(&store.find(&arguments.pod)?, arguments.time),
        Command::Pause(one) => pause::pause(&store.find(&one.pod)?),
        Command::Resume(one) => pause::resume(&store.find(&one.pod)?),
        Command::Rm(arguments) => rm::rm(&store, &arguments),
        Command::Checkpoint(arguments) => {
            checkpoint::checkpoint(&store.find(&arguments.pod)?, &arguments, globals.format)
        }
        Command::Restore(arguments) => restore::restore(&store, arguments),
        Command::Check(arguments) => check::check(&store, &arguments, globals.format),
        Command::Image(command) => image::image(&command, globals.format),
        Command::Diff(one) => diff::diff(&store.find(&one.pod)?, globals.format),
        Command::Cp(arguments) => cp::cp(&store, &arguments),
        Command::Migrate(arguments) => migrate::migrate(&store, &arguments, globals.format),
        Command::Agent(arguments) => agent::agent(&store, &arguments),
        Command::Generate(_) | Command::Internal(_) => Ok(0),
    }
}

/// The root: as told, or the usual place for the user.
fn open_store(globals: &Globals) -> Result<Store> {
    let root = globals.root.clone().map_or_else(usual_root, Ok)?;
    Store::open(&root)
}

fn usual_root() -> Result<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Ok("/var/lib/pod".into());
    }
    let state = std::env::var_os("XDG_STATE_HOME")
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    Ok(state
        .or_else(home)
        .context("neither --root, XDG_STATE_HOME nor HOME says where state goes")?
        .join("pod"))
}

fn internal(internal: Internal, globals: &Globals) -> Result<()> {
    match internal {
        Internal::AgentWorker => worker::serve(&open_store(globals)?, Channel::Plain),
        Internal::AgentWorkerTls => worker::serve(&open_store(globals)?, Channel::Tls),
        Internal::NameServer => name_server::run(open_store(globals)?.root()),
        around_a_pod => around(around_a_pod, globals),
    }
}

fn around(internal: Internal, globals: &Globals) -> Result<()> {
    // SAFETY: who starts these roles hands them this descriptor, and nobody else in this process uses it.
    let handed = unsafe { OwnedFd::from_raw_fd(holder::HANDED) };
    nix::fcntl::fcntl(
        &handed,
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC),
    )
    .context("this command is started by pod itself")?;
    let pod = |id: &str| -> Result<(Store, Pod)> {
        let store = open_store(globals)?;
        let pod = store.find(id)?;
        Ok((store, pod))
    };
    match internal {
        Internal::Holder { id } => {
            let (store, pod) = pod(&id)?;
            let ended = holder::run(store, pod);
            // The lock: whoever waits for it may remove the pod now.
            drop(handed);
            ended
        }
        Internal::Supervise { id } => {
            let (store, pod) = pod(&id)?;
            supervise::run(store, pod, handed.into())
        }
        Internal::Init => init::run(handed.into()),
        Internal::AgentWorker | Internal::AgentWorkerTls | Internal::NameServer => Ok(()),
    }
}

/// Standard input, output and error output, or /dev/null in the place of the first.
fn standard(with_input: bool) -> Result<[OwnedFd; 3]> {
    let copy = |fd: BorrowedFd<'_>| {
        fd.try_clone_to_owned()
            .context("duplicate a standard descriptor")
    };
    let input = if with_input {
        copy(std::io::stdin().as_fd())?
    } else {
        File::open("/dev/null").context("open /dev/null")?.into()
    };
    Ok([
        input,
        copy(std::io::stdout().as_fd())?,
        copy(std::io::stderr().as_fd())?,
    ])
}
