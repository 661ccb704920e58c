//! Tracees as types: a task we trace is running, stopped, or gone.
//!
//! ```text
//!            seize            wait: a stop
//!   (free) ───────▶ Running ──────────────▶ Stopped
//!      ▲                ▲   cont/step/syscall  │
//!      │                └──────────────────────┤
//!      └───────────────────────────────────────┘ detach
//!   any of them ──▶ Gone, when the task dies: the kernel says ESRCH at a stop.
//! ```
//!
//! Registers and memory exist on [`Stopped`] only, so that a call on a running task
//! does not compile. All of it must happen on the one thread that seized the task
//! (ptrace(2)); see [`crate::tracer`].

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::{MaybeUninit, size_of},
};

use libc::{c_int, c_long, pid_t};
use nix::{
    sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev},
    unistd::Pid,
};

use crate::sys;

/// The general registers (`struct user_regs_struct`).
pub type Regs = libc::user_regs_struct;

/// What a step on a tracee can run into.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The task died.
    #[error("task {0} is gone")]
    Gone(pid_t),
    /// Something else traces the task, or we may not.
    #[error("task {tid} cannot be traced: {source}")]
    Seize {
        /// The task.
        tid: pid_t,
        /// What the kernel said.
        source: io::Error,
    },
    /// A ptrace request failed.
    #[error("ptrace {request} of task {tid}: {source}")]
    Request {
        /// The request's name in ptrace(2).
        request: &'static str,
        /// The task.
        tid: pid_t,
        /// What the kernel said.
        source: io::Error,
    },
    /// Memory could not be read or written.
    #[error("memory of task {tid} at {addr:#x}: {source}")]
    Memory {
        /// The task.
        tid: pid_t,
        /// First address.
        addr: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// An injected call ended in an unexpected stop.
    #[error(
        "task {tid} stopped by {stop:?} where an injected call should have ended (rip {rip:#x})"
    )]
    Astray {
        /// The task.
        tid: pid_t,
        /// The stop.
        stop: Stop,
        /// Where it stood.
        rip: u64,
    },
}

/// Result of a step on a tracee.
pub type Result<T> = std::result::Result<T, TraceError>;

/// Why a tracee stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// `PTRACE_EVENT_STOP` after an interrupt, or a new child's first stop.
    Interrupt,
    /// `PTRACE_EVENT_STOP` of a job-control stop by this signal.
    Group(c_int),
    /// Signal-delivery stop.
    Signal(c_int),
    /// Another `PTRACE_EVENT_*`, by number.
    Event(c_int),
    /// Syscall entry or exit (`PTRACE_O_TRACESYSGOOD`).
    Syscall,
}

impl Stop {
    fn from_status(status: c_int) -> Self {
        let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
        match (event, signal) {
            (libc::PTRACE_EVENT_STOP, libc::SIGTRAP) => Self::Interrupt,
            (libc::PTRACE_EVENT_STOP, s) => Self::Group(s),
            (0, s) if s == libc::SIGTRAP | 0x80 => Self::Syscall,
            (0, s) => Self::Signal(s),
            (e, _) => Self::Event(e),
        }
    }
}

/// What waiting for a tracee brought.
#[derive(Debug)]
pub enum Waited {
    /// It stopped.
    Stopped(Stopped),
    /// It died, with this wait status.
    Gone(c_int),
}

fn request(tid: pid_t, name: &'static str, op: u32, addr: u64, data: u64) -> Result<c_long> {
    // SAFETY: callers pass addresses of live objects of the size the request needs, or plain values.
    let r = unsafe { libc::ptrace(op as _, tid, addr, data) };
    sys::check(r).map_err(|source| match source.raw_os_error() {
        Some(libc::ESRCH) => TraceError::Gone(tid),
        _ => TraceError::Request {
            request: name,
            tid,
            source,
        },
    })
}

/// A tracee that runs.
#[derive(Debug)]
pub struct Running {
    tid: pid_t,
}

