//! Repair mode: the inside of a connection, read and written.
//!
//! While a socket is in repair mode, queues are filled and sequence numbers set instead of
//! packets sent. Leaving it clears `SO_REUSEADDR` without a word, so that is kept here.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use intercept::sys::{getsockopt, ioctl_get_int, setsockopt};
use libc::{IPPROTO_TCP, SO_REUSEADDR, SOL_SOCKET};
use nix::sys::socket::{MsgFlags, SockaddrStorage, connect, recv, send};
use serde::{Deserialize, Serialize};

use super::state;
use crate::{
    image::Record,
    resource::socket::{int_option, set_int},
};

const TCP_REPAIR: i32 = 19;
const TCP_REPAIR_QUEUE: i32 = 20;
const TCP_QUEUE_SEQ: i32 = 21;
const TCP_REPAIR_OPTIONS: i32 = 22;
const TCP_TIMESTAMP: i32 = 24;
const TCP_REPAIR_WINDOW: i32 = 29;
/// Leaves repair mode without a window probe (`TCP_REPAIR_OFF_NO_WP`).
const OFF_QUIETLY: i32 = -1;
const RECV_QUEUE: i32 = 1;
const SEND_QUEUE: i32 = 2;
/// `SIOCOUTQNSD` of linux/sockios.h: bytes not sent yet.
const SIOCOUTQNSD: u64 = 0x894b;
/// Larger pieces are refused in repair mode when memory is fragmented.
const PIECE: usize = 16 << 10;

/// The beginning of `TCP_INFO` (linux/tcp.h), as far as it is needed.
pub(super) struct Info([u8; 256]);

impl Info {
    pub(super) fn of(fd: BorrowedFd<'_>) -> crate::Result<Self> {
        let info = getsockopt(fd, IPPROTO_TCP, libc::TCP_INFO, [0; 256]);
        info.map(Self)
            .map_err(|e| crate::Error::kernel("getsockopt TCP_INFO", "a socket", e))
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_ne_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    pub(super) fn state(&self) -> u8 {
        self.0[0]
    }

    /// Of a listener: `tcpi_sacked` is its backlog.
    pub(super) fn backlog(&self) -> u32 {
        self.word(28)
    }

    /// `tcpi_bytes_acked`: the SYN counts as one.
    fn bytes_acked(&self) -> u64 {
        u64::from(self.word(120)) | u64::from(self.word(124)) << 32
    }

    /// True when the far end ever answered.
    pub(super) fn handshaken(&self) -> bool {
        // Every handshake measures a round trip (`tcpi_rtt`).
        self.bytes_acked() > 0 || self.word(68) != 0
    }

    /// True when the far end acknowledged data.
    pub(super) fn acknowledged(&self) -> bool {
        self.bytes_acked() > 1
    }
}

/// What both ends agreed on in their handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Agreed {
    mss: u32,
    /// Shifts of the windows this end is told and tells.
    scale: Option<(u8, u8)>,
    sack: bool,
    /// The clock of this end's timestamps.
    timestamp: Option<u32>,
}

/// `struct tcp_repair_window`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Window {
    pub(super) snd_wl1: u32,
    pub(super) snd_wnd: u32,
    pub(super) max_window: u32,
    pub(super) rcv_wnd: u32,
    pub(super) rcv_wup: u32,
}

/// The inside of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Connection {
    /// Written and not acknowledged; the last `unsent` bytes were never sent.
    #[serde(with = "serde_bytes")]
    pub(super) outgoing: Vec<u8>,
    pub(super) unsent: u32,
    /// Received and not read.
    #[serde(with = "serde_bytes")]
    pub(super) incoming: Vec<u8>,
    /// Sequence number behind the last byte written, the FIN not counted.
    pub(super) written: u32,
    /// Sequence number behind the last byte received, the FIN not counted.
    pub(super) received: u32,
    /// This end will write no more.
    pub(super) fin_sent: bool,
    /// The far end will write no more.
    pub(super) fin_received: bool,
    pub(super) agreed: Agreed,
    pub(super) window: Window,
}

impl Record for Connection {
    const KIND: &'static str = "tcp-connection";
    const VERSION: u16 = 1;
}

