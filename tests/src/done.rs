//! A command that has ended, with everything one wants to read when it went wrong.

use std::ffi::OsStr;
use std::fmt;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// How a command ended and what it wrote.
#[derive(Clone, Debug)]
pub struct Done {
    /// The command line, for messages.
    pub command: String,
    /// Its exit code; 128 and the signal's number if it was killed.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// Runs `command` to its end without a terminal.
///
/// # Errors
/// When it cannot be started.
pub fn finish(command: &mut Command) -> Result<Done> {
    let line = line(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {line}"))?;
    Ok(Done::new(line, &output))
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

impl Done {
    fn new(command: String, output: &Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let code = output
            .status
            .code()
            .or_else(|| output.status.signal().map(|signal| 128 + signal));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            command,
            code: code.unwrap_or(-1),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }

    /// What it wrote, if it succeeded.
    ///
    /// # Errors
    /// With both outputs when the exit code is not 0.
    pub fn ok(self) -> Result<String> {
        if self.code != 0 {
            bail!("{self}");
        }
        Ok(self.out)
    }

    /// What it wrote to standard error, if it failed with `code`.
    ///
    /// # Errors
    /// When it succeeded or failed otherwise.
    pub fn fails(self, code: i32) -> Result<String> {
        if self.code != code {
            bail!("wanted exit code {code}: {self}");
        }
        Ok(self.err)
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ended with {}\nstdout: {}\nstderr: {}",
            self.command, self.code, self.out, self.err
        )
    }
}