impl Running {
    /// Starts to trace `tid` with `PTRACE_SEIZE` and these `PTRACE_O_*` options; the task goes on.
    ///
    /// # Errors
    /// [`TraceError::Gone`] or [`TraceError::Seize`] (something traces it already, no permission).
    pub fn seize(tid: pid_t, options: c_int) -> Result<Self> {
        match request(tid, "SEIZE", libc::PTRACE_SEIZE, 0, options as u64) {
            Ok(_) => Ok(Self { tid }),
            Err(TraceError::Request { source, .. }) => Err(TraceError::Seize { tid, source }),
            Err(other) => Err(other),
        }
    }

    /// A child that the kernel attached by itself (`PTRACE_O_TRACEFORK` and its like).
    #[must_use]
    pub fn attached(tid: pid_t) -> Self {
        Self { tid }
    }

    /// The task.
    #[must_use]
    pub fn tid(&self) -> pid_t {
        self.tid
    }

    /// Asks for a stop (`PTRACE_INTERRUPT`); it shows up in [`Running::wait`].
    ///
    /// # Errors
    /// [`TraceError::Gone`].
    pub fn interrupt(&self) -> Result<()> {
        request(self.tid, "INTERRUPT", libc::PTRACE_INTERRUPT, 0, 0).map(drop)
    }

    /// Waits for the next stop or the death of the task.
    ///
    /// # Errors
    /// [`TraceError::Gone`] when somebody else has reaped it.
    pub fn wait(self) -> Result<Waited> {
        self.wait_with(0)
            .map(|w| w.expect("a blocking wait returns something"))
    }

    /// Like [`Running::wait`], but gives the tracee back when nothing has happened yet.
    ///
    /// # Errors
    /// As [`Running::wait`].
    pub fn try_wait(self) -> Result<std::result::Result<Waited, Self>> {
        let tid = self.tid;
        self.wait_with(libc::WNOHANG).map(|w| w.ok_or(Self { tid }))
    }

    fn wait_with(self, flags: c_int) -> Result<Option<Waited>> {
        let mut status = 0;
        loop {
            // SAFETY: `status` is a live int.
            let r = unsafe { libc::waitpid(self.tid, &raw mut status, libc::__WALL | flags) };
            match r {
                0 => return Ok(None),
                -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                -1 => return Err(TraceError::Gone(self.tid)),
                _ => break,
            }
        }
        Ok(Some(if libc::WIFSTOPPED(status) {
            Waited::Stopped(Stopped {
                tid: self.tid,
                stop: Stop::from_status(status),
            })
        } else {
            Waited::Gone(status)
        }))
    }

    /// Waits for a stop; death is an error.
    ///
    /// # Errors
    /// [`TraceError::Gone`].
    pub fn wait_stopped(self) -> Result<Stopped> {
        let tid = self.tid;
        match self.wait()? {
            Waited::Stopped(s) => Ok(s),
            Waited::Gone(_) => Err(TraceError::Gone(tid)),
        }
    }
}

/// A tracee in a stop: its registers and memory hold still.
#[derive(Debug)]
pub struct Stopped {
    tid: pid_t,
    stop: Stop,
}

impl Stopped {
    /// Takes up a task again that this thread left standing still: a step that failed half-way has lost
    /// its handle. Every use says [`TraceError::Gone`] when it does not stand.
    #[must_use]
    pub fn again(tid: pid_t) -> Self {
        let stop = Stop::Interrupt;
        Self { tid, stop }
    }

    /// The task.
    #[must_use]
    pub fn tid(&self) -> pid_t {
        self.tid
    }

    /// Why it stands.
    #[must_use]
    pub fn stop(&self) -> Stop {
        self.stop
    }

    fn request(&self, name: &'static str, op: u32, addr: u64, data: u64) -> Result<c_long> {
        request(self.tid, name, op, addr, data)
    }

    /// General registers (`NT_PRSTATUS`).
    ///
    /// # Errors
    /// [`TraceError::Gone`].
    pub fn regs(&self) -> Result<Regs> {
        let mut regs = MaybeUninit::<Regs>::zeroed();
        self.request("GETREGS", libc::PTRACE_GETREGS, 0, regs.as_mut_ptr() as u64)?;
        // SAFETY: plain integers, zeroed before and filled by the kernel.
        Ok(unsafe { regs.assume_init() })
    }

