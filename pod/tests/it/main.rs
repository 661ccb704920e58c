//! The real binary with real programs, as root. One file holds one side of a pod's life.

mod host;
mod life;
mod trouble;
