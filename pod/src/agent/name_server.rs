//! The name server's process: the only one of ours with an asynchronous runtime.

use std::path::Path;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use super::config::Settings;

/// Serves the zones of the configuration until SIGTERM or SIGINT. Prints nothing; says that it is ready
/// by closing its standard output.
///
/// # Errors
/// A configuration without a server, an address that is taken, a damaged journal.
pub(crate) fn run(root: &Path) -> Result<()> {
    let config = Settings::of(root)?
        .server
        .context("no [server] is configured")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.context("start the runtime")?.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
        let server = netname::serve(config).await?;
        tracing::info!(addresses = ?server.addresses(), "name server ready");
        ready()?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        server.stop().await.context("stop the name server")
    })
}

/// Puts /dev/null in the place of standard output: whoever reads the other end sees the end.
fn ready() -> Result<()> {
    let null = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/null")
        .context("open /dev/null")?;
    nix::unistd::dup2_stdout(&null).context("dup2")
}
