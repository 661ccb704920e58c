//! A sleeping pod as files.
//!
//! ```text
//! IMAGE/
//!   header.cbor    format, host features, hashes of the rest; written last
//!   records.cbor   a sequence of envelopes {kind, version, id, body}
//!   pages.img      page-aligned extents: memory and contents of unnamed files
//!   …              further files that the program adds (the pod's layer, its log)
//! ```
//!
//! Records are *objects* with ids of their own kind's number space; *slots* in other
//! records refer to them. A record holds virtual names only. A record of an unknown kind
//! or a newer version is an error, so nothing of a pod can get lost unread. The directory
//! is written under a temporary name, synced and renamed.

mod content;
mod header;
mod read;
mod write;

/// A record's body, undecoded.
pub use ciborium::Value;
pub use content::{Content, Extent};
pub use header::{FORMAT, FileSum, Header};
pub use read::Image;
pub use write::Writer;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Size of a page, in bytes; every extent of `pages.img` begins at a multiple of it.
pub const PAGE: u64 = 4096;
/// Name of the header's file.
pub const HEADER: &str = "header.cbor";
/// Name of the records' file.
pub const RECORDS: &str = "records.cbor";
/// Name of the file of pages.
pub const PAGES: &str = "pages.img";

/// A record's type: its kind in the image and the version this program writes.
pub trait Record: Serialize + DeserializeOwned {
    /// Name of the kind, unique in the image format.
    const KIND: &'static str;
    /// Version that is written; older ones are migrated by the type's `Deserialize`.
    const VERSION: u16;
}

/// What stands around a record in `records.cbor`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// The record's kind.
    pub kind: String,
    /// The version of its layout.
    pub version: u16,
    /// Its number among those of its kind.
    pub id: u32,
    /// The record itself.
    pub body: ciborium::Value,
}
