//! The interception filter: which calls are notified to the supervisor.
//!
//! libseccomp makes the program from the table's rows under a [`Plan`] and refuses
//! foreign ABIs (`int 0x80`, x32). It can compare arguments but not the instruction
//! pointer, and calls that we inject come from the stub page and must pass. So each
//! `USER_NOTIF` verdict of the exported program is replaced by a jump to a test that is
//! appended behind it; calls that are not notified never pay for that test.
//!
//! ```text
//!   … decision tree over nr …        ┌──▶ ip in [stub::ADDR, +PAGE) ? ALLOW : USER_NOTIF
//!   RET USER_NOTIF  ─ becomes ─  JA ─┘
//! ```
//!
//! The program is built in the parent and installed raw in the child: after `clone` a
//! child must not call a library that allocates.

use std::{
    fs::File,
    io::{self, Read, Seek},
    os::fd::OwnedFd,
};

use libc::sock_filter;
use libseccomp::{ScmpAction, ScmpFilterContext, ScmpSyscall, error::SeccompError};

use crate::{
    stub, sys,
    table::{self, Plan, Row, Verb},
};

/// What can fail when a filter is made or installed.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// libseccomp refused a step.
    #[error("interception filter: {step}: {source}")]
    Build {
        /// The libseccomp call.
        step: &'static str,
        /// What it said.
        source: SeccompError,
    },
    /// The file that libseccomp exports to could not be made or read.
    #[error("interception filter: memfd: {0}")]
    Export(io::Error),
    /// The serialized program is damaged.
    #[error("interception filter: {0} bytes are no whole number of instructions")]
    Bytes(usize),
    /// `seccomp(2)` failed.
    #[error("interception filter: seccomp(SET_MODE_FILTER): {0}")]
    Install(io::Error),
}

/// A seccomp program, ready to be installed.
#[derive(Debug, Clone)]
pub struct Program(Vec<sock_filter>);

fn at(step: &'static str) -> impl FnOnce(SeccompError) -> FilterError {
    move |source| FilterError::Build { step, source }
}

fn verdict(row: &Row, plan: &Plan) -> Option<ScmpAction> {
    match row.verb_under(plan) {
        Verb::None | Verb::Pass => None,
        Verb::Refuse => Some(ScmpAction::Errno(libc::ENOSYS)),
        Verb::Answer | Verb::Perform | Verb::Detour => Some(ScmpAction::Notify),
    }
}

fn context(plan: &Plan) -> Result<ScmpFilterContext, FilterError> {
    let mut ctx = ScmpFilterContext::new(ScmpAction::Allow).map_err(at("init"))?;
    ctx.set_act_badarch(ScmpAction::Errno(libc::ENOSYS))
        .map_err(at("set_act_badarch"))?;
    ctx.set_ctl_optimize(2).map_err(at("set_ctl_optimize"))?;
    for row in table::all() {
        if let Some(action) = verdict(row, plan) {
            let call = ScmpSyscall::from_raw_syscall(row.nr.id());
            ctx.add_rule(action, call).map_err(at("add_rule"))?;
        }
    }
    Ok(ctx)
}

impl Program {
    /// The program for a plan.
    ///
    /// # Errors
    /// [`FilterError::Build`].
    pub fn new(plan: &Plan) -> Result<Self, FilterError> {
        let mut file = sys::memfd_create(c"filter", 0)
            .map(File::from)
            .map_err(FilterError::Export)?;
        context(plan)?.export_bpf(&file).map_err(at("export_bpf"))?;
        let mut bytes = Vec::new();
        file.rewind().map_err(FilterError::Export)?;
        file.read_to_end(&mut bytes).map_err(FilterError::Export)?;
        let mut program = Self::from_bytes(&bytes)?;
        program.test_instruction_pointer();
        Ok(program)
    }

