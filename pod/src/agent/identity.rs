//! Who may talk to whom: a cluster's own certificate authority, and TLS in which both sides show that they
//! belong to it.
//!
//! A host's certificate says that it is a member, nothing more: hosts are addressed by numbers and names
//! that change, so every certificate is made out to [`MEMBER`]. Who joins does not know the authority
//! yet: it is given the authority's hash with the secret ([`Token`]), out of band.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, ServerConfig,
    ServerConnection, SignatureScheme, StreamOwned,
};

use super::config::directory;
use super::token::{FINGERPRINT, Token};
use crate::failure::Hinted;
use crate::messages::Channel;
use crate::migrate::frame::Conn;
use crate::migrate::link::Link;
use crate::store::{private_dir, random_hex, write_atomically};

/// The name that every member's certificate is made out to.
const MEMBER: &str = "agent.pod.internal";
const AUTHORITY: &str = "pod cluster";

/// A hash of a certificate, as tokens have it.
fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    blake3::hash(certificate).to_hex()[..2 * FINGERPRINT].to_owned()
}

/// The agent's directory with its certificates.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    dir: PathBuf,
}

/// A public key somebody else has the private part of.
struct Public<'a>(&'a [u8]);

impl PublicKeyData for Public<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, AUTHORITY);
    params
}

impl Identity {
    /// The identity of a root, made or not.
    pub(crate) fn of(root: &Path) -> Self {
        Self {
            dir: directory(root),
        }
    }

    /// Makes a cluster: its authority, a secret, and our own certificate.
    ///
    /// # Errors
    /// When there is one already, or it cannot be written.
    pub(crate) fn found(&self) -> Result<Token> {
        anyhow::ensure!(
            !self.path("ca.pem").exists(),
            "{} is there: this host is in a cluster already",
            self.path("ca.pem").display()
        );
        let key = KeyPair::generate().context("make a key")?;
        let authority = authority_params()
            .self_signed(&key)
            .context("make the cluster's certificate")?;
        let secret = random_hex(FINGERPRINT)?;
        self.write("ca.key", &key.serialize_pem())?;
        self.write("secret", &secret)?;
        let own = self.make_key()?;
        let certificate = self.certify(own.public_key_raw())?;
        self.adopt(&authority.pem(), &certificate)?;
        self.token()
    }

    /// What a joining host must be told. Only the first host knows.
    ///
    /// # Errors
    /// On any other host.
    pub(crate) fn token(&self) -> Result<Token> {
        let secret = fs::read_to_string(self.path("secret")).hinted(
            "read the cluster's secret",
            "only the host where pod agent init ran can admit others",
        )?;
        Ok(Token {
            fingerprint: fingerprint(&self.authority()?),
            secret,
        })
    }

