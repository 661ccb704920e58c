//! TSIG (RFC 8945): who may change the zone, and whether an answer is the authority's.
//!
//! ```text
//! client                                   server
//!   message, MAC(message, time)  ─────────▶ key known? MAC right? |now − time| ≤ fudge?
//!   MAC(request MAC, answer, time) ◀─────── answer, signed with the request's MAC mixed in
//!   further messages of a transfer: MAC(previous MAC, [unsigned messages], message, time)
//! ```

use std::{fmt, fs::File, io::Read};

use data_encoding::BASE64;
use hickory_proto::{
    ProtoError,
    op::Message,
    rr::{
        Name, TSigner,
        rdata::tsig::{TSIG, TsigAlgorithm, make_tsig_record, signed_bitmessage_to_buf},
    },
    serialize::binary::{BinEncodable, BinEncoder},
};

use crate::{Error, Result};

/// Seconds by which the clocks of client and server may differ (RFC 8945 section 10 recommends 300).
pub(crate) const FUDGE: u16 = 300;
/// Messages of a transfer that may follow each other unsigned (RFC 8945 section 5.3.1).
const MAX_UNSIGNED: u32 = 99;

/// A shared secret with its name, for HMAC-SHA256.
#[derive(Clone)]
pub struct Key {
    signer: TSigner,
}

impl Key {
    /// A key from its name and the secret in base64, as BIND's `tsig-keygen` prints it.
    pub fn new(name: &str, secret: &str) -> Result<Self> {
        let fault = |reason: String| Error::Key {
            key: name.to_owned(),
            reason,
        };
        let bytes = BASE64
            .decode(secret.trim().as_bytes())
            .map_err(|e| fault(format!("secret is not base64: {e}")))?;
        if bytes.len() < 16 {
            return Err(fault("secret has fewer than 16 bytes".to_owned()));
        }
        let owner = Name::from_ascii(name).map_err(|source| Error::DomainName {
            text: name.to_owned(),
            source,
        })?;
        let signer = TSigner::new(
            bytes,
            TsigAlgorithm::HmacSha256,
            owner.to_lowercase(),
            FUDGE,
        )
        .map_err(|e| fault(e.to_string()))?;
        Ok(Self { signer })
    }

    /// A new key with 32 random bytes.
    pub fn generate(name: &str) -> Result<Self> {
        let mut bytes = [0; 32];
        File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut bytes))
            .map_err(|e| Error::Key {
                key: name.to_owned(),
                reason: format!("/dev/urandom: {e}"),
            })?;
        Self::new(name, &BASE64.encode(&bytes))
    }

    /// Name of the key without the final dot.
    #[must_use]
    pub fn name(&self) -> String {
        self.signer
            .signer_name()
            .to_ascii()
            .trim_end_matches('.')
            .to_owned()
    }

    /// The secret in base64.
    #[must_use]
    pub fn secret(&self) -> String {
        BASE64.encode(self.signer.key())
    }

    /// The key as a clause for BIND's `named.conf` and for the key files of `dig` and `nsupdate`.
    #[must_use]
    pub fn clause(&self) -> String {
        let (name, secret) = (self.name(), self.secret());
        format!("key \"{name}\" {{ algorithm hmac-sha256; secret \"{secret}\"; }};\n")
    }

    pub(crate) fn signer(&self) -> &TSigner {
        &self.signer
    }

    /// Signs `message` as a request made at `now` and gives back what checks the answers.
    pub(crate) fn sign_request(
        &self,
        message: &mut Message,
        now: u64,
    ) -> Result<Chain, ProtoError> {
        message.signature = None;
        let stub = self.stub(message.metadata.id, now);
        let mut tbs = message.to_bytes()?;
        let mut variables = Vec::new();
        stub.emit_tsig_for_mac(
            &mut BinEncoder::new(&mut variables),
            self.signer.signer_name(),
        )?;
        tbs.extend(variables);
        let mac = self.mac(&tbs)?;
        message.set_signature(Box::new(make_tsig_record(
            self.signer.signer_name().clone(),
            stub.set_mac(mac.clone()),
        )));
        Ok(Chain {
            key: self.clone(),
            mac,
            pending: Vec::new(),
            unsigned: 0,
            first: true,
            asked: now,
        })
    }

    pub(crate) fn stub(&self, id: u16, now: u64) -> TSIG {
        TSIG::new(
            self.signer.algorithm().clone(),
            now,
            FUDGE,
            Vec::new(),
            id,
            None,
            Vec::new(),
        )
    }

    pub(crate) fn mac(&self, tbs: &[u8]) -> Result<Vec<u8>, ProtoError> {
        self.signer
            .sign(tbs)
            .map_err(|e| ProtoError::from(e.to_string()))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("name", &self.name())
            .finish_non_exhaustive()
    }
}

