//! Configuration of a name server; `serde` shapes, so that the program can keep it in its own files.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::{Key, PodName, Result, ZoneName};

/// Seconds for which others may keep an answer.
pub const DEFAULT_TTL: u32 = 5;

/// A name server.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Addresses for UDP and TCP; port 0 lets the kernel choose one for both.
    pub listen: Vec<SocketAddr>,
    /// Addresses, besides those, where pods ask: pods with a virtual address are answered with that
    /// and with virtual ports.
    pub inside: Vec<SocketAddr>,
    /// Zones held here.
    pub zones: Vec<ZoneConfig>,
    /// Keys and what they allow.
    pub keys: Vec<KeyConfig>,
    /// Resolvers asked for every other name, on behalf of whoever reaches the addresses above;
    /// without any, other names are refused.
    pub forwarders: Vec<SocketAddr>,
    /// Directory of the journals, made if missing; `None` keeps zones in memory only.
    pub state: Option<PathBuf>,
    /// Addresses published for the name server itself, as `ns` in each new zone.
    pub addresses: Vec<IpAddr>,
}

/// A zone of a name server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ZoneConfig {
    /// Name of the zone.
    #[serde(default)]
    pub name: ZoneName,
    /// Primary or secondary.
    #[serde(flatten)]
    pub role: Role,
}

impl ZoneConfig {
    /// A primary zone without secondaries.
    #[must_use]
    pub fn primary(name: ZoneName) -> Self {
        Self {
            name,
            role: Role::Primary { notify: Vec::new() },
        }
    }

    /// A copy of `primary`'s zone, transferred with the key named `key`.
    #[must_use]
    pub fn secondary(name: ZoneName, primary: SocketAddr, key: &str) -> Self {
        Self {
            name,
            role: Role::Secondary {
                primary,
                key: key.to_owned(),
                notify: Vec::new(),
            },
        }
    }
}

/// Who decides on a zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "lowercase")]
pub enum Role {
    /// This server.
    Primary {
        /// Servers told of each change (RFC 1996).
        #[serde(default)]
        notify: Vec<SocketAddr>,
    },
    /// Another server; this one keeps a copy.
    Secondary {
        /// The primary.
        primary: SocketAddr,
        /// Name of the key for transfers.
        key: String,
        /// Servers told of each change of the copy.
        #[serde(default)]
        notify: Vec<SocketAddr>,
    },
}

impl Role {
    pub(crate) fn notify(&self) -> &[SocketAddr] {
        match self {
            Self::Primary { notify } | Self::Secondary { notify, .. } => notify,
        }
    }
}

/// A TSIG key (HMAC-SHA256) and what it allows.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyConfig {
    /// Name of the key.
    pub name: String,
    /// Secret in base64.
    pub secret: String,
    /// Names it may change.
    #[serde(default)]
    pub update: Vec<Grant>,
    /// Whether it may transfer zones.
    #[serde(default)]
    pub transfer: bool,
}

impl KeyConfig {
    /// `key` with neither update nor transfer allowed.
    #[must_use]
    pub fn new(key: &Key) -> Self {
        Self {
            name: key.name(),
            secret: key.secret(),
            update: Vec::new(),
            transfer: false,
        }
    }

    /// Allows changes of what `grant` covers, too.
    #[must_use]
    pub fn with_update(mut self, grant: Grant) -> Self {
        self.update.push(grant);
        self
    }

    /// Allows transfers, too.
    #[must_use]
    pub fn with_transfer(self) -> Self {
        Self {
            transfer: true,
            ..self
        }
    }

    pub(crate) fn key(&self) -> Result<Key> {
        Key::new(&self.name, &self.secret)
    }
}

impl std::fmt::Debug for KeyConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            name,
            update,
            transfer,
            ..
        } = self;
        f.debug_struct("KeyConfig")
            .field("name", name)
            .field("update", update)
            .field("transfer", transfer)
            .finish_non_exhaustive()
    }
}

/// Which names a key may change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Grant {
    /// This name and all below it.
    Subtree(ZoneName),
    /// What one pod publishes: the names at and below its own, its instances in the lists of
    /// services, and pointers to it in reverse zones.
    Pod {
        /// The pod.
        pod: PodName,
        /// The zone it is published in.
        #[serde(default)]
        zone: ZoneName,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_reads_back_and_hides_secrets() {
        let key = Key::generate("agent").unwrap();
        let config = ServerConfig {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            zones: vec![
                ZoneConfig::primary(ZoneName::default()),
                ZoneConfig::secondary(
                    ZoneName::new("10.in-addr.arpa").unwrap(),
                    "192.0.2.1:53".parse().unwrap(),
                    "agent",
                ),
            ],
            keys: vec![
                KeyConfig::new(&key)
                    .with_transfer()
                    .with_update(Grant::Subtree(ZoneName::default())),
            ],
            ..ServerConfig::default()
        };
        let json = serde_json::to_string(&config).unwrap();
        let back: ServerConfig = serde_json::from_str(&json).unwrap();
        assert_eq!(format!("{back:?}"), format!("{config:?}"));
        assert_eq!(back.zones[1].role, config.zones[1].role);
        assert!(!format!("{config:?}").contains(&key.secret()));
    }
}