    /// Makes our private key; returns it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn make_key(&self) -> Result<KeyPair> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("make a key")?;
        self.write("host.key", &key.serialize_pem())?;
        Ok(key)
    }

    /// Signs a certificate for a member with this public key (an uncompressed P-256 point).
    ///
    /// # Errors
    /// On a host that has not the authority's key.
    pub(crate) fn certify(&self, public: &[u8]) -> Result<String> {
        anyhow::ensure!(public.len() == 65 && public[0] == 4, "this is no P-256 key");
        let pem = self.read("ca.key")?;
        let key = KeyPair::from_pem(&pem).context("read ca.key")?;
        let issuer = Issuer::new(authority_params(), key);
        let mut params =
            CertificateParams::new(vec![MEMBER.to_owned()]).context("make a certificate")?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, MEMBER);
        Ok(params
            .signed_by(&Public(public), &issuer)
            .context("sign a certificate")?
            .pem())
    }

    /// Keeps the authority's and our certificate.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(crate) fn adopt(&self, authority: &str, own: &str) -> Result<()> {
        self.write("host.pem", own)?;
        self.write("ca.pem", authority)
    }

    /// The authority's certificate, as text.
    ///
    /// # Errors
    /// When this host is in no cluster.
    pub(crate) fn authority_pem(&self) -> Result<String> {
        self.read("ca.pem")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        private_dir(&self.dir)?;
        write_atomically(&self.path(name), text.as_bytes())
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.path(name);
        fs::read_to_string(&path).hinted(
            format!("read {}", path.display()),
            "make a cluster with pod agent init, or join one with pod agent join",
        )
    }

    fn authority(&self) -> Result<CertificateDer<'static>> {
        CertificateDer::from_pem_slice(self.read("ca.pem")?.as_bytes()).context("read ca.pem")
    }

    fn roots(&self) -> Result<Arc<RootCertStore>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority()?).context("trust ca.pem")?;
        Ok(Arc::new(roots))
    }

    /// Our certificate with the authority's behind it, and our key.
    fn chain(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let own = CertificateDer::from_pem_slice(self.read("host.pem")?.as_bytes())
            .context("read host.pem")?;
        let key = PrivateKeyDer::from_pem_slice(self.read("host.key")?.as_bytes())
            .context("read host.key")?;
        Ok((vec![own, self.authority()?], key))
    }

    /// TLS over a connection that somebody else began. The other side may be nobody we know: see [`is_member`].
    ///
    /// # Errors
    /// When this host is in no cluster.
    pub(crate) fn accept(&self, link: Link) -> Result<StreamOwned<ServerConnection, Link>> {
        let (chain, key) = self.chain()?;
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?, provider());
        let verifier = verifier
            .allow_unauthenticated()
            .build()
            .context("trust ca.pem")?;
        let config = ServerConfig::builder_with_provider(provider());
        let config = config
            .with_safe_default_protocol_versions()
            .context("TLS")?;
        let mut config = config
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .context("use host.pem")?;
        // A ticket that the client never reads would break the connection when it closes.
        config.send_tls13_tickets = 0;
        let tls = ServerConnection::new(Arc::new(config)).context("begin TLS")?;
        Ok(StreamOwned::new(tls, link))
    }

    /// TLS over a connection that we began, to a member of our cluster.
    ///
    /// # Errors
    /// When this host is in no cluster.
    pub(crate) fn connect(&self, link: Link) -> Result<StreamOwned<ClientConnection, Link>> {
        let (chain, key) = self.chain()?;
        let config = ClientConfig::builder_with_provider(provider());
        let config = config
            .with_safe_default_protocol_versions()
            .context("TLS")?;
        let config = config
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(chain, key)
            .context("use host.pem")?;
        client(config, link)
    }
}

