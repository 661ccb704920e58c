//! The real binary with real programs, as root. One file holds one side of a pod's life.

#![allow(clippy::unwrap_used)]

mod check;
mod files;
mod host;
mod hostile;
mod image;
mod killed;
mod life;
mod limits;
mod network;
mod rootless;
mod sleeping;
mod state;
mod terminal;
mod trouble;
