//! A stopped task that runs calls for us, and is put back as it was.

use std::io;

use intercept::{
    stub,
    tracee::{Regs, Stop, Stopped, TraceError},
};
use libc::pid_t;

use super::{Batch, Results};
use crate::error::{Error, Result};

/// Calls that we have a task run end in a SIGTRAP. The kernel forces it: were it blocked, its handler
/// would be reset and the signal unblocked (`force_sig_info_to_task` of `kernel/signal.c`).
const ALL_BUT_TRAP: u64 = !(1 << (libc::SIGTRAP - 1));

/// Whether the stub is where it belongs, and is ours.
fn has_stub(task: &Stopped) -> bool {
    let mut there = vec![0u8; stub::code().len()];
    task.read(stub::ADDR, &mut there).is_ok() && there == stub::code()
}

/// A stopped task whose registers and signal mask are saved and which has the stub mapped.
pub struct Scope {
    task: Stopped,
    saved: Regs,
    mask: u64,
}

impl Scope {
    /// Begins with a task that has the stub already (it was forked from one that had).
    ///
    /// # Errors
    /// The task is gone.
    pub fn with_stub(task: Stopped) -> Result<Self> {
        let (saved, mask) = (task.regs()?, task.sigmask()?);
        task.set_sigmask(ALL_BUT_TRAP)?;
        Ok(Self { task, saved, mask })
    }

    /// Begins with a task of the pod: maps the stub by calls that run from `syscall_at`,
    /// the address of a `syscall` instruction in it.
    ///
    /// # Errors
    /// The task is gone, or has something of its own where the stub lies.
    pub fn map_stub(task: Stopped, syscall_at: u64) -> Result<Self> {
        let mut scope = Self::with_stub(task)?;
        if has_stub(&scope.task) {
            // A task of a pod whose names are intercepted has it from a detour.
            return Ok(scope);
        }
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
        let rw = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let args = [stub::ADDR, stub::LEN, rw, flags, u64::MAX, 0];
        scope = scope.one(syscall_at, "mmap of the stub", libc::SYS_mmap, args)?;
        scope.task.write(stub::ADDR, stub::code())?;
        let rx = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        let args = [stub::ADDR, stub::PAGE, rx, 0, 0, 0];
        scope.one(syscall_at, "mprotect of the stub", libc::SYS_mprotect, args)
    }

    fn one(mut self, at: u64, call: &'static str, nr: i64, args: [u64; 6]) -> Result<Self> {
        let tid = self.task.tid();
        let (value, task) = self.task.inject(at, nr, args)?;
        self.task = task;
        if (-4095..0).contains(&value) {
            let source = io::Error::from_raw_os_error(-value as i32);
            self.end()?;
            return Err(Error::Remote { call, tid, source });
        }
        Ok(self)
    }

    /// The stopped task.
    #[must_use]
    pub fn task(&self) -> &Stopped {
        &self.task
    }

    /// The registers the task will go on with.
    #[must_use]
    pub fn saved(&self) -> &Regs {
        &self.saved
    }

    /// Changes the registers the task will go on with.
    pub fn set_saved(&mut self, regs: Regs) {
        self.saved = regs;
    }

    /// Changes the signal mask the task will go on with.
    pub fn set_mask(&mut self, mask: u64) {
        self.mask = mask;
    }

    /// The signal mask the task will go on with.
    #[must_use]
    pub fn mask(&self) -> u64 {
        self.mask
    }

    /// Runs a batch; every call that must succeed did, when this returns `Ok`.
    ///
    /// # Errors
    /// [`Error::Remote`] with the call that failed; the task is still in the scope's hands.
    pub fn run(self, batch: Batch) -> Result<(Results, Self)> {
        let tid = self.task.tid();
        let (results, scope) = self.try_run(batch)?;
        match results.failure() {
            None => Ok((results, scope)),
            Some((call, errno)) => {
                scope.end()?;
                Err(Error::Remote {
                    call,
                    tid,
                    source: io::Error::from_raw_os_error(errno),
                })
            }
        }
    }

