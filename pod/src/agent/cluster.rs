//! Making a cluster, and joining one.
//!
//! ```text
//!   joining host                                      first host
//!     knows the token: hash of the authority, secret    keeps ca.key and the secret
//!     │ TLS, trusting the authority with that hash ──▶  │
//!     │ Join{secret, public key, name server} ───────▶  │ signs; tells its name server of the new one
//!     │ ◀───── Welcome{certificates, zone and its key}  │
//! ```

use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use anyhow::{Context, Result};
use netname::{Grant, Key, KeyConfig, Role, ServerConfig, ZoneConfig, ZoneName};
use serde::{Deserialize, Serialize};

use super::config::{Dns, Settings, directory, patience};
use super::identity::{Identity, connect_by_token};
use super::token::Token;
use crate::failure::{Failure, Hinted};
use crate::migrate::error::LinkError;
use crate::migrate::frame::Conn;
use crate::migrate::link::Link;
use crate::store::Lock;

const KEY: &str = "pod-agents";
/// The port of name servers (RFC 1035).
const DNS_PORT: u16 = 53;

/// What a host that joins or makes a cluster says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    /// Where its agent listens.
    pub(crate) listen: SocketAddr,
    /// Where its name server listens.
    pub(crate) dns: Option<SocketAddr>,
}

impl Host {
    fn dns(&self) -> SocketAddr {
        self.dns
            .unwrap_or_else(|| SocketAddr::new(self.listen.ip(), DNS_PORT))
    }
}

/// From a joining host.
#[derive(Debug, Serialize, Deserialize)]
struct Join {
    secret: String,
    #[serde(with = "serde_bytes")]
    public: Vec<u8>,
    /// Its name server, to be told of changes.
    dns: SocketAddr,
}

/// To a joining host.
#[derive(Debug, Serialize, Deserialize)]
enum Welcome {
    Joined {
        authority: String,
        certificate: String,
        dns: Option<Dns>,
    },
    Refused(Failure),
}

/// Makes a cluster with this host as its first; returns what others need to join.
///
/// # Errors
/// When this host is in a cluster already, or its files cannot be written.
pub(crate) fn init(root: &Path, host: &Host, zone: &ZoneName) -> Result<Token> {
    let identity = Identity::of(root);
    let key = Key::generate(KEY)?;
    let token = identity.found()?;
    let grants = KeyConfig::new(&key)
        .with_transfer()
        .with_update(Grant::Subtree(zone.clone()));
    let mut settings = Settings::of(root)?;
    settings.listen = Some(host.listen);
    settings.dns = Some(dns(host.dns(), zone, &key));
    settings.server = Some(server(
        root,
        host,
        ZoneConfig::primary(zone.clone()),
        grants,
    ));
    settings.write(root)?;
    Ok(token)
}

fn dns(server: SocketAddr, zone: &ZoneName, key: &Key) -> Dns {
    Dns {
        server,
        zone: zone.clone(),
        key: key.name(),
        secret: key.secret(),
        patience: patience(),
    }
}

fn server(root: &Path, host: &Host, zone: ZoneConfig, key: KeyConfig) -> ServerConfig {
    ServerConfig {
        listen: vec![host.dns()],
        inside: Vec::new(),
        zones: vec![zone],
        keys: vec![key],
        forwarders: resolvers()
            .into_iter()
            .filter(|resolver| *resolver != host.dns())
            .collect(),
        state: Some(directory(root).join("zone")),
        addresses: vec![host.dns().ip()],
    }
}

/// The host's own resolvers (resolv.conf(5)).
fn resolvers() -> Vec<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let addresses = text
        .lines()
        .filter_map(|line| line.strip_prefix("nameserver")?.trim().parse().ok());
    addresses.map(|ip| SocketAddr::new(ip, DNS_PORT)).collect()
}

/// Joins the cluster of the agent at `first`.
///
/// # Errors
/// When it cannot be reached, is not the one the token is of, or refuses.
pub(crate) fn join(root: &Path, host: &Host, first: SocketAddr, token: &Token) -> Result<()> {
    let identity = Identity::of(root);
    let stream = TcpStream::connect(first).hinted(
        format!("connect to {first}"),
        "is pod agent --listen running there?",
    )?;
    let stream = connect_by_token(token, Link::socket(stream.into()).context("connect")?)?;
    let mut conn = Conn::new(stream);
    let wrong = || "take the token that pod agent init printed there";
    conn.handshake()
        .hinted(format!("talk to {first}"), wrong())?;
    let key = identity.make_key()?;
    let join = Join {
        secret: token.secret.clone(),
        public: key.public_key_raw().to_vec(),
        dns: host.dns(),
    };
    conn.send(&join)?;
    match conn.receive()? {
        Welcome::Joined {
            authority,
            certificate,
            dns,
        } => {
            identity.adopt(&authority, &certificate)?;
            settle_in(root, host, dns)
        }
        Welcome::Refused(failure) => Err(anyhow::Error::from(LinkError::Refused(failure))),
    }
}

