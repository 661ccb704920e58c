//! Starting programs in the pod, and forking the tasks a restart begins with.
//!
//! A child of init has init's privileges and view of the pod; it sheds them step by step and then executes
//! the program. Until the exec succeeds, a failure comes back over a close-on-exec pipe, so that "not
//! found" is an answer and not a mysterious exit code.
//!
//! ```text
//!   fork ─▶ groups ─▶ signals ─▶ session, terminal, stdio ─▶ user ─▶ umask, directory ─▶ exec
//!                          any failure ─▶ pipe ─▶ init ─▶ supervisor
//! ```

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use intercept::stub;
use intercept::sys::{Clone3, clone3, pidfd_open};
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::stat::{Mode, umask};
use nix::unistd::pipe2;

use super::{Walls, terminal, user};
use crate::failure::{Failure, NOT_EXECUTABLE, NOT_FOUND};
use crate::messages::Program;
use crate::sys::cloexec_from;

/// A child of init.
pub(super) struct Spawned {
    /// Its pid in the pod.
    pub(super) vpid: i32,
    pub(super) pidfd: OwnedFd,
}

/// Starts a program. `fds` are its standard input, output and error output, or its terminal.
pub(super) fn program(program: &Program, fds: &[OwnedFd], walls: &Walls) -> Result<Spawned> {
    let wanted = if program.tty { 1 } else { 3 };
    anyhow::ensure!(
        fds.len() == wanted,
        "a program needs its standard descriptors"
    );
    let (failure, report) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("pipe")?;
    let spawned = fork(None, || {
        let Err(error) = become_program(program, fds, walls);
        tell_failure(report.into(), &error);
        127
    })?;
    match read_failure(failure, spawned.vpid)? {
        Some(failure) => Err(failure.into()),
        None => Ok(spawned),
    }
}

/// Forks a task for a restart, with a chosen pid if one is given. It maps the stub page and waits there
/// until the supervisor seizes it. `fds` is the feed, the only descriptor it keeps.
pub(super) fn seed(vpid: Option<i32>, walls: &Walls, fds: Vec<OwnedFd>) -> Result<Spawned> {
    let feed = fds.into_iter().next().context("a seed needs a feed")?;
    let (failure, report) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("pipe")?;
    let spawned = fork(vpid, || {
        let ready =
            join(&walls.groups).and_then(|()| stub::map_here().context("map the stub page"));
        match ready
            .and_then(|()| reset_signals())
            .and_then(|()| put_on(walls))
        {
            Ok(()) => drop(report),
            Err(error) => {
                tell_failure(report.into(), &error);
                return 1;
            }
        }
        close_all_but(feed.as_raw_fd() as u32);
        loop {
            // SAFETY: no memory is passed.
            unsafe { libc::pause() };
        }
    })?;
    match read_failure(failure, spawned.vpid)? {
        Some(failure) => Err(failure.into()),
        None => Ok(spawned),
    }
}

