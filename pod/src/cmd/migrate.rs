//! `pod migrate`: opens the way to the other host, hands it to the pod's supervisor, and shows how it goes.
//!
//! The connection is opened here and not by the supervisor, because the user's ssh keys and agent are
//! here. When this command is killed, ssh goes with it: before the commit that aborts the move, after it
//! nothing can.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

use crate::agent::arrival::journal;
use crate::cleanup;
use crate::cli::{self, Format, OnLost};
use crate::failure::{Failure, Hinted};
use crate::messages::{Ask, Channel, Told};
use crate::migrate::authority::Verdict;
use crate::migrate::fault;
use crate::migrate::frame::Conn;
use crate::migrate::journal::Duty;
use crate::migrate::message::Say;
use crate::migrate::report::{Progress, Report};
use crate::output;
use crate::store::{Pod, Store};
use crate::supervise::Client;

/// How often a destination that was lost is asked for the outcome before the user has to.
const TRIES: u32 = 3;
const BETWEEN: Duration = Duration::from_secs(1);

/// A host to move to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cmd) enum Destination {
    /// By ssh: `user@host` and a port.
    Ssh { host: String, port: Option<u16> },
    /// An agent.
    Agent(String),
}

impl FromStr for Destination {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            let failure = Failure::new(format!("{text:?} is no destination"));
            failure.hint("want ssh://[USER@]HOST[:PORT], or HOST:PORT of an agent")
        };
        let Some(rest) = text.strip_prefix("ssh://") else {
            let port = text
                .rsplit_once(':')
                .map(|(_, port)| port.parse::<u16>().is_ok());
            return if port == Some(true) {
                Ok(Self::Agent(text.to_owned()))
            } else {
                Err(wrong().into())
            };
        };
        let (host, port) = match rest.trim_end_matches('/').rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, Some(port.parse().map_err(|_| wrong())?))
            }
            _ => (rest.trim_end_matches('/'), None),
        };
        // A host that begins with a hyphen would be an option of ssh.
        if host.is_empty() || host.starts_with('-') || host.contains(char::is_whitespace) {
            return Err(wrong().into());
        }
        Ok(Self::Ssh {
            host: host.replace(['[', ']'], ""),
            port,
        })
    }
}

/// A way to a host.
#[derive(Debug)]
pub(in crate::cmd) struct Connection {
    /// How its descriptors are used.
    pub(in crate::cmd) channel: Channel,
    /// For whoever speaks over it.
    pub(in crate::cmd) fds: Vec<OwnedFd>,
    /// The running ssh, if it is one.
    pub(in crate::cmd) ssh: Ssh,
}

/// A running ssh, or none.
#[derive(Debug)]
pub(in crate::cmd) struct Ssh(Option<Child>);

impl Destination {
    /// Opens the way.
    pub(in crate::cmd) fn connect(&self) -> Result<Connection> {
        match self {
            Self::Agent(at) => {
                let stream = TcpStream::connect(at)
                    .hinted(format!("connect to {at}"), "is pod agent running there?")?;
                Ok(Connection {
                    channel: Channel::Tls,
                    fds: vec![stream.into()],
                    ssh: Ssh(None),
                })
            }
            Self::Ssh { host, port } => {
                let mut command = ssh();
                command.args(
                    port.iter()
                        .flat_map(|port| ["-p".to_owned(), port.to_string()]),
                );
                command
                    .args([host.as_str(), "pod agent --stdio"])
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped());
                let mut child = command
                    .spawn()
                    .hinted("start ssh", "install openssh-client, or set POD_SSH")?;
                let from = child.stdout.take().context("ssh has no output")?;
                let to = child.stdin.take().context("ssh has no input")?;
                Ok(Connection {
                    channel: Channel::Plain,
                    fds: vec![from.into(), to.into()],
                    ssh: Ssh(Some(child)),
                })
            }
        }
    }
}

/// `ssh`, or what POD_SSH says, which the shell takes apart as git does with GIT_SSH_COMMAND.
fn ssh() -> Command {
    match std::env::var("POD_SSH")
        .ok()
        .filter(|command| !command.trim().is_empty())
    {
        None => Command::new("ssh"),
        Some(told) => {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", &format!("{told} \"$@\""), "ssh"]);
            command
        }
    }
}

impl Ssh {
    /// Adds how ssh ended to an error that may come of it.
    pub(in crate::cmd) fn explain(self, error: anyhow::Error) -> anyhow::Error {
        let ended = self.0.map(|mut child| child.wait());
        match ended {
            Some(Ok(status)) if status.code() == Some(255) => {
                let hint =
                    "try by hand: ssh HOST pod agent --stdio; POD_SSH says which ssh is used";
                Failure::of(&error)
                    .because(format!("ssh ended with {status}"))
                    .hint(hint)
                    .into()
            }
            Some(Ok(status)) if [Some(126), Some(127)].contains(&status.code()) => {
                let hint = "install pod there, where a login shell finds it";
                Failure::of(&error)
                    .because("pod cannot be run there")
                    .hint(hint)
                    .into()
            }
            _ => error,
        }
    }

