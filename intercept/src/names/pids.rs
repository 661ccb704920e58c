//! The pid table: one number space for processes, threads, groups and sessions, from 1.
//!
//! A number is given when a task is made, before its first instruction. Nobody tells when
//! a task ends, and nobody needs to: a dead task's number is found out when its real number
//! comes back (the kernel reuses none that is still a group or session), when somebody asks
//! for it (the start time tells a reused number), or by a sweep once the table has doubled.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use libc::pid_t;
use serde::{Deserialize, Serialize};

/// The largest number plus one (`PID_MAX_LIMIT` of `linux/threads.h` on 64 bits).
const LIMIT: pid_t = 1 << 22;
/// Where numbering goes on after a wrap (`RESERVED_PIDS` of `kernel/pid.c`).
const RESERVED: pid_t = 300;
/// The table is swept when it has grown to this size, at least.
const SWEEP: usize = 1024;

/// What a virtual number stands for on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Binding {
    real: pid_t,
    /// Start time in clock ticks since boot, to tell a reused number.
    start: u64,
}

/// The pid table of one pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pids {
    next: pid_t,
    taken: BTreeSet<pid_t>,
    #[serde(skip)]
    real: BTreeMap<pid_t, Binding>,
    #[serde(skip)]
    virt: HashMap<pid_t, pid_t>,
    #[serde(skip)]
    sweep_at: usize,
}

impl Default for Pids {
    fn default() -> Self {
        Self {
            next: 1,
            taken: BTreeSet::new(),
            real: BTreeMap::new(),
            virt: HashMap::new(),
            sweep_at: SWEEP,
        }
    }
}

/// The fields of `/proc/PID/stat` that the table looks at.
#[derive(Debug, Clone, Copy)]
pub struct Stat {
    /// Parent, in our pid namespace.
    pub ppid: pid_t,
    /// Process group.
    pub pgrp: pid_t,
    /// Session.
    pub session: pid_t,
    /// Start time, in clock ticks since boot.
    pub start: u64,
}

/// Reads `/proc/PID/stat`; `None` when there is no such task.
#[must_use]
pub fn stat(pid: pid_t) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, parentheses too; fields count from behind its last one.
    let fields: Vec<_> = text[text.rfind(')')? + 2..].split(' ').collect();
    let number = |i: usize| fields.get(i)?.parse().ok();
    Some(Stat {
        ppid: number(1)?,
        pgrp: number(2)?,
        session: number(3)?,
        start: fields.get(19)?.parse().ok()?,
    })
}

impl Pids {
    /// Gives a new task its number.
    pub fn born(&mut self, real: pid_t) -> pid_t {
        if self.taken.len() >= self.sweep_at {
            self.sweep();
        }
        while self.taken.contains(&self.next) {
            self.next = self.after(self.next);
        }
        let virt = self.next;
        self.next = self.after(virt);
        self.bind(virt, real);
        virt
    }

    fn after(&self, virt: pid_t) -> pid_t {
        if virt + 1 < LIMIT { virt + 1 } else { RESERVED }
    }

    /// Lets `virt` stand for `real` (init, or a task that was rebuilt).
    pub fn bind(&mut self, virt: pid_t, real: pid_t) {
        // The kernel has given the number anew, so its former bearer is gone.
        if let Some(old) = self.virt.insert(real, virt).filter(|old| *old != virt) {
            self.forget(old);
        }
        let start = stat(real).map_or(0, |s| s.start);
        self.taken.insert(virt);
        if virt >= self.next {
            self.next = self.after(virt);
        }
        if let Some(old) = self.real.insert(virt, Binding { real, start })
            && old.real != real
        {
            self.virt.remove(&old.real);
        }
    }

    fn forget(&mut self, virt: pid_t) {
        self.taken.remove(&virt);
        self.real.remove(&virt);
    }

    /// The virtual number of a real one.
    #[must_use]
    pub fn virt(&self, real: pid_t) -> Option<pid_t> {
        self.virt.get(&real).copied()
    }

