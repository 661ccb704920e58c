//! Contents of the pod's own tmpfs mounts: /dev/shm and what programs in the pod mounted.
//!
//! Such a mount lives in memory, so its tree is in the image: names in the record, bytes
//! among the pages. It is rebuilt into the new, empty mount before any description is made,
//! so that files there are opened by their names like others; sockets' names are left to
//! those who bind them again.

use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

use super::tree::{Kind, Node, Planter, walk};
use crate::{
    error::Result,
    image::{Content, Image, Record, Writer},
};

/// The number of the mount at /dev/shm.
pub const SHM: u32 = 1;

/// Makes the contents of the pod's /dev/shm anew, when the image has them.
///
/// # Errors
/// As [`rebuild`].
pub fn rebuild_shm(image: &Image) -> Result<()> {
    if !image.all::<Tmpfs>()?.contains_key(&SHM) {
        return Ok(());
    }
    let path = "/dev/shm";
    let shm = std::fs::File::open(path).map_err(|e| crate::Error::file("open", path, e))?;
    rebuild(image, SHM, std::os::fd::AsFd::as_fd(&shm))
}

/// The tree of one mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    nodes: Vec<(Node, Content)>,
}

impl Record for Tmpfs {
    const KIND: &'static str = "tmpfs";
    const VERSION: u16 = 1;
}

/// Stores the tree below `root`, an open directory, under the mount's number.
///
/// # Errors
/// The name that could not be read, or a full disk.
pub fn capture(root: BorrowedFd<'_>, mount: u32, writer: &mut Writer) -> Result<()> {
    let _span = tracing::info_span!("capture tmpfs", mount).entered();
    let mut nodes = Vec::new();
    walk(root, &mut |node, file| {
        let name = String::from_utf8_lossy(&node.path).into_owned();
        let content = file.map_or(Ok(Content::default()), |f| writer.content(&f, &name))?;
        nodes.push((node, content));
        Ok(())
    })?;
    writer.record(mount, &Tmpfs { nodes })
}

/// Makes the tree of a mount anew below `root`, the new mount's open root directory.
///
/// # Errors
/// [`crate::Error::NoRecord`]; a name that is there already or could not be made.
pub fn rebuild(image: &Image, mount: u32, root: BorrowedFd<'_>) -> Result<()> {
    let _span = tracing::info_span!("rebuild tmpfs", mount).entered();
    let mut planter = Planter::new(root);
    for (node, content) in image.get::<Tmpfs>(mount)?.nodes {
        if node.kind != Kind::Socket {
            planter.plant(node, |file| content.restore(image.pages(), file))?;
        }
    }
    planter.finish()
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File, Permissions},
        os::{
            fd::{AsFd, AsRawFd},
            unix::fs::{FileExt, MetadataExt, PermissionsExt},
        },
        path::PathBuf,
    };

    use nix::mount::{MsFlags, mount};

    use super::*;

    /// A tmpfs that nobody else sees; it goes with its descriptor.
    fn tmpfs() -> File {
        std::thread::spawn(|| {
            let dir = tempfile::tempdir().unwrap();
            let none: Option<&str> = None;
            nix::sched::unshare(
                nix::sched::CloneFlags::CLONE_FS | nix::sched::CloneFlags::CLONE_NEWNS,
            )
            .unwrap();
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(none, dir.path(), Some("tmpfs"), MsFlags::empty(), none).unwrap();
            let root = File::open(dir.path()).unwrap();
            nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
            root
        })
        .join()
        .unwrap()
    }

    fn at(root: &File, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", root.as_raw_fd()))
    }

    #[test]
    fn a_tmpfs_comes_back() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let (old, new) = (tmpfs(), tmpfs());
        fs::create_dir(at(&old, "dir")).unwrap();
        fs::write(at(&old, "dir/file"), "in memory").unwrap();
        fs::hard_link(at(&old, "dir/file"), at(&old, "again")).unwrap();
        let sparse = File::create(at(&old, "sem.x")).unwrap();
        sparse.set_len(1 << 26).unwrap();
        sparse.write_all_at(&[7; 5000], 1 << 25).unwrap();
        fs::set_permissions(at(&old, ""), Permissions::from_mode(0o1777)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(&dir.path().join("image")).unwrap();
        capture(old.as_fd(), 3, &mut writer).unwrap();
        writer.finish().unwrap();
        let image = Image::open(&dir.path().join("image")).unwrap();
        rebuild(&image, 3, new.as_fd()).unwrap();
        image.all_read().unwrap();
        assert_eq!(fs::read(at(&new, "again")).unwrap(), b"in memory");
        let meta = |name: &str| fs::metadata(at(&new, name)).unwrap();
        assert_eq!(meta("again").ino(), meta("dir/file").ino());
        assert_eq!(meta("").mode() & 0o7777, 0o1777);
        assert_eq!(meta("sem.x").len(), 1 << 26);
        assert!(meta("sem.x").blocks() < 100);
        let mut data = [0; 5001];
        let sparse = File::open(at(&new, "sem.x")).unwrap();
        sparse.read_exact_at(&mut data, 1 << 25).unwrap();
        assert_eq!((data[4999], data[5000]), (7, 0));
        assert!(
            rebuild(&image, 3, new.as_fd()).is_err(),
            "it is there already"
        );
    }
}
