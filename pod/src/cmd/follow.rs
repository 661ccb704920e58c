//! Staying beside a pod's program: its output here, our input and signals there, until it ends.
//!
//! ```text
//!   log ──▶ our standard output and error output (or the terminal)
//!   our standard input ──▶ its standard input or terminal        (-i, -t, attach)
//!   SIGINT, SIGTERM, … ──▶ Kill                SIGWINCH ──▶ the terminal's size
//! ```
//!
//! Several things are waited for at once with poll(2); the pod belongs to its holder, so that nothing
//! happens to it when we end.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::wait::exit_of;
use crate::log::{Frame, LogReader, Stream};
use crate::messages::Ask;
use crate::store::{Config, Exit, Pod};
use crate::supervise::Client;
use crate::terminal::{self, Raw};
use crate::watch::Watch;

/// Signals that are meant for the program.
const FORWARDED: [Signal; 7] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCONT,
];

/// Ctrl-p, ctrl-q: leave the pod alone with its terminal.
const DETACH_KEYS: [u8; 2] = [0x10, 0x11];

/// How a session ended.
pub(super) enum Ended {
    Exited(Exit),
    Detached,
}

/// One command line beside one pod.
pub(super) struct Session<'a> {
    pod: &'a Pod,
    watch: Watch,
    signals: Option<SignalFd>,
    /// What we read goes there, once it is known.
    wants_input: bool,
    tty: bool,
    input: Option<OwnedFd>,
    keys: DetachKeys,
}

impl<'a> Session<'a> {
    /// Prepares a session with a pod that may not have been started: nothing it does will be missed.
    pub(super) fn prepare(pod: &'a Pod, config: &Config, detached: bool) -> Result<Self> {
        let signals = if detached {
            None
        } else {
            Some(catch_signals()?)
        };
        Ok(Self {
            pod,
            watch: Watch::pod(pod)?,
            signals,
            wants_input: (config.stdin || config.tty) && !detached,
            tty: config.tty,
            input: None,
            keys: DetachKeys::default(),
        })
    }

    /// Stays until the program ends, showing everything it wrote.
    pub(super) fn stay(self) -> Result<Ended> {
        let log = LogReader::open(&self.pod.path("log")).context("open the pod's log")?;
        self.stay_from(log)
    }

    /// Stays until the program ends, showing what it writes from here on.
    pub(super) fn stay_from(mut self, mut log: LogReader) -> Result<Ended> {
        if self.wants_input {
            self.input = self.connect_input()?;
        }
        let raw = if self.tty && self.input.is_some() {
            Raw::enter()
        } else {
            None
        };
        self.resize();
        loop {
            self.watch.drain()?;
            if show(&mut log)? || !self.pod.is_held()? {
                // What was written between the two looks.
                show(&mut log)?;
                drop(raw);
                return exit_of(self.pod).map(Ended::Exited);
            }
            if self.turn()? {
                return Ok(Ended::Detached);
            }
        }
    }

    fn connect_input(&self) -> Result<Option<OwnedFd>> {
        match Client::connect(self.pod)? {
            Some(client) => Ok(client.ask(&Ask::Attach)?.1.into_iter().next()),
            None => Ok(None),
        }
    }

