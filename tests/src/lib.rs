//! Hosts made of network namespaces, and real programs that run on them.
//!
//! ```text
//!          source            destination           desk
//!        10.77.0.1            10.77.0.2          10.77.0.3        own net, mount and uts namespace,
//!        own --root           own --root          (client)        own /tmp /run /dev/shm
//!            └───────────────────┼───────────────────┘
//!                              switch                              a bridge in a namespace of its own
//! ```
//!
//! A [`World`] is three such hosts. A [`Program`] is one that people use, with a way to put a datum in
//! and to ask for it again. A [`Journey`] says what happens between the two: nothing, a pod, a
//! checkpoint and a restart, a move. [`World::end`] asserts that nothing is left behind.

mod anchor;
mod binary;
mod done;
mod host;
mod journey;
mod leftovers;
pub mod program;
mod site;
mod ssh;
mod terminal;
mod wait;
mod world;

pub use anchor::Anchor;
pub use binary::pod_binary;
pub use done::{Done, finish};
pub use host::Host;
pub use journey::{Backing, Journey, Way, travel};
pub use program::Program;
pub use site::Site;
pub use terminal::Terminal;
pub use wait::{eventually, until};
pub use world::World;
