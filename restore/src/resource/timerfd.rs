//! timerfd_create(2): a clock, an expiry, an interval and the expirations not read yet.
//!
//! What a timer means is kept by its clock. On CLOCK_MONOTONIC and CLOCK_BOOTTIME it is
//! the remaining time, for the pod's time namespace lets those clocks stand still while
//! the pod sleeps. An absolute expiry on CLOCK_REALTIME is a time of day: when it has
//! passed in the meantime the timer expires at once, with all expirations it missed.

use std::{
    fs,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use intercept::sys;
use libc::{itimerspec, timespec};
use serde::{Deserialize, Serialize};

use super::{Description, Room};
use crate::{
    builder::Builder,
    capture::{Capture, Probe},
    error::{Error, Result},
    image::Record,
};

/// A timerfd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timerfd {
    /// `CLOCK_*`.
    clock: i32,
    /// `TFD_TIMER_ABSTIME`, `TFD_TIMER_CANCEL_ON_SET` of its last setting.
    flags: i32,
    /// Expirations that nobody has read.
    ticks: u64,
    /// When it expires next; `None` when it is not armed.
    expiry: Option<Expiry>,
    /// Period, in nanoseconds; 0 for once.
    interval: u64,
}

/// When a timer expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Expiry {
    /// So many nanoseconds after the pod goes on.
    After(u64),
    /// At this time of its clock, in nanoseconds.
    At(u64),
}

impl Record for Timerfd {
    const KIND: &'static str = "timerfd";
    const VERSION: u16 = 1;
}

impl Room for Timerfd {
    fn capture(probe: &Probe, _cx: &mut Capture<'_>) -> Result<Option<Self>> {
        let Some(clock) = probe.field("clockid:") else {
            return Ok(None);
        };
        let number = |text: Option<&str>, radix| {
            text.and_then(|t| i64::from_str_radix(t, radix).ok())
                .ok_or_else(|| probe.unreadable("no number where one should be"))
        };
        let clock = number(Some(clock), 10)? as i32;
        let flags = number(probe.field("settime flags:"), 8)? as i32;
        // Asking for the time brings the expirations of a periodic timer up to date.
        let now = gettime(probe)?;
        let (remaining, interval) = (nanos(now.it_value), nanos(now.it_interval));
        let ticks = ticks(probe)?;
        let expiry = (remaining > 0)
            .then(|| expiry(clock, flags, remaining))
            .transpose()?;
        Ok(Some(Self {
            clock,
            flags,
            ticks,
            expiry,
            interval,
        }))
    }
}

fn gettime(probe: &Probe) -> Result<itimerspec> {
    let mut now = timerspec(0, 0);
    // SAFETY: `now` is a place for one itimerspec.
    let r = unsafe { libc::timerfd_gettime(probe.file.as_raw_fd(), &raw mut now) };
    sys::check(r.into()).map_err(|e| Error::kernel("timerfd_gettime", probe.name(), e))?;
    Ok(now)
}

fn ticks(probe: &Probe) -> Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", probe.file.as_raw_fd());
    let text = fs::read_to_string(&path).map_err(|e| Error::file("read", path, e))?;
    text.lines()
        .find_map(|l| l.strip_prefix("ticks:"))
        .and_then(|t| t.trim().parse().ok())
        .ok_or_else(|| probe.unreadable("no ticks"))
}

fn expiry(clock: i32, flags: i32, remaining: u64) -> Result<Expiry> {
    let wall = matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM);
    if !wall || flags & libc::TFD_TIMER_ABSTIME == 0 {
        return Ok(Expiry::After(remaining));
    }
    let mut now = timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a place for one timespec.
    let r = unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now) };
    sys::check(r.into()).map_err(|e| Error::kernel("clock_gettime", "CLOCK_REALTIME", e))?;
    Ok(Expiry::At(nanos(now) + remaining))
}

const SECOND: u64 = 1_000_000_000;

fn nanos(t: timespec) -> u64 {
    (t.tv_sec as u64)
        .saturating_mul(SECOND)
        .saturating_add(t.tv_nsec as u64)
}

fn timerspec(value: u64, interval: u64) -> itimerspec {
    let spec = |ns: u64| timespec {
        tv_sec: (ns / SECOND) as i64,
        tv_nsec: (ns % SECOND) as i64,
    };
    itimerspec {
        it_value: spec(value),
        it_interval: spec(interval),
    }
}

/// `TFD_IOC_SET_TICKS` of linux/timerfd.h.
const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;