    /// Sets the general registers.
    ///
    /// # Errors
    /// [`TraceError::Gone`]; `EIO` for values the kernel refuses (segment bases).
    pub fn set_regs(&self, regs: &Regs) -> Result<()> {
        self.request(
            "SETREGS",
            libc::PTRACE_SETREGS,
            0,
            std::ptr::from_ref(regs) as u64,
        )
        .map(drop)
    }

    /// The extended state (`NT_X86_XSTATE`), as the CPU's XSAVE area of this host.
    ///
    /// # Errors
    /// [`TraceError::Gone`].
    pub fn xstate(&self) -> Result<Vec<u8>> {
        let mut area = vec![0u8; 16 << 10];
        let mut iov = libc::iovec {
            iov_base: area.as_mut_ptr().cast(),
            iov_len: area.len(),
        };
        self.request(
            "GETREGSET",
            libc::PTRACE_GETREGSET,
            0x202,
            &raw mut iov as u64,
        )?;
        area.truncate(iov.iov_len);
        Ok(area)
    }

    /// Sets the extended state; `area` must have this CPU's layout (a foreign one is accepted silently).
    ///
    /// # Errors
    /// `EINVAL`/`EFAULT` for a wrong size or header.
    pub fn set_xstate(&self, area: &[u8]) -> Result<()> {
        let iov = libc::iovec {
            iov_base: area.as_ptr().cast_mut().cast(),
            iov_len: area.len(),
        };
        self.request(
            "SETREGSET",
            libc::PTRACE_SETREGSET,
            0x202,
            &raw const iov as u64,
        )
        .map(drop)
    }

    /// The blocked signals.
    ///
    /// # Errors
    /// [`TraceError::Gone`].
    pub fn sigmask(&self) -> Result<u64> {
        let mut mask = 0u64;
        self.request(
            "GETSIGMASK",
            libc::PTRACE_GETSIGMASK,
            8,
            &raw mut mask as u64,
        )?;
        Ok(mask)
    }

    /// Sets the blocked signals.
    ///
    /// # Errors
    /// [`TraceError::Gone`].
    pub fn set_sigmask(&self, mask: u64) -> Result<()> {
        self.request(
            "SETSIGMASK",
            libc::PTRACE_SETSIGMASK,
            8,
            &raw const mask as u64,
        )
        .map(drop)
    }

    /// The siginfo of a signal-delivery stop.
    ///
    /// # Errors
    /// `EINVAL` in another kind of stop.
    pub fn siginfo(&self) -> Result<libc::siginfo_t> {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        self.request(
            "GETSIGINFO",
            libc::PTRACE_GETSIGINFO,
            0,
            info.as_mut_ptr() as u64,
        )?;
        // SAFETY: plain data, zeroed before and filled by the kernel.
        Ok(unsafe { info.assume_init() })
    }

    /// Pending signals in queue order: the process's (`shared`) or the thread's own. Nothing is dequeued.
    ///
    /// # Errors
    /// [`TraceError::Gone`].
    pub fn pending(&self, shared: bool) -> Result<Vec<libc::siginfo_t>> {
        let mut all = Vec::new();
        loop {
            let args = libc::ptrace_peeksiginfo_args {
                off: all.len() as u64,
                flags: u32::from(shared),
                nr: 16,
            };
            // SAFETY: an array of plain data for which zero is valid.
            let mut page: [libc::siginfo_t; 16] = unsafe { std::mem::zeroed() };
            let (a, d) = (&raw const args as u64, page.as_mut_ptr() as u64);
            let n = self.request("PEEKSIGINFO", libc::PTRACE_PEEKSIGINFO, a, d)? as usize;
            all.extend_from_slice(&page[..n]);
            if n < page.len() {
                return Ok(all);
            }
        }
    }

    /// The number that goes with an event stop (`PTRACE_GETEVENTMSG`): a new child's pid.
    ///
    /// # Errors
    /// [`TraceError::Gone`].
    pub fn event_message(&self) -> Result<u64> {
        let mut message = 0u64;
        self.request(
            "GETEVENTMSG",
            libc::PTRACE_GETEVENTMSG,
            0,
            &raw mut message as u64,
        )?;
        Ok(message)
    }

