//! `pod run`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::store::{Mask, NamesChoice, Net, Publish, Volume};

/// Arguments of `pod run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Return when the program runs
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// The pod's name, unique on this host (the default is made of its id)
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// What holds the pod's names
    #[arg(long, value_enum, default_value_t = NamesChoice::Auto)]
    pub(crate) names: NamesChoice,
    /// The pod's network: shared, own=ADDR/LEN, private or none (default: shared; private without privilege)
    #[arg(long)]
    pub(crate) net: Option<Net>,
    /// Where the pod's writes to files go
    #[arg(long, value_enum, default_value_t = Files::Layer)]
    pub(crate) fs: Files,
    /// A directory to use as the pod's root, under its layer
    #[arg(long, value_name = "DIR", conflicts_with = "fs")]
    pub(crate) rootfs: Option<PathBuf>,
    /// Show a file or directory of the host in the pod
    #[arg(short = 'v', long = "volume", value_name = "SRC:DST[:ro]")]
    pub(crate) volumes: Vec<Volume>,
    /// Set an environment variable (without a value: take it from here)
    #[arg(short, long, value_name = "K=V")]
    pub(crate) env: Vec<String>,
    /// The directory the program starts in (default: this one, or / with --rootfs)
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// The user, and group, the program runs as
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// Insist on a port of the host for a port of the pod
    #[arg(short, long, value_name = "HOST:PORT")]
    pub(crate) publish: Vec<Publish>,
    /// Connect standard input
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the program a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// The pod's host name (default: its name)
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Calls the pod's programs must not make: default, none, or a file with a profile
    #[arg(long, value_name = "PROFILE", default_value = "default")]
    pub(crate) mask: Mask,
    /// Limit the pod's memory (a number with k, m or g)
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(crate) memory: Option<u64>,
    /// Limit the number of the pod's processes and threads
    #[arg(long, value_name = "N")]
    pub(crate) pids: Option<u64>,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

/// `--fs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Files {
    /// The host's files underneath, the pod's writes in a layer of its own
    Layer,
    /// The host's files themselves
    Host,
}

/// A number of bytes with an optional binary suffix.
fn bytes(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let shifts = [("k", 10), ("m", 20), ("g", 30)];
    let (digits, shift) = shifts
        .iter()
        .find_map(|(suffix, shift)| lower.strip_suffix(suffix).map(|digits| (digits, *shift)))
        .unwrap_or((&lower, 0));
    let number: u64 = digits
        .parse()
        .map_err(|_| "want a number of bytes, with k, m or g".to_owned())?;
    number
        .checked_mul(1 << shift)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| "out of range".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_suffixes() {
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("64M"), Ok(64 << 20));
        for bad in ["", "m", "-1", "0", "1t", "99999999999g"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
