//! The processes around a pod. They are started by this program only, with a socket or a lock at a fixed
//! descriptor.

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
}
