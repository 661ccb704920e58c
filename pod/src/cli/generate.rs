//! `pod generate`: what is made of this very definition.

use std::path::PathBuf;

use clap::Subcommand;
use clap_complete::Shell;

/// What to make.
#[derive(Debug, Subcommand)]
pub(crate) enum Generate {
    /// Write a shell's completions to standard output
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write a man page for each command into a directory
    Man {
        /// The directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}
