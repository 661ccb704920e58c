//! How a command fails: one line that says what failed on what, the chain of causes, a `hint:` where
//! the user can do something, and an exit code (125 is pod's own failure; 126 and 127 as in a shell).

use std::error::Error as StdError;
use std::fmt;
use std::io::Write;

use serde::{Deserialize, Serialize};

/// Exit code of pod's own failures.
pub(crate) const OURS: u8 = 125;
/// Exit code for a command that was found and could not be executed.
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// Exit code for a command that was not found.
pub(crate) const NOT_FOUND: u8 = 127;

/// A failure as it is shown, and as it crosses a socket.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// What failed on what, then each cause.
    pub(crate) chain: Vec<String>,
    /// What the user can do about it.
    pub(crate) hint: Option<String>,
    /// The exit code.
    pub(crate) code: u8,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.chain.join(": "))
    }
}

impl StdError for Failure {}

impl Failure {
    /// A failure without a cause.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self {
            chain: vec![what.into()],
            hint: None,
            code: OURS,
        }
    }

    /// Adds what the user can do.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Puts a cause behind all others.
    pub(crate) fn because(mut self, cause: impl Into<String>) -> Self {
        self.chain.push(cause.into());
        self
    }

    /// Puts what failed in front: what was said so far is its cause.
    pub(crate) fn because_of(mut self, what: impl Into<String>) -> Self {
        self.chain.insert(0, what.into());
        self
    }

    /// Sets the exit code.
    pub(crate) fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// Flattens an error: its chain, and the hint and code of any failure in it.
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        let mut flat = Self {
            chain: Vec::new(),
            hint: None,
            code: OURS,
        };
        for cause in error.chain() {
            match cause.downcast_ref::<Self>() {
                Some(failure) => {
                    flat.chain.extend(failure.chain.iter().cloned());
                    flat.hint = flat.hint.or_else(|| failure.hint.clone());
                    flat.code = failure.code;
                }
                None => {
                    flat.chain.push(cause.to_string());
                    let advice = cause.downcast_ref::<restore::Error>().and_then(advice);
                    flat.hint = flat.hint.or(advice.map(str::to_owned));
                }
            }
        }
        flat.drop_echoes();
        flat
    }

    /// Errors that print their source inside their own text would say everything twice.
    fn drop_echoes(&mut self) {
        let mut kept: Vec<String> = Vec::new();
        for line in self.chain.drain(..) {
            if !kept.last().is_some_and(|before| before.ends_with(&line)) {
                kept.push(line);
            }
        }
        self.chain = kept;
    }

    /// Writes the failure to standard error.
    pub(crate) fn print(&self) {
        let mut text = format!(
            "pod: {}\n",
            self.chain.first().map_or("failed", String::as_str)
        );
        for cause in self.chain.iter().skip(1) {
            text.push_str(&format!("  because: {cause}\n"));
        }
        if let Some(hint) = &self.hint {
            text.push_str(&format!("hint: {hint}\n"));
        }
        // Nobody is left to tell when standard error is closed.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

/// What the user can do about a step of a checkpoint or a restart that failed.
fn advice(error: &restore::Error) -> Option<&'static str> {
    use restore::Error as E;
    let errno = match error {
        E::File { source, .. } | E::Kernel { source, .. } | E::Remote { source, .. } => {
            source.raw_os_error()
        }
        E::Image { .. } | E::NoRecord { .. } => {
            return Some(
                "pod image verify tells whether it is whole: copy it again, or take it again",
            );
        }
        E::NewerImage { .. } => {
            return Some("use the version of pod that wrote it, or a newer one");
        }
        E::Builder(_) => {
            return Some(
                "this host lacks something that the pod uses: pod image ls shows its files",
            );
        }
        _ => None,
    };
    match errno? {
        libc::ENOSPC | libc::EDQUOT => Some("make room there, or choose another place"),
        libc::EEXIST => Some("remove it first, or choose another name"),
        libc::ENOENT => Some("see whether the path is right"),
        libc::EACCES | libc::EPERM => Some("choose a place you may write, or run pod as its owner"),
        libc::EROFS => Some("choose a place that is not read-only"),
        libc::ENOMEM => Some("make memory free, or raise the limit of the program (ulimit -v)"),
        _ => None,
    }
}

/// Adds a hint to whatever error a result holds.
pub(crate) trait Hinted<T> {
    /// Says what failed and what to do.
    fn hinted(self, what: impl Into<String>, hint: impl Into<String>) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> Hinted<T> for Result<T, E> {
    fn hinted(self, what: impl Into<String>, hint: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|cause| {
            let mut failure = Failure::of(&cause.into());
            failure.chain.insert(0, what.into());
            failure.hint(hint).into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_chain_is_flattened_with_its_hint_and_code() {
        let inner: anyhow::Result<()> = Err(Failure::new("no such program")
            .hint("install it")
            .code(NOT_FOUND)
            .into());
        let flat = Failure::of(&inner.context("run it").unwrap_err());
        assert_eq!(flat.chain, ["run it", "no such program"]);
        assert_eq!(flat.hint.as_deref(), Some("install it"));
        assert_eq!(flat.code, NOT_FOUND);
    }

    #[test]
    fn an_error_that_repeats_its_source_is_shown_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("open /x: {0}")]
        struct Open(#[source] std::io::Error);
        let error = anyhow::Error::from(Open(std::io::Error::from_raw_os_error(2)));
        assert_eq!(Failure::of(&error).chain.len(), 1);
    }
}
