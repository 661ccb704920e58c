//! The mask: calls that a pod must not make, as a JSON profile compiled with seccompiler.
//!
//! The mask is the security boundary between a pod and its host; interception is not.
//! It is installed in the programs of a pod, not in its init, which sets them up. A
//! refused call fails with `EPERM`, as it would without the privilege. The default
//! profile is written after the one podman and docker ship: what the kernel does not
//! divide by namespaces (modules, clocks, swap, kexec, keys, bpf, perf) and what would
//! change the pod's own walls (mounts, namespaces by `unshare`, `setns` and `clone`).
//!
//! `clone3` passes: its flags lie in memory, which a filter cannot read, and programs
//! need it. What it could unshare is bounded by the capabilities of the caller.

use std::io;

use seccompiler::{BpfMap, TargetArch};

/// The profile that is used when the user gives none.
pub const DEFAULT_PROFILE: &str = include_str!("mask.json");

/// The name of the one filter in a profile.
const NAME: &str = "pod";

/// What can fail when a mask is made or installed.
#[derive(Debug, thiserror::Error)]
pub enum MaskError {
    /// The profile does not compile.
    #[error("mask profile: {0}")]
    Profile(seccompiler::Error),
    /// The profile has no filter of the right name.
    #[error("mask profile: there is no filter called \"{NAME}\"")]
    Missing,
    /// `seccomp(2)` failed.
    #[error("mask: seccomp(SET_MODE_FILTER): {0}")]
    Install(io::Error),
}

/// A compiled mask.
#[derive(Debug, Clone)]
pub struct Mask(Vec<libc::sock_filter>);

impl Mask {
    /// Compiles a profile in seccompiler's JSON format, with one filter called `pod`.
    ///
    /// # Errors
    /// [`MaskError::Profile`] or [`MaskError::Missing`].
    pub fn from_json(profile: &str) -> Result<Self, MaskError> {
        let mut all: BpfMap =
            seccompiler::compile_from_json(profile.as_bytes(), TargetArch::x86_64)
                .map_err(MaskError::Profile)?;
        let program = all.remove(NAME).ok_or(MaskError::Missing)?;
        let same = |i: &seccompiler::sock_filter| libc::sock_filter {
            code: i.code,
            jt: i.jt,
            jf: i.jf,
            k: i.k,
        };
        Ok(Self(program.iter().map(same).collect()))
    }

    /// The default mask.
    ///
    /// # Errors
    /// [`MaskError::Profile`] if the built-in profile did not compile (a test proves it does).
    pub fn standard() -> Result<Self, MaskError> {
        Self::from_json(DEFAULT_PROFILE)
    }

    /// Installs the mask on the calling thread; children inherit it. Async-signal-safe.
    ///
    /// Needs no_new_privs or `CAP_SYS_ADMIN` in the caller's user namespace.
    ///
    /// # Errors
    /// [`MaskError::Install`].
    pub fn install(&self) -> Result<(), MaskError> {
        crate::sys::seccomp_set_filter(&self.0, 0)
            .map(drop)
            .map_err(MaskError::Install)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errno(nr: i64, arg: i64) -> i32 {
        // SAFETY: calls that fail before they look at memory.
        match unsafe { libc::syscall(nr, arg, 0, 0, 0, 0) } {
            -1 => io::Error::last_os_error().raw_os_error().unwrap_or(0),
            _ => 0,
        }
    }

    #[test]
    fn refused_calls_fail_with_eperm_and_the_rest_runs() {
        let mask = Mask::standard().unwrap();
        // SAFETY: the child makes raw calls and ends with _exit.
        let child = unsafe { libc::fork() };
        if child == 0 {
            mask.install().unwrap();
            let ok = errno(libc::SYS_reboot, 0) == libc::EPERM
                && errno(libc::SYS_unshare, libc::CLONE_NEWNS.into()) == libc::EPERM
                && errno(libc::SYS_unshare, libc::CLONE_FS.into()) == 0
                && errno(libc::SYS_clone, libc::CLONE_NEWUSER.into()) == libc::EPERM
                && errno(libc::SYS_clone3, 0) == libc::EINVAL
                && errno(libc::SYS_getuid, 0) == 0;
            // SAFETY: ends the forked child without running its parent's destructors.
            unsafe { libc::_exit(i32::from(!ok)) };
        }
        let mut status = -1;
        // SAFETY: `status` is a live int.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(status, 0);
    }

    #[test]
    fn a_profile_with_an_unknown_call_or_without_a_filter_is_an_error() {
        assert!(matches!(Mask::from_json("{}"), Err(MaskError::Missing)));
        let bad = DEFAULT_PROFILE.replace("\"reboot\"", "\"rebbot\"");
        assert!(matches!(Mask::from_json(&bad), Err(MaskError::Profile(_))));
    }
}
