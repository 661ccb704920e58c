//! The pod's layer: the upper directory of its overlay, which holds everything it wrote.
//!
//! Packed it is one stream that can be written to a file or a socket and unpacked while it
//! arrives. Whiteouts and the overlay's attributes are ordinary nodes of the tree; holes
//! are left out; the stream ends with its own hash, and an unpacked layer gets its name
//! only when that is right.
//!
//! ```text
//! stream: item* end      item: length (4, little endian) · CBOR {node, extents} · bytes of the extents
//!                        end:  zero (4) · BLAKE3 of all before it (32)
//! ```

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Write},
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::unistd::{Whence, lseek};
use serde::{Deserialize, Serialize};

use super::tree::{Kind, Node, Planter, open_root, walk};
use crate::{
    error::{Error, Result},
    image::{Image, Writer},
};

/// Name of the layer's file in an image.
pub const LAYER: &str = "layer.img";

/// What a layer holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Names, the root included.
    pub names: u64,
    /// Bytes of files, holes not counted.
    pub bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct Item {
    node: Node,
    /// (place, length) of a file's data, in bytes, ascending.
    extents: Vec<(u64, u64)>,
}

/// No item's head is longer than this, in bytes.
const HEAD_MAX: u32 = 64 << 20;

/// Packs the tree below `upper` into `out`.
///
/// # Errors
/// The file that could not be read, or what `out` said.
pub fn pack(upper: &Path, out: &mut dyn Write) -> Result<Summary> {
    let _span = tracing::info_span!("pack layer").entered();
    let failed = |e| Error::kernel("write", "the packed layer", e);
    let root = open_root(upper)?;
    let (mut out, mut summary) = (
        Hashed::new(BufWriter::with_capacity(1 << 20, out)),
        Summary::default(),
    );
    let mut buf = vec![0; 1 << 20];
    walk(root.as_fd(), &mut |node, file| {
        let path = upper.join(bytes_path(&node.path));
        let size = if let Kind::File(size) = node.kind {
            size
        } else {
            0
        };
        let extents = file.as_ref().map_or(Ok(Vec::new()), |f| extents(f, size));
        let extents = extents.map_err(|e| Error::file("lseek", path, e))?;
        summary.names += 1;
        summary.bytes += extents.iter().map(|(_, len)| len).sum::<u64>();
        let item = Item { node, extents };
        out.head(&item).map_err(failed)?;
        let data = file.map_or(Ok(()), |f| out.data(&f, &item.extents, &mut buf));
        data.map_err(failed)
    })?;
    out.end().map_err(failed)?;
    Ok(summary)
}

fn bytes_path(path: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(path))
}

/// Where a file has data.
fn extents(file: &File, size: u64) -> io::Result<Vec<(u64, u64)>> {
    let (mut extents, mut at) = (Vec::new(), 0);
    while at < size {
        let data = match lseek(file, at as i64, Whence::SeekData) {
            Err(nix::Error::ENXIO) => break,
            data => data? as u64,
        };
        let hole = lseek(file, data as i64, Whence::SeekHole)? as u64;
        let end = hole.min(size);
        if data >= end {
            break;
        }
        extents.push((data, end - data));
        at = hole;
    }
    Ok(extents)
}

/// A stream that is hashed on its way.
struct Hashed<S> {
    stream: S,
    hash: blake3::Hasher,
}

impl<S> Hashed<S> {
    fn new(stream: S) -> Self {
        let hash = blake3::Hasher::new();
        Self { stream, hash }
    }
}

