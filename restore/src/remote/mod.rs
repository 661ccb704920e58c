//! Calls that a task of the pod runs for us.
//!
//! A [`Batch`] is written into the scratch area of the stub, the task runs it in one
//! resume, and the results are read back: 0.07 µs a call instead of 4. All signals are
//! blocked meanwhile, and registers and mask are put back when the [`Scope`] ends, so
//! that the task never sees that it was borrowed.

mod batch;
mod scope;

pub use batch::{Batch, CallId, Out, Results};
pub use scope::Scope;
