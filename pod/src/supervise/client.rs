//! The command line's side of `ctl.sock`.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::failure::Failure;
use crate::messages::{Ask, Outcome, Told};
use crate::store::Pod;
use crate::watch::Watch;
use crate::wire::{Wire, WireError};

/// A conversation with a pod's supervisor.
pub(crate) struct Client {
    pod: Pod,
    wire: Wire,
}

impl Client {
    /// Connects, waiting while a holder lives and its supervisor is on the way. `None` when the pod is over.
    pub(crate) fn connect(pod: &Pod) -> Result<Option<Self>> {
        let watch = Watch::pod(pod)?;
        loop {
            if let Some(client) = Self::try_connect(pod)? {
                return Ok(Some(client));
            }
            if !pod.is_held()? {
                return Ok(None);
            }
            watch.wait()?;
        }
    }

    /// As [`Client::connect`], for commands that need a living pod.
    pub(crate) fn to_live(pod: &Pod) -> Result<Self> {
        if let Some(client) = Self::connect(pod)? {
            return Ok(client);
        }
        let name = pod.config()?.name;
        Err(
            Failure::new(format!("pod {name} is {}", pod.state()?.phase))
                .hint("pod ps -a lists all pods")
                .into(),
        )
    }

    fn try_connect(pod: &Pod) -> Result<Option<Self>> {
        let socket = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .context("socket")?;
        let directory =
            File::open(&pod.dir).with_context(|| format!("open {}", pod.dir.display()))?;
        let path = format!("/proc/self/fd/{}/ctl.sock", directory.as_raw_fd());
        match connect(socket.as_raw_fd(), &UnixAddr::new(path.as_str())?) {
            Ok(()) => Ok(Some(Self {
                pod: pod.clone(),
                wire: socket.into(),
            })),
            Err(Errno::ENOENT | Errno::ECONNREFUSED) => Ok(None),
            Err(e) => Err(e).context("connect to the pod's supervisor"),
        }
    }

    /// Asks without waiting for the answer.
    pub(crate) fn send(&self, ask: &Ask, fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.wire.send(ask, fds).context("ask the pod's supervisor")
    }

    /// The next answer; `None` when the supervisor is gone.
    pub(crate) fn receive(&self) -> Result<Option<(Told, Vec<OwnedFd>)>> {
        match self.wire.receive::<Outcome<Told>>()? {
            Some((outcome, fds)) => Ok(Some((outcome?, fds))),
            None => Ok(None),
        }
    }

    /// Asks and waits for the answer. What never reached a supervisor, because it died, is asked again of the
    /// next; a question that changes nothing too when the answer does not come.
    pub(crate) fn ask(&self, ask: &Ask) -> Result<(Told, Vec<OwnedFd>)> {
        let answer = match self.wire.send(ask, &[]) {
            Ok(()) => self.receive()?,
            Err(WireError::Send(Errno::EPIPE | Errno::ECONNRESET)) => {
                return Self::to_live(&self.pod)?.ask(ask);
            }
            Err(error) => return Err(error).context("ask the pod's supervisor"),
        };
        match answer {
            Some(answer) => Ok(answer),
            None if matches!(ask, Ask::Processes | Ask::Check) => {
                Self::to_live(&self.pod)?.ask(ask)
            }
            None => Err(
                Failure::new("the pod's supervisor went away before it answered")
                    .hint("another takes its place: see with pod ps how the pod is, and try again")
                    .into(),
            ),
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wire.as_fd()
    }
}