impl<S: Write> Hashed<S> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.stream.write_all(bytes)
    }

    fn head(&mut self, item: &Item) -> io::Result<()> {
        let mut head = Vec::new();
        ciborium::into_writer(item, &mut head).map_err(io::Error::other)?;
        self.put(&(head.len() as u32).to_le_bytes())?;
        self.put(&head)
    }

    /// Writes the data; what a file lost since its extents were read comes as zeros.
    fn data(&mut self, file: &File, extents: &[(u64, u64)], buf: &mut [u8]) -> io::Result<()> {
        for (at, len) in extents {
            let mut done = 0;
            while done < *len {
                let n = buf.len().min((len - done) as usize);
                let got = file.read_at(&mut buf[..n], at + done)?;
                buf[got..n].fill(0);
                self.put(&buf[..n])?;
                done += n as u64;
            }
        }
        Ok(())
    }

    fn end(mut self) -> io::Result<()> {
        self.put(&0u32.to_le_bytes())?;
        let sum = *self.hash.finalize().as_bytes();
        self.stream.write_all(&sum)?;
        self.stream.flush()
    }
}

impl<S: Read> Hashed<S> {
    fn get(&mut self, buf: &mut [u8]) -> io::Result<()> {
        self.stream.read_exact(buf)?;
        self.hash.update(buf);
        Ok(())
    }

    /// The next item's head, `None` at the end of a stream whose hash is right.
    fn next(&mut self) -> io::Result<Option<Item>> {
        let mut len = [0; 4];
        self.get(&mut len)?;
        let len = u32::from_le_bytes(len);
        if len == 0 {
            return self.check_sum().map(|()| None);
        }
        if len > HEAD_MAX {
            return Err(io::Error::other("an item's head is too long"));
        }
        // Read as far as it comes, so that a lie about the length costs no memory.
        let mut head = Vec::new();
        (&mut self.stream).take(len.into()).read_to_end(&mut head)?;
        self.hash.update(&head);
        let item: Item = ciborium::from_reader(&head[..]).map_err(io::Error::other)?;
        item.check().map(|()| Some(item))
    }

    fn check_sum(&mut self) -> io::Result<()> {
        let mut sum = [0; 32];
        let found = self.hash.finalize();
        self.stream.read_exact(&mut sum)?;
        if found == sum {
            return Ok(());
        }
        Err(io::Error::other("its hash is not right"))
    }

    fn fill(&mut self, file: &File, item: &Item, buf: &mut [u8]) -> io::Result<()> {
        if let Kind::File(size) = item.node.kind {
            file.set_len(size)?;
        }
        for (at, len) in &item.extents {
            let mut done = 0;
            while done < *len {
                let n = buf.len().min((len - done) as usize);
                self.get(&mut buf[..n])?;
                file.write_all_at(&buf[..n], at + done)?;
                done += n as u64;
            }
        }
        Ok(())
    }
}

impl Item {
    /// Extents lie in the file, one after the other; only files have some.
    fn check(&self) -> io::Result<()> {
        let size = if let Kind::File(size) = self.node.kind {
            size
        } else {
            0
        };
        let mut end = 0;
        for (at, len) in &self.extents {
            let next = at.checked_add(*len).filter(|e| *at >= end && *e <= size);
            end = next.ok_or_else(|| io::Error::other("data outside of its file"))?;
        }
        Ok(())
    }
}

/// Unpacks a layer to `upper`, which must not exist yet and does not when this fails. Of
/// `input` nothing is read behind the layer's end.
///
/// # Errors
/// A stream that is broken or hostile; a name that could not be made.
pub fn unpack(input: &mut dyn Read, upper: &Path) -> Result<Summary> {
    let _span = tracing::info_span!("unpack layer").entered();
    if upper.symlink_metadata().is_ok() {
        let taken = io::Error::from_raw_os_error(libc::EEXIST);
        return Err(Error::file("unpack layer to", upper, taken));
    }
    let name = upper.file_name().unwrap_or_default().to_string_lossy();
    let temporary = upper.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&temporary)
        .map_err(|e| Error::file("mkdir", &temporary, e))?;
    let done = unpack_into(input, &temporary).and_then(|summary| {
        fs::rename(&temporary, upper).map_err(|e| Error::file("rename layer to", upper, e))?;
        Ok(summary)
    });
    if done.is_err() {
        drop(fs::remove_dir_all(&temporary));
    }
    done
}

