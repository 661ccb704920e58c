//! Where a program runs at the moment: on a host itself, or in a pod there.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::done::Done;
use crate::host::Host;
use crate::terminal::Terminal;

/// A running program's place, as its users see it.
#[derive(Debug)]
pub struct Site<'a> {
    /// The host.
    pub host: &'a Host,
    /// Where the clients are.
    pub desk: &'a Host,
    /// The pod's name, if it runs in one.
    pub pod: Option<String>,
    /// The name by which its users find it, where there is a zone.
    pub name: Option<String>,
    /// Where what it writes goes when it runs natively.
    pub log: PathBuf,
    /// The terminal somebody sits at, where the program has one: its own, or that of `pod attach`.
    pub terminal: RefCell<Option<Terminal>>,
}

impl Site<'_> {
    /// Runs a command where the program's own names hold: in its pod, or on its host.
    ///
    /// # Errors
    /// When it fails.
    pub fn inside(&self, words: &[&str]) -> Result<String> {
        let done = match &self.pod {
            Some(pod) => self.host.pod(&[&["exec", pod, "--"], words].concat())?,
            None => self.host.run(words)?,
        };
        done.ok()
    }

    /// Runs a command at the clients' desk.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn client(&self, words: &[&str]) -> Result<Done> {
        self.desk.run(words)
    }

    /// The address at which the program's users find it: by name at the desk, where there is a zone.
    ///
    /// # Errors
    /// When the name has no address, or one that is not the host's.
    pub fn address(&self) -> Result<String> {
        let real = self.host.v4().to_string();
        let Some(name) = &self.name else {
            return Ok(real);
        };
        let found = self.desk.run(&["dig", "+short", name, "A"])?.ok()?;
        ensure!(
            found.trim() == real,
            "{name} is {found:?}, and the pod is at {real}"
        );
        Ok(real)
    }

    /// What the program wrote.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn output(&self) -> Result<String> {
        match &self.pod {
            Some(pod) => self.host.pod(&["logs", pod])?.ok(),
            None => std::fs::read_to_string(&self.log).context("read the program's output"),
        }
    }

    /// Types at the program's terminal and reads there; attaches to the pod first if nobody is.
    ///
    /// # Errors
    /// When there is no terminal, and what `work` returns.
    pub fn type_at<T>(&self, work: impl FnOnce(&mut Terminal) -> Result<T>) -> Result<T> {
        let mut terminal = self.terminal.borrow_mut();
        if let (None, Some(pod)) = (terminal.as_ref(), &self.pod) {
            let mut command = self.host.command(self.host.program())?;
            *terminal = Some(Terminal::start(command.args(["attach", pod]))?);
        }
        work(terminal.as_mut().context("the program has no terminal")?)
    }

    /// A client's connection to a port of the program.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(&self, port: u16) -> Result<TcpStream> {
        let address = SocketAddr::new(self.address()?.parse()?, port);
        let stream = self
            .desk
            .anchor()
            .within(|| Ok(TcpStream::connect(address)?));
        let stream = stream.with_context(|| format!("connect to {address}"))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(stream)
    }

    /// Asks over HTTP/1.0 and returns the answer's body.
    ///
    /// # Errors
    /// When there is no answer, or not one with status 200.
    pub fn get(&self, port: u16, path: &str) -> Result<String> {
        let mut stream = self.connect(port)?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: pod\r\n\r\n").as_bytes())?;
        let mut answer = Vec::new();
        stream
            .read_to_end(&mut answer)
            .with_context(|| format!("read the answer to {path}"))?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.split(' ').nth(1) == Some("200") => Ok(body.to_owned()),
            _ => bail!("{path}: {answer:?}"),
        }
    }
}