impl Conn {
    /// A connection over the descriptors of a channel, to a member of our cluster or through ssh; both
    /// have said hello.
    ///
    /// # Errors
    /// Descriptors that are missing, a host in no cluster, somebody who is no peer.
    pub(crate) fn over(root: &Path, channel: Channel, fds: Vec<OwnedFd>) -> Result<Self> {
        let mut fds = fds.into_iter();
        let mut next = || {
            fds.next()
                .context("the connection's descriptors are missing")
        };
        let mut conn = match channel {
            Channel::Plain => Self::new(Link::new(next()?, next()?).context("fcntl")?),
            Channel::Tls => {
                Self::new(Identity::of(root).connect(Link::socket(next()?).context("fcntl")?)?)
            }
        };
        conn.handshake()?;
        Ok(conn)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn client(config: ClientConfig, link: Link) -> Result<StreamOwned<ClientConnection, Link>> {
    let member = ServerName::try_from(MEMBER).context("TLS")?;
    let tls = ClientConnection::new(Arc::new(config), member).context("begin TLS")?;
    Ok(StreamOwned::new(tls, link))
}

/// TLS to a host whose authority we only know by its hash.
///
/// # Errors
/// When TLS cannot be begun.
pub(crate) fn connect_by_token(
    token: &Token,
    link: Link,
) -> Result<StreamOwned<ClientConnection, Link>> {
    let config = ClientConfig::builder_with_provider(provider());
    let config = config
        .with_safe_default_protocol_versions()
        .context("TLS")?;
    let verifier = Arc::new(ByHash {
        fingerprint: token.fingerprint.clone(),
    });
    let config = config
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    client(config, link)
}

/// Finishes a handshake and tells whether the client has shown that it belongs to our cluster.
///
/// # Errors
/// A handshake that failed; with it, a certificate of somebody else's.
pub(crate) fn is_member(stream: &mut StreamOwned<ServerConnection, Link>) -> Result<bool> {
    while stream.conn.is_handshaking() {
        stream
            .conn
            .complete_io(&mut stream.sock)
            .context("TLS handshake")?;
    }
    Ok(stream.conn.peer_certificates().is_some())
}

/// Trusts exactly the authority with one hash.
#[derive(Debug)]
struct ByHash {
    fingerprint: String,
}

impl ServerCertVerifier for ByHash {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let authority = intermediates
            .iter()
            .find(|one| fingerprint(one) == self.fingerprint)
            .ok_or_else(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
        verifier.map_err(|_| unknown())?.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &ring::default_provider().signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &ring::default_provider().signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn links() -> (Link, Link) {
        let (a, b) = UnixStream::pair().unwrap();
        (
            Link::socket(a.into()).unwrap(),
            Link::socket(b.into()).unwrap(),
        )
    }

    /// Lets `server` accept what `begin` makes of a link; whether the client was a member, and what it read.
    fn talk(
        server: &Identity,
        begin: impl FnOnce(Link) -> StreamOwned<ClientConnection, Link>,
    ) -> (Result<bool>, std::io::Result<String>) {
        let (ours, theirs) = links();
        let server = server.clone();
        let accepting = std::thread::spawn(move || {
            let mut stream = server.accept(theirs)?;
            let member = is_member(&mut stream)?;
            stream.write_all(b"hello")?;
            Ok(member)
        });
        let mut stream = begin(ours);
        let mut hello = [0; 5];
        let read = stream
            .read_exact(&mut hello)
            .map(|()| String::from_utf8_lossy(&hello).into_owned());
        drop(stream);
        (accepting.join().unwrap(), read)
    }

    #[test]
    fn members_know_each_other_and_nobody_else() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (first, stranger) = (Identity::of(one.path()), Identity::of(two.path()));
        let token = first.found().unwrap();
        assert!(first.found().is_err());
        let other = stranger.found().unwrap();

        let (member, read) = talk(&first, |link| first.connect(link).unwrap());
        assert!(member.unwrap());
        assert_eq!(read.unwrap(), "hello");
        let (member, read) = talk(&first, |link| stranger.connect(link).unwrap());
        assert!(member.is_err() && read.is_err());
        let (member, read) = talk(&first, |link| connect_by_token(&token, link).unwrap());
        assert!(!member.unwrap());
        assert_eq!(read.unwrap(), "hello");
        let (_, read) = talk(&first, |link| connect_by_token(&other, link).unwrap());
        assert!(read.is_err());
    }

    #[test]
    fn a_host_joins_with_a_key_of_its_own() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (first, second) = (Identity::of(one.path()), Identity::of(two.path()));
        first.found().unwrap();
        let key = second.make_key().unwrap();
        let certificate = first.certify(key.public_key_raw()).unwrap();
        second
            .adopt(&first.authority_pem().unwrap(), &certificate)
            .unwrap();
        assert!(
            talk(&first, |link| second.connect(link).unwrap())
                .0
                .unwrap()
        );
        assert!(
            talk(&second, |link| first.connect(link).unwrap())
                .0
                .unwrap()
        );
        assert!(second.token().is_err());
        assert!(first.certify(b"no key").is_err());
    }
}
