//! `pod run`: makes a pod, starts its holder, and (in the foreground) stays beside its program.

use std::collections::BTreeMap;
use std::env;
use std::io::IsTerminal;
use std::os::fd::AsFd;

use anyhow::Result;

use super::follow::{Ended, Session};
use crate::cli::{Files, Run};
use crate::failure::{Failure, Hinted};
use crate::messages::{Ask, Told};
use crate::store::{
    Base, CONFIG_VERSION, Config, Phase, Pod, State, Store, check_name, now, random_hex,
};
use crate::supervise::Client;
use crate::{cleanup, holder, net, output, terminal};

/// Variables a program gets from here unless `-e` says otherwise.
const INHERITED: [&str; 6] = ["PATH", "TERM", "LANG", "LC_ALL", "TZ", "COLORTERM"];
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs the command.
pub(super) fn run(store: &Store, arguments: Run) -> Result<u8> {
    let detach = arguments.detach;
    let config = configure(arguments)?;
    net::check(&config)?;
    let pod = store.create(&config)?;
    let session = Session::prepare(&pod, &config, detach)?;
    start_or_forget(store, &pod)?;
    eprintln_where(&config, &pod);
    if detach {
        output::print(&format!("{}\n", config.name))?;
        return Ok(0);
    }
    match session.stay()? {
        Ended::Exited(exit) => Ok(exit.code()),
        Ended::Detached => Ok(0),
    }
}

/// Starts a pod that was created just now; one that does not start leaves nothing behind.
pub(super) fn start_or_forget(store: &Store, pod: &Pod) -> Result<()> {
    start(store, pod).map_err(|error| forget(pod, error))
}

/// Starts the holder and waits until the program runs.
pub(super) fn start(store: &Store, pod: &Pod) -> Result<()> {
    let lock = pod.hold()?;
    pod.write_state(&State::new(Phase::Starting)?)?;
    holder::spawn(store, pod, lock)?;
    let answer = match Client::connect(pod)? {
        // A supervisor that has failed may be gone before we ask; then the state says why.
        Some(client) => match client.send(&Ask::Started, &[]) {
            Ok(()) => client.receive()?,
            Err(_) => None,
        },
        None => None,
    };
    match answer {
        Some((Told::Started(_), _)) => Ok(()),
        _ => was_started(pod),
    }
}

/// What the state says when the supervisor was gone before it could answer.
fn was_started(pod: &Pod) -> Result<()> {
    pod.until_let_go()?;
    let state = pod.state()?;
    match state.phase {
        Phase::Exited => Ok(()),
        Phase::Failed => Err(state
            .failure
            .unwrap_or_else(|| Failure::new("the pod failed"))
            .into()),
        _ => Err(Failure::new("the pod could not be started")
            .hint(format!("see {}", pod.path("trace.log").display()))
            .into()),
    }
}

/// A pod whose program never ran leaves nothing behind.
fn forget(pod: &Pod, error: anyhow::Error) -> anyhow::Error {
    let forgotten = pod.until_let_go().and_then(|()| cleanup::remove(pod));
    match forgotten {
        Ok(()) => error,
        Err(also) => error.context(format!("also: {also:#}")),
    }
}

fn configure(arguments: Run) -> Result<Config> {
    let id = random_hex(6)?;
    let name = arguments.name.unwrap_or_else(|| format!("pod-{id}"));
    check_name(&name)?;
    let base = base(arguments.fs, arguments.rootfs)?;
    let cwd = match (arguments.workdir, &base) {
        (Some(directory), _) => directory,
        (None, Base::Rootfs(_)) => "/".to_owned(),
        (None, _) => current_directory(),
    };
    for volume in &arguments.volumes {
        let source = volume.source.display();
        std::fs::metadata(&volume.source).hinted(
            format!("look at the volume {source}"),
            "-v SRC:DST needs a SRC that exists",
        )?;
    }
    let inherited = environment(&arguments.env);
    Ok(Config {
        version: CONFIG_VERSION,
        hostname: arguments.hostname.unwrap_or_else(|| name.clone()),
        machine_id: random_hex(16)?,
        created: now(),
        command: arguments.command,
        env: inherited,
        cwd,
        user: arguments.user,
        umask: umask(),
        names: arguments.names,
        net: arguments.net.unwrap_or_else(net::usual),
        base,
        volumes: arguments.volumes,
        publish: arguments.publish,
        stdin: arguments.interactive,
        tty: arguments.tty,
        window: terminal::size(std::io::stdin().as_fd()),
        memory: arguments.memory,
        pids: arguments.pids,
        mask: arguments.mask,
        image: None,
        id,
        name,
    })
}

fn base(files: Files, rootfs: Option<std::path::PathBuf>) -> Result<Base> {
    let Some(directory) = rootfs else {
        return Ok(if files == Files::Host {
            Base::Host
        } else {
            Base::Layer
        });
    };
    let directory = directory.canonicalize().hinted(
        format!("find the root {}", directory.display()),
        "--rootfs names a directory",
    )?;
    anyhow::ensure!(
        directory.is_dir(),
        Failure::new(format!("{} is no directory", directory.display()))
    );
    Ok(Base::Rootfs(directory))
}

fn current_directory() -> String {
    env::current_dir()
        .ok()
        .and_then(|path| path.into_os_string().into_string().ok())
        .unwrap_or_else(|| "/".to_owned())
}

/// The umask can only be read by setting it; nothing of ours writes meanwhile.
fn umask() -> u32 {
    let now = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    nix::sys::stat::umask(now);
    now.bits()
}

/// What is inherited, and what `-e` adds.
pub(super) fn environment(asked: &[String]) -> Vec<(String, String)> {
    let mut set = BTreeMap::from([("PATH".to_owned(), DEFAULT_PATH.to_owned())]);
    let here = |key: &str| env::var(key).ok().map(|value| (key.to_owned(), value));
    set.extend(INHERITED.iter().filter_map(|key| here(key)));
    for pair in asked {
        match pair.split_once('=') {
            Some((key, value)) => drop(set.insert(key.to_owned(), value.to_owned())),
            None => set.extend(here(pair)),
        }
    }
    set.into_iter().collect()
}

/// The start line, for people.
fn eprintln_where(config: &Config, pod: &Pod) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let place = match config.base {
        Base::Host => "to the host's own files".to_owned(),
        _ => format!(
            "to its layer ({}), see: pod diff {}",
            pod.path("layer").display(),
            config.name
        ),
    };
    use std::io::Write;
    // A closed standard error wants no start line.
    let _ = writeln!(
        std::io::stderr(),
        "pod {}: what it writes goes {place}",
        config.name
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_beats_what_is_inherited() {
        let set: BTreeMap<_, _> =
            environment(&["PATH=/x".into(), "A=b=c".into(), "NO_SUCH_VARIABLE".into()])
                .into_iter()
                .collect();
        assert_eq!(set["PATH"], "/x");
        assert_eq!(set["A"], "b=c");
        assert!(!set.contains_key("NO_SUCH_VARIABLE"));
    }
}
