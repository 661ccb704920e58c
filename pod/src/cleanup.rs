//! The one place where what a pod made on the host is released: after its end, and after a crash.
//!
//! What was made is written to `state.json` *before* it is made ([`crate::store::Made`]), so that nothing
//! can be forgotten. Mounts need no entry: they vanish with the pod's mount namespace.

use std::fs;
use std::io;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};

use crate::store::{Made, Pod};
use crate::{cgroup, net, userns};

/// Ends what is left of a pod's programs and releases everything that was made outside its directory.
/// All is tried; the first error is returned.
pub(crate) fn release(pod: &Pod, made: &Made) -> Result<()> {
    let mut first = Ok(());
    for directory in &made.cgroups {
        first = first.and(cgroup::remove(directory));
    }
    first = first.and(net::release(pod, made));
    first.and(remove_images(made)).and(remove_socket(pod))
}

/// Removes what a supervisor that was killed has written of images. They have a good name when whole.
pub(crate) fn remove_images(made: &Made) -> Result<()> {
    for image in &made.images {
        match fs::remove_dir_all(image) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("remove {}", image.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn remove_socket(pod: &Pod) -> Result<()> {
    match fs::remove_file(pod.path("ctl.sock")) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).context("remove ctl.sock"),
        _ => Ok(()),
    }
}

/// Removes a pod that is over, with its directory and layer.
pub(crate) fn remove(pod: &Pod) -> Result<()> {
    release(pod, &pod.written_state()?.made)?;
    if userns::needed() {
        // Files of the pod may belong to subordinate users, and overlay's own directories are closed.
        userns::enter()?;
    }
    // Only a bug could have left a mount here; deleting through it would destroy the host's files.
    while umount2(&pod.path("mnt"), MntFlags::MNT_DETACH).is_ok() {}
    // Without its configuration it is no pod any more, even if the rest takes a while.
    fs::remove_file(pod.path("config.json")).context("remove config.json")?;
    fs::remove_dir_all(&pod.dir).with_context(|| format!("remove {}", pod.dir.display()))
}