impl Connection {
    pub(super) fn capture(fd: BorrowedFd<'_>, info: &Info) -> io::Result<Self> {
        let _repair = Repair::new(fd)?;
        let at = info.state();
        let fin_sent = [
            state::FIN_WAIT1,
            state::FIN_WAIT2,
            state::CLOSING,
            state::LAST_ACK,
        ]
        .contains(&at);
        let fin_received = [state::CLOSE_WAIT, state::CLOSING, state::LAST_ACK].contains(&at);
        let outgoing_len = ioctl_get_int(fd, libc::TIOCOUTQ)? as usize;
        let unsent = ioctl_get_int(fd, SIOCOUTQNSD)? as u32;
        let unsent = unsent - u32::from(fin_sent && unsent > 0);
        let incoming = peek_unread(fd)?;
        select(fd, RECV_QUEUE)?;
        let received: u32 = getsockopt(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, 0)?;
        select(fd, SEND_QUEUE)?;
        let written: u32 = getsockopt(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, 0)?;
        let received = received.wrapping_sub(fin_received.into());
        let mut window = getsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, Window::default())?;
        if window.rcv_wup.wrapping_sub(received) == 1 {
            window.rcv_wup = received;
        }
        Ok(Self {
            outgoing: peek(fd, outgoing_len)?,
            unsent,
            incoming,
            written: written.wrapping_sub(fin_sent.into()),
            received,
            fin_sent,
            fin_received,
            agreed: Agreed::capture(fd, info)?,
            window,
        })
    }

    /// True when what `far` has received and what this end still holds leave no gap.
    pub(super) fn meets(&self, far: &Self) -> bool {
        let held = far.received.wrapping_sub(self.first_outgoing());
        held as usize <= self.outgoing.len()
    }

    /// Sequence number of the first byte that is still in the send queue.
    pub(super) fn first_outgoing(&self) -> u32 {
        self.written.wrapping_sub(self.outgoing.len() as u32)
    }

    /// Drops what the far end has received already; the rest has to be sent again.
    pub(super) fn forget_received_by(&mut self, far: &Self) {
        let held = far.received.wrapping_sub(self.first_outgoing());
        self.outgoing
            .drain(..(held as usize).min(self.outgoing.len()));
        self.window.snd_wnd = self.window.snd_wnd.saturating_sub(held);
        self.unsent = self.outgoing.len() as u32;
    }

    /// A connection of nobody's, with something to read.
    pub(super) fn invented(incoming: Vec<u8>) -> Self {
        let agreed = Agreed {
            mss: 1460,
            scale: Some((7, 7)),
            sack: true,
            timestamp: None,
        };
        Self {
            outgoing: Vec::new(),
            unsent: 0,
            received: 1 + incoming.len() as u32,
            incoming,
            written: 1,
            fin_sent: false,
            fin_received: false,
            agreed,
            window: Window::default(),
        }
    }

    /// The other end of it, all received and nothing to say.
    pub(super) fn mirror(&self) -> Self {
        Self {
            outgoing: Vec::new(),
            unsent: 0,
            incoming: Vec::new(),
            written: self.received,
            received: self.first_outgoing(),
            fin_sent: false,
            fin_received: false,
            agreed: Agreed {
                scale: self.agreed.scale.map(|(a, b)| (b, a)),
                ..self.agreed
            },
            window: Window::default(),
        }
    }

    /// Makes a bound socket in repair mode this connection to `remote`, in repair mode still.
    pub(super) fn rebuild(&self, fd: BorrowedFd<'_>, remote: SocketAddr) -> io::Result<()> {
        sequence(fd, SEND_QUEUE, self.first_outgoing())?;
        sequence(
            fd,
            RECV_QUEUE,
            self.received.wrapping_sub(self.incoming.len() as u32),
        )?;
        connect(fd.as_raw_fd(), &SockaddrStorage::from(remote))?;
        self.agreed.apply(fd)?;
        select(fd, RECV_QUEUE)?;
        put(fd, &self.incoming)?;
        select(fd, SEND_QUEUE)?;
        put(fd, &self.outgoing[..self.sent()])
    }

    fn sent(&self) -> usize {
        self.outgoing.len().saturating_sub(self.unsent as usize)
    }

    /// Puts the connection to work: what was not sent is sent, the window is what it was.
    pub(super) fn release(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        select(fd, 0)?;
        if self.window != Window::default() {
            setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &self.window)?;
        }
        set_int(fd, IPPROTO_TCP, TCP_REPAIR, 0)?;
        put(fd, &self.outgoing[self.sent()..])
    }
}