/// Why an answer was not believed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// No TSIG where one must be, or a wrong one.
    NotAuthentic(String),
    /// Signed at a time too far from ours: the server's clock minus ours, in seconds.
    Skew(i64),
}

/// Checks the signatures of all messages that answer one request (RFC 8945 sections 5.3.1, 5.4).
pub(crate) struct Chain {
    key: Key,
    mac: Vec<u8>,
    pending: Vec<u8>,
    unsigned: u32,
    first: bool,
    asked: u64,
}

impl Chain {
    /// Takes the next message. An unsigned one is believed only when a later one vouches for it.
    pub(crate) fn accept(&mut self, raw: &[u8], message: &Message) -> Result<(), Doubt> {
        let Some(record) = message.signature() else {
            return self.hold(raw);
        };
        let wrong = |e: ProtoError| Doubt::NotAuthentic(e.to_string());
        if record.name != *self.key.signer.signer_name() {
            return Err(Doubt::NotAuthentic(format!(
                "signed with key {}",
                record.name
            )));
        }
        let (mut tbs, _) =
            signed_bitmessage_to_buf(raw, Some(&self.mac), self.first).map_err(wrong)?;
        let at = 2 + self.mac.len();
        tbs.splice(at..at, self.pending.drain(..));
        let tsig = &record.data;
        self.key
            .signer
            .verify(&tbs, &tsig.mac)
            .map_err(|e| Doubt::NotAuthentic(e.to_string()))?;
        self.mac.clone_from(&tsig.mac);
        self.first = false;
        self.unsigned = 0;
        let skew = i64::try_from(tsig.time)
            .unwrap_or(i64::MAX)
            .saturating_sub_unsigned(self.asked);
        // The answer is made later than the question: the bound is on the clocks, not on patience.
        if skew.unsigned_abs() > u64::from(FUDGE) + crate::client::MAX_PATIENCE.as_secs() {
            Err(Doubt::Skew(skew))
        } else {
            Ok(())
        }
    }

    fn hold(&mut self, raw: &[u8]) -> Result<(), Doubt> {
        self.unsigned += 1;
        if self.first || self.unsigned > MAX_UNSIGNED {
            return Err(Doubt::NotAuthentic("not signed".to_owned()));
        }
        self.pending.extend_from_slice(raw);
        Ok(())
    }

    /// After the last message: an error if some message is vouched for by none.
    pub(crate) fn finish(&self) -> Result<(), Doubt> {
        match self.unsigned {
            0 if !self.first => Ok(()),
            _ => Err(Doubt::NotAuthentic("last message is not signed".to_owned())),
        }
    }
}

/// Seconds since 1970 (TSIG's clock).
pub(crate) fn unix_now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_and_hide() {
        let key = Key::generate("Host-A").unwrap();
        assert_eq!(
            Key::new(&key.name(), &key.secret()).unwrap().secret(),
            key.secret()
        );
        assert_eq!(key.name(), "host-a");
        assert!(!format!("{key:?}").contains(&key.secret()));
    }

    #[test]
    fn weak_secrets_are_refused() {
        assert!(Key::new("k", "c2hvcnQ=").is_err());
        assert!(Key::new("k", "?").is_err());
    }
}