    /// Waits for one thing and deals with it. True when the user detached.
    fn turn(&mut self) -> Result<bool> {
        let stdin = io::stdin();
        let (signalled, typed) = {
            let mut fds = vec![PollFd::new(self.watch.as_fd(), PollFlags::POLLIN)];
            fds.extend(
                self.signals
                    .as_ref()
                    .map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN)),
            );
            fds.extend(
                self.input
                    .as_ref()
                    .map(|_| PollFd::new(stdin.as_fd(), PollFlags::POLLIN)),
            );
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(e).context("poll"),
            }
            let ready = |index: usize| fds.get(index).and_then(PollFd::any).unwrap_or(false);
            let signals = usize::from(self.signals.is_some());
            (
                signals == 1 && ready(1),
                self.input.is_some() && ready(1 + signals),
            )
        };
        if signalled {
            self.forward_signals()?;
        }
        if typed {
            self.carry_input(stdin.as_fd())
        } else {
            Ok(false)
        }
    }

    fn carry_input(&mut self, stdin: BorrowedFd<'_>) -> Result<bool> {
        let mut buffer = [0; 16 * 1024];
        let length = match nix::unistd::read(stdin, &mut buffer) {
            Ok(length) => length,
            Err(Errno::EINTR | Errno::EAGAIN) => return Ok(false),
            Err(_) => 0,
        };
        if length == 0 {
            self.close_input()?;
            return Ok(false);
        }
        let (bytes, detached) = match self.tty {
            true => self.keys.pass(&buffer[..length]),
            false => (buffer[..length].to_vec(), false),
        };
        if !self.write_input(&bytes) {
            self.input = None;
        }
        Ok(detached)
    }

    fn write_input(&self, bytes: &[u8]) -> bool {
        let Some(input) = self.input.as_ref().and_then(|input| input.try_clone().ok()) else {
            return false;
        };
        File::from(input).write_all(bytes).is_ok()
    }

    /// The end of our input is the end of the program's, if that is a pipe.
    fn close_input(&mut self) -> Result<()> {
        self.input = None;
        if !self.tty
            && let Some(client) = Client::connect(self.pod)?
        {
            client.ask(&Ask::CloseInput)?;
        }
        Ok(())
    }

    fn forward_signals(&mut self) -> Result<()> {
        let Some(signals) = &self.signals else {
            return Ok(());
        };
        while let Some(info) = signals.read_signal().context("read a signal")? {
            let signal = info.ssi_signo as i32;
            if signal == libc::SIGWINCH {
                self.resize();
            } else if let Some(client) = Client::connect(self.pod)? {
                // A program that has just ended needs no signal.
                let _ = client.ask(&Ask::Kill { signal, vpid: None });
            }
        }
        Ok(())
    }

    fn resize(&self) {
        let Some(master) = self.input.as_ref().filter(|_| self.tty) else {
            return;
        };
        if let Some((rows, columns)) = terminal::size(io::stdin().as_fd())
            && let Err(error) = terminal::set_size(master.as_fd(), rows, columns)
        {
            tracing::debug!(%error, "set the terminal's size");
        }
    }
}

/// Signals that become readable instead of ending us.
pub(super) fn catch_signals() -> Result<SignalFd> {
    let mut mask = SigSet::empty();
    for signal in FORWARDED.into_iter().chain([Signal::SIGWINCH]) {
        mask.add(signal);
    }
    mask.thread_block().context("block signals")?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("signalfd")
}

/// Shows what is new in a log. True at its end.
fn show(log: &mut LogReader) -> Result<bool> {
    while let Some(frame) = log.next().context("read the pod's log")? {
        if frame.stream == Stream::End {
            return Ok(true);
        }
        write_frame(&frame)?;
    }
    Ok(false)
}

/// Writes a frame to the standard stream it belongs to.
pub(super) fn write_frame(frame: &Frame) -> Result<()> {
    let written = match frame.stream {
        Stream::Error => io::stderr().write_all(&frame.bytes),
        _ => {
            let mut out = io::stdout().lock();
            out.write_all(&frame.bytes).and_then(|()| out.flush())
        }
    };
    match written {
        // The pod goes on although nobody reads here any more.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.context("show the pod's output"),
    }
}

/// Finds the detach keys in what is typed.
#[derive(Debug, Default)]
pub(super) struct DetachKeys {
    begun: bool,
}

impl DetachKeys {
    /// What is to be passed on, and whether the detach keys were typed after it.
    pub(super) fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len() + 1);
        for &byte in typed {
            match (self.begun, byte) {
                (true, byte) if byte == DETACH_KEYS[1] => return (passed, true),
                (true, byte) if byte == DETACH_KEYS[0] => passed.push(byte),
                (true, byte) => {
                    self.begun = false;
                    passed.extend([DETACH_KEYS[0], byte]);
                }
                (false, byte) if byte == DETACH_KEYS[0] => self.begun = true,
                (false, byte) => passed.push(byte),
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_keys_are_found_across_pieces_and_others_pass() {
        let mut keys = DetachKeys::default();
        assert_eq!(keys.pass(b"ab"), (b"ab".to_vec(), false));
        assert_eq!(keys.pass(&[0x10]), (vec![], false));
        assert_eq!(keys.pass(b"x"), (vec![0x10, b'x'], false));
        assert_eq!(
            keys.pass(&[b'y', 0x10, 0x10, 0x11, b'z']),
            (vec![b'y', 0x10], true)
        );
    }
}
