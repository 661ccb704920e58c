//! What was asked for when a pod was made. Written once, read by every process of ours around the pod.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result};
use intercept::mask::DEFAULT_PROFILE;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// A pod's configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Config {
    /// Version of this file's format.
    pub(crate) version: u32,
    pub(crate) id: String,
    pub(crate) name: String,
    /// Seconds since the epoch.
    pub(crate) created: u64,
    pub(crate) command: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: String,
    /// `user[:group]`, names or numbers, resolved inside the pod.
    pub(crate) user: Option<String>,
    pub(crate) umask: u32,
    pub(crate) hostname: String,
    pub(crate) machine_id: String,
    pub(crate) names: NamesChoice,
    pub(crate) net: Net,
    pub(crate) base: Base,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) publish: Vec<Publish>,
    pub(crate) stdin: bool,
    pub(crate) tty: bool,
    /// Rows and columns of the terminal at the start.
    pub(crate) window: Option<(u16, u16)>,
    /// Bytes.
    pub(crate) memory: Option<u64>,
    /// Processes and threads.
    pub(crate) pids: Option<u64>,
    /// What its programs must not ask of the kernel.
    pub(crate) mask: Mask,
    /// The image the pod was restored from.
    pub(crate) image: Option<PathBuf>,
}

/// Version of `config.json` this program writes and reads.
pub(crate) const CONFIG_VERSION: u32 = 1;

/// `--names`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NamesChoice {
    /// The kernel where it can, interception elsewhere.
    Auto,
    /// Namespaces of the kernel.
    Kernel,
    /// System call interception.
    Notify,
}

/// `--net`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Net {
    /// The host's network.
    Shared,
    /// A network namespace with nothing but a loopback device.
    None,
    /// A network namespace behind a veth pair.
    Private,
    /// An address (with its prefix length) that belongs to the pod.
    Own(String),
}

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "shared" => Ok(Self::Shared),
            "none" => Ok(Self::None),
            "private" => Ok(Self::Private),
            _ => own(text).ok_or_else(|| "want shared, private, none or own=ADDR/LEN".to_owned()),
        }
    }
}

fn own(text: &str) -> Option<Net> {
    let address = text.strip_prefix("own=")?;
    let (ip, length) = address.split_once('/')?;
    let ip: std::net::IpAddr = ip.parse().ok()?;
    let most = if ip.is_ipv4() { 32 } else { 128 };
    (length.parse::<u8>().ok()? <= most).then(|| Net::Own(address.to_owned()))
}

impl std::fmt::Display for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shared => f.write_str("shared"),
            Self::None => f.write_str("none"),
            Self::Private => f.write_str("private"),
            Self::Own(address) => write!(f, "own={address}"),
        }
    }
}

/// What lies under the pod's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Base {
    /// The host's files, with the pod's writes in a layer.
    Layer,
    /// The host's files themselves.
    Host,
    /// A directory, with the pod's writes in a layer.
    Rootfs(PathBuf),
}

/// `--mask`: calls that a pod's programs must not make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mask {
    /// What container engines refuse by default.
    #[default]
    Default,
    /// Nothing is refused.
    None,
    /// A profile in seccompiler's JSON, whole.
    Profile(String),
}

impl Mask {
    /// The profile, if there is one.
    pub(crate) fn profile(&self) -> Option<&str> {
        match self {
            Self::Default => Some(DEFAULT_PROFILE),
            Self::None => None,
            Self::Profile(profile) => Some(profile),
        }
    }

    /// How many filters it is.
    pub(crate) fn filters(&self) -> i64 {
        i64::from(*self != Self::None)
    }
}

impl FromStr for Mask {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "default" => Ok(Self::Default),
            "none" => Ok(Self::None),
            file => {
                let profile =
                    std::fs::read_to_string(file).map_err(|e| format!("read {file}: {e}"))?;
                intercept::mask::Mask::from_json(&profile).map_err(|e| format!("{file}: {e}"))?;
                Ok(Self::Profile(profile))
            }
        }
    }
}

/// `-v SRC:DST[:ro]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Volume {
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) read_only: bool,
}

impl FromStr for Volume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (text, read_only) = match text.strip_suffix(":ro") {
            Some(rest) => (rest, true),
            None => (text.strip_suffix(":rw").unwrap_or(text), false),
        };
        match text.split_once(':') {
            Some((source, target))
                if source.starts_with('/') && target.starts_with('/') && target != "/" =>
            {
                Ok(Self {
                    source: source.into(),
                    target: target.into(),
                    read_only,
                })
            }
            _ => Err("want SRC:DST or SRC:DST:ro with absolute paths".to_owned()),
        }
    }
}

/// `-p HOST:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Publish {
    pub(crate) host: u16,
    pub(crate) pod: u16,
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, pod) = text.split_once(':').unwrap_or((text, text));
        match (host.parse(), pod.parse()) {
            (Ok(host), Ok(pod)) if host > 0 && pod > 0 => Ok(Self { host, pod }),
            _ => Err("want HOST:PORT, two port numbers".to_owned()),
        }
    }
}

/// Whether a name can be a pod's, and so a label in DNS (RFC 1123 section 2.1).
pub(crate) fn check_name(name: &str) -> Result<(), Failure> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let good = (1..=63).contains(&name.len())
        && name.chars().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if good {
        return Ok(());
    }
    let hint = "use 1 to 63 of a-z, 0-9 and -, not at either end";
    Err(Failure::new(format!("{name:?} cannot be a pod's name")).hint(hint))
}

/// `bytes` random bytes as hexadecimal digits.
///
/// # Errors
/// When `/dev/urandom` cannot be read.
pub(crate) fn random_hex(bytes: usize) -> Result<String> {
    use std::io::Read;
    let mut raw = vec![0; bytes];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut raw))
        .context("read /dev/urandom")?;
    Ok(raw.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_parsed() {
        let volume: Volume = "/a:/b:ro".parse().unwrap();
        assert_eq!(
            (
                volume.source.to_str(),
                volume.target.to_str(),
                volume.read_only
            ),
            (Some("/a"), Some("/b"), true)
        );
        assert!(!"/a:/b".parse::<Volume>().unwrap().read_only);
        for bad in ["/a", "a:/b", "/a:b", "/a:/", ""] {
            assert!(bad.parse::<Volume>().is_err(), "{bad}");
        }
    }

    #[test]
    fn networks_are_parsed_and_printed_alike() {
        for text in [
            "shared",
            "none",
            "private",
            "own=10.1.2.3/24",
            "own=fd00::1/64",
        ] {
            assert_eq!(text.parse::<Net>().unwrap().to_string(), text);
        }
        for bad in [
            "own=",
            "own=10.1.2.3",
            "own=10.1.2.3/33",
            "own=x/3",
            "bridge",
        ] {
            assert!(bad.parse::<Net>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_and_names_are_checked() {
        assert_eq!(
            "80:8080".parse(),
            Ok(Publish {
                host: 80,
                pod: 8080
            })
        );
        assert!("0:1".parse::<Publish>().is_err());
        assert!(check_name("web-1").is_ok());
        for bad in ["", "-a", "a-", "A", "a.b", &"a".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
