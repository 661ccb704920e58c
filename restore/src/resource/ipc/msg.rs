//! System V message queues, with the messages that wait: MSG_COPY reads them where they are.

use std::io;

use intercept::sys;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::perm::{Perm, make, rows};
use crate::{
    error::{Error, Result},
    image::{Image, Record},
};

/// A queue. Its number is its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Queue {
    perm: Perm,
    /// How much it takes, in bytes.
    capacity: u64,
    /// Messages, the oldest first: type and text.
    messages: Vec<(i64, ByteBuf)>,
}

impl Record for Queue {
    const KIND: &'static str = "msg";
    const VERSION: u16 = 1;
}

/// `MSG_COPY` of linux/msg.h.
const MSG_COPY: i32 = 0o40000;

/// Looks at all queues of the calling thread's namespace.
pub(super) fn look() -> Result<Vec<(i32, Queue)>> {
    let mut all = Vec::new();
    for row in rows("msg")? {
        let (id, perm) = (row.id(), row.perm(7));
        let failed = |step, e| Error::kernel(step, format!("msg {id}"), e);
        let capacity = status(id)
            .map_err(|e| failed("msgctl IPC_STAT", e))?
            .msg_qbytes;
        let (waiting, bytes) = (row.column(4), row.column(3) as usize);
        let messages = (0..waiting).map(|n| copy(id, n, bytes));
        let messages = messages.collect::<io::Result<_>>();
        let messages = messages.map_err(|e| failed("msgrcv MSG_COPY", e))?;
        all.push((
            id,
            Queue {
                perm,
                capacity,
                messages,
            },
        ));
    }
    Ok(all)
}

fn status(id: i32) -> io::Result<libc::msqid_ds> {
    // SAFETY: plain data for which zero is a valid value.
    let mut status: libc::msqid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: `status` outlives the call.
    sys::check(unsafe { libc::msgctl(id, libc::IPC_STAT, &raw mut status) }.into())?;
    Ok(status)
}

/// A copy of the `n`-th message of a queue that holds `bytes` in all.
fn copy(id: i32, n: i64, bytes: usize) -> io::Result<(i64, ByteBuf)> {
    // struct msgbuf: the type, then the text.
    let mut message = vec![0i64; 1 + bytes.div_ceil(8)];
    let flags = MSG_COPY | libc::IPC_NOWAIT;
    // SAFETY: room for the type and `bytes` of text.
    let len = unsafe { libc::msgrcv(id, message.as_mut_ptr().cast(), bytes, n, flags) };
    let len = sys::check(len as i64)? as usize;
    let text: Vec<u8> = message[1..]
        .iter()
        .flat_map(|w| w.to_ne_bytes())
        .take(len)
        .collect();
    Ok((message[0], text.into()))
}

/// Makes all queues of an image.
pub(super) fn rebuild(image: &Image) -> Result<()> {
    for (id, queue) in image.all::<Queue>()? {
        let id = id as i32;
        let flags = libc::IPC_CREAT | libc::IPC_EXCL | (queue.perm.mode & 0o777) as i32;
        // SAFETY: plain values only.
        make("msg", id, &queue.perm, || unsafe {
            libc::msgget(queue.perm.key, flags)
        })?;
        let failed = |step, e| Error::kernel(step, format!("msg {id}"), e);
        queue.set(id).map_err(|e| failed("msgctl", e))?;
        for (kind, text) in &queue.messages {
            send(id, *kind, text).map_err(|e| failed("msgsnd", e))?;
        }
    }
    Ok(())
}

fn send(id: i32, kind: i64, text: &[u8]) -> io::Result<()> {
    let message = [&kind.to_ne_bytes()[..], text].concat();
    // SAFETY: the message is its type and `text.len()` bytes; the kernel copies it from any address.
    let r = unsafe { libc::msgsnd(id, message.as_ptr().cast(), text.len(), libc::IPC_NOWAIT) };
    sys::check(r.into()).map(drop)
}

impl Queue {
    fn set(&self, id: i32) -> io::Result<()> {
        let mut status = status(id)?;
        status.msg_qbytes = self.capacity;
        status.msg_perm.uid = self.perm.owner.0;
        status.msg_perm.gid = self.perm.owner.1;
        status.msg_perm.mode = (self.perm.mode & 0o777) as _;
        // SAFETY: `status` outlives the call.
        sys::check(unsafe { libc::msgctl(id, libc::IPC_SET, &raw mut status) }.into()).map(drop)
    }
}
