//! Reading an image. What is read is an allegation: sizes are checked before they are
//! believed, and a broken or hostile image gives an error and nothing else.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use super::{Envelope, FORMAT, FileSum, HEADER, Header, PAGES, RECORDS, Record, write::sum_file};
use crate::error::{Error, Result};

const DAMAGED: &str = "its contents differ from their hash";

/// No header is longer than this, in bytes.
const HEADER_MAX: u64 = 1 << 20;

/// An image that was opened; records are decoded when asked for.
pub struct Image {
    path: PathBuf,
    header: Header,
    records: BTreeMap<(String, u32), Envelope>,
    pages: File,
    unread: RefCell<std::collections::BTreeSet<String>>,
}

impl Image {
    /// Opens an image: its header, the lengths of its files and all its envelopes, whose hash must be
    /// right. The other files are proven by [`Image::verify`].
    ///
    /// # Errors
    /// [`Error::Image`] for what is no image or is truncated, [`Error::NewerImage`] for a newer format.
    pub fn open(path: &Path) -> Result<Self> {
        let header = read_header(path)?;
        for (name, sum) in &header.files {
            check_length(path, name, sum.len)?;
        }
        let records = read_records(path, &header.files[RECORDS])?;
        let pages =
            File::open(path.join(PAGES)).map_err(|e| Error::file("open", path.join(PAGES), e))?;
        let unread = RefCell::new(records.keys().map(|(kind, _)| kind.clone()).collect());
        Ok(Self {
            path: path.to_owned(),
            header,
            records,
            pages,
            unread,
        })
    }

    /// Where it stands.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The file of pages.
    #[must_use]
    pub fn pages(&self) -> &File {
        &self.pages
    }

    /// All envelopes, by kind and number.
    pub fn envelopes(&self) -> impl Iterator<Item = &Envelope> {
        self.records.values()
    }

    /// Notes that records of this kind were looked at by somebody who decodes them himself.
    pub fn mark_read(&self, kind: &str) {
        self.unread.borrow_mut().remove(kind);
    }

    /// One record.
    ///
    /// # Errors
    /// [`Error::NoRecord`], or [`Error::Image`] when it does not decode or is of a newer version.
    pub fn get<T: Record>(&self, id: u32) -> Result<T> {
        self.mark_read(T::KIND);
        let envelope =
            self.records
                .get(&(T::KIND.to_owned(), id))
                .ok_or_else(|| Error::NoRecord {
                    kind: T::KIND.into(),
                    id,
                })?;
        self.decode(envelope)
    }

    /// All records of a kind, by number.
    ///
    /// # Errors
    /// As [`Image::get`].
    pub fn all<T: Record>(&self) -> Result<BTreeMap<u32, T>> {
        self.mark_read(T::KIND);
        let (first, last) = ((T::KIND.to_owned(), 0), (T::KIND.to_owned(), u32::MAX));
        self.records
            .range(first..=last)
            .map(|((_, id), e)| Ok((*id, self.decode(e)?)))
            .collect()
    }

    /// Decodes an envelope's body.
    ///
    /// # Errors
    /// [`Error::Image`] when it does not decode or is of a newer version.
    pub fn decode<T: Record>(&self, envelope: &Envelope) -> Result<T> {
        let bad = |why: String| Error::Image {
            path: self.path.clone(),
            why,
        };
        if envelope.version > T::VERSION {
            return Err(bad(format!(
                "{} record {} has version {}, this program reads up to {}",
                envelope.kind,
                envelope.id,
                envelope.version,
                T::VERSION
            )));
        }
        envelope
            .body
            .deserialized()
            .map_err(|e| bad(format!("{} record {}: {e}", envelope.kind, envelope.id)))
    }

    /// Proves that everything was read that a restart must heed.
    ///
    /// # Errors
    /// [`Error::Image`] with the kinds nobody asked for.
    pub fn all_read(&self) -> Result<()> {
        let unread = self.unread.borrow();
        if unread.is_empty() {
            return Ok(());
        }
        let kinds = unread.iter().cloned().collect::<Vec<_>>().join(", ");
        Err(Error::Image {
            path: self.path.clone(),
            why: format!("records of unknown kind: {kinds}"),
        })
    }

