//! Writing an image: under a temporary name, synced, renamed.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{BufWriter, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    Content, Envelope, Extent, FORMAT, FileSum, HEADER, Header, PAGE, PAGES, RECORDS, Record,
};
use crate::error::{Error, Result};

/// A file of the image that is being written and summed.
struct Summed {
    path: PathBuf,
    out: BufWriter<File>,
    hash: blake3::Hasher,
    len: u64,
}

impl Summed {
    fn create(path: PathBuf) -> Result<Self> {
        let file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| Error::file("create", &path, e))?;
        let out = BufWriter::with_capacity(256 << 10, file);
        Ok(Self {
            path,
            out,
            hash: blake3::Hasher::new(),
            len: 0,
        })
    }

    fn write(&mut self, data: &[u8]) -> Result<()> {
        self.hash.update(data);
        self.len += data.len() as u64;
        self.out
            .write_all(data)
            .map_err(|e| Error::file("write", &self.path, e))
    }

    fn finish(self) -> Result<FileSum> {
        let path = self.path;
        let file = self
            .out
            .into_inner()
            .map_err(|e| Error::file("write", &path, e.into_error()))?;
        file.sync_all().map_err(|e| Error::file("sync", &path, e))?;
        Ok(FileSum {
            len: self.len,
            blake3: self.hash.finalize().to_hex().to_string(),
        })
    }
}

/// An image that is being written. Dropped before [`Writer::finish`], it leaves nothing behind.
pub struct Writer {
    temporary: Temporary,
    target: PathBuf,
    records: Summed,
    pages: Summed,
    others: BTreeMap<String, FileSum>,
}

impl Writer {
    /// Begins an image that will stand at `target`, which must not exist yet.
    ///
    /// # Errors
    /// When `target` exists or its directory cannot be written.
    pub fn create(target: &Path) -> Result<Self> {
        if target.symlink_metadata().is_ok() {
            let taken = std::io::Error::from_raw_os_error(libc::EEXIST);
            return Err(Error::file("create image", target, taken));
        }
        let path = Self::temporary(target);
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|e| Error::file("create image", &path, e))?;
        let temporary = Temporary { path, kept: false };
        let records = Summed::create(temporary.path.join(RECORDS))?;
        let pages = Summed::create(temporary.path.join(PAGES))?;
        Ok(Self {
            temporary,
            target: target.to_owned(),
            records,
            pages,
            others: BTreeMap::new(),
        })
    }

    /// The temporary name under which this process writes the image `target`: what to remove when the
    /// process was killed.
    #[must_use]
    pub fn temporary(target: &Path) -> PathBuf {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        target.with_file_name(format!(".{name}.{}.tmp", std::process::id()))
    }

    /// Where the image is being written; further files go here and are then named to [`Writer::add_file`].
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.temporary.path
    }

    /// Adds a record.
    ///
    /// # Errors
    /// A full disk; a record that CBOR cannot hold is a bug and reported as such.
    pub fn record<T: Record>(&mut self, id: u32, record: &T) -> Result<()> {
        let bug = |why: String| Error::Image {
            path: self.target.clone(),
            why,
        };
        let body =
            ciborium::Value::serialized(record).map_err(|e| bug(format!("{}: {e}", T::KIND)))?;
        self.envelope(&Envelope {
            kind: T::KIND.into(),
            version: T::VERSION,
            id,
            body,
        })
    }

    /// Adds a record whose body was encoded before.
    ///
    /// # Errors
    /// As [`Writer::record`].
    pub fn envelope(&mut self, envelope: &Envelope) -> Result<()> {
        let mut bytes = Vec::new();
        ciborium::into_writer(envelope, &mut bytes).map_err(|e| Error::Image {
            path: self.target.clone(),
            why: e.to_string(),
        })?;
        self.records.write(&bytes)
    }

    /// Appends bytes to the pages and returns where they begin, a multiple of the page size.
    ///
    /// # Errors
    /// A full disk.
    pub fn append(&mut self, data: &[u8]) -> Result<u64> {
        let offset = self.pages.len;
        self.pages.write(data)?;
        let odd = (data.len() as u64 % PAGE) as usize;
        if odd != 0 {
            self.pages.write(&[0u8; PAGE as usize][odd..])?;
        }
        Ok(offset)
    }

    /// Stores what `file` holds, holes left out. Its offset is not moved.
    ///
    /// # Errors
    /// What reading `file` said, or a full disk.
    pub fn content(&mut self, file: &File, what: &str) -> Result<Content> {
        let failed = |e| Error::kernel("read", what, e);
        let size = file.metadata().map_err(failed)?.len();
        let mut content = Content {
            size,
            extents: Vec::new(),
        };
        let (mut at, mut buf) = (0, vec![0u8; 1 << 20]);
        while at < size {
            let Some(data) = next_data(file, at).map_err(failed)? else {
                break;
            };
            let n = buf.len().min((size - data) as usize);
            let n = file.read_at(&mut buf[..n], data).map_err(failed)?;
            if n == 0 {
                break;
            }
            store_nonzero(self, &mut content, data, &buf[..n])?;
            at = data + n as u64;
        }
        Ok(content)
    }

    /// Takes a file that was written into [`Writer::directory`] into the header.
    ///
    /// # Errors
    /// What reading it said.
    pub fn add_file(&mut self, name: &str) -> Result<()> {
        let path = self.temporary.path.join(name);
        let sum = sum_file(&path).map_err(|e| Error::file("read", &path, e))?;
        self.others.insert(name.to_owned(), sum);
        Ok(())
    }

    /// Writes the header, syncs everything and gives the image its name.
    ///
    /// # Errors
    /// A full disk; a target that has appeared meanwhile.
    pub fn finish(self) -> Result<Header> {
        let Self {
            mut temporary,
            target,
            records,
            pages,
            others: mut files,
        } = self;
        files.insert(RECORDS.into(), records.finish()?);
        files.insert(PAGES.into(), pages.finish()?);
        let header = new_header(files);
        write_header(&temporary.path, &header)?;
        fs::rename(&temporary.path, &target)
            .map_err(|e| Error::file("rename image to", &target, e))?;
        temporary.kept = true;
        let parent = target
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        File::open(parent)
            .and_then(|d| d.sync_all())
            .map_err(|e| Error::file("sync", parent, e))?;
        Ok(header)
    }
}

