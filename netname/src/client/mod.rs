//! The client's side: questions, updates and transfers over TCP, signed.
//!
//! TCP, because a UDP update that is repeated after a lost answer meets its own effect and is told
//! that it lost a race that it won. Blocking, because it is used from plain threads; a program with a
//! runtime uses [`crate::Updater`]'s asynchronous twin.

pub(crate) mod attempt;
pub(crate) mod message;
pub(crate) mod reverse;
pub(crate) mod session;
pub(crate) mod transfer;
pub(crate) mod updater;

use std::time::Duration;

/// The longest that one operation may take.
pub(crate) const MAX_PATIENCE: Duration = Duration::from_secs(60);
