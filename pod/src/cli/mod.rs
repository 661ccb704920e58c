//! The whole command line, defined once; completions and man pages are made from it. One file holds one
//! group of commands; what a command does is in `cmd/`.

mod check;
mod control;
mod files;
mod generate;
mod image;
mod inside;
mod internal;
mod look;
mod moving;
mod run;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use check::Check;
pub(crate) use control::{Kill, Remove, Stop};
pub(crate) use files::{Copy, Place};
pub(crate) use generate::Generate;
pub(crate) use image::{Checkpoint, ImageCommand, OneImage, Restore};
pub(crate) use inside::Exec;
pub(crate) use internal::Internal;
pub(crate) use look::{List, Logs};
pub(crate) use moving::{Agent, AgentCommand, Migrate, OnLost};
pub(crate) use run::{Files, Run};

/// Run any Linux program in a private world of names, and move it between hosts.
#[derive(Debug, Parser)]
#[command(name = "pod", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub(crate) struct Globals {
    /// Directory for all state, so that several hosts live on one machine
    #[arg(long, global = true, value_name = "DIR", env = "POD_ROOT")]
    pub(crate) root: Option<PathBuf>,
    /// How results are shown
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
    /// Tell more of what is done (twice: everything); before the command
    #[arg(short, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// How the program's own messages are written
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// A pod, by name or id.
#[derive(Clone, Debug, Args)]
pub(crate) struct One {
    /// The pod's name or id
    #[arg(value_name = "POD")]
    pub(crate) pod: String,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a program in a new pod
    Run(Box<Run>),
    /// List pods
    Ps(List),
    /// Show everything about a pod
    Inspect(One),
    /// Show a pod's kinds of names and what holds each
    Names(One),
    /// Show what a pod wrote
    Logs(Logs),
    /// Run another program in a running pod
    Exec(Box<Exec>),
    /// Connect this terminal to a pod's program
    Attach(One),
    /// Wait until a pod's program ends, and exit as it did
    Wait(One),
    /// Send a signal to a program in a pod
    Kill(Kill),
    /// Ask a pod's program to end
    Stop(Stop),
    /// Stop every program in a pod where it is
    Pause(One),
    /// Let a paused pod go on
    Resume(One),
    /// Put a pod to sleep in an image
    Checkpoint(Checkpoint),
    /// Wake a pod from an image
    Restore(Restore),
    /// Tell what this host, or a running pod, cannot do
    Check(Check),
    /// Look at an image
    #[command(subcommand)]
    Image(ImageCommand),
    /// Remove a pod that is over
    Rm(Remove),
    /// Show what a pod changed under its root
    Diff(One),
    /// Copy files between a pod and here
    Cp(Copy),
    /// Move a pod to another host
    Migrate(Migrate),
    /// Serve other hosts: their pods arrive here, names are published
    Agent(Agent),
    /// Write completions or man pages
    #[command(subcommand)]
    Generate(Generate),
    /// The processes around a pod
    #[command(flatten)]
    Internal(Internal),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_stand_before_and_after_the_command() {
        let cli =
            Cli::try_parse_from(["pod", "-v", "ps", "--root", "/x", "--format", "json"]).unwrap();
        assert_eq!(cli.globals.root.unwrap(), PathBuf::from("/x"));
        assert_eq!((cli.globals.format, cli.globals.verbose), (Format::Json, 1));
    }
}
