//! The builder as a process, and the supervisor's end of the talk with it.
//!
//! One socket (SOCK_SEQPACKET) carries requests and replies in turn; one feed carries the
//! descriptors to the tasks that are being rebuilt.
//!
//! ```text
//!  supervisor                     builder (in the pod)              puppet
//!  Start + image, feed, streams ─▶ open the image, make
//!                     ◀─ Done ────
//!  Link(pids) ───────────────────▶ make the rest, link
//!  Give(ids) ────────────────────▶ SCM_RIGHTS on the feed ─────────▶ recvmsg
//!  Settle ───────────────────────▶ last touches
//!  (end of the socket) ──────────▶ exit
//! ```

use std::{
    collections::HashMap,
    io::{IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    builder::Builder,
    error::{Error, Result},
    image::Image,
    network::{Made, Network},
    resource::{ObjectId, ipc, tmpfs},
    restart::PAGES_OBJECT,
};

/// What the supervisor asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Request {
    /// Descriptors that come along: the image's directory, the feed, then one for each name.
    Start {
        streams: Vec<String>,
        network: Box<Network>,
    },
    /// The tree stands: real pids, as the builder sees them, by virtual pid, where they differ.
    Link {
        pids: HashMap<i32, i32>,
    },
    Give {
        ids: Vec<ObjectId>,
    },
    Settle,
    /// Which endpoints were bound.
    Made,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Reply {
    Done,
    Made(Vec<Made>),
    Failed(String),
}

/// The largest message, in bytes: a Link of some ten thousand processes.
const MAX: usize = 512 << 10;
/// Image, feed, three streams and a terminal, with room to spare.
const MAX_FDS: usize = 16;

fn failed(step: &'static str) -> impl Fn(nix::Error) -> Error {
    move |e| Error::kernel(step, "the builder's socket", e)
}

fn send<T: Serialize>(socket: BorrowedFd<'_>, message: &T, fds: &[RawFd]) -> Result<()> {
    let mut bytes = Vec::new();
    ciborium::into_writer(message, &mut bytes).map_err(|e| Error::Builder(e.to_string()))?;
    let control = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() {
        &[][..]
    } else {
        &control[..]
    };
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(&bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .map(drop)
    .map_err(failed("sendmsg"))
}

/// `None` at the end of the socket.
fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0u8; MAX];
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut iov = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), flags)
        .map_err(failed("recvmsg"))?;
    let mut fds = Vec::new();
    for control in message.cmsgs().map_err(failed("recvmsg"))? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just installed these descriptors for us; nobody else owns them.
            fds.extend(
                received
                    .into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    let n = message.bytes;
    if n == 0 {
        return Ok(None);
    }
    let message = ciborium::from_reader(&bytes[..n]).map_err(|e| Error::Builder(e.to_string()))?;
    Ok(Some((message, fds)))
}

/// The builder's whole life, in a process that init has forked. Returns when the supervisor hangs up.
///
/// # Errors
/// A broken socket. What a request fails on is answered, not returned.
pub fn serve(socket: &OwnedFd) -> Result<()> {
    let Some((Request::Start { streams, network }, mut fds)) = receive(socket.as_fd())? else {
        return Ok(());
    };
    if fds.len() != streams.len() + 2 {
        return Err(Error::Builder(
            "the start came without its descriptors".into(),
        ));
    }
    let rest = fds.split_off(2);
    let image = Image::open(Path::new(&format!("/proc/self/fd/{}", fds[0].as_raw_fd())));
    let image = match image {
        Ok(image) => image,
        Err(e) => return reply(socket, Err(e)),
    };
    let mut builder = Builder::new(&image, streams.into_iter().zip(rest).collect());
    builder.network = *network;
    let made = ipc::rebuild(&image)
        .and_then(|()| tmpfs::rebuild_shm(&image))
        .and_then(|()| builder.make());
    reply(socket, made)?;
    while let Some((request, _)) = receive::<Request>(socket.as_fd())? {
        if let Request::Made = request {
            let made = builder.network.made().to_vec();
            send(socket.as_fd(), &Reply::Made(made), &[])?;
            continue;
        }
        reply(socket, perform(request, &mut builder, &fds[1]))?;
    }
    Ok(())
}

