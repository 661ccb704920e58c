//! What waits in a unix socket's queue: messages with their boundaries, descriptors in
//! flight, credentials and senders.
//!
//! A queue is peeked without moving anything. Of a stream, the kernel glues what was
//! written separately, so a piece begins exactly where descriptors were attached: a
//! program that reads byte by byte gets them with the same byte as before.

use std::os::fd::BorrowedFd;

use nix::{errno::Errno, sys::socket::UnixAddr};
use serde::{Deserialize, Serialize};

use super::name::Name;
use crate::{
    builder::Builder,
    capture::{Capture, Probe},
    error::{Error, Result},
    resource::{
        ObjectId,
        socket::message::{self, Direction, LargeBuffer, PeekOffset, Peeked},
    },
};

/// Room for one datagram; a longer one is read in pieces.
const DATAGRAM: usize = 256 << 10;

/// A message in a queue; of a stream, a piece of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Message {
    /// Its bytes.
    #[serde(with = "serde_bytes")]
    pub(super) data: Vec<u8>,
    /// The descriptions in flight with it.
    pub(super) files: Vec<ObjectId>,
    /// The sender's virtual pid, uid and gid, where the receiver asked to know.
    creds: Option<(i32, u32, u32)>,
    /// The name of the sender, as recvfrom(2) shows it.
    pub(super) from: Option<Name>,
}

/// Peeks at all datagrams (or records, of a seqpacket socket) of a queue.
pub(super) fn peek_datagrams(
    probe: &Probe,
    fd: BorrowedFd<'_>,
    ends: Option<usize>,
    cx: &mut Capture<'_>,
) -> Result<Vec<Message>> {
    let _front = PeekOffset::new(fd)?;
    let (mut all, mut total) = (Vec::new(), 0);
    // A shut down seqpacket socket answers 0 for ever at its end.
    while ends != Some(total) {
        let Some(first) = peek(probe, fd, DATAGRAM)? else {
            break;
        };
        let (mut cut, mut message) = (first.cut, keep(probe, first, cx)?);
        while cut {
            let Some(more) = peek(probe, fd, DATAGRAM)? else {
                break;
            };
            cut = more.cut;
            message.data.extend_from_slice(&more.data);
        }
        total += message.data.len();
        all.push(message);
    }
    Ok(all)
}

/// Peeks at the `len` bytes of a stream's queue.
pub(super) fn peek_stream(
    probe: &Probe,
    fd: BorrowedFd<'_>,
    len: usize,
    cx: &mut Capture<'_>,
) -> Result<Vec<Message>> {
    let front = PeekOffset::new(fd)?;
    let (mut all, mut at) = (Vec::new(), 0);
    while at < len {
        front.seek(at)?;
        let Some(mut piece) = peek(probe, fd, len - at)?.filter(|p| !p.data.is_empty()) else {
            break;
        };
        let start = at;
        at += piece.data.len();
        if !piece.fds.is_empty() {
            front.seek(start)?;
            let before = message::bytes_before_last(fd, piece.data.len());
            let before = before.map_err(|e| Error::kernel("recvmsg", probe.name(), e))?;
            if before > 0 {
                let data = piece.data.drain(..before).collect();
                all.push(Message {
                    data,
                    files: Vec::new(),
                    creds: creds(piece.creds, cx),
                    from: None,
                });
            }
        }
        all.push(keep(probe, piece, cx)?);
    }
    Ok(all)
}

fn peek(probe: &Probe, fd: BorrowedFd<'_>, room: usize) -> Result<Option<Peeked<UnixAddr>>> {
    match message::peek(fd, room) {
        Ok(peeked) => Ok(Some(peeked)),
        Err(Errno::EAGAIN) => Ok(None),
        Err(e) => Err(Error::kernel("recvmsg MSG_PEEK", probe.name(), e)),
    }
}

fn keep(probe: &Probe, peeked: Peeked<UnixAddr>, cx: &mut Capture<'_>) -> Result<Message> {
    let mut files = Vec::with_capacity(peeked.fds.len());
    for fd in peeked.fds {
        files.push(cx.description(&Probe::new(probe.pid, None, fd)?)?);
    }
    let from = peeked.from.as_ref().and_then(Name::of);
    Ok(Message {
        data: peeked.data,
        files,
        creds: creds(peeked.creds, cx),
        from,
    })
}

/// The sender's credentials with its virtual pid; who is not of the pod any more, sent nothing in its name.
fn creds(real: Option<(i32, u32, u32)>, cx: &Capture<'_>) -> Option<(i32, u32, u32)> {
    let (pid, uid, gid) = real?;
    Some((cx.virtual_pid(pid)?, uid, gid))
}

/// Puts messages into the queue of the socket that `sender` is connected to, or that is at `to`.
pub(super) fn fill(
    sender: BorrowedFd<'_>,
    to: Option<&UnixAddr>,
    messages: &[Message],
    builder: &Builder<'_>,
) -> Result<()> {
    let bytes = messages.iter().map(|m| m.data.len()).sum();
    let _room = LargeBuffer::new(sender, Direction::Send, bytes, messages.len())?;
    for message in messages {
        let files = message.files.iter().map(|id| builder.object(*id));
        let files = files.collect::<Result<Vec<_>>>()?;
        put(sender, to, message, &files, builder)
            .map_err(|e| Error::kernel("sendmsg", "a unix socket's queue", e))?;
    }
    Ok(())
}

fn put(
    sender: BorrowedFd<'_>,
    to: Option<&UnixAddr>,
    message: &Message,
    files: &[BorrowedFd<'_>],
    builder: &Builder<'_>,
) -> nix::Result<()> {
    let mut creds = message
        .creds
        .map(|(pid, uid, gid)| (builder.real_pid(pid), uid, gid));
    let (mut files, mut data) = (files, message.data.as_slice());
    loop {
        let sent = match message::send(sender, data, files, creds, to) {
            // The sender is gone, or its number is not yet taken: its bytes still count.
            Err(Errno::ESRCH | Errno::EPERM) if creds.is_some() => {
                creds = None;
                continue;
            }
            sent => sent?,
        };
        data = &data[sent..];
        files = &[];
        if data.is_empty() {
            return Ok(());
        }
    }
}
