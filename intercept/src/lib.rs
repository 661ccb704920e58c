//! Names of a pod and how they are enforced.
//!
//! `table` is the syscall table as data; `filter` and `mask` make seccomp programs of it
//! and of a profile; `listener` receives what the filter notifies; `names` maps virtual
//! names to what they stand for on this host; `engine` serves the calls, `detour` lets tasks
//! run their own. Below them, `socket` and `diag` ask about sockets, `sys`
//! holds raw calls, `tracee` the tasks we trace as types, `tracer` the thread that
//! traces them, `stub` the page from which calls are injected.

pub mod detour;
pub mod diag;
pub mod engine;
pub mod filter;
pub mod listener;
pub mod mask;
pub mod names;
pub mod socket;
pub mod stub;
pub mod sys;
pub mod table;
pub mod tracee;
pub mod tracer;
mod waiters;