fn settle_in(root: &Path, host: &Host, dns: Option<Dns>) -> Result<()> {
    let mut settings = Settings::of(root)?;
    settings.listen = Some(host.listen);
    if let Some(dns) = &dns {
        let key = Key::new(&dns.key, &dns.secret)?;
        let zone = ZoneConfig::secondary(dns.zone.clone(), dns.server, &dns.key);
        settings.server = Some(server(
            root,
            host,
            zone,
            KeyConfig::new(&key).with_transfer(),
        ));
    }
    settings.dns = dns;
    settings.write(root)
}

/// Lets whoever is at the other end join, if it knows the secret. The handshake is done.
///
/// # Errors
/// A broken connection, or what was refused.
pub(crate) fn admit(root: &Path, conn: &mut Conn) -> Result<()> {
    let join: Join = conn.receive()?;
    match welcome(root, &join) {
        Ok(welcome) => Ok(conn.send(&welcome)?),
        Err(error) => {
            conn.send(&Welcome::Refused(Failure::of(&error)))?;
            conn.drain();
            Err(error)
        }
    }
}

fn welcome(root: &Path, join: &Join) -> Result<Welcome> {
    let identity = Identity::of(root);
    // Hashes are compared, so that the time it takes tells nothing of the secret.
    let (theirs, ours) = (
        blake3::hash(join.secret.as_bytes()),
        blake3::hash(identity.token()?.secret.as_bytes()),
    );
    if theirs != ours {
        return Err(Failure::new("the secret is wrong")
            .hint("take the token that pod agent init printed")
            .into());
    }
    let certificate = identity.certify(&join.public)?;
    let dns = notify(root, join.dns)?;
    Ok(Welcome::Joined {
        authority: identity.authority_pem()?,
        certificate,
        dns,
    })
}

/// Adds a secondary to those our name server tells of changes.
fn notify(root: &Path, secondary: SocketAddr) -> Result<Option<Dns>> {
    let _lock = Lock::exclusive(&directory(root).join("lock"))?;
    let mut settings = Settings::of(root)?;
    for zone in settings
        .server
        .iter_mut()
        .flat_map(|server| &mut server.zones)
    {
        if let Role::Primary { notify } = &mut zone.role
            && !notify.contains(&secondary)
        {
            notify.push(secondary);
        }
    }
    settings.write(root)?;
    Ok(settings.dns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::identity::is_member;

    fn host(number: u8) -> Host {
        Host {
            listen: SocketAddr::new([192, 0, 2, number].into(), 7077),
            dns: None,
        }
    }

    /// Joins over a real connection; the second root's settings, or why not.
    fn joined(root: &Path, second: &Path, token: &Token) -> Result<Settings> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let first = listener.local_addr().unwrap();
        let server = root.to_owned();
        let serving = std::thread::spawn(move || -> Result<()> {
            let (stream, _) = listener.accept()?;
            let mut stream = Identity::of(&server).accept(Link::socket(stream.into())?)?;
            anyhow::ensure!(!is_member(&mut stream)?);
            let mut conn = Conn::new(stream);
            conn.handshake()?;
            admit(&server, &mut conn)
        });
        let result = join(second, &host(2), first, token);
        let served = serving.join().unwrap();
        result.and(served)?;
        Settings::of(second)
    }

    #[test]
    fn a_host_with_the_token_joins_and_becomes_a_secondary() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let token = init(one.path(), &host(1), &ZoneName::default()).unwrap();
        let settings = joined(one.path(), two.path(), &token).unwrap();
        let primary = Settings::of(one.path()).unwrap().server.unwrap();
        let secondary = settings.server.unwrap();
        let Role::Primary { notify } = &primary.zones[0].role else {
            panic!()
        };
        assert_eq!(*notify, [host(2).dns()]);
        let Role::Secondary { primary: at, .. } = &secondary.zones[0].role else {
            panic!()
        };
        assert_eq!(*at, host(1).dns());
        assert_eq!(settings.dns.unwrap().server, host(1).dns());
        assert!(Identity::of(two.path()).token().is_err());
    }

    #[test]
    fn a_wrong_token_does_not_join() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let token = init(one.path(), &host(1), &ZoneName::default()).unwrap();
        let mut wrong = token;
        wrong.secret = "0".repeat(32);
        let error = joined(one.path(), two.path(), &wrong).err().unwrap();
        assert!(
            format!("{error:#}").contains("secret is wrong"),
            "{error:#}"
        );
        let other = init(two.path(), &host(9), &ZoneName::default()).unwrap();
        let three = tempfile::tempdir().unwrap();
        assert!(joined(one.path(), three.path(), &other).is_err());
    }
}
