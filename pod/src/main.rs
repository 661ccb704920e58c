//! `pod`: runs any Linux program in a private world of names, and moves it between hosts.
//!
//! ```text
//!   cli ──▶ cmd ──▶ store (what is known)          on disk
//!            └────▶ ctl.sock ──▶ supervise ──▶ init (in the pod)
//!                                    ▲
//!                                 holder
//! ```

mod agent;
mod cgroup;
mod cleanup;
mod cli;
mod cmd;
mod failure;
mod holder;
mod init;
mod layer;
mod log;
mod messages;
mod migrate;
mod net;
mod output;
mod process;
mod store;
mod supervise;
mod sys;
mod terminal;
mod userns;
mod watch;
mod wire;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use cli::{Cli, Globals, LogFormat};
use failure::{Failure, OURS};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    trace(&cli.globals);
    match cmd::run(cli) {
        Ok(code) => code.into(),
        Err(error) => {
            let failure = Failure::of(&error);
            failure.print();
            failure.code.into()
        }
    }
}

fn usage(error: &clap::Error) -> ExitCode {
    // Nobody is left to tell when standard error is closed.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => OURS.into(),
    }
}

fn trace(globals: &Globals) {
    let level = match globals.verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        _ => tracing::Level::TRACE,
    };
    let lines = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_target(false);
    match globals.log_format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
}