    /// Proves the image whole: every file has the length and hash that the header says.
    ///
    /// # Errors
    /// [`Error::Image`] with the first file that differs.
    pub fn verify(&self) -> Result<()> {
        for (name, sum) in &self.header.files {
            let path = self.path.join(name);
            let found = sum_file(&path).map_err(|e| Error::file("read", &path, e))?;
            if found != *sum {
                return Err(bad(&path, DAMAGED));
            }
        }
        Ok(())
    }
}

fn bad(path: &Path, why: impl Into<String>) -> Error {
    Error::Image {
        path: path.to_owned(),
        why: why.into(),
    }
}

fn read_header(path: &Path) -> Result<Header> {
    let file = path.join(HEADER);
    let open = File::open(&file).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => bad(path, "not an image (it has no header)"),
        _ => Error::file("open", &file, e),
    })?;
    let mut bytes = Vec::new();
    open.take(HEADER_MAX)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::file("read", &file, e))?;
    let undecoded =
        |e: &dyn std::fmt::Display| bad(path, format!("its header does not decode: {e}"));
    let mut rest = &bytes[..];
    let value: ciborium::Value = ciborium::from_reader(&mut rest).map_err(|e| undecoded(&e))?;
    // A newer format may do all that follows in another way.
    check_format(path, &value)?;
    if blake3::hash(&bytes[..bytes.len() - rest.len()]).as_bytes() != rest {
        return Err(bad(&file, DAMAGED));
    }
    let header: Header = value.deserialized().map_err(|e| undecoded(&e))?;
    if let Some(name) = header
        .files
        .keys()
        .find(|n| n.contains('/') || n.starts_with('.'))
    {
        return Err(bad(
            path,
            format!("its header names a file {name:?} outside the image"),
        ));
    }
    match [RECORDS, PAGES]
        .iter()
        .find(|n| !header.files.contains_key(**n))
    {
        Some(missing) => Err(bad(path, format!("its header does not name {missing}"))),
        None => Ok(header),
    }
}

/// The format number is looked at before anything else is believed to be where this version has it.
fn check_format(path: &Path, header: &ciborium::Value) -> Result<()> {
    let format = header
        .as_map()
        .and_then(|m| m.iter().find(|(k, _)| k.as_text() == Some("format")))
        .and_then(|(_, v)| v.as_integer())
        .and_then(|i| u32::try_from(i).ok())
        .ok_or_else(|| bad(path, "its header has no format number"))?;
    match format {
        1..=FORMAT => Ok(()),
        found => Err(Error::NewerImage {
            path: path.to_owned(),
            found,
            known: FORMAT,
        }),
    }
}

fn check_length(path: &Path, name: &str, len: u64) -> Result<()> {
    let file = path.join(name);
    let found = std::fs::symlink_metadata(&file).map_err(|e| Error::file("open", &file, e))?;
    if !found.is_file() || found.len() != len {
        let why = format!("it has {} bytes, the header says {len}", found.len());
        return Err(Error::Image { path: file, why });
    }
    Ok(())
}

fn read_records(path: &Path, sum: &FileSum) -> Result<BTreeMap<(String, u32), Envelope>> {
    let file = path.join(RECORDS);
    let bytes = std::fs::read(&file).map_err(|e| Error::file("read", &file, e))?;
    if blake3::hash(&bytes).to_hex().as_str() != sum.blake3 {
        return Err(bad(&file, DAMAGED));
    }
    let (mut rest, mut records) = (&bytes[..], BTreeMap::new());
    while !rest.is_empty() {
        let envelope: Envelope = ciborium::from_reader(&mut rest)
            .map_err(|e| bad(&file, format!("a record does not decode: {e}")))?;
        let key = (envelope.kind.clone(), envelope.id);
        if records.insert(key, envelope).is_some() {
            return Err(bad(&file, "a record is there twice"));
        }
    }
    Ok(records)
}
