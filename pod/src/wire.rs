//! One codec for every conversation inside a host: command line ↔ supervisor, supervisor ↔ holder,
//! supervisor ↔ init.
//!
//! A message is one packet on a `SOCK_SEQPACKET` socket: a tag byte and a CBOR body, with descriptors
//! beside it (`SCM_RIGHTS`). The kernel keeps packets whole, so there is no framing to lose. A body too
//! large for one packet (a huge environment) travels in a sealed-by-convention memfd instead:
//!
//! ```text
//!   tag 0 │ CBOR body                      descriptors: the message's own
//!   tag 1 │ (nothing)                      descriptors: the message's own, then the memfd with the body
//! ```

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bodies up to this many bytes travel in the packet itself.
const INLINE: usize = 64 * 1024;
/// Bodies above this many bytes are refused: nothing of ours is that large.
const LARGEST: u64 = 64 << 20;
/// Descriptors in one message (the kernel's SCM_MAX_FD is 253).
const MOST_FDS: usize = 32;

/// What can go wrong while a message is sent or received.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("send a message: {0}")]
    Send(#[source] Errno),
    #[error("receive a message: {0}")]
    Receive(#[source] Errno),
    #[error("encode a message: {0}")]
    Encode(String),
    #[error("a message does not decode: {0}")]
    Decode(String),
    #[error("a message was cut short")]
    Truncated,
    #[error("a message's memfd: {0}")]
    Memfd(#[source] io::Error),
}

/// One end of a conversation.
#[derive(Debug)]
pub(crate) struct Wire {
    socket: OwnedFd,
}

impl From<OwnedFd> for Wire {
    fn from(socket: OwnedFd) -> Self {
        Self { socket }
    }
}

impl From<Wire> for OwnedFd {
    fn from(wire: Wire) -> Self {
        wire.socket
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Wire {
    /// Two connected ends, close-on-exec.
    pub(crate) fn pair() -> nix::Result<(Self, Self)> {
        let (a, b) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        Ok((a.into(), b.into()))
    }

    /// A second handle on the same socket.
    pub(crate) fn duplicate(&self) -> io::Result<Self> {
        Ok(self.socket.try_clone()?.into())
    }

    /// Sends one message with descriptors. Fails with `EPIPE` when the other end is gone.
    pub(crate) fn send<T: Serialize>(
        &self,
        message: &T,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), WireError> {
        let mut body = vec![0];
        ciborium::into_writer(message, &mut body).map_err(|e| WireError::Encode(e.to_string()))?;
        let mut raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        if body.len() <= INLINE {
            return self.send_packet(&body, &raw);
        }
        let memfd = body_in_memfd(&body[1..]).map_err(WireError::Memfd)?;
        raw.push(memfd.as_raw_fd());
        self.send_packet(&[1], &raw)
    }

    fn send_packet(&self, packet: &[u8], fds: &[RawFd]) -> Result<(), WireError> {
        let rights = [ControlMessage::ScmRights(fds)];
        let rights: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
        let slices = [IoSlice::new(packet)];
        loop {
            match sendmsg::<()>(
                self.socket.as_raw_fd(),
                &slices,
                rights,
                MsgFlags::MSG_NOSIGNAL,
                None,
            ) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(WireError::Send(e)),
            }
        }
    }

    /// Receives one message; `None` when the other end is gone. Descriptors arrive close-on-exec.
    pub(crate) fn receive<T: DeserializeOwned>(
        &self,
    ) -> Result<Option<(T, Vec<OwnedFd>)>, WireError> {
        let mut buffer = vec![0; INLINE + 1];
        let Some((length, mut fds)) = self.receive_packet(&mut buffer)? else {
            return Ok(None);
        };
        let body = match buffer[0] {
            0 => buffer[1..length].to_vec(),
            _ => read_memfd(fds.pop().ok_or(WireError::Truncated)?)?,
        };
        let message =
            ciborium::from_reader(body.as_slice()).map_err(|e| WireError::Decode(e.to_string()))?;
        Ok(Some((message, fds)))
    }

    fn receive_packet(
        &self,
        buffer: &mut [u8],
    ) -> Result<Option<(usize, Vec<OwnedFd>)>, WireError> {
        let mut space = cmsg_space!([RawFd; MOST_FDS]);
        let mut slices = [IoSliceMut::new(buffer)];
        let message = loop {
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<()>(
                self.socket.as_raw_fd(),
                &mut slices,
                Some(&mut space),
                flags,
            ) {
                Ok(message) => break message,
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return Ok(None),
                Err(e) => return Err(WireError::Receive(e)),
            }
        };
        let fds = received_fds(message.cmsgs().map_err(WireError::Receive)?);
        if message
            .flags
            .intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC)
        {
            return Err(WireError::Truncated);
        }
        Ok((message.bytes > 0).then_some((message.bytes, fds)))
    }
}

fn received_fds(messages: impl Iterator<Item = ControlMessageOwned>) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    for message in messages {
        if let ControlMessageOwned::ScmRights(raw) = message {
            // SAFETY: the kernel has just installed these descriptors for us alone.
            fds.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    fds
}

fn body_in_memfd(body: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(c"pod-message", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(body)?;
    file.rewind()?;
    Ok(file.into())
}

fn read_memfd(fd: OwnedFd) -> Result<Vec<u8>, WireError> {
    let mut file = File::from(fd);
    let mut body = Vec::new();
    file.rewind().map_err(WireError::Memfd)?;
    Read::by_ref(&mut file)
        .take(LARGEST + 1)
        .read_to_end(&mut body)
        .map_err(WireError::Memfd)?;
    if body.len() as u64 > LARGEST {
        Err(WireError::Truncated)
    } else {
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_carries_its_descriptors() {
        let (a, b) = Wire::pair().unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        a.send(&("hello", 7), &[writer.as_fd()]).unwrap();
        drop(writer);
        let ((text, number), fds): ((String, i32), _) = b.receive().unwrap().unwrap();
        assert_eq!((text.as_str(), number, fds.len()), ("hello", 7, 1));
        File::from(fds.into_iter().next().unwrap())
            .write_all(b"x")
            .unwrap();
        let mut got = String::new();
        File::from(reader).read_to_string(&mut got).unwrap();
        assert_eq!(got, "x");
    }

    #[test]
    fn a_body_larger_than_a_packet_arrives_whole() {
        let (a, b) = Wire::pair().unwrap();
        let long = "é".repeat(400_000);
        a.send(&long, &[a.as_fd()]).unwrap();
        let (got, fds): (String, _) = b.receive().unwrap().unwrap();
        assert!(got == long);
        assert_eq!(fds.len(), 1);
    }

    #[test]
    fn the_end_and_garbage_are_told_apart() {
        let (a, b) = Wire::pair().unwrap();
        a.send_packet(&[0, 0xff, 0xff], &[]).unwrap();
        assert!(matches!(b.receive::<String>(), Err(WireError::Decode(_))));
        a.send_packet(&[1], &[]).unwrap();
        assert!(matches!(b.receive::<String>(), Err(WireError::Truncated)));
        drop(a);
        assert!(b.receive::<String>().unwrap().is_none());
    }
}
