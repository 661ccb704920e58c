//! Input, terminals, attach and detach, from a terminal of the test's own.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Child;

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::host::Host;

/// A command on a terminal of 40 rows and 100 columns.
struct Typed {
    child: Child,
    master: File,
    seen: String,
}

impl Typed {
    fn start(host: &Host, arguments: &[&str]) -> Self {
        let size = Winsize {
            ws_row: 40,
            ws_col: 100,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(Some(&size), None).unwrap();
        let side = |fd: &OwnedFd| File::from(fd.try_clone().unwrap());
        let mut command = host.command(arguments);
        command
            .stdin(side(&pty.slave))
            .stdout(side(&pty.slave))
            .stderr(side(&pty.slave));
        let lead = || {
            nix::unistd::setsid()?;
            // SAFETY: TIOCSCTTY takes a plain number.
            unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) };
            Ok(())
        };
        // SAFETY: the closure makes system calls only.
        unsafe { command.pre_exec(lead) };
        Self {
            child: command.spawn().unwrap(),
            master: File::from(pty.master),
            seen: String::new(),
        }
    }

    fn write(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Reads until a text has been seen; what came before it is forgotten.
    fn expect(&mut self, text: &str) {
        while !self.seen.contains(text) {
            let mut buffer = [0; 4096];
            let length = self.master.read(&mut buffer).unwrap_or(0);
            assert!(
                length > 0,
                "the terminal ended; wanted {text:?}, saw {:?}",
                self.seen
            );
            self.seen
                .push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        let end = self.seen.find(text).unwrap() + text.len();
        self.seen.drain(..end);
    }

    fn code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

#[test]
fn standard_input_is_carried_to_its_end() {
    let host = Host::new();
    let mut run = host.start(&[
        "run",
        "-i",
        "--",
        "busybox",
        "sh",
        "-c",
        "busybox tr a-z A-Z; echo end",
    ]);
    let mut input = run.stdin.take().unwrap();
    let text = "some line\n".repeat(50_000);
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()).unwrap());
    let output = run.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.stdout.ends_with(b"SOME LINE\nend\n"));
    assert_eq!(output.stdout.len(), 500_004);
}

#[test]
fn exec_carries_input_and_exit_code() {
    let host = Host::new();
    host.good(&["run", "-d", "--name", "s", "--", "busybox", "sleep", "1000"]);
    let mut exec = host.start(&[
        "exec",
        "-i",
        "-e",
        "A=b",
        "s",
        "--",
        "busybox",
        "sh",
        "-c",
        "read x; echo $x$A >&2; exit 5",
    ]);
    exec.stdin.take().unwrap().write_all(b"in\n").unwrap();
    let output = exec.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), output.stderr.as_slice()),
        (Some(5), b"inb\n".as_slice())
    );
    assert_eq!(host.pod(&["exec", "s", "--", "no-such-program"]).code, 127);
}

#[test]
fn a_terminal_has_a_size_and_job_control() {
    let host = Host::new();
    let mut run = Typed::start(
        &host,
        &["run", "-t", "-i", "--name", "t", "--", "busybox", "sh"],
    );
    run.expect("# ");
    run.write("stty size; tty\r");
    run.expect("40 100");
    run.expect("/dev/pts/0");
    run.write("sh -c 'echo go''ing; exec sleep 1000'\r");
    run.expect("going");
    run.write("\u{1a}");
    run.expect("Stopped");
    run.write("sh -c 'echo ag''ain; exec sleep 1000'\r");
    run.expect("again");
    run.write("\u{3}");
    run.expect("# ");
    let size = Winsize {
        ws_row: 50,
        ws_col: 132,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize, which outlives the call.
    unsafe {
        libc::ioctl(
            std::os::fd::AsRawFd::as_raw_fd(&run.master),
            libc::TIOCSWINSZ,
            &raw const size,
        )
    };
    run.write("trap : WINCH; until [ \"$(stty size)\" = '50 132' ]; do :; done; echo re''sized\r");
    run.expect("resized");
    run.write("exit 7\r");
    run.expect("stopped jobs");
    run.write("exit 7\r");
    assert_eq!(run.code(), Some(7));
}

#[test]
fn detach_keys_leave_the_pod_and_attach_returns_to_it() {
    let host = Host::new();
    let mut run = Typed::start(&host, &["run", "-it", "--name", "t", "--", "busybox", "sh"]);
    run.expect("# ");
    run.write("X=kept\r\u{10}\u{11}");
    assert_eq!(run.code(), Some(0));
    assert_eq!(host.inspect("t")["state"], "running");
    let mut attach = Typed::start(&host, &["attach", "t"]);
    attach.write("echo $X-it\r");
    attach.expect("kept-it");
    attach.write("exit 3\r");
    assert_eq!(attach.code(), Some(3));
}

#[test]
fn exec_on_a_terminal_of_the_pod() {
    let host = Host::new();
    host.good(&["run", "-d", "--name", "s", "--", "busybox", "sleep", "1000"]);
    let mut exec = Typed::start(&host, &["exec", "-it", "s", "--", "busybox", "sh"]);
    exec.expect("# ");
    exec.write("stty size; exit 4\r");
    exec.expect("40 100");
    assert_eq!(exec.code(), Some(4));
}

#[test]
fn a_closed_terminal_does_not_end_the_pod() {
    let host = Host::new();
    let mut run = Typed::start(&host, &["run", "-it", "--name", "t", "--", "busybox", "sh"]);
    run.expect("# ");
    kill(
        Pid::from_raw(i32::try_from(run.child.id()).unwrap()),
        Signal::SIGKILL,
    )
    .unwrap();
    run.child.wait().unwrap();
    drop(run.master);
    assert_eq!(host.inspect("t")["state"], "running");
    assert_eq!(
        host.pod(&["exec", "t", "--", "busybox", "echo", "alive"])
            .out,
        "alive\n"
    );
}