fn write_header(directory: &Path, header: &Header) -> Result<()> {
    let mut bytes = Vec::new();
    ciborium::into_writer(header, &mut bytes).map_err(|e| Error::Image {
        path: directory.to_owned(),
        why: e.to_string(),
    })?;
    let mut out = Summed::create(directory.join(HEADER))?;
    out.write(&bytes)?;
    out.write(blake3::hash(&bytes).as_bytes())?;
    out.finish().map(drop)
}

/// The directory under its temporary name; gone with this value unless it was kept.
struct Temporary {
    path: PathBuf,
    kept: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            drop(fs::remove_dir_all(&self.path));
        }
    }
}

fn new_header(files: BTreeMap<String, FileSum>) -> Header {
    let kernel = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned());
    Header {
        format: FORMAT,
        arch: std::env::consts::ARCH.into(),
        kernel: kernel.unwrap_or_default(),
        created: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs()),
        files,
        parent: None,
    }
}

/// Hashes a file.
pub(super) fn sum_file(path: &Path) -> std::io::Result<FileSum> {
    let mut hash = blake3::Hasher::new();
    let len = std::io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(FileSum {
        len,
        blake3: hash.finalize().to_hex().to_string(),
    })
}

/// The first place at or after `at` that holds data; `None` when only a hole is left.
fn next_data(file: &File, at: u64) -> std::io::Result<Option<u64>> {
    // SEEK_DATA moves the offset, which the pod shares: ask through a description of our own.
    let own = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let Ok(own) = own else { return Ok(Some(at)) };
    // SAFETY: plain values only.
    let r = unsafe { libc::lseek(own.as_raw_fd(), at as i64, libc::SEEK_DATA) };
    match r {
        -1 if std::io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO) => Ok(None),
        -1 => Ok(Some(at)),
        data => Ok(Some((data as u64).max(at))),
    }
}

fn store_nonzero(writer: &mut Writer, content: &mut Content, at: u64, data: &[u8]) -> Result<()> {
    let (mut run, mut start) = (0usize, 0usize);
    for (i, page) in data.chunks(PAGE as usize).enumerate() {
        if page.iter().any(|b| *b != 0) {
            if run == 0 {
                start = i * PAGE as usize;
            }
            run += page.len();
        } else if run != 0 {
            push(
                writer,
                content,
                at + start as u64,
                &data[start..start + run],
            )?;
            run = 0;
        }
    }
    if run != 0 {
        push(
            writer,
            content,
            at + start as u64,
            &data[start..start + run],
        )?;
    }
    Ok(())
}

fn push(writer: &mut Writer, content: &mut Content, at: u64, data: &[u8]) -> Result<()> {
    let offset = writer.append(data)?;
    content.extents.push(Extent {
        at,
        len: data.len() as u64,
        offset,
    });
    Ok(())
}