    /// The virtual number of a task of the pod, which gets one now if nobody saw it made
    /// (programs that init starts).
    pub fn virt_or_new(&mut self, real: pid_t) -> pid_t {
        self.virt(real).unwrap_or_else(|| self.born(real))
    }

    /// The real number of a task (of a group or session, if its leader is gone); `None` when
    /// the number is free, or the real number is some other task's by now.
    #[must_use]
    pub fn real(&self, virt: pid_t) -> Option<pid_t> {
        let binding = self.real.get(&virt)?;
        let same = stat(binding.real).is_none_or(|s| s.start == binding.start);
        same.then_some(binding.real)
    }

    /// All virtual numbers with their real ones.
    pub fn all(&self) -> impl Iterator<Item = (pid_t, pid_t)> {
        self.real
            .iter()
            .map(|(virt, binding)| (*virt, binding.real))
    }

    /// Forgets tasks that are gone, unless a living one has their number as group or session.
    fn sweep(&mut self) {
        let stats: Vec<_> = self
            .real
            .iter()
            .map(|(virt, b)| (*virt, stat(b.real).filter(|s| s.start == b.start)))
            .collect();
        let used: BTreeSet<_> = stats
            .iter()
            .filter_map(|(_, s)| s.as_ref())
            .flat_map(|s| [s.pgrp, s.session])
            .collect();
        for (virt, _) in stats.iter().filter(|(_, s)| s.is_none()) {
            let real = self.real[virt].real;
            if !used.contains(&real) {
                self.forget(*virt);
                self.virt.remove(&real);
            }
        }
        self.sweep_at = SWEEP.max(2 * self.taken.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Real numbers beyond the kernel's limit: no task ever has them.
    const NOBODY: pid_t = LIMIT + 1;

    #[test]
    fn numbers_count_from_one_and_invert() {
        let mut pids = Pids::default();
        for i in 0..100 {
            assert_eq!(pids.born(NOBODY + i), i + 1);
        }
        for i in 0..100 {
            let virt = pids.virt(NOBODY + i).unwrap();
            assert_eq!(pids.real(virt), Some(NOBODY + i));
            assert_eq!(pids.virt_or_new(NOBODY + i), virt);
        }
        assert_eq!(pids.all().count(), 100);
    }

    #[test]
    fn a_reused_real_number_gets_a_new_virtual_one() {
        let mut pids = Pids::default();
        let (first, second) = (pids.born(NOBODY), pids.born(NOBODY));
        assert_ne!(first, second);
        assert_eq!((pids.real(first), pids.virt(NOBODY)), (None, Some(second)));
    }

    #[test]
    fn the_dead_are_swept_and_the_living_stay() {
        let mut pids = Pids::default();
        let me = pids.born(std::process::id() as pid_t);
        for i in 0..5000 {
            pids.born(NOBODY + i);
        }
        assert!(pids.all().count() <= SWEEP + 1);
        assert_eq!(pids.real(me), Some(std::process::id() as pid_t));
        pids.real.get_mut(&me).unwrap().start += 1;
        assert_eq!(pids.real(me), None);
    }

    #[test]
    fn numbers_wrap_past_those_in_use() {
        let mut pids = Pids {
            next: LIMIT - 1,
            ..Pids::default()
        };
        pids.bind(RESERVED, NOBODY);
        assert_eq!(pids.born(NOBODY + 1), LIMIT - 1);
        assert_eq!(pids.born(NOBODY + 2), RESERVED + 1);
    }

    #[test]
    fn an_image_holds_virtual_numbers_only() {
        let mut pids = Pids::default();
        pids.born(NOBODY);
        let text = serde_json::to_string(&pids).unwrap();
        assert!(!text.contains(&NOBODY.to_string()), "{text}");
        let mut back: Pids = serde_json::from_str(&text).unwrap();
        assert_eq!(back.real(1), None);
        back.bind(1, NOBODY + 7);
        assert_eq!(back.real(1), Some(NOBODY + 7));
        assert_eq!(back.born(NOBODY + 8), 2);
    }
}
