//! The processes around a pod, started by this program only, with a socket or a lock at a fixed descriptor;
//! and those of the agent, with a connection on standard input and output.

use clap::Subcommand;

/// Commands nobody types.
#[derive(Debug, Subcommand)]
pub(crate) enum Internal {
    #[command(hide = true)]
    Holder { id: String },
    #[command(hide = true)]
    Supervise { id: String },
    #[command(hide = true)]
    Init,
    #[command(hide = true)]
    AgentWorker,
    #[command(hide = true)]
    AgentWorkerTls,
    #[command(hide = true)]
    NameServer,
}
