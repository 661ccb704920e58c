//! `pod rm`: removes pods that are over. A layer that holds something is the user's work: ask.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result};

use crate::cleanup;
use crate::cli::Remove;
use crate::failure::Failure;
use crate::layer::changes;
use crate::messages::Ask;
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

/// Ends a pod at once.
fn end(pod: &Pod) -> Result<()> {
    if let Some(client) = Client::connect(pod)? {
        // It may be ending already.
        let _ = client
            .send(&Ask::Stop { seconds: 0 }, &[])
            .and_then(|()| client.receive());
    }
    pod.until_let_go()
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
