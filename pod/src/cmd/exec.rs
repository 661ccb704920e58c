//! `pod exec`: another program in a running pod.
//!
//! Without `-t` the program gets our own standard descriptors. With it, it gets a terminal of the pod, and
//! we carry bytes between that and ours until it ends; when we end, its terminal hangs up.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use super::follow::catch_signals;
use super::{run::environment, standard};
use crate::cli::Exec;
use crate::failure::Failure;
use crate::messages::{Ask, Program, Told};
use crate::store::{Config, Pod};
use crate::supervise::Client;
use crate::terminal::{self, Raw};

/// Runs the command.
pub(super) fn exec(pod: &Pod, arguments: Exec) -> Result<u8> {
    let interactive = arguments.interactive;
    let program = program(&pod.config()?, arguments);
    let tty = program.tty;
    let client = Client::to_live(pod)?;
    let signals = catch_signals()?;
    let given = if tty {
        Vec::new()
    } else {
        standard(interactive)?.into()
    };
    let borrowed: Vec<_> = given.iter().map(AsFd::as_fd).collect();
    let window = terminal::size(io::stdin().as_fd());
    client.send(&Ask::Exec { program, window }, &borrowed)?;
    drop(given);
    let (told, fds) = client.receive()?.context("the pod ended")?;
    let Told::Running(vpid) = told else {
        return Err(Failure::new("the supervisor answered another question").into());
    };
    let master = fds.into_iter().next();
    let raw = master.as_ref().and_then(|_| Raw::enter());
    let mut session = Session {
        pod,
        client,
        signals,
        vpid,
        master,
        input: tty || interactive,
    };
    let code = session.stay();
    drop(raw);
    code
}

fn program(config: &Config, arguments: Exec) -> Program {
    let mut env = config.env.clone();
    let here = environment(&arguments.env);
    let asked = |key: &str| {
        arguments
            .env
            .iter()
            .any(|pair| pair.split('=').next() == Some(key))
    };
    env.retain(|(key, _)| !asked(key));
    env.extend(here.into_iter().filter(|(key, _)| asked(key)));
    Program {
        argv: arguments.command,
        env,
        cwd: arguments.workdir.unwrap_or_else(|| config.cwd.clone()),
        user: arguments.user.or_else(|| config.user.clone()),
        umask: config.umask,
        tty: arguments.tty,
    }
}

struct Session<'a> {
    pod: &'a Pod,
    client: Client,
    signals: SignalFd,
    vpid: i32,
    master: Option<OwnedFd>,
    /// Whether our input is still carried.
    input: bool,
}

/// What poll found.
struct Ready {
    ended: bool,
    signalled: bool,
    written: bool,
    typed: bool,
}

impl Session<'_> {
    fn stay(&mut self) -> Result<u8> {
        loop {
            let ready = self.wait()?;
            if ready.signalled {
                self.forward_signals()?;
            }
            if ready.written {
                self.show()?;
            }
            if ready.typed {
                self.type_in();
            }
            if ready.ended {
                while self.master.is_some() && self.wait_for_rest()? {
                    self.show()?;
                }
                return self.code();
            }
        }
    }

    fn wait(&self) -> Result<Ready> {
        let stdin = io::stdin();
        let mut fds = vec![
            PollFd::new(self.client.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
        ];
        if let Some(master) = &self.master {
            fds.push(PollFd::new(master.as_fd(), PollFlags::POLLIN));
            if self.input {
                fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
            }
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e).context("poll"),
        }
        let ready = |index: usize| fds.get(index).and_then(PollFd::any).unwrap_or(false);
        Ok(Ready {
            ended: ready(0),
            signalled: ready(1),
            written: ready(2),
            typed: ready(3),
        })
    }

    fn wait_for_rest(&self) -> Result<bool> {
        let Some(master) = &self.master else {
            return Ok(false);
        };
        let mut fds = [PollFd::new(master.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut fds, PollTimeout::ZERO).context("poll")? > 0)
    }

    /// Shows what the program wrote to its terminal; lets go of the terminal when that hangs up.
    fn show(&mut self) -> Result<()> {
        let Some(master) = &self.master else {
            return Ok(());
        };
        let mut buffer = [0; 16 * 1024];
        match nix::unistd::read(master, &mut buffer) {
            Ok(length) if length > 0 => {
                let mut out = io::stdout().lock();
                out.write_all(&buffer[..length])
                    .and_then(|()| out.flush())
                    .context("show the program's output")
            }
            Err(Errno::EINTR | Errno::EAGAIN) => Ok(()),
            _ => {
                self.master = None;
                Ok(())
            }
        }
    }

    fn type_in(&mut self) {
        let mut buffer = [0; 16 * 1024];
        let length = nix::unistd::read(io::stdin(), &mut buffer).unwrap_or(0);
        let master = self
            .master
            .as_ref()
            .and_then(|master| master.try_clone().ok());
        let carried =
            master.is_some_and(|master| File::from(master).write_all(&buffer[..length]).is_ok());
        self.input = carried && length > 0;
    }

    fn forward_signals(&self) -> Result<()> {
        while let Some(info) = self.signals.read_signal().context("read a signal")? {
            let signal = info.ssi_signo as i32;
            if signal != libc::SIGWINCH {
                // A conversation of its own: ours is waiting for the program's end.
                if let Some(client) = Client::connect(self.pod)? {
                    let _ = client.ask(&Ask::Kill {
                        signal,
                        vpid: Some(self.vpid),
                    });
                }
            } else if let (Some(master), Some((rows, columns))) =
                (&self.master, terminal::size(io::stdin().as_fd()))
            {
                terminal::set_size(master.as_fd(), rows, columns).context("size the terminal")?;
            }
        }
        Ok(())
    }

    fn code(&self) -> Result<u8> {
        match self.client.receive()? {
            Some((Told::Exited(exit), _)) => Ok(exit.code()),
            Some(_) => Err(Failure::new("the supervisor answered another question").into()),
            None => Err(Failure::new(
                "the pod ended, or its supervisor was restarted, before the program ended",
            )
            .into()),
        }
    }
}
