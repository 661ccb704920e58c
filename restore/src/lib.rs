//! Checkpoint and restart.
//!
//! `image` is a sleeping pod as files; `remote` lets a task of the pod run calls for us;
//! `resource` holds a room for each kind of state; `capture` and `builder` are what those
//! rooms work with.

pub mod builder;
pub mod capture;
pub mod check;
pub mod checkpoint;
pub mod error;
pub mod freeze;
pub mod image;
pub mod network;
pub mod remote;
pub mod resource;
pub mod restart;
pub mod service;
pub mod sockdiag;
#[cfg(test)]
mod testing;

pub use error::{Error, Refusal, Refusals, Result};
