//! A terminal with somebody typing at it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};

/// A pseudo-terminal, and the program whose controlling terminal it is.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    child: Child,
    /// Everything that was shown.
    shown: String,
    asked: u32,
}

const PATIENCE: Duration = Duration::from_secs(60);

impl Terminal {
    /// Starts `command` on a new terminal of 50 rows and 200 columns.
    ///
    /// # Errors
    /// When there is no pseudo-terminal, or the command cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let size = Winsize {
            ws_row: 50,
            ws_col: 200,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pair = openpty(&size, None).context("open a pseudo-terminal")?;
        let (master, slave) = (File::from(pair.master), File::from(pair.slave));
        command
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave);
        // SAFETY: the closure makes system calls only.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            })
        };
        let child = command.spawn().context("start a program on a terminal")?;
        // The command keeps copies of the slave's descriptors, and with them the terminal open.
        command.stdin(std::process::Stdio::null());
        command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        Ok(Self {
            master,
            child,
            shown: String::new(),
            asked: 0,
        })
    }

    /// Types.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn write(&mut self, text: &str) -> Result<()> {
        self.master
            .write_all(text.as_bytes())
            .context("type at the terminal")
    }

    /// Reads until `text` is shown after what was read before, and returns what stood in front of it.
    ///
    /// # Errors
    /// When it is not shown.
    pub fn expect(&mut self, text: &str) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.shown.find(text) {
                let rest = self.shown.split_off(at + text.len());
                let mut before = std::mem::replace(&mut self.shown, rest);
                before.truncate(at);
                return Ok(before);
            }
            self.read(deadline)
                .with_context(|| format!("wait for {text:?}; shown: {:?}", self.shown))?;
        }
    }

    fn read(&mut self, deadline: Instant) -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(
            std::os::fd::AsFd::as_fd(&self.master),
            PollFlags::POLLIN,
        )];
        if poll(&mut fds, wait)? == 0 {
            bail!("nothing more is shown");
        }
        let mut buffer = [0; 4096];
        let count = self.master.read(&mut buffer).context("read the terminal")?;
        self.shown
            .push_str(&String::from_utf8_lossy(&buffer[..count]));
        Ok(())
    }

    /// Has a shell run a command and returns what it shows.
    ///
    /// # Errors
    /// When the shell does not come back.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        self.asked += 1;
        let number = self.asked;
        // The echo of the line does not hold the marks, for they are put together by printf.
        self.write(&format!(
            "printf '\\n%s%s\\n' '<<' '{number}'; {command}; printf '\\n%s%s\\n' '>>' '{number}'\n"
        ))?;
        self.expect(&format!("<<{number}\r\n"))?;
        let answer = self.expect(&format!(">>{number}\r\n"))?;
        Ok(answer.replace("\r\n", "\n").trim().to_owned())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Both fail only when it is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
