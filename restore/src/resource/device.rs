//! What has no room: devices and kernel objects whose state nobody outside can read or set.
//!
//! Last in the list of rooms, so that each gets its own reason and advice.

use std::{
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{Description, Room};
use crate::{
    builder::Builder,
    capture::{Capture, Probe},
    error::{Error, Result},
    image::Record,
};

/// There is no value of this type: a device that could be carried would have a room.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Device {}

impl Record for Device {
    const KIND: &'static str = "device";
    const VERSION: u16 = 1;
}

/// The link of memfd_secret(2).
pub(crate) const SECRET: &str = "/secretmem (deleted)";

/// (beginning of the link, why, what to do).
const REASONS: &[(&str, &str, &str)] = &[
    (
        "/dev/nvidia",
        "the state of a GPU is in the device",
        "let the program release the GPU, or use the vendor's checkpoint tool first",
    ),
    (
        "/dev/dri/",
        "the state of a GPU is in the device",
        "let the program release the GPU",
    ),
    (
        "/dev/kfd",
        "the state of a GPU is in the device",
        "let the program release the GPU",
    ),
    (
        "/dev/kvm",
        "a virtual machine's state is in the kernel",
        "migrate the virtual machine with its own hypervisor",
    ),
    (
        "anon_inode:kvm-",
        "a virtual machine's state is in the kernel",
        "migrate the virtual machine with its own hypervisor",
    ),
    (
        "/dev/net/tun",
        "a tunnel belongs to this host's network",
        "close the tunnel before the checkpoint",
    ),
    (
        "/dev/fuse",
        "a mounted FUSE file system has requests under way in the kernel",
        "unmount it before the checkpoint",
    ),
    (
        "/dev/infiniband/",
        "the state of an RDMA connection is in the adapter",
        "use TCP, or close it before the checkpoint",
    ),
    (
        "anon_inode:[io_uring]",
        "requests under way in an io_uring cannot be read",
        "run the program with its other event backend (epoll)",
    ),
    (
        "anon_inode:[perf_event]",
        "hardware counters cannot be set",
        "stop the profiler before the checkpoint",
    ),
    (
        "anon_inode:[userfaultfd]",
        "faults that wait for an answer cannot be carried",
        "stop the program that handles page faults by itself",
    ),
    (
        "anon_inode:bpf",
        "BPF programs and maps belong to the kernel of this host",
        "unload them before the checkpoint",
    ),
    (
        "anon_inode:[fanotify]",
        "it watches this host's file systems, and its events cannot be put back",
        "stop the watcher before the checkpoint",
    ),
    (
        "anon_inode:seccomp notify",
        "calls that wait for an answer cannot be carried",
        "stop the nested sandbox before the checkpoint",
    ),
    (
        "anon_inode:[landlock-ruleset]",
        "its rules cannot be read back",
        "retry when the program has applied it",
    ),
    (
        "anon_inode:[fscontext]",
        "a mount under way cannot be carried",
        "retry when the mount is done",
    ),
    (
        SECRET,
        "secret memory cannot be read from outside",
        "run the program without memfd_secret",
    ),
    (
        "/sys/",
        "it shows this host's hardware",
        "close it before the checkpoint",
    ),
    (
        "/dev/",
        "a device of this host cannot be taken along",
        "close the device before the checkpoint",
    ),
    (
        "anon_inode:",
        "the state of this kernel object cannot be read",
        "close it before the checkpoint",
    ),
];

/// Why what a link of /proc/PID/fd points to cannot be carried, and what to do; `None` for what is no device.
pub(crate) fn reason(link: &Path) -> Option<(&'static str, &'static str)> {
    let link = link.as_os_str().as_bytes();
    let found = REASONS
        .iter()
        .find(|(prefix, ..)| link.starts_with(prefix.as_bytes()));
    found.map(|(_, why, hint)| (*why, *hint))
}

impl Room for Device {
    fn capture(probe: &Probe, cx: &mut Capture<'_>) -> Result<Option<Self>> {
        if let Some((why, hint)) = reason(&probe.link) {
            cx.refuse(probe, why, hint);
        }
        Ok(None)
    }
}

impl Description for Device {
    fn rebuild(&self, _builder: &mut Builder<'_>) -> Result<OwnedFd> {
        Err(Error::Unfit {
            object: "a device".into(),
            why: "devices are not carried".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd};

    use super::*;
    use crate::testing::capture;

    #[test]
    fn each_device_has_its_own_reason() {
        let dir = tempfile::tempdir().unwrap();
        let tun = File::open("/dev/net/tun").or_else(|_| File::open("/dev/loop-control"));
        let file = tun.or_else(|_| File::open("/dev/kmsg")).unwrap();
        let (_, refused) = capture(dir.path(), &[file.as_fd()]).unwrap();
        assert_eq!(refused.len(), 1);
        assert!(refused[0].what.starts_with("/dev/"), "{refused:?}");
        assert_ne!(refused[0].why, "no room for this kind of descriptor");
    }

    #[test]
    fn a_plain_reason_comes_after_the_particular_ones() {
        for (i, (prefix, ..)) in REASONS.iter().enumerate() {
            let shadowed = REASONS[..i]
                .iter()
                .any(|(earlier, ..)| prefix.starts_with(earlier));
            assert!(!shadowed, "{prefix} is never reached");
        }
    }
}