    /// The rseq registration: `(address, size, signature)`, address 0 for none.
    ///
    /// # Errors
    /// `EIO` on kernels before 5.13.
    pub fn rseq(&self) -> Result<(u64, u32, u32)> {
        let mut config = [0u64; 3];
        let (len, at) = (size_of::<[u64; 3]>() as u64, config.as_mut_ptr() as u64);
        self.request("GET_RSEQ_CONFIGURATION", 0x420f, len, at)?;
        Ok((config[0], config[1] as u32, (config[1] >> 32) as u32))
    }

    /// Sets `PTRACE_O_*` options.
    ///
    /// # Errors
    /// `EPERM` for `PTRACE_O_SUSPEND_SECCOMP` without `CAP_SYS_ADMIN` in the initial user namespace.
    pub fn set_options(&self, options: c_int) -> Result<()> {
        self.request("SETOPTIONS", libc::PTRACE_SETOPTIONS, 0, options as u64)
            .map(drop)
    }

    /// Reads memory as the task sees it; pages it may not read are an error.
    ///
    /// # Errors
    /// [`TraceError::Memory`], also for a short read.
    pub fn read(&self, addr: u64, buf: &mut [u8]) -> Result<()> {
        let remote = [RemoteIoVec {
            base: addr as usize,
            len: buf.len(),
        }];
        let len = buf.len();
        let r = process_vm_readv(
            Pid::from_raw(self.tid),
            &mut [IoSliceMut::new(buf)],
            &remote,
        );
        self.whole(addr, len, r)
    }

    /// Writes memory that the task may write.
    ///
    /// # Errors
    /// [`TraceError::Memory`], also for a short write.
    pub fn write(&self, addr: u64, data: &[u8]) -> Result<()> {
        let remote = [RemoteIoVec {
            base: addr as usize,
            len: data.len(),
        }];
        let r = process_vm_writev(Pid::from_raw(self.tid), &[IoSlice::new(data)], &remote);
        self.whole(addr, data.len(), r)
    }

    /// Writes memory whatever its protection (`/proc/PID/mem`): private pages are copied first.
    ///
    /// # Errors
    /// [`TraceError::Memory`].
    pub fn force_write(&self, addr: u64, data: &[u8]) -> Result<()> {
        use std::os::unix::fs::FileExt;
        std::fs::OpenOptions::new()
            .write(true)
            .open(format!("/proc/{}/mem", self.tid))
            .and_then(|mem| mem.write_all_at(data, addr))
            .map_err(|source| TraceError::Memory {
                tid: self.tid,
                addr,
                source,
            })
    }

    fn whole(&self, addr: u64, len: usize, r: nix::Result<usize>) -> Result<()> {
        let source = match r {
            Ok(n) if n == len => return Ok(()),
            Ok(_) => io::Error::from_raw_os_error(libc::EFAULT),
            Err(nix::Error::ESRCH) => return Err(TraceError::Gone(self.tid)),
            Err(e) => e.into(),
        };
        Err(TraceError::Memory {
            tid: self.tid,
            addr,
            source,
        })
    }

    /// Lets the task go on, delivering `signal` (0 for none).
    ///
    /// # Errors
    /// [`TraceError::Gone`].
    pub fn cont(self, signal: c_int) -> Result<Running> {
        self.resume("CONT", libc::PTRACE_CONT, signal)
    }

    /// Brings the task from the stop of a step or a signal to one that leaves nothing behind: should its
    /// tracer be killed now, it goes on. From the other stops it would go on with their signal (a
    /// SIGTRAP, which ends most programs). No instruction of the task runs.
    ///
    /// # Errors
    /// [`TraceError::Gone`]; [`TraceError::Astray`] for another stop than the one asked for.
    pub fn rest(self) -> Result<Self> {
        self.request("INTERRUPT", libc::PTRACE_INTERRUPT, 0, 0)?;
        let rested = self.cont(0)?.wait_stopped()?;
        match rested.stop {
            Stop::Interrupt | Stop::Group(_) => Ok(rested),
            stop => Err(rested.astray(stop)),
        }
    }

