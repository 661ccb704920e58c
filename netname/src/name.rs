//! The words of the directory: pod names, zone names, epochs and services.

use std::{fmt, fs::File, io::Read, net::SocketAddr, str::FromStr};

use hickory_proto::rr::{LowerName, Name};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Name of a pod: one DNS label of letters, digits and hyphens, lower case, at most 63 bytes
/// (RFC 1123 section 2.1), so that it is a host name in every zone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PodName(String);

impl PodName {
    /// Checks `name` and folds it to lower case.
    pub fn new(name: &str) -> Result<Self> {
        match label_fault(name) {
            Some(reason) => Err(Error::PodName {
                name: name.to_owned(),
                reason,
            }),
            None => Ok(Self(name.to_ascii_lowercase())),
        }
    }

    /// The label.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn label_fault(label: &str) -> Option<&'static str> {
    let ldh = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if label.is_empty() {
        return Some("it is empty");
    }
    if label.len() > 63 {
        return Some("a DNS label has at most 63 bytes");
    }
    if !label.bytes().all(ldh) {
        return Some("only letters, digits and hyphens make a host name");
    }
    (label.starts_with('-') || label.ends_with('-'))
        .then_some("a host name neither starts nor ends with a hyphen")
}

impl TryFrom<String> for PodName {
    type Error = Error;
    fn try_from(name: String) -> Result<Self> {
        Self::new(&name)
    }
}

impl FromStr for PodName {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        Self::new(name)
    }
}

impl From<PodName> for String {
    fn from(name: PodName) -> Self {
        name.0
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of a zone, fully qualified and lower case; written without the final dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ZoneName(Name);

impl ZoneName {
    /// Parses a domain name.
    pub fn new(text: &str) -> Result<Self> {
        let mut name = Name::from_ascii(text)
            .map_err(|source| Error::DomainName {
                text: text.to_owned(),
                source,
            })?
            .to_lowercase();
        name.set_fqdn(true);
        Ok(Self(name))
    }

    /// The reverse zone that holds the addresses which share the first `bits` bits with `addr`,
    /// rounded up to whole octets (IPv4, RFC 1035 section 3.5) or nibbles (IPv6, RFC 3596 section 2.5).
    #[must_use]
    pub fn reverse(addr: std::net::IpAddr, bits: u8) -> Self {
        let unit = if addr.is_ipv4() { 8 } else { 4 };
        let full = Name::from(addr);
        let total = usize::from(full.num_labels());
        let keep = usize::from(bits).div_ceil(unit).min(total - 2) + 2;
        let mut name = full.trim_to(keep).to_lowercase();
        name.set_fqdn(true);
        Self(name)
    }

    /// The name as the wire has it.
    #[must_use]
    pub fn as_name(&self) -> &Name {
        &self.0
    }

    pub(crate) fn lower(&self) -> LowerName {
        LowerName::new(&self.0)
    }

    /// Whether `name` is this zone's apex or below it.
    #[must_use]
    pub fn holds(&self, name: &Name) -> bool {
        self.0.zone_of(name)
    }

    /// `labels`, dot separated, put in front of the zone's name.
    pub(crate) fn child(&self, labels: &str) -> Result<Name> {
        let relative = |source| Error::DomainName {
            text: labels.to_owned(),
            source,
        };
        Name::from_ascii(labels)
            .and_then(|name| name.append_name(&self.0))
            .map_err(relative)
    }
}

impl Default for ZoneName {
    fn default() -> Self {
        Self(Name::from_labels(["pod", "internal"]).unwrap_or_default())
    }
}

impl TryFrom<String> for ZoneName {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        Self::new(&text)
    }
}

impl FromStr for ZoneName {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::new(text)
    }
}

impl From<ZoneName> for String {
    fn from(zone: ZoneName) -> Self {
        zone.to_string()
    }
}

impl fmt::Display for ZoneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_ascii();
        f.write_str(
            text.strip_suffix('.')
                .filter(|t| !t.is_empty())
                .unwrap_or(&text),
        )
    }
}

/// How often a pod has changed hands, and in whose hands it is. The number grows by one with each
/// move; the token is random, so that two hosts that both try to move from epoch 7 to epoch 8 can
/// tell from the zone which of them did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Epoch {
    /// Grows by one with each move.
    pub number: u64,
    /// Random, new with each attempt.
    pub token: u64,
}

impl Epoch {
    /// The epoch of a pod that is published for the first time.
    #[must_use]
    pub fn first() -> Self {
        Self {
            number: 1,
            token: random_token(),
        }
    }