fn unpack_into(input: &mut dyn Read, to: &Path) -> Result<Summary> {
    let failed = |e| Error::kernel("read", "the packed layer", e);
    let root = open_root(to)?;
    let mut planter = Planter::new(root.as_fd());
    let mut input = Hashed::new(input);
    let (mut summary, mut buf) = (Summary::default(), vec![0; 1 << 20]);
    while let Some(item) = input.next().map_err(failed)? {
        summary.names += 1;
        summary.bytes += item.extents.iter().map(|(_, len)| len).sum::<u64>();
        let node = item.node.clone();
        planter.plant(node, |file| input.fill(file, &item, &mut buf))?;
    }
    planter.finish()?;
    Ok(summary)
}

/// Packs the layer into an image that is being written.
///
/// # Errors
/// As [`pack`].
pub fn capture(upper: &Path, writer: &mut Writer) -> Result<Summary> {
    let path = writer.directory().join(LAYER);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(|e| Error::file("create", &path, e))?;
    let summary = pack(upper, &mut file)?;
    file.sync_all().map_err(|e| Error::file("sync", &path, e))?;
    writer.add_file(LAYER)?;
    Ok(summary)
}

/// Unpacks an image's layer to `upper`; `None` when the image has none.
///
/// # Errors
/// As [`unpack`].
pub fn rebuild(image: &Image, upper: &Path) -> Result<Option<Summary>> {
    if !image.header().files.contains_key(LAYER) {
        return Ok(None);
    }
    let path = image.path().join(LAYER);
    let file = File::open(&path).map_err(|e| Error::file("open", &path, e))?;
    unpack(&mut BufReader::with_capacity(1 << 20, file), upper).map(Some)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

    use super::*;

    /// A tree with one of everything that a layer can hold.
    fn plant(at: &Path) {
        use nix::sys::stat::{Mode, SFlag, mknod};
        fs::create_dir_all(at.join("dir/empty")).unwrap();
        fs::write(at.join("dir/file"), "contents").unwrap();
        fs::hard_link(at.join("dir/file"), at.join("link")).unwrap();
        symlink("../nowhere", at.join("dir/symlink")).unwrap();
        let sparse = File::create(at.join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        sparse.write_all_at(b"middle", 512 << 20).unwrap();
        let mode = Mode::from_bits_truncate(0o620);
        mknod(&at.join("fifo"), SFlag::S_IFIFO, mode, 0).unwrap();
        mknod(&at.join("socket"), SFlag::S_IFSOCK, mode, 0).unwrap();
        mknod(&at.join("whiteout"), SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
        let suid = fs::Permissions::from_mode(0o4755);
        fs::set_permissions(at.join("dir/file"), suid).unwrap();
        fs::set_permissions(at.join("dir"), fs::Permissions::from_mode(0o1500)).unwrap();
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(at.join("sparse"), Some(1234), Some(5678)).unwrap();
            attribute(&at.join("dir"), c"trusted.overlay.opaque", Some(b"y"));
            attribute(&at.join("dir"), c"trusted.overlay.origin", Some(b"handle"));
        }
        let old = fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
        File::open(at.join("dir")).unwrap().set_times(old).unwrap();
    }

    use std::os::unix::fs::PermissionsExt;

    fn attribute(path: &Path, key: &std::ffi::CStr, set: Option<&[u8]>) -> Option<Vec<u8>> {
        let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        if let Some(v) = set {
            let (at, len) = (v.as_ptr().cast(), v.len());
            // SAFETY: NUL-terminated strings and a value of `len` bytes.
            let r = unsafe { libc::setxattr(path.as_ptr(), key.as_ptr(), at, len, 0) };
            assert_eq!(r, 0);
        }
        let mut buf = [0u8; 64];
        // SAFETY: NUL-terminated strings and a buffer of 64 bytes.
        let n = unsafe { libc::getxattr(path.as_ptr(), key.as_ptr(), buf.as_mut_ptr().cast(), 64) };
        (n >= 0).then(|| buf[..n as usize].to_vec())
    }

    fn check(at: &Path) {
        let meta = |name: &str| at.join(name).symlink_metadata().unwrap();
        assert_eq!(fs::read(at.join("link")).unwrap(), b"contents");
        assert_eq!(meta("link").ino(), meta("dir/file").ino());
        assert_eq!(meta("dir/file").mode() & 0o7777, 0o4755);
        assert_eq!(
            (meta("dir").mode() & 0o7777, meta("dir").mtime()),
            (0o1500, 0)
        );
        assert!(meta("dir/empty").is_dir());
        assert_eq!(
            fs::read_link(at.join("dir/symlink")).unwrap(),
            Path::new("../nowhere")
        );
        assert!(meta("sparse").blocks() < 1000 && meta("sparse").len() == 1 << 30);
        let mut text = [0; 6];
        File::open(at.join("sparse"))
            .unwrap()
            .read_exact_at(&mut text, 512 << 20)
            .unwrap();
        assert_eq!(&text, b"middle");
        assert!(meta("fifo").file_type().is_fifo() && meta("socket").file_type().is_socket());
        assert!(meta("whiteout").file_type().is_char_device() && meta("whiteout").rdev() == 0);
        if nix::unistd::geteuid().is_root() {
            assert_eq!((meta("sparse").uid(), meta("sparse").gid()), (1234, 5678));
            assert_eq!(
                attribute(&at.join("dir"), c"trusted.overlay.opaque", None),
                Some(b"y".to_vec())
            );
            assert_eq!(
                attribute(&at.join("dir"), c"trusted.overlay.origin", None),
                None
            );
        }
    }

    #[test]
    fn a_layer_comes_back_whole_through_an_image() {
        let dir = tempfile::tempdir().unwrap();
        let (upper, image, again) = (
            dir.path().join("upper"),
            dir.path().join("image"),
            dir.path().join("again"),
        );
        fs::create_dir(&upper).unwrap();
        plant(&upper);
        let mut writer = Writer::create(&image).unwrap();
        let packed = capture(&upper, &mut writer).unwrap();
        writer.finish().unwrap();
        let image = Image::open(&image).unwrap();
        image.verify().unwrap();
        assert_eq!(rebuild(&image, &again).unwrap(), Some(packed));
        check(&again);
        assert_eq!(packed.names, 10);
        assert!(packed.bytes < 1 << 20, "holes are not packed");
        assert!(rebuild(&image, &again).is_err(), "it is there already");
    }

    #[test]
    fn a_broken_stream_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let upper = dir.path().join("upper");
        fs::create_dir(&upper).unwrap();
        plant(&upper);
        let mut good = Vec::new();
        pack(&upper, &mut good).unwrap();
        for broken in 0..40 {
            let mut bytes = good.clone();
            let at = bytes.len() * broken / 40;
            if broken % 2 == 0 {
                bytes.truncate(at);
            } else {
                bytes[at] ^= 0x55;
            }
            assert!(unpack(&mut &bytes[..], &dir.path().join("bad")).is_err());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_hostile_stream_stays_inside() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let node = |path: &str, kind| Node {
            path: serde_bytes::ByteBuf::from(path),
            kind,
            mode: 0o644,
            owner: (0, 0),
            modified: (0, 0),
            attributes: Vec::new(),
        };
        let link = || {
            node(
                "door",
                Kind::Symlink(serde_bytes::ByteBuf::from("../outside")),
            )
        };
        for hostile in [
            vec![node("../outside/x", Kind::File(0))],
            vec![node("/etc/x", Kind::File(0))],
            vec![link(), node("door/x", Kind::File(0))],
            vec![link(), node("door", Kind::File(0))],
            vec![node(
                "x",
                Kind::HardLink(serde_bytes::ByteBuf::from("../outside")),
            )],
        ] {
            let mut stream = Vec::new();
            let mut out = Hashed::new(&mut stream);
            for node in hostile {
                out.head(&Item {
                    node,
                    extents: Vec::new(),
                })
                .unwrap();
            }
            out.end().unwrap();
            assert!(unpack(&mut &stream[..], &dir.path().join("in")).is_err());
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
