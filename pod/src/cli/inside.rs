//! Commands that reach into a running pod.

use clap::Args;

/// Arguments of `pod exec`.
#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Connect standard input
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the program a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Set an environment variable (without a value: take it from here)
    #[arg(short, long, value_name = "K=V")]
    pub(crate) env: Vec<String>,
    /// The directory the program starts in (default: that of the pod's program)
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// The user, and group, the program runs as (default: that of the pod's program)
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// The pod's name or id
    #[arg(value_name = "POD")]
    pub(crate) pod: String,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}
