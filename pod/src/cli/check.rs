//! `pod check`: what stands in the way of a checkpoint or a move.

use clap::Args;

/// Arguments of `pod check`.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The host that is asked what it lacks, as for `pod migrate`
    #[arg(value_name = "DEST")]
    pub(crate) to: Option<String>,
    /// Look at this pod, while it runs, for what could not be carried
    #[arg(long, value_name = "POD")]
    pub(crate) pod: Option<String>,
}
