//! What an agent is told: `ROOT/agent/config.toml`.
//!
//! ```toml
//! listen = "192.0.2.1:7077"        # where other hosts reach this one
//! address = "192.0.2.1"            # what pods here are published with
//!
//! [dns]                            # where names are published
//! server = "192.0.2.1:53"
//! zone = "pod.internal"
//! key = "pod-agents"
//! secret = "…"
//!
//! [server]                         # the name server run here, if any
//! listen = ["192.0.2.1:53"]
//! …
//! ```

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use netname::{Authority, Key, ServerConfig, Updater, ZoneName};
use serde::{Deserialize, Serialize};

use crate::failure::Hinted;
use crate::store::{private_dir, write_atomically};

/// The port of agents unless told otherwise.
pub(crate) const PORT: u16 = 7077;

/// An agent's configuration.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// Where other hosts reach this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) listen: Option<SocketAddr>,
    /// What pods here are published with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<IpAddr>,
    /// Where names are published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dns: Option<Dns>,
    /// The name server run here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) server: Option<ServerConfig>,
}

/// Where names are published.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dns {
    /// The zone's primary.
    pub(crate) server: SocketAddr,
    /// The zone.
    #[serde(default)]
    pub(crate) zone: ZoneName,
    /// Name of the TSIG key.
    pub(crate) key: String,
    /// Its secret in base64.
    pub(crate) secret: String,
    /// How long the primary may take to answer, in milliseconds.
    #[serde(default = "patience")]
    pub(crate) patience: u64,
}

/// The default of [`Dns::patience`].
pub(crate) fn patience() -> u64 {
    3000
}

impl Dns {
    /// A client that may change the zone.
    ///
    /// # Errors
    /// A secret that is none.
    pub(crate) fn updater(&self) -> Result<Updater> {
        let key = Key::new(&self.key, &self.secret)?;
        let mut authority = Authority::new(self.server, Some(key));
        authority.zone = self.zone.clone();
        authority.patience = Duration::from_millis(self.patience);
        Ok(Updater::new(authority))
    }
}

/// The agent's directory in a root.
pub(crate) fn directory(root: &Path) -> PathBuf {
    root.join("agent")
}

impl Settings {
    /// The configuration of a root; empty where there is none.
    ///
    /// # Errors
    /// A file that cannot be read or understood.
    pub(crate) fn of(root: &Path) -> Result<Self> {
        let path = directory(root).join("config.toml");
        let text = match fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            text => text.with_context(|| format!("read {}", path.display()))?,
        };
        let failed = format!("understand {}", path.display());
        toml::from_str(&text).hinted(failed, "pod agent init and pod agent join write this file")
    }

    /// Writes the configuration.
    ///
    /// # Errors
    /// A full disk.
    pub(crate) fn write(&self, root: &Path) -> Result<()> {
        private_dir(&directory(root))?;
        let text = toml::to_string_pretty(self).context("encode TOML")?;
        write_atomically(&directory(root).join("config.toml"), text.as_bytes())
    }

    /// The address pods here are published with: as told, or where we listen.
    pub(crate) fn published(&self) -> Option<IpAddr> {
        self.address.or_else(|| {
            self.listen
                .map(|at| at.ip())
                .filter(|ip| !ip.is_unspecified())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_read_back() {
        let root = tempfile::tempdir().unwrap();
        assert!(Settings::of(root.path()).unwrap().listen.is_none());
        let key = Key::generate("pod-agents").unwrap();
        let settings = Settings {
            listen: Some("192.0.2.1:7077".parse().unwrap()),
            address: None,
            dns: Some(Dns {
                server: "192.0.2.1:53".parse().unwrap(),
                zone: ZoneName::default(),
                key: key.name(),
                secret: key.secret(),
                patience: patience(),
            }),
            server: Some(ServerConfig {
                listen: vec!["192.0.2.1:53".parse().unwrap()],
                zones: vec![netname::ZoneConfig::primary(ZoneName::default())],
                ..ServerConfig::default()
            }),
        };
        settings.write(root.path()).unwrap();
        let back = Settings::of(root.path()).unwrap();
        assert_eq!(format!("{back:?}"), format!("{settings:?}"));
        assert_eq!(back.published(), Some("192.0.2.1".parse().unwrap()));
        assert!(back.dns.unwrap().updater().is_ok());
    }

    #[test]
    fn a_word_that_means_nothing_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("agent")).unwrap();
        fs::write(root.path().join("agent/config.toml"), "lisen = 1\n").unwrap();
        assert!(format!("{:#}", Settings::of(root.path()).unwrap_err()).contains("lisen"));
    }
}
