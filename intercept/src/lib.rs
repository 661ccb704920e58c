//! Names of a pod and how they are enforced.
//!
//! `sys` holds raw calls, `tracee` the tasks we trace as types, `tracer` the thread that
//! traces them, `stub` the page from which calls are injected.

pub mod stub;
pub mod sys;
pub mod tracee;
pub mod tracer;
