//! Commands that look: `ps`, `logs`.

use clap::Args;

/// Arguments of `pod ps`.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// List pods that are over, too
    #[arg(short, long)]
    pub(crate) all: bool,
}

/// Arguments of `pod logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The pod's name or id
    #[arg(value_name = "POD")]
    pub(crate) pod: String,
    /// Go on as the pod writes, until it ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Put the time before each piece
    #[arg(short, long)]
    pub(crate) timestamps: bool,
}
