//! Runs small programs natively and under interception.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

use intercept::{
    engine::{Engine, Shared, Trusted},
    filter::Program,
    names::Tables,
    sys,
    table::Plan,
    tracer::Tracer,
};

/// Compiles a program of `tests/programs` into `dir`.
pub(crate) fn compile(dir: &Path, name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/programs")
        .join(name)
        .with_extension("c");
    let binary = dir.join(name);
    let status = Command::new("gcc")
        .args(["-O1", "-Wall", "-Werror", "-pthread", "-o"])
        .args([&binary, &source])
        .status()
        .unwrap();
    assert!(status.success(), "{name}.c does not compile");
    binary
}

/// A program under interception.
pub(crate) struct Pod {
    pub(crate) child: Child,
    pub(crate) engine: Engine,
    #[allow(dead_code, reason = "not every test looks into the tables")]
    pub(crate) tables: Shared,
}

fn pipe() -> (File, File) {
    let (r, w) = nix::unistd::pipe().unwrap();
    (r.into(), w.into())
}

/// Takes the listener out of the child, which waits in front of its exec.
fn take(mut from: File, mut go: File) -> io::Result<OwnedFd> {
    let mut message = [0u8; 8];
    from.read_exact(&mut message)?;
    let (pid, fd) = message.split_at(4);
    let pid = i32::from_ne_bytes(pid.try_into().unwrap());
    let pidfd = sys::pidfd_open(pid)?;
    let fd = sys::pidfd_getfd(pidfd.as_fd(), i32::from_ne_bytes(fd.try_into().unwrap()))?;
    go.write_all(&[1])?;
    Ok(fd)
}

impl Pod {
    /// Starts `command` with the filter for `plan`; its first process has the virtual pid 1.
    pub(crate) fn spawn(mut command: Command, plan: Plan) -> Self {
        let program = Program::new(&plan).unwrap();
        let ((from, to), (wait, go)) = (pipe(), pipe());
        let taker: JoinHandle<io::Result<OwnedFd>> = std::thread::spawn(move || take(from, go));
        let (to_fd, wait_fd) = (to.as_raw_fd(), wait.as_raw_fd());
        // SAFETY: the closure makes raw calls only; the listener is closed by exec.
        unsafe {
            command.pre_exec(move || {
                let mut message = [0u8; 8];
                // Asked while nobody has to answer.
                message[..4].copy_from_slice(&libc::getpid().to_ne_bytes());
                let listener = program.install().map_err(io::Error::other)?;
                message[4..].copy_from_slice(&listener.as_raw_fd().to_ne_bytes());
                libc::write(to_fd, message.as_ptr().cast(), 8);
                libc::read(wait_fd, message.as_mut_ptr().cast(), 1);
                std::mem::forget(listener);
                Ok(())
            });
        }
        let tables = Arc::new(Mutex::new(Tables {
            plan,
            ..Tables::default()
        }));
        let (tracer, _) = Tracer::spawn().unwrap();
        let trusted = Trusted::default();
        let shared = Arc::clone(&tables);
        let starter = std::thread::spawn(move || {
            let listener = taker.join().unwrap().unwrap();
            Engine::start(listener, shared, trusted, tracer).unwrap()
        });
        let child = command.spawn().unwrap();
        Self {
            child,
            engine: starter.join().unwrap(),
            tables,
        }
    }

    /// Waits for the program and returns what it wrote.
    pub(crate) fn output(self) -> Output {
        let output = self.child.wait_with_output().unwrap();
        drop(self.engine);
        output
    }
}

/// A command whose output is caught.
pub(crate) fn command(binary: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(binary);
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// What a program wrote, after it ended well.
pub(crate) fn text(output: &Output) -> String {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{:?}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// Runs a program natively and under a plan and compares what it wrote.
#[allow(dead_code, reason = "not every test compares")]
pub(crate) fn same(binary: &Path, args: &[&str], plan: Plan) -> String {
    let native = text(&command(binary, args).output().unwrap());
    let inside = text(&Pod::spawn(command(binary, args), plan).output());
    assert_eq!(native, inside);
    inside
}
