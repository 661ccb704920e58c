//! A set of namespaces, held by a process that does nothing.
//!
//! The process dies with the thread that made it (`PR_SET_PDEATHSIG`), and with it the namespaces, their
//! devices and their mounts, once nobody else is in them: a test that is killed leaves no network behind.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::Signal;

/// Namespaces (network, mounts, hostname, System V IPC) with a process in them.
#[derive(Debug)]
pub struct Anchor {
    child: Child,
    net: OwnedFd,
    mounts: OwnedFd,
    uts: OwnedFd,
    ipc: OwnedFd,
}

const KINDS: CloneFlags = CloneFlags::CLONE_NEWNET
    .union(CloneFlags::CLONE_NEWNS)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWIPC);

impl Anchor {
    /// Makes the namespaces. `mounts` are done in them before anybody else can look.
    ///
    /// # Errors
    /// When a namespace cannot be made: this needs root.
    pub fn new(hostname: &str, mounts: Vec<Mount>) -> Result<Self> {
        let hostname = hostname.to_owned();
        let mut command = Command::new("sleep");
        command
            .arg("infinity")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        // SAFETY: the closure makes system calls on data that was allocated before the fork.
        unsafe { command.pre_exec(move || settle(&hostname, &mounts)) };
        let child = command
            .spawn()
            .context("start a process in new namespaces (this needs root)")?;
        let open = |kind: &str| -> Result<OwnedFd> {
            let path = format!("/proc/{}/ns/{kind}", child.id());
            Ok(File::open(&path)
                .with_context(|| format!("open {path}"))?
                .into())
        };
        let (net, mounts, uts, ipc) = (open("net")?, open("mnt")?, open("uts")?, open("ipc")?);
        Ok(Self {
            child,
            net,
            mounts,
            uts,
            ipc,
        })
    }

    /// The process that holds the namespaces.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Makes `command` start inside.
    ///
    /// # Errors
    /// When the descriptors of the namespaces cannot be duplicated.
    pub fn enter(&self, command: &mut Command) -> Result<()> {
        let fds = [
            self.mounts.try_clone()?,
            self.net.try_clone()?,
            self.uts.try_clone()?,
            self.ipc.try_clone()?,
        ];
        // SAFETY: the closure makes system calls only.
        unsafe {
            command.pre_exec(move || {
                for fd in &fds {
                    setns(fd.as_fd(), CloneFlags::empty())?;
                }
                Ok(())
            })
        };
        Ok(())
    }

    /// The inode number of the network namespace, by which `/proc/PID/ns/net` names it.
    ///
    /// # Errors
    /// When fstat(2) fails.
    pub fn net_inode(&self) -> Result<u64> {
        Ok(nix::sys::stat::fstat(&self.net)?.st_ino)
    }

    /// Runs `work` on a thread of its own inside the network namespace.
    ///
    /// # Errors
    /// What `work` returns, and failure to enter.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(self.net.as_fd(), CloneFlags::CLONE_NEWNET)
                    .context("enter the network namespace")?;
                work()
            });
            inside
                .join()
                .map_err(|_| anyhow::anyhow!("the thread inside the namespace panicked"))?
        })
    }
}

impl Drop for Anchor {
    fn drop(&mut self) {
        // Both fail only when the process is gone, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is mounted in a new mount namespace.
#[derive(Clone, Debug)]
pub enum Mount {
    /// An empty file system of its own.
    Empty(&'static str),
    /// A file or directory over another.
    Bind(std::path::PathBuf, std::path::PathBuf),
}

fn settle(hostname: &str, mounts: &[Mount]) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    unshare(KINDS)?;
    let none: Option<&Path> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    for one in mounts {
        match one {
            Mount::Empty(at) => mount(
                Some("tmpfs"),
                *at,
                Some("tmpfs"),
                MsFlags::empty(),
                Some("mode=1777"),
            )?,
            Mount::Bind(from, to) => mount(Some(from), to, none, MsFlags::MS_BIND, none)?,
        }
    }
    nix::unistd::sethostname(hostname)?;
    Ok(())
}