    /// The program as bytes, for a process that installs it elsewhere.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let encode = |i: &sock_filter| {
            let ([c0, c1], k) = (i.code.to_ne_bytes(), i.k.to_ne_bytes());
            [c0, c1, i.jt, i.jf, k[0], k[1], k[2], k[3]]
        };
        self.0.iter().flat_map(encode).collect()
    }

    /// A program from bytes in the kernel's layout (`struct sock_filter`).
    ///
    /// # Errors
    /// [`FilterError::Bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FilterError> {
        let (whole, rest) = bytes.as_chunks::<8>();
        if !rest.is_empty() || whole.is_empty() {
            return Err(FilterError::Bytes(bytes.len()));
        }
        let decode = |b: &[u8; 8]| sock_filter {
            code: u16::from_ne_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        };
        Ok(Self(whole.iter().map(decode).collect()))
    }

    /// Puts the test for the stub page in front of each `USER_NOTIF` verdict.
    fn test_instruction_pointer(&mut self) {
        let end = self.0.len();
        for (i, instruction) in self.0.iter_mut().enumerate() {
            if instruction.code == RET && instruction.k == libc::SECCOMP_RET_USER_NOTIF {
                *instruction = stmt(JA, (end - i - 1) as u32);
            }
        }
        self.0.extend(pointer_test());
    }

    /// Installs the program on the calling thread and returns the listener (close-on-exec).
    ///
    /// Async-signal-safe. Asks for `WAIT_KILLABLE_RECV` (Linux 5.19), under which a call that
    /// the supervisor has received is not interrupted by signals with handlers; does without
    /// on older kernels. Sets no_new_privs only where the kernel demands it.
    ///
    /// # Errors
    /// [`FilterError::Install`]: `EBUSY` when the chain has a listener already.
    pub fn install(&self) -> Result<OwnedFd, FilterError> {
        let killable = libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
        self.install_with(killable)
            .or_else(|e| match e.raw_os_error() {
                Some(libc::EINVAL) => self.install_with(0),
                _ => Err(e),
            })
            .map_err(FilterError::Install)
    }

    fn install_with(&self, flags: libc::c_ulong) -> io::Result<OwnedFd> {
        let flags = flags | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        let listener = match sys::seccomp_set_filter(&self.0, flags) {
            Err(e) if e.raw_os_error() == Some(libc::EACCES) => {
                no_new_privs()?;
                sys::seccomp_set_filter(&self.0, flags)?
            }
            other => other?,
        };
        listener.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
    }
}

fn no_new_privs() -> io::Result<()> {
    // SAFETY: plain values only.
    let r = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    sys::check(i64::from(r)).map(drop)
}

const RET: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const JA: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JEQ: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JGE: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;

/// Offset of the low word of `instruction_pointer` in `struct seccomp_data` (little endian).
const IP_LOW: u32 = 8;

fn stmt(code: u16, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Allows calls whose instruction pointer lies in the stub's code page, notifies the rest.
fn pointer_test() -> [sock_filter; 6] {
    let (high, low) = ((stub::ADDR >> 32) as u32, stub::ADDR as u32);
    assert!(low == 0, "the stub begins at a multiple of 4 GiB");
    [
        stmt(LOAD, IP_LOW + 4),
        jump(JEQ, high, 0, 3),
        stmt(LOAD, IP_LOW),
        jump(JGE, stub::PAGE as u32, 1, 0),
        stmt(RET, libc::SECCOMP_RET_ALLOW),
        stmt(RET, libc::SECCOMP_RET_USER_NOTIF),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Backing;

    fn verdicts(program: &Program) -> usize {
        let notif = |i: &&sock_filter| i.code == RET && i.k == libc::SECCOMP_RET_USER_NOTIF;
        program.0.iter().filter(notif).count()
    }

    #[test]
    fn the_pointer_test_stands_before_every_notification() {
        let plan = Plan {
            pids: Backing::Notify,
            ipc: Backing::Notify,
            hosts: Backing::Notify,
            endpoints: true,
        };
        let program = Program::new(&plan).unwrap();
        assert_eq!(verdicts(&program), 1);
        let back = Program::from_bytes(&program.to_bytes()).unwrap();
        assert_eq!(back.to_bytes(), program.to_bytes());
        assert!(Program::from_bytes(&[0; 12]).is_err());
    }

    #[test]
    fn foreign_abis_are_refused_and_uring_is_absent() {
        let program = Program::new(&Plan {
            endpoints: true,
            ..Plan::default()
        })
        .unwrap();
        // SAFETY: the child calls raw syscalls and _exit only.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let _listener = program.install().unwrap();
            // SAFETY: raw calls with plain values; they fail before they look at memory.
            let failed = unsafe {
                let x32 = libc::syscall(0x4000_0000 + libc::SYS_getuid);
                let x32 = x32 == -1 && *libc::__errno_location() == libc::ENOSYS;
                let uring = libc::syscall(libc::SYS_io_uring_setup, 1, 0);
                let uring = uring == -1 && *libc::__errno_location() == libc::ENOSYS;
                let int80: i64;
                std::arch::asm!("int 0x80", inlateout("rax") 199_i64 => int80, clobber_abi("C"));
                [x32, uring, int80 as i32 == -libc::ENOSYS].contains(&false)
            };
            // SAFETY: ends the forked child without running its parent's destructors.
            unsafe { libc::_exit(i32::from(failed)) };
        }
        let mut status = -1;
        // SAFETY: `status` is a live int.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(status, 0);
    }
}