impl Description for Timerfd {
    fn rebuild(&self, _builder: &mut Builder<'_>) -> Result<OwnedFd> {
        // SAFETY: plain values only.
        let fd = unsafe { libc::timerfd_create(self.clock, libc::TFD_CLOEXEC) };
        let fd = sys::check(fd.into()).map_err(|e| self.failed("timerfd_create", e))?;
        // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    fn settle(&self, fd: BorrowedFd<'_>, _builder: &mut Builder<'_>) -> Result<()> {
        self.arm(fd)?;
        if self.ticks == 0 {
            return Ok(());
        }
        // SAFETY: the request reads one u64.
        let r = unsafe { libc::ioctl(fd.as_raw_fd(), TFD_IOC_SET_TICKS, &raw const self.ticks) };
        sys::check(r.into())
            .map(drop)
            .map_err(|e| self.failed("ioctl TFD_IOC_SET_TICKS", e))
    }
}

impl Timerfd {
    fn failed(&self, step: &'static str, e: std::io::Error) -> Error {
        Error::kernel(step, format!("timer of clock {}", self.clock), e)
    }

    fn arm(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let (flags, value) = match self.expiry {
            None => return Ok(()),
            Some(Expiry::After(remaining)) => (0, remaining),
            Some(Expiry::At(time)) => (self.flags, time),
        };
        let spec = timerspec(value, self.interval);
        let none = std::ptr::null_mut();
        // SAFETY: `spec` outlives the call; the old setting is not asked for.
        let r = unsafe { libc::timerfd_settime(fd.as_raw_fd(), flags, &raw const spec, none) };
        sys::check(r.into())
            .map(drop)
            .map_err(|e| self.failed("timerfd_settime", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::round_trip;

    fn timer(clock: i32, flags: i32, value: u64, interval: u64) -> OwnedFd {
        let timer = Timerfd {
            clock,
            flags,
            ticks: 0,
            expiry: Some(Expiry::At(value)),
            interval,
        };
        let image = tempfile::tempdir().unwrap();
        let path = image.path().join("image");
        crate::image::Writer::create(&path)
            .unwrap()
            .finish()
            .unwrap();
        let image = crate::image::Image::open(&path).unwrap();
        let fd = timer
            .rebuild(&mut Builder::new(&image, std::collections::HashMap::new()))
            .unwrap();
        timer.arm(std::os::fd::AsFd::as_fd(&fd)).unwrap();
        fd
    }

    fn probe(fd: &OwnedFd) -> Probe {
        Probe::new(1, None, fd.try_clone().unwrap()).unwrap()
    }

    #[test]
    fn remaining_time_interval_and_ticks_come_back() {
        let hour = 3600 * SECOND;
        let periodic = timer(libc::CLOCK_MONOTONIC, 0, 1, hour);
        let armed = timer(libc::CLOCK_BOOTTIME, 0, hour, 0);
        let idle = timer(libc::CLOCK_REALTIME, 0, 0, 0);
        nix::poll::poll(
            &mut [nix::poll::PollFd::new(
                std::os::fd::AsFd::as_fd(&periodic),
                nix::poll::PollFlags::POLLIN,
            )],
            nix::poll::PollTimeout::NONE,
        )
        .unwrap();
        let back = round_trip(vec![periodic, armed, idle]).unwrap();
        let now: Vec<_> = back.iter().map(|fd| gettime(&probe(fd)).unwrap()).collect();
        assert_eq!(nanos(now[0].it_interval), hour);
        assert!((1..=hour).contains(&nanos(now[0].it_value)));
        assert!((hour / 2..=hour).contains(&nanos(now[1].it_value)));
        assert_eq!(nanos(now[2].it_value), 0);
        let mut ticks = [0; 8];
        nix::unistd::read(&back[0], &mut ticks).unwrap();
        assert_eq!(u64::from_ne_bytes(ticks), 1);
        assert_eq!(probe(&back[1]).field("clockid:"), Some("7"));
    }

    #[test]
    fn a_time_of_day_stays_one() {
        let flags = libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET;
        // The year 2100.
        let at = 4_102_444_800 * SECOND;
        let back = round_trip(vec![timer(libc::CLOCK_REALTIME, flags, at, 0)]).unwrap();
        assert_eq!(probe(&back[0]).field("settime flags:"), Some("03"));
        let left = nanos(gettime(&probe(&back[0])).unwrap().it_value);
        let Expiry::At(again) = expiry(libc::CLOCK_REALTIME, flags, left).unwrap() else {
            panic!("a time of day is absolute");
        };
        assert!(again.abs_diff(at) < SECOND);
    }
}
