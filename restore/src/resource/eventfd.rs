//! eventfd(2): a counter.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
};

use intercept::sys;
use serde::{Deserialize, Serialize};

use super::{Description, Room};
use crate::{
    builder::Builder,
    capture::{Capture, Probe},
    error::{Error, Result},
    image::Record,
};

/// An eventfd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eventfd {
    /// The counter's value.
    count: u64,
    /// `EFD_SEMAPHORE`: a read takes one.
    semaphore: bool,
}

impl Record for Eventfd {
    const KIND: &'static str = "eventfd";
    const VERSION: u16 = 1;
}

impl Room for Eventfd {
    fn capture(probe: &Probe, _cx: &mut Capture<'_>) -> Result<Option<Self>> {
        let Some(count) = probe.field("eventfd-count:") else {
            return Ok(None);
        };
        let count = u64::from_str_radix(count, 16).map_err(|e| probe.unreadable(&e.to_string()))?;
        let semaphore = match probe.field("eventfd-semaphore:") {
            Some(flag) => flag == "1",
            None => is_semaphore(probe, count)
                .map_err(|e| Error::kernel("read and write back", probe.name(), e))?,
        };
        Ok(Some(Self { count, semaphore }))
    }
}

/// Tells a semaphore by what a read takes (before Linux 6.5 nothing else does); the counter
/// ends as it was.
fn is_semaphore(probe: &Probe, count: u64) -> io::Result<bool> {
    let write = |n: u64| nix::unistd::write(&probe.file, &n.to_ne_bytes()).map(drop);
    let read = || {
        let mut value = [0; 8];
        nix::unistd::read(&probe.file, &mut value).map(|_| u64::from_ne_bytes(value))
    };
    // With two in it, one read tells, and never has to wait.
    let added = 2u64.saturating_sub(count);
    if added > 0 {
        write(added)?;
    }
    let taken = read()?;
    let semaphore = taken == 1;
    let left = count + added - taken;
    for _ in count..left {
        read()?;
    }
    if count > left {
        write(count - left)?;
    }
    Ok(semaphore)
}

impl Description for Eventfd {
    fn rebuild(&self, _builder: &mut Builder<'_>) -> Result<OwnedFd> {
        let failed = |step, e: io::Error| Error::kernel(step, "eventfd", e);
        let fd = make(self.semaphore).map_err(|e| failed("eventfd", e))?;
        if self.count > 0 {
            let written = nix::unistd::write(&fd, &self.count.to_ne_bytes());
            written.map_err(|e| failed("write", e.into()))?;
        }
        Ok(fd)
    }
}

/// An eventfd that does not block; the builder sets its flags as they were.
fn make(semaphore: bool) -> io::Result<OwnedFd> {
    let semaphore = if semaphore { libc::EFD_SEMAPHORE } else { 0 };
    // SAFETY: plain values only.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK | semaphore) };
    sys::check(fd.into())?;
    // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::round_trip;

    fn value(fd: &OwnedFd) -> u64 {
        let mut value = [0; 8];
        nix::unistd::read(fd, &mut value).map_or(0, |_| u64::from_ne_bytes(value))
    }

    #[test]
    fn counter_semaphore_and_flags_come_back() {
        let make = |n: u64, semaphore| {
            let fd = make(semaphore).unwrap();
            if n > 0 {
                nix::unistd::write(&fd, &n.to_ne_bytes()).unwrap();
            }
            fd
        };
        let big = u64::MAX - 1;
        let back = round_trip(vec![make(big, false), make(2, true), make(0, false)]).unwrap();
        assert_eq!(value(&back[0]), big);
        assert_eq!(value(&back[0]), 0);
        assert_eq!(
            [value(&back[1]), value(&back[1]), value(&back[1])],
            [1, 1, 0]
        );
        assert_eq!(value(&back[2]), 0);
    }

    #[test]
    fn a_semaphore_is_told_without_fdinfo_and_left_as_it_was() {
        for count in [0u64, 1, 2, 7] {
            for semaphore in [false, true] {
                let fd = make(semaphore).unwrap();
                if count > 0 {
                    nix::unistd::write(&fd, &count.to_ne_bytes()).unwrap();
                }
                let probe = Probe::new(1, None, fd.try_clone().unwrap()).unwrap();
                assert_eq!(is_semaphore(&probe, count).unwrap(), semaphore);
                let after = Probe::new(1, None, fd).unwrap();
                assert_eq!(probe.field("eventfd-count:"), after.field("eventfd-count:"));
            }
        }
    }
}
