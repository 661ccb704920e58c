//! The pod's /dev: a tmpfs with the harmless devices, terminals of its own, and shared memory of its own.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::sys;

/// Name and device number: Documentation/admin-guide/devices.txt, section 1 and 5.
const NODES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// Where nodes cannot be made, the host's are opened, to be bound.
pub(super) fn sources(unprivileged: bool) -> Result<Vec<(String, OwnedFd)>> {
    if !unprivileged {
        return Ok(Vec::new());
    }
    let mut nodes = Vec::new();
    for (name, ..) in NODES {
        let path = std::ffi::CString::new(format!("/dev/{name}"))?;
        let tree = sys::copy_mount(&path, false).with_context(|| format!("open /dev/{name}"))?;
        nodes.push((name.to_owned(), tree));
    }
    Ok(nodes)
}

/// Mounts /dev and what is in it.
pub(super) fn make(bound: Vec<(String, OwnedFd)>, unprivileged: bool) -> Result<()> {
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    file_system("tmpfs", "/dev", strict, "mode=755,size=65536k")?;
    for (name, tree) in bound {
        let path = format!("/dev/{name}");
        fs::File::create(&path).with_context(|| format!("make {path}"))?;
        let c_path = std::ffi::CString::new(path.as_str())?;
        sys::attach_mount(tree.as_fd(), &c_path).with_context(|| format!("bind {path}"))?;
    }
    if !unprivileged {
        make_nodes()?;
    }
    let terminals = if unprivileged {
        "newinstance,ptmxmode=0666,mode=620"
    } else {
        "newinstance,ptmxmode=0666,mode=620,gid=5"
    };
    file_system("devpts", "/dev/pts", strict, terminals)?;
    file_system("tmpfs", "/dev/shm", strict | MsFlags::MS_NODEV, "mode=1777")?;
    file_system("mqueue", "/dev/mqueue", strict | MsFlags::MS_NODEV, "")?;
    for (to, link) in LINKS {
        symlink(to, link).with_context(|| format!("link {link}"))?;
    }
    Ok(())
}

fn make_nodes() -> Result<()> {
    for (name, major, minor) in NODES {
        let path = Path::new("/dev").join(name);
        let mode = Mode::from_bits_truncate(0o666);
        mknod(&path, SFlag::S_IFCHR, mode, makedev(major, minor))
            .with_context(|| format!("make {}", path.display()))?;
        // mknod obeys the umask.
        nix::sys::stat::fchmodat(
            nix::fcntl::AT_FDCWD,
            &path,
            mode,
            nix::sys::stat::FchmodatFlags::FollowSymlink,
        )
        .with_context(|| format!("chmod {}", path.display()))?;
    }
    Ok(())
}

fn file_system(kind: &str, at: &str, flags: MsFlags, options: &str) -> Result<()> {
    fs::create_dir_all(at).with_context(|| format!("make {at}"))?;
    mount(Some(kind), at, Some(kind), flags, Some(options)).with_context(|| format!("mount {at}"))
}
