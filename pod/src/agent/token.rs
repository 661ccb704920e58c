//! What a joining host must be told, out of band.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, anyhow};

/// Bytes of the authority's hash, and of the secret.
pub(super) const FINGERPRINT: usize = 16;

/// What a joining host must know: whom to trust, and a secret to be trusted.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token {
    /// Of the cluster's authority.
    pub(super) fingerprint: String,
    pub(crate) secret: String,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.fingerprint, self.secret)
    }
}

impl FromStr for Token {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let hex = |part: &str| {
            part.len() == 2 * FINGERPRINT && part.bytes().all(|b| b.is_ascii_hexdigit())
        };
        match text.trim().split_once('.') {
            Some((fingerprint, secret)) if hex(fingerprint) && hex(secret) => Ok(Self {
                fingerprint: fingerprint.to_owned(),
                secret: secret.to_owned(),
            }),
            _ => Err(anyhow!("this is no token of pod agent init")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_read_back() {
        let token = Token {
            fingerprint: "a".repeat(32),
            secret: "0".repeat(32),
        };
        assert!(token.to_string().parse::<Token>().unwrap() == token);
        for bad in ["", ".", "abc.def", &"z".repeat(65)] {
            assert!(bad.parse::<Token>().is_err(), "{bad}");
        }
    }
}