    fn try_run(mut self, batch: Batch) -> Result<(Results, Self)> {
        for (addr, bytes) in batch.parts() {
            if !bytes.is_empty() {
                self.task.write(addr, bytes)?;
            }
        }
        let (born, again) = self.go(batch.calls())?;
        self = again;
        if let Some(child) = born {
            return Err(TraceError::Astray {
                tid: child,
                stop: Stop::Event(0),
                rip: 0,
            }
            .into());
        }
        self.collect(batch)
    }

    fn collect(self, batch: Batch) -> Result<(Results, Self)> {
        let (entries, data) = batch.sizes();
        let (mut e, mut d) = (vec![0; entries], vec![0; data]);
        let [(entries_at, _), (data_at, _)] = batch.parts();
        self.task.read(entries_at, &mut e)?;
        if !d.is_empty() {
            self.task.read(data_at, &mut d)?;
        }
        Ok((batch.results(&e, d), self))
    }

    /// Runs a batch whose last call makes a child, and returns the child's pid; the kernel has attached it.
    ///
    /// # Errors
    /// [`Error::Remote`] with the call that failed.
    pub fn fork(self, batch: Batch) -> Result<(pid_t, Self)> {
        for (addr, bytes) in batch.parts() {
            if !bytes.is_empty() {
                self.task.write(addr, bytes)?;
            }
        }
        let tid = self.task.tid();
        let (born, scope) = self.go(batch.calls())?;
        let (results, scope) = scope.collect(batch)?;
        match (born, results.failure()) {
            (Some(child), None) => Ok((child, scope)),
            (_, failure) => {
                scope.end()?;
                let (call, errno) = failure.unwrap_or(("clone3", libc::ECHILD));
                Err(Error::Remote {
                    call,
                    tid,
                    source: io::Error::from_raw_os_error(errno),
                })
            }
        }
    }

    /// Points the task at the batch loop and waits for its end; the child that was born on the way.
    fn go(mut self, calls: usize) -> Result<(Option<pid_t>, Self)> {
        self.aim(calls)?;
        let mut born = None;
        loop {
            self.task = self.task.cont(0)?.wait_stopped()?;
            match self.task.stop() {
                Stop::Signal(libc::SIGTRAP) => return Ok((born, self)),
                Stop::Event(libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_CLONE) => {
                    born = Some(self.task.event_message()? as pid_t);
                }
                // An interrupt that came while it stood is told again before the first instruction.
                Stop::Group(_) | Stop::Interrupt => {}
                stop => {
                    let (tid, rip) = (self.task.tid(), self.task.regs()?.rip);
                    return Err(TraceError::Astray { tid, stop, rip }.into());
                }
            }
        }
    }

    /// Sets the registers so that the task, when it goes on, runs `calls` entries.
    ///
    /// # Errors
    /// The task is gone.
    pub fn aim(&self, calls: usize) -> Result<()> {
        let mut regs = self.saved;
        (regs.rip, regs.rax, regs.orig_rax) = (stub::BATCH, 0, u64::MAX);
        (regs.r12, regs.r13) = (stub::SCRATCH, calls as u64);
        regs.eflags &= !0x400;
        Ok(self.task.set_regs(&regs)?)
    }

    /// Unmaps the stub by a call that runs from `syscall_at`, and ends the scope.
    ///
    /// # Errors
    /// The task is gone.
    pub fn unmap_stub(self, syscall_at: u64) -> Result<Stopped> {
        let args = [stub::ADDR, stub::LEN, 0, 0, 0, 0];
        self.one(syscall_at, "munmap of the stub", libc::SYS_munmap, args)?
            .end()
    }

    /// Puts registers and signal mask back; the task stays stopped.
    ///
    /// # Errors
    /// The task is gone.
    pub fn end(self) -> Result<Stopped> {
        self.task.set_regs(&self.saved)?;
        self.task.set_sigmask(self.mask)?;
        Ok(self.task)
    }

    /// Gives the task out of the scope without putting anything back: it is about to be replaced.
    #[must_use]
    pub fn into_task(self) -> Stopped {
        self.task
    }
}
