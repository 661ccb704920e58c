//! `pod rm`: removes pods that are over. A layer that holds something is the user's work: ask.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cleanup;
use crate::cli::Remove;
use crate::failure::Failure;
use crate::layer::changes;
use crate::messages::Ask;
use crate::process::descendants;
use crate::store::{Base, Config, Pod, Store};
use crate::supervise::Client;
use crate::userns;

/// Runs the command.
pub(super) fn rm(store: &Store, arguments: &Remove) -> Result<u8> {
    if userns::needed() {
        // Files of the pod may belong to subordinate users.
        userns::enter()?;
    }
    for wanted in &arguments.pods {
        let pod = store.find(wanted)?;
        if arguments.force {
            end(&pod)?;
        } else {
            refuse_running(&pod)?;
            ask(&pod)?;
        }
        let _lock = store.lock()?;
        cleanup::remove(&pod).with_context(|| format!("remove pod {wanted}"))?;
    }
    Ok(0)
}

fn refuse_running(pod: &Pod) -> Result<()> {
    let state = pod.state()?;
    if pod.is_held()? && state.phase.needs_a_holder() {
        let name = pod.config()?.name;
        let hint = format!("pod stop {name}, or pod rm -f {name}");
        return Err(Failure::new(format!("pod {name} is {}", state.phase))
            .hint(hint)
            .into());
    }
    pod.until_let_go()
}

/// How long a supervisor may take to end its pod before it is ended together with it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ends a pod at once; one whose supervisor does not answer is killed with all that is around it.
fn end(pod: &Pod) -> Result<()> {
    let client = Client::connect(pod)?;
    if let Some(client) = &client {
        // It may be ending already.
        let _ = client.send(&Ask::Stop { seconds: 0 }, &[]);
    }
    if !let_go_within(pod, PATIENCE)? {
        kill_around(pod)?;
    }
    pod.until_let_go()
}

/// Whether the holder ends in time. A lock cannot be waited for with a deadline: it is looked at again.
fn let_go_within(pod: &Pod, patience: Duration) -> Result<bool> {
    let until = Instant::now() + patience;
    while pod.is_held()? {
        if Instant::now() >= until {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(true)
}

/// Kills holder, supervisor and every process of a pod.
fn kill_around(pod: &Pod) -> Result<()> {
    let state = pod.written_state()?;
    let supervisor = state.supervisor.filter(|pid| is_of(*pid, &pod.id));
    let holder = supervisor
        .and_then(parent_of)
        .filter(|pid| is_of(*pid, &pod.id));
    // The holder first: it would bring the supervisor back.
    let ours = holder.into_iter().chain(supervisor);
    let programs = state.init.filter(|_| supervisor.is_some()).into_iter();
    let programs = programs.flat_map(|init| descendants(init).into_iter().chain([init]));
    for pid in ours.chain(programs.collect::<Vec<_>>()) {
        // One that has just ended is what we want.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    Ok(())
}

/// Whether a process is one of ours around this pod: its command line ends with the pod's id.
fn is_of(pid: i32, id: &str) -> bool {
    crate::process::command_line(pid).ends_with(id)
}

fn parent_of(pid: i32) -> Option<i32> {
    intercept::names::pids::stat(pid).map(|stat| stat.ppid)
}

fn ask(pod: &Pod) -> Result<()> {
    let config = pod.config()?;
    let held = changes(pod, &|path| lower(&config, path))?.len();
    if held == 0 {
        return Ok(());
    }
    let what = format!("the layer of pod {} holds {held} changes", config.name);
    if std::io::stdin().is_terminal() && std::io::stderr().is_terminal() && confirmed(&what)? {
        return Ok(());
    }
    let hint = format!(
        "see them with: pod diff {0}; remove them too with: pod rm -f {0}",
        config.name
    );
    Err(Failure::new(what).hint(hint).into())
}

fn confirmed(what: &str) -> Result<bool> {
    write!(std::io::stderr(), "{what}; remove them? [y/N] ").context("ask")?;
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .context("read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// What lies under a path of the pod.
pub(super) fn lower(config: &Config, path: &Path) -> std::path::PathBuf {
    match &config.base {
        Base::Rootfs(directory) => directory.join(path.strip_prefix("/").unwrap_or(path)),
        _ => path.to_owned(),
    }
}
