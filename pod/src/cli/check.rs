//! `pod check`: what stands in the way of a checkpoint or a move.

use clap::Args;

/// Arguments of `pod check`.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Look at this pod, while it runs, for what could not be carried
    #[arg(long, value_name = "POD")]
    pub(crate) pod: Option<String>,
}