    /// A fresh epoch to move to from this one.
    #[must_use]
    pub fn next(&self) -> Self {
        Self {
            number: self.number.wrapping_add(1),
            token: random_token(),
        }
    }
}

/// 64 bits from `/dev/urandom`; where that is missing, from the keyed hash of the standard library,
/// which the kernel's `getrandom(2)` seeds.
pub(crate) fn random_token() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    let mut bytes = [0; 8];
    match File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)) {
        Ok(()) => u64::from_ne_bytes(bytes),
        Err(_) => RandomState::new().hash_one(std::process::id()),
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:016x}", self.number, self.token)
    }
}

impl FromStr for Epoch {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (number, token) = text.split_once('.')?;
            Some(Self {
                number: number.parse().ok()?,
                token: u64::from_str_radix(token, 16).ok()?,
            })
        };
        parse()
            .filter(|epoch| epoch.to_string() == text)
            .ok_or_else(|| Error::Epoch(text.to_owned()))
    }
}

impl TryFrom<String> for Epoch {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Epoch> for String {
    fn from(epoch: Epoch) -> Self {
        epoch.to_string()
    }
}

/// Transport of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Proto {
    /// `tcp` or `udp`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl FromStr for Proto {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A listening endpoint of a pod: what the pod sees, and where it can be reached now.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Service {
    /// Transport.
    pub proto: Proto,
    /// Port the program listens on, as the program sees it.
    pub port: u16,
    /// Service name without the underscore (RFC 6335 section 5.1), for example `redis`.
    pub name: String,
    /// Real endpoint on the host where the pod is now; `None`: the pod's address and the same port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<SocketAddr>,
}

impl Service {
    /// A service reached at the pod's own address under the same port.
    pub fn new(proto: Proto, port: u16, name: &str) -> Result<Self> {
        let service = Self {
            proto,
            port,
            name: name.to_ascii_lowercase(),
            at: None,
        };
        service.check().map(|()| service)
    }

    /// The same service at a real endpoint.
    #[must_use]
    pub fn at(self, real: SocketAddr) -> Self {
        Self {
            at: Some(real),
            ..self
        }
    }

    /// Port under which the service is reached now.
    #[must_use]
    pub fn real_port(&self) -> u16 {
        self.at.map_or(self.port, |at| at.port())
    }

    pub(crate) fn check(&self) -> Result<()> {
        let fault = match label_fault(&self.name) {
            Some(reason) => Some(reason),
            None if self.name.len() > 15 => Some("a service name has at most 15 bytes"),
            None if self.port == 0 => Some("port 0 is no endpoint"),
            None => None,
        };
        fault.map_or(Ok(()), |reason| Err(self.fault(reason)))
    }

    pub(crate) fn fault(&self, reason: &'static str) -> Error {
        Error::Service {
            name: self.name.clone(),
            proto: self.proto,
            port: self.port,
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_names_are_host_names() {
        for good in ["a", "Redis-1", &"x".repeat(63)] {
            assert_eq!(
                PodName::new(good).unwrap().as_str(),
                good.to_ascii_lowercase()
            );
        }
        for bad in ["", "-a", "a-", "a.b", "a_b", "ä", &"x".repeat(64)] {
            assert!(PodName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn epochs_read_back_and_differ() {
        let epoch = Epoch::first();
        assert_eq!(epoch.to_string().parse::<Epoch>().unwrap(), epoch);
        assert_eq!(epoch.next().number, 2);
        assert_ne!(epoch.next(), epoch.next());
        for bad in [
            "",
            "7",
            "7.",
            "7.1",
            "x.0000000000000001",
            "+7.0000000000000001",
        ] {
            assert!(bad.parse::<Epoch>().is_err(), "{bad}");
        }
    }

    #[test]
    fn reverse_zones_end_at_octets_and_nibbles() {
        let reverse = |addr: &str, bits| ZoneName::reverse(addr.parse().unwrap(), bits).to_string();
        assert_eq!(reverse("10.9.8.7", 8), "10.in-addr.arpa");
        assert_eq!(reverse("10.9.8.7", 20), "8.9.10.in-addr.arpa");
        assert_eq!(reverse("fd00::1", 8), "d.f.ip6.arpa");
    }

    #[test]
    fn service_names_are_bounded() {
        assert!(Service::new(Proto::Tcp, 6379, "redis").is_ok());
        assert!(Service::new(Proto::Tcp, 0, "redis").is_err());
        assert!(Service::new(Proto::Udp, 53, "sixteen-bytes-xx").is_err());
    }
}
