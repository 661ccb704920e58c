//! The rooms: one file for each kind of state, with its record, how it is captured and
//! how it is rebuilt, in that order, and its unit tests.
//!
//! There are two families. *Descriptions* (open file descriptions: a pipe end, a socket, a
//! file) are captured from a duplicate of the descriptor and rebuilt by the builder, our
//! own process inside the pod's namespaces; several slots, processes and queues may refer
//! to one. *Parts* belong to a process or thread (memory, registers, timers) and are
//! rebuilt inside the task itself. A new kind of description is one new file here and one
//! line in [`descriptions!`]'s list at the end of this file.

use std::os::fd::{BorrowedFd, OwnedFd};

use crate::{
    builder::Builder,
    capture::{Capture, Probe},
    error::Result,
    image::{Envelope, Image, Record},
};

pub mod creds;
pub mod device;
pub mod epoll;
pub mod eventfd;
pub mod files;
pub mod inotify;
pub mod ipc;
pub mod layer;
pub mod lock;
pub mod memfd;
pub mod mm;
pub mod netlink;
pub mod pidfd;
pub mod pipe;
pub mod process;
pub mod regular;
mod reopen;
pub mod restart_block;
pub mod signal;
pub mod signalfd;
pub mod socket;
pub mod stream;
pub mod tcp;
pub mod thread;
pub mod timer;
pub mod timerfd;
pub mod tmpfs;
pub mod tree;
pub mod tty;
pub mod udp;
pub mod unix;

/// Number of an open file description in the image.
pub type ObjectId = u32;

/// When a description is rebuilt: those of an earlier order first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Needs nothing else.
    First,
    /// Needs descriptions of the first order (a connection needs its listener's port to be bound).
    Second,
    /// Refers to other descriptions (epoll, queues with descriptors in flight).
    Last,
    /// Refers to processes: made when the process tree exists (pidfd).
    Tree,
}

/// An open file description that was captured, on its way back.
pub trait Description {
    /// When it is rebuilt.
    fn order(&self) -> Order {
        Order::First
    }

    /// Makes the description anew; status flags (`O_NONBLOCK`…) and owner are set by the builder afterwards.
    ///
    /// # Errors
    /// The kernel call that failed, on what; nothing is left behind.
    fn rebuild(&self, builder: &mut Builder<'_>) -> Result<OwnedFd>;

    /// Links it to other descriptions and fills its queues, when all descriptions exist.
    ///
    /// # Errors
    /// As [`Description::rebuild`].
    fn connect(&self, _fd: BorrowedFd<'_>, _builder: &mut Builder<'_>) -> Result<()> {
        Ok(())
    }

    /// The last touch, when memory is mapped and nothing but the release is to come: what
    /// earlier would see or forbid our own work (watches, seals), or count its time (timers).
    ///
    /// # Errors
    /// As [`Description::rebuild`].
    fn settle(&self, _fd: BorrowedFd<'_>, _builder: &mut Builder<'_>) -> Result<()> {
        Ok(())
    }
}

/// A kind of description that can be captured.
pub trait Room: Record + Description + 'static {
    /// Looks at a descriptor; `None` when it is of another kind.
    ///
    /// What is of this kind but cannot be carried goes to [`Capture::refuse`].
    ///
    /// # Errors
    /// A kernel call that failed; the descriptor's state is as it was before.
    fn capture(probe: &Probe, cx: &mut Capture<'_>) -> Result<Option<Self>>;
}

type CaptureFn = fn(&Probe, ObjectId, &mut Capture<'_>) -> Result<bool>;
type LoadFn = fn(&Image, &Envelope) -> Result<Box<dyn Description>>;

fn capture_one<T: Room>(probe: &Probe, id: ObjectId, cx: &mut Capture<'_>) -> Result<bool> {
    match T::capture(probe, cx)? {
        Some(record) => cx.writer.record(id, &record).map(|()| true),
        None => Ok(false),
    }
}

fn load_one<T: Room>(image: &Image, envelope: &Envelope) -> Result<Box<dyn Description>> {
    image.mark_read(T::KIND);
    Ok(Box::new(image.decode::<T>(envelope)?))
}

macro_rules! descriptions {
    ($($room:ty),+ $(,)?) => {
        /// Every kind of description: how it is captured and loaded. Asked in this order.
        pub(crate) const ROOMS: &[(&str, CaptureFn, LoadFn)] =
            &[$((<$room as Record>::KIND, capture_one::<$room>, load_one::<$room>)),+];
    };
}

/// True when there is a room for this kind of description.
pub(crate) fn has_room(kind: &str) -> bool {
    ROOMS.iter().any(|(name, ..)| *name == kind)
}

/// Kinds of records beside the descriptions: what belongs to processes, to the pod, or links descriptions.
const OTHERS: &[&str] = &[
    "description",
    "epoll-watches",
    "ipc-limits",
    "locks",
    "mm",
    "mqueue",
    "msg",
    "process",
    "process-locks",
    "sem",
    "shm",
    "tcp-connection",
    "tcp-links",
    "terminal-pair",
    "terminal-session",
    "tmpfs",
];

/// True for a kind of record that a restart heeds.
pub(crate) fn is_known(kind: &str) -> bool {
    OTHERS.contains(&kind) || has_room(kind)
}

descriptions! {
    tty::Tty,
    stream::Stream,
    pipe::Pipe,
    eventfd::Eventfd,
    timerfd::Timerfd,
    signalfd::Signalfd,
    memfd::Memfd,
    inotify::Inotify,
    epoll::Epoll,
    pidfd::Pidfd,
    unix::Unix,
    tcp::Tcp,
    udp::Udp,
    netlink::Netlink,
    ipc::Mqueue,
    regular::Regular,
    device::Device,
}
