//! Commands that act on a pod's programs or its life.

use clap::Args;

/// Arguments of `pod kill`.
#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// The signal, by name or number
    #[arg(short, long, default_value = "KILL")]
    pub(crate) signal: String,
    /// A process of the pod other than its program, by its pid in the pod
    #[arg(long, value_name = "VPID", value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) pid: Option<i32>,
    /// The pod's name or id
    #[arg(value_name = "POD")]
    pub(crate) pod: String,
}

/// Arguments of `pod stop`.
#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// How long the program may take before it is killed
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) time: u64,
    /// The pod's name or id
    #[arg(value_name = "POD")]
    pub(crate) pod: String,
}

/// Arguments of `pod rm`.
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// End it first if it runs, and remove what its layer holds without asking
    #[arg(short, long)]
    pub(crate) force: bool,
    /// The pods' names or ids
    #[arg(value_name = "POD", required = true)]
    pub(crate) pods: Vec<String>,
}