fn reply(socket: &OwnedFd, result: Result<()>) -> Result<()> {
    let reply = result.map_or_else(|e| Reply::Failed(e.to_string()), |()| Reply::Done);
    send(socket.as_fd(), &reply, &[])
}

fn perform(request: Request, builder: &mut Builder<'_>, feed: &OwnedFd) -> Result<()> {
    match request {
        Request::Start { .. } | Request::Made => {
            Err(Error::Builder("it was started before".into()))
        }
        Request::Link { pids } => {
            builder.set_pids(pids);
            builder.link()
        }
        Request::Give { ids } => give(builder, feed, &ids),
        Request::Settle => builder.settle(),
    }
}

/// Sends one byte with the descriptors to whoever reads the feed next.
fn give(builder: &Builder<'_>, feed: &OwnedFd, ids: &[ObjectId]) -> Result<()> {
    let fd = |id: &ObjectId| match *id {
        PAGES_OBJECT => Ok(builder.image.pages().as_raw_fd()),
        id => builder.object(id).map(|fd| fd.as_raw_fd()),
    };
    let fds: Vec<RawFd> = ids.iter().map(fd).collect::<Result<_>>()?;
    let control = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(
        feed.as_raw_fd(),
        &[IoSlice::new(&[0])],
        &control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .map(drop)
    .map_err(|e| Error::kernel("sendmsg", "the feed", e))
}

/// The supervisor's end.
pub struct Client {
    socket: OwnedFd,
}

impl Client {
    /// Starts the builder at the other end of `socket`: image directory, feed, streams by name.
    ///
    /// # Errors
    /// [`Error::Builder`] in its own words.
    pub fn start(
        socket: OwnedFd,
        image: BorrowedFd<'_>,
        feed: BorrowedFd<'_>,
        streams: &[(String, OwnedFd)],
        network: Network,
    ) -> Result<Self> {
        let start = Request::Start {
            streams: streams.iter().map(|(name, _)| name.clone()).collect(),
            network: Box::new(network),
        };
        let fds: Vec<RawFd> = [image.as_raw_fd(), feed.as_raw_fd()]
            .into_iter()
            .chain(streams.iter().map(|(_, fd)| fd.as_raw_fd()))
            .collect();
        let client = Self { socket };
        client.ask(&start, &fds)?;
        Ok(client)
    }

    fn ask(&self, request: &Request, fds: &[RawFd]) -> Result<()> {
        send(self.socket.as_fd(), request, fds)?;
        match receive(self.socket.as_fd())? {
            Some((Reply::Done | Reply::Made(_), _)) => Ok(()),
            Some((Reply::Failed(why), _)) => Err(Error::Builder(why)),
            None => Err(Error::Builder("it died".into())),
        }
    }

    /// The endpoints that were bound so far, for the pod's table.
    ///
    /// # Errors
    /// [`Error::Builder`] when it died.
    pub fn made(&self) -> Result<Vec<Made>> {
        send(self.socket.as_fd(), &Request::Made, &[])?;
        match receive(self.socket.as_fd())? {
            Some((Reply::Made(made), _)) => Ok(made),
            _ => Err(Error::Builder("it did not say what it bound".into())),
        }
    }

    /// Has these descriptions sent, in one message, to whoever reads the feed next.
    ///
    /// # Errors
    /// [`Error::Builder`] in its own words.
    pub fn give(&self, ids: &[ObjectId]) -> Result<()> {
        self.ask(&Request::Give { ids: ids.to_vec() }, &[])
    }

    /// Says that the tree stands, with real pids (as the builder sees them) where they differ.
    ///
    /// # Errors
    /// [`Error::Builder`] in its own words.
    pub fn link(&self, pids: HashMap<i32, i32>) -> Result<()> {
        self.ask(&Request::Link { pids }, &[])
    }

    /// Says that all is in place but the registers.
    ///
    /// # Errors
    /// [`Error::Builder`] in its own words.
    pub fn settle(&self) -> Result<()> {
        self.ask(&Request::Settle, &[])
    }
}
