//! signalfd(2): a mask. The signals themselves are pending on their tasks.

use std::os::fd::{FromRawFd, OwnedFd};

use intercept::sys;
use serde::{Deserialize, Serialize};

use super::{Description, Room};
use crate::{
    builder::Builder,
    capture::{Capture, Probe},
    error::{Error, Result},
    image::Record,
};

/// A signalfd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signalfd {
    /// Signals it accepts: bit n-1 for signal n.
    mask: u64,
}

impl Record for Signalfd {
    const KIND: &'static str = "signalfd";
    const VERSION: u16 = 1;
}

impl Room for Signalfd {
    fn capture(probe: &Probe, _cx: &mut Capture<'_>) -> Result<Option<Self>> {
        let Some(mask) = probe.field("sigmask:") else {
            return Ok(None);
        };
        let mask = u64::from_str_radix(mask, 16).map_err(|e| probe.unreadable(&e.to_string()))?;
        Ok(Some(Self { mask }))
    }
}

impl Description for Signalfd {
    fn rebuild(&self, _builder: &mut Builder<'_>) -> Result<OwnedFd> {
        let mask = &raw const self.mask;
        // SAFETY: the mask is the kernel's 8 bytes long and outlives the call.
        let fd = unsafe { libc::syscall(libc::SYS_signalfd4, -1, mask, 8, libc::SFD_CLOEXEC) };
        let fd = sys::check(fd).map_err(|e| Error::kernel("signalfd4", "signalfd", e))?;
        // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    };

    use crate::testing::round_trip;

    #[test]
    fn the_mask_comes_back() {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGUSR1);
        mask.thread_block().unwrap();
        let fd = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK).unwrap();
        let back = round_trip(vec![fd.into()]).unwrap();
        let mut info = [0u8; 128];
        assert!(nix::unistd::read(&back[0], &mut info).is_err());
        // SAFETY: sends this thread a signal it has blocked.
        unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR1) };
        assert_eq!(nix::unistd::read(&back[0], &mut info).unwrap(), 128);
        assert_eq!(info[0], libc::SIGUSR1 as u8);
    }
}