    /// Lets ssh end by itself.
    fn close(self) -> Result<()> {
        match self.0 {
            Some(mut child) => child.wait().context("wait for ssh").map(drop),
            None => Ok(()),
        }
    }
}

/// Runs the command.
pub(super) fn migrate(store: &Store, arguments: &cli::Migrate, format: Format) -> Result<u8> {
    let pod = store.find(&arguments.pod)?;
    if arguments.resolve {
        return resolve(store, &pod, arguments.to.as_deref());
    }
    let to = arguments.to.as_deref().context("DEST is missing")?;
    check_options(arguments)?;
    let destination: Destination = to.parse()?;
    let client = Client::to_live(&pod)?;
    let Connection { channel, fds, ssh } = destination.connect()?;
    let faults = std::env::var(fault::VARIABLE).unwrap_or_default();
    let ask = Ask::Migrate {
        to: to.to_owned(),
        mode: arguments.mode.clone(),
        channel,
        reset: arguments.on_lost_connection == OnLost::Reset,
        faults,
    };
    hand_over(&client, &ask, fds)?;
    match follow(&client) {
        Ok(Told::Migrated(report)) => {
            ssh.close()?;
            if !report.settled {
                tell_settled(store, &pod, &destination);
            }
            finish(store, &pod)?;
            show(&report, format)
        }
        Ok(Told::Undecided(failure)) => {
            ssh.close()?;
            settle(store, &pod, &destination, failure)
        }
        Ok(_) => Err(Failure::new("the supervisor gave an answer to another question").into()),
        Err(error) if is_open(&pod)? => {
            ssh.close()?;
            settle(store, &pod, &destination, Failure::of(&error))
        }
        Err(error) => Err(ssh.explain(error)),
    }
}

/// Whether a move that failed left something to do: after the commit it cannot be taken back.
fn is_open(pod: &Pod) -> Result<bool> {
    Ok(journal(pod)?.is_some_and(|journal| matches!(journal.duty(), Duty::Release | Duty::Ask)))
}

/// Asks for something with descriptors, of which no copy stays here.
fn hand_over(client: &Client, ask: &Ask, fds: Vec<OwnedFd>) -> Result<()> {
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    client.send(ask, &borrowed)?;
    drop(fds);
    Ok(())
}

fn check_options(arguments: &cli::Migrate) -> Result<(), Failure> {
    if arguments.max_downtime.is_some() && arguments.mode == "cold" {
        let failure = Failure::new(
            "--max-downtime means nothing to --mode cold: the pod stands still all the time",
        );
        return Err(failure.hint("leave it out, or choose a mode that copies while the pod runs"));
    }
    Ok(())
}

/// Shows progress until the outcome comes.
fn follow(client: &Client) -> Result<Told> {
    let bar = bar();
    loop {
        match client.receive()? {
            Some((Told::Progress(Progress::Phase(phase)), _)) => {
                bar.set_length(0);
                bar.set_message(phase.name());
            }
            Some((Told::Progress(Progress::Bytes { done, of }), _)) => {
                bar.set_length(of);
                bar.set_position(done);
            }
            Some((told, _)) => {
                bar.finish_and_clear();
                return Ok(told);
            }
            None => {
                let failure = Failure::new("the pod's supervisor died during the move");
                return Ok(Told::Undecided(failure));
            }
        }
    }
}

fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{msg:12} {bar:40} {bytes}/{total_bytes} {bytes_per_sec}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// A destination that was not told keeps the decision about a move for ever.
fn tell_settled(store: &Store, pod: &Pod, destination: &Destination) {
    let tell = || -> Result<()> {
        let begun = journal(pod)?.context("no move")?.begun().clone();
        let connection = destination.connect()?;
        let mut conn = Conn::over(store.root(), connection.channel, connection.fds)?;
        conn.ask(&Say::Settled(begun.id))?;
        conn.send(&Say::Bye)?;
        drop(conn);
        connection.ssh.close()
    };
    if let Err(error) = tell() {
        tracing::info!(
            error = format!("{error:#}"),
            "the destination was not told that the move is over"
        );
    }
}

/// Nothing of a pod that has moved stays here.
fn finish(store: &Store, pod: &Pod) -> Result<()> {
    pod.until_let_go()?;
    let _lock = store.lock()?;
    cleanup::remove(pod)
}

fn show(report: &Report, format: Format) -> Result<u8> {
    if format == Format::Json {
        return output::json(report).map(|()| 0);
    }
    let milliseconds = |micros: u64| format!("{}.{:01} ms", micros / 1000, micros / 100 % 10);
    let mut text = format!(
        "{} moved from {} to {} ({})\n",
        report.pod, report.from, report.to, report.mode
    );
    let parts = report
        .downtime
        .parts()
        .map(|(name, time)| format!("{name} {}", milliseconds(time)));
    let _ = writeln!(
        text,
        "  downtime  {} = {}",
        milliseconds(report.downtime_total),
        parts.join(" + ")
    );
    let _ = writeln!(text, "  total     {}", milliseconds(report.total));
    let bytes = report.bytes;
    let _ = writeln!(
        text,
        "  bytes     {} of state, {} of files, {} sent in all",
        bytes.image, bytes.files, bytes.sent
    );
    output::print(&text).map(|()| 0)
}