    /// Lets the task go on to the next syscall entry or exit.
    ///
    /// # Errors
    /// [`TraceError::Gone`].
    pub fn syscall(self, signal: c_int) -> Result<Running> {
        self.resume("SYSCALL", libc::PTRACE_SYSCALL, signal)
    }

    /// Lets the task run one instruction.
    ///
    /// # Errors
    /// [`TraceError::Gone`].
    pub fn step(self) -> Result<Running> {
        self.resume("SINGLESTEP", libc::PTRACE_SINGLESTEP, 0)
    }

    /// Leaves a signal's stop for one that belongs to no signal, without an instruction in between.
    ///
    /// When a tracer dies, the kernel delivers the signal at whose stop the task stands; after a single
    /// step that is a SIGTRAP, which would kill the program. A stop of PTRACE_INTERRUPT delivers nothing.
    ///
    /// # Errors
    /// [`TraceError::Gone`].
    pub fn calm(self) -> Result<Self> {
        if !matches!(self.stop, Stop::Signal(_)) {
            return Ok(self);
        }
        request(self.tid, "INTERRUPT", libc::PTRACE_INTERRUPT, 0, 0)?;
        self.cont(0)?.wait_stopped()
    }

    /// Keeps a job-control stop while listening for its end (`PTRACE_LISTEN`).
    ///
    /// # Errors
    /// `EIO` outside a group stop.
    pub fn listen(self) -> Result<Running> {
        self.resume("LISTEN", libc::PTRACE_LISTEN, 0)
    }

    fn resume(self, name: &'static str, op: u32, signal: c_int) -> Result<Running> {
        self.request(name, op, 0, signal as u64)?;
        Ok(Running { tid: self.tid })
    }

    /// Ends the tracing; the task goes on, delivering `signal` (0 for none).
    ///
    /// # Errors
    /// [`TraceError::Gone`].
    pub fn detach(self, signal: c_int) -> Result<()> {
        self.request("DETACH", libc::PTRACE_DETACH, 0, signal as u64)
            .map(drop)
    }

    /// Runs one syscall at `at`, the address of a `syscall` instruction, and returns what it
    /// returned (negative errno included) with the task stopped again; the registers are left
    /// as the call left them, so restore them before the task goes on by itself.
    ///
    /// A signal that becomes due meanwhile stays for later only if it is blocked: block all first.
    ///
    /// # Errors
    /// [`TraceError::Astray`] when anything but the end of the step stops the task.
    pub fn inject(self, at: u64, nr: c_long, args: [u64; 6]) -> Result<(i64, Self)> {
        let mut regs = self.regs()?;
        regs.rip = at;
        (regs.rax, regs.orig_rax) = (nr as u64, u64::MAX);
        (regs.rdi, regs.rsi, regs.rdx) = (args[0], args[1], args[2]);
        (regs.r10, regs.r8, regs.r9) = (args[3], args[4], args[5]);
        self.set_regs(&regs)?;
        let mut task = self;
        loop {
            task = task.step()?.wait_stopped()?;
            match task.stop {
                Stop::Signal(libc::SIGTRAP) => return Ok((task.regs()?.rax as i64, task)),
                // An interrupt that came while it stood is told again before the first instruction.
                Stop::Group(_) | Stop::Interrupt => {}
                stop => return Err(task.astray(stop)),
            }
        }
    }

    fn astray(&self, stop: Stop) -> TraceError {
        match self.regs() {
            Ok(regs) => TraceError::Astray {
                tid: self.tid,
                stop,
                rip: regs.rip,
            },
            Err(error) => error,
        }
    }

    /// Finds a `syscall` instruction in the range `[start, end)` of the task's memory (its vDSO has one).
    ///
    /// # Errors
    /// [`TraceError::Memory`].
    pub fn find_syscall(&self, start: u64, end: u64) -> Result<Option<u64>> {
        let mut code = vec![0u8; (end - start) as usize];
        self.read(start, &mut code)?;
        let at = code.windows(2).position(|w| w == [0x0f, 0x05]);
        Ok(at.map(|i| start + i as u64))
    }
}