impl Agreed {
    fn capture(fd: BorrowedFd<'_>, info: &Info) -> io::Result<Self> {
        let (options, scale) = (info.0[5], info.0[6]);
        let timestamp = match options & 1 {
            0 => None,
            _ => Some(getsockopt(fd, IPPROTO_TCP, TCP_TIMESTAMP, 0)?),
        };
        Ok(Self {
            mss: getsockopt(fd, IPPROTO_TCP, libc::TCP_MAXSEG, 0)?,
            scale: (options & 4 != 0).then_some((scale & 0xf, scale >> 4)),
            sack: options & 2 != 0,
            timestamp,
        })
    }

    fn apply(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        // Option numbers of RFC 9293 and RFC 7323: MSS 2, window scale 3, SACK permitted 4, timestamps 8.
        let mut options = vec![[2, self.mss]];
        if let Some((told, tells)) = self.scale {
            options.push([3, u32::from(told) | u32::from(tells) << 16]);
        }
        if self.sack {
            options.push([4, 0]);
        }
        if self.timestamp.is_some() {
            options.push([8, 0]);
        }
        for option in options {
            setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_OPTIONS, &option)?;
        }
        match self.timestamp {
            Some(clock) => setsockopt(fd, IPPROTO_TCP, TCP_TIMESTAMP, &clock),
            None => Ok(()),
        }
    }
}

/// Repair mode for a while, for looking; left without a packet on every path.
struct Repair<'f> {
    fd: BorrowedFd<'f>,
    reuse: i32,
}

impl<'f> Repair<'f> {
    fn new(fd: BorrowedFd<'f>) -> io::Result<Self> {
        let reuse = int_option(fd, SOL_SOCKET, SO_REUSEADDR).unwrap_or_default();
        enter(fd)?;
        Ok(Self { fd, reuse })
    }
}

impl Drop for Repair<'_> {
    fn drop(&mut self) {
        let off = set_int(self.fd, IPPROTO_TCP, TCP_REPAIR, OFF_QUIETLY);
        if let Err(e) = off.and_then(|()| set_int(self.fd, SOL_SOCKET, SO_REUSEADDR, self.reuse)) {
            tracing::error!("a connection could not leave repair mode: {e}");
        }
    }
}

/// Enters repair mode.
pub(super) fn enter(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_int(fd, IPPROTO_TCP, TCP_REPAIR, 1)
}

/// Enters repair mode for good, so that closing says nothing to the far end. A listener has none.
pub(super) fn silence(fd: BorrowedFd<'_>) -> io::Result<()> {
    let info: [u8; 256] = getsockopt(fd, IPPROTO_TCP, libc::TCP_INFO, [0; 256])?;
    match info[0] {
        state::LISTEN | state::CLOSE => Ok(()),
        _ => enter(fd),
    }
}

fn select(fd: BorrowedFd<'_>, queue: i32) -> io::Result<()> {
    set_int(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
}

fn sequence(fd: BorrowedFd<'_>, queue: i32, number: u32) -> io::Result<()> {
    select(fd, queue)?;
    setsockopt(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, &number)
}

fn put(fd: BorrowedFd<'_>, mut data: &[u8]) -> io::Result<()> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    while !data.is_empty() {
        let sent = send(fd.as_raw_fd(), &data[..data.len().min(PIECE)], flags)?;
        data = &data[sent..];
    }
    Ok(())
}

/// Sends bytes as a program would.
pub(super) fn send_all(fd: BorrowedFd<'_>, data: &[u8]) -> io::Result<()> {
    put(fd, data)
}

fn peek(fd: BorrowedFd<'_>, len: usize) -> io::Result<Vec<u8>> {
    let mut data = vec![0; len];
    if len == 0 {
        return Ok(data);
    }
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let got = match recv(fd.as_raw_fd(), &mut data, flags) {
        Err(nix::errno::Errno::EAGAIN) => 0,
        got => got?,
    };
    data.truncate(got);
    Ok(data)
}

/// What was received and not read, whatever offset the program peeks at.
pub(super) fn peek_unread(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let len = ioctl_get_int(fd, libc::FIONREAD)? as usize;
    if int_option(fd, IPPROTO_TCP, TCP_REPAIR) == Some(1) {
        select(fd, RECV_QUEUE)?;
    }
    let offset = int_option(fd, SOL_SOCKET, libc::SO_PEEK_OFF).filter(|offset| *offset >= 0);
    let Some(offset) = offset else {
        return peek(fd, len);
    };
    set_int(fd, SOL_SOCKET, libc::SO_PEEK_OFF, -1)?;
    let data = peek(fd, len);
    set_int(fd, SOL_SOCKET, libc::SO_PEEK_OFF, offset)?;
    data
}