/// Closing descriptors is a seed's last act as our program; none is used afterwards.
fn close_all_but(kept: u32) {
    let close = |first: u32, last: u32| {
        // SAFETY: by contract of this function.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    };
    if kept > 0 {
        close(0, kept - 1);
    }
    close(kept + 1, u32::MAX);
}

/// Forks the builder of a restart; `fds` is its socket. It ends when the supervisor hangs up.
pub(super) fn builder(vpid: Option<i32>, fds: Vec<OwnedFd>) -> Result<Spawned> {
    let socket = fds
        .into_iter()
        .next()
        .context("the builder needs a socket")?;
    fork(vpid, || {
        // Init's other descriptors must not live longer than init: its socket, for one.
        close_all_but(socket.as_raw_fd() as u32);
        match restore::service::serve(&socket) {
            Ok(()) => 0,
            Err(_) => 1,
        }
    })
}

/// Forks; the child runs `body` and exits with what it returns.
fn fork(vpid: Option<i32>, body: impl FnOnce() -> i32) -> Result<Spawned> {
    // SAFETY: init has one thread, so its child may do anything.
    let child = unsafe {
        clone3(Clone3 {
            flags: 0,
            set_tid: vpid,
        })
    };
    let child = child.with_context(|| match vpid {
        Some(vpid) => format!("fork with the pid {vpid}"),
        None => "fork".to_owned(),
    })?;
    if child == 0 {
        let code = body();
        // SAFETY: no memory is passed; nothing of init's may run at this exit.
        unsafe { libc::_exit(code) };
    }
    // A child that has not been waited for keeps its pid, so this cannot be another's.
    let pidfd = pidfd_open(child).context("open a pidfd")?;
    Ok(Spawned { vpid: child, pidfd })
}

fn tell_failure(mut report: File, error: &anyhow::Error) {
    let failure = Failure::of(error);
    // When init is gone there is nobody to tell.
    let _ = serde_json::to_vec(&failure).map(|text| report.write_all(&text));
}

/// What the child wrote before it failed; `None` when the pipe closed silently: the exec has happened.
fn read_failure(pipe: OwnedFd, vpid: i32) -> Result<Option<Failure>> {
    let mut text = Vec::new();
    File::from(pipe)
        .read_to_end(&mut text)
        .context("read the child's report")?;
    if text.is_empty() {
        return Ok(None);
    }
    // SAFETY: a null status is allowed. The child has nothing left to do but exit.
    unsafe { libc::waitpid(vpid, std::ptr::null_mut(), 0) };
    Ok(Some(
        serde_json::from_slice(&text).context("decode the child's report")?,
    ))
}

fn become_program(
    program: &Program,
    stdio: &[OwnedFd],
    walls: &Walls,
) -> Result<std::convert::Infallible> {
    join(&walls.groups)?;
    reset_signals()?;
    nix::unistd::setsid().context("make a session")?;
    connect_stdio(stdio)?;
    cloexec_from(3).context("close_range")?;
    put_on(walls)?;
    let home = match &program.user {
        Some(user) => user::become_user(user)?,
        None => user::home_of_current(),
    };
    umask(Mode::from_bits_truncate(program.umask));
    std::env::set_current_dir(&program.cwd).map_err(|cause| {
        Failure::new(format!("enter the directory {}: {cause}", program.cwd))
            .hint("-w names a directory that exists in the pod")
    })?;
    execute(program, &home)
}

/// Puts the mask on, while the privilege is there that lets set-user-ID programs stay usable under it.
fn put_on(walls: &Walls) -> Result<()> {
    let Some(mask) = &walls.mask else {
        return Ok(());
    };
    mask.install().context("put the mask on")
}

/// Moves the calling process into the pod's control groups.
fn join(groups: &[OwnedFd]) -> Result<()> {
    for group in groups {
        nix::unistd::write(group, b"0").context("join the pod's control group")?;
    }
    Ok(())
}

fn reset_signals() -> Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in
        Signal::iterator().filter(|signal| !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP))
    {
        // SAFETY: the default action runs no code of ours.
        unsafe { sigaction(signal, &default) }.with_context(|| format!("reset {signal}"))?;
    }
    SigSet::empty().thread_set_mask().context("unblock signals")
}

fn connect_stdio(stdio: &[OwnedFd]) -> Result<()> {
    if let [terminal] = stdio {
        terminal::control(terminal.as_fd())?;
    }
    let last = stdio.len() - 1;
    let sources = [0, 1, 2].map(|number: usize| stdio[number.min(last)].as_raw_fd());
    // Two steps, because a source may itself be one of 0, 1 and 2.
    let mut high = Vec::new();
    for fd in sources {
        // SAFETY: no memory is passed.
        high.push(
            Errno::result(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) }).context("dup")?,
        );
    }
    for (number, fd) in high.into_iter().enumerate() {
        // SAFETY: no memory is passed; 0, 1 and 2 belong to nobody else in this process.
        Errno::result(unsafe { libc::dup2(fd, number as i32) }).context("dup2")?;
    }
    Ok(())
}

fn execute(program: &Program, home: &user::Home) -> Result<std::convert::Infallible> {
    // SAFETY: init has one thread, and so has its child.
    unsafe { set_environment(program, home) };
    let argv: Result<Vec<CString>, _> = program
        .argv
        .iter()
        .map(|arg| CString::new(arg.as_str()))
        .collect();
    let argv = argv.context("an argument has a NUL in it")?;
    let Err(errno) = nix::unistd::execvp(&argv[0], &argv);
    Err(not_executed(&program.argv[0], errno).into())
}

/// # Safety
/// No other thread may exist: the environment is not locked.
unsafe fn set_environment(program: &Program, home: &user::Home) {
    for (key, _) in std::env::vars_os() {
        // SAFETY: by contract.
        unsafe { std::env::remove_var(key) };
    }
    let defaults = home.environment();
    for (key, value) in defaults.iter().chain(&program.env) {
        // SAFETY: by contract.
        unsafe { std::env::set_var(key, value) };
    }
}

fn not_executed(command: &str, errno: Errno) -> Failure {
    let what = format!("execute {command}: {}", errno.desc());
    match errno {
        Errno::ENOENT | Errno::ENOTDIR => Failure::new(what)
            .code(NOT_FOUND)
            .hint("the program is looked up in PATH inside the pod (-e PATH=…)"),
        _ => Failure::new(what).code(NOT_EXECUTABLE),
    }
}
