//! Memory: the mappings of a process, their contents, and what the kernel notes about them.
//!
//! Pages a process has for itself are written to the image in runs. A page that it still
//! shares with its parent since a fork (the same page frame) is only named, and shared
//! again at restart because the child is forked from a parent that is already filled.
//! What lies in a file or in shared memory belongs to that object, not to the process.

mod capture;
mod rebuild;
mod uncarried;
mod vma;

pub use capture::{Parent, capture};
pub use rebuild::{Inherited, rebuild};
pub(crate) use uncarried::{HINT, uncarried};
pub use vma::{Advice, Backing, Vma};

use serde::{Deserialize, Serialize};

use super::ObjectId;
use crate::image::Record;

/// An address space. Its number is the virtual pid of the process that owns it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mm {
    /// Mappings in ascending order.
    pub vmas: Vec<Vma>,
    /// Pages, in ascending order.
    pub runs: Vec<Run>,
    /// Where code, data, heap, stack, arguments and environment lie.
    pub layout: Layout,
    /// The program that was executed.
    pub exe: ObjectId,
    /// The auxiliary vector, raw.
    #[serde(with = "serde_bytes")]
    pub auxv: Vec<u8>,
    /// The vDSO's bytes, which tell whether this host's is the same.
    #[serde(with = "serde_bytes")]
    pub vdso: Vec<u8>,
}

impl Record for Mm {
    const KIND: &'static str = "mm";
    const VERSION: u16 = 1;
}

/// Consecutive pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Address of the first.
    pub start: u64,
    /// Length, in bytes.
    pub len: u64,
    /// Where their bytes are.
    pub source: Source,
}

/// Where pages come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// In this image's `pages.img`, at this offset.
    Here(u64),
    /// The parent process has them at the same address, shared since the fork.
    ParentProcess,
}

/// `struct prctl_mm_map` without what is told otherwise (prctl(2), `PR_SET_MM_MAP`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "the kernel's own names for addresses, see prctl(2)"
)]
pub struct Layout {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
}
