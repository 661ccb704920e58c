//! The header: what the image is, and proof that the rest of it is whole. Its own hash follows it in its
//! file: 32 bytes of BLAKE3.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Newest image format known here.
pub const FORMAT: u32 = 1;

/// Length and hash of one file of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSum {
    /// Length, in bytes.
    pub len: u64,
    /// BLAKE3, in hexadecimal.
    pub blake3: String,
}

/// Header of an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Image format, [`FORMAT`] when written here.
    pub format: u32,
    /// Machine architecture (`x86_64`).
    pub arch: String,
    /// Release of the kernel it was taken on, for people.
    pub kernel: String,
    /// When it was taken, in seconds since 1970.
    pub created: u64,
    /// Every other file of the image.
    pub files: BTreeMap<String, FileSum>,
    /// The image this one continues, by the hash of its header.
    pub parent: Option<String>,
}
