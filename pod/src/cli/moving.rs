//! Commands that move pods between hosts, and what other hosts need for that.

use std::net::SocketAddr;

use clap::{Args, Subcommand, ValueEnum};

/// Arguments of `pod migrate`.
#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// The pod's name or id
    #[arg(value_name = "POD")]
    pub(crate) pod: String,
    /// Where to: ssh://[USER@]HOST[:PORT] runs `pod agent --stdio` there; HOST:PORT is an agent
    #[arg(value_name = "DEST", required_unless_present = "resolve")]
    pub(crate) to: Option<String>,
    /// What is copied when
    #[arg(long, value_name = "MODE", default_value = "cold", value_parser = ["cold", "precopy", "postcopy", "hybrid", "mirror"])]
    pub(crate) mode: String,
    /// How long the pod may stand still, in the modes that copy while it runs
    #[arg(long, value_name = "TIME")]
    pub(crate) max_downtime: Option<String>,
    /// What becomes of connections that cannot move
    #[arg(long, value_enum, default_value_t = OnLost::Refuse)]
    pub(crate) on_lost_connection: OnLost,
    /// Ask how a move ended whose outcome is not known
    #[arg(long, conflicts_with_all = ["mode", "max_downtime", "on_lost_connection"])]
    pub(crate) resolve: bool,
}

/// `--on-lost-connection`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnLost {
    /// Do not move the pod
    Refuse,
    /// Reset them
    Reset,
}

/// Arguments of `pod agent`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Agent {
    /// Where other hosts reach this one (default: as configured)
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,
    /// Serve one visitor on standard input and output
    #[arg(long, conflicts_with = "listen")]
    pub(crate) stdio: bool,
    #[command(subcommand)]
    pub(crate) command: Option<AgentCommand>,
}

/// Commands of `pod agent`.
#[derive(Debug, Subcommand)]
pub(crate) enum AgentCommand {
    /// Make a cluster, with this host as its first; prints the token that others join with
    Init {
        /// Where other hosts reach this one
        #[arg(long, value_name = "ADDR")]
        listen: SocketAddr,
        /// The zone in which pods are published
        #[arg(long, value_name = "NAME", default_value = "pod.internal")]
        zone: String,
        /// Where the name server listens (default: the same address, port 53)
        #[arg(long, value_name = "ADDR")]
        dns: Option<SocketAddr>,
    },
    /// Bring this host into a cluster
    Join {
        /// Where the first host's agent listens
        #[arg(value_name = "ADDR")]
        first: SocketAddr,
        /// What `pod agent init` printed there
        #[arg(long, value_name = "TOKEN", env = "POD_TOKEN")]
        token: String,
        /// Where other hosts reach this one
        #[arg(long, value_name = "ADDR")]
        listen: SocketAddr,
        /// Where the name server listens (default: the same address, port 53)
        #[arg(long, value_name = "ADDR")]
        dns: Option<SocketAddr>,
    },
}