/// The outcome is not known here: asks the supervisor, who asks the authority, a few times.
fn settle(store: &Store, pod: &Pod, destination: &Destination, mut failure: Failure) -> Result<u8> {
    for _ in 0..TRIES {
        match ask(pod, Some(destination)) {
            Ok(Told::Resolved(Some(verdict))) => {
                return resolved(store, pod, Some(verdict), Some(failure));
            }
            Ok(Told::Undecided(again)) => failure = again,
            Ok(_) => {}
            Err(error) => tracing::info!(error = format!("{error:#}"), "ask again"),
        }
        // A supervisor that was started again may have seen to everything by itself.
        let over = !pod.is_held()?;
        let journal = journal(pod)?.filter(|journal| match journal.duty() {
            Duty::Nothing => true,
            // It was released, and only the journal's last entry is missing.
            Duty::Release => over,
            _ => false,
        });
        if let Some(verdict) = journal.and_then(|journal| journal.outcome()) {
            tell_settled(store, pod, destination);
            return resolved(store, pod, Some(verdict), Some(failure));
        }
        std::thread::sleep(BETWEEN);
    }
    Err(undecided(pod, failure))
}

fn undecided(pod: &Pod, failure: Failure) -> anyhow::Error {
    let name = pod
        .config()
        .map_or_else(|_| pod.id.clone(), |config| config.name);
    let what = format!("whether {name} has moved is undecided; it stays frozen here");
    let hint = format!("when the destination can be reached: pod migrate {name} --resolve");
    failure.because_of(what).hint(hint).into()
}

/// Asks how a move ended, over a new connection where the destination decides.
fn ask(pod: &Pod, destination: Option<&Destination>) -> Result<Told> {
    let client = Client::to_live(pod)?;
    let mut ssh = Ssh(None);
    let (mut channel, mut fds) = (None, Vec::new());
    if let Some(destination) = destination {
        let connection = destination.connect()?;
        (channel, fds, ssh) = (Some(connection.channel), connection.fds, connection.ssh);
    }
    hand_over(&client, &Ask::Resolve { channel }, fds)?;
    let told = client.receive();
    ssh.close()?;
    let (told, _) = told?.context("the pod's supervisor went away before it answered")?;
    Ok(told)
}

fn resolve(store: &Store, pod: &Pod, to: Option<&str>) -> Result<u8> {
    let journal = journal(pod)?;
    let open = journal.filter(|journal| journal.duty() != Duty::Nothing);
    let Some(begun) = open.map(|journal| journal.begun().clone()) else {
        return resolved(store, pod, None, None);
    };
    let destination = match (&begun.fence, to) {
        (Some(_), _) => None,
        (None, to) => Some(to.unwrap_or(&begun.peer).parse::<Destination>()?),
    };
    match ask(pod, destination.as_ref())? {
        Told::Resolved(verdict) => resolved(store, pod, verdict, None),
        Told::Undecided(failure) => Err(undecided(pod, failure)),
        _ => Err(Failure::new("the supervisor gave an answer to another question").into()),
    }
}

fn resolved(
    store: &Store,
    pod: &Pod,
    verdict: Option<Verdict>,
    cause: Option<Failure>,
) -> Result<u8> {
    let name = pod
        .config()
        .map_or_else(|_| pod.id.clone(), |config| config.name);
    match (verdict, cause) {
        (None, _) => output::print(&format!("{name}: no move is undecided\n")).map(|()| 0),
        (Some(Verdict::Committed), _) => {
            finish(store, pod)?;
            output::print(&format!("{name} has moved\n")).map(|()| 0)
        }
        (Some(Verdict::Aborted), None) => {
            output::print(&format!("{name} has not moved, it runs here\n")).map(|()| 0)
        }
        (Some(Verdict::Aborted), Some(cause)) => Err(cause
            .because_of(format!("{name} has not moved, it runs here"))
            .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_parsed() {
        let ssh = |host: &str, port| Destination::Ssh {
            host: host.into(),
            port,
        };
        assert_eq!(
            "ssh://u@h".parse::<Destination>().unwrap(),
            ssh("u@h", None)
        );
        assert_eq!(
            "ssh://h:22/".parse::<Destination>().unwrap(),
            ssh("h", Some(22))
        );
        assert_eq!(
            "ssh://u@[fd00::1]:22".parse::<Destination>().unwrap(),
            ssh("u@fd00::1", Some(22))
        );
        assert_eq!(
            "ssh://[fd00::1]".parse::<Destination>().unwrap(),
            ssh("fd00::1", None)
        );
        assert_eq!(
            "[::1]:7077".parse::<Destination>().unwrap(),
            Destination::Agent("[::1]:7077".into())
        );
        for bad in [
            "",
            "host",
            "ssh://",
            "ssh://-oProxyCommand=x",
            "ssh://h:x",
            "h:99999",
            "ssh://a b",
        ] {
            assert!(bad.parse::<Destination>().is_err(), "{bad}");
        }
    }
}
