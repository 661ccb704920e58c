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

use std::{fs::File, os::unix::fs::FileExt};

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

impl Mm {
    /// Bytes of the process's own, as an image holds them; `None` where it shares them with another or has
    /// none there.
    #[must_use]
    pub fn bytes(&self, pages: &File, at: u64, len: usize) -> Option<Vec<u8>> {
        let end = at.checked_add(len as u64)?;
        let within =
            |r: &&Run| r.start <= at && r.start.checked_add(r.len).is_some_and(|e| e >= end);
        let run = self.runs.iter().find(within)?;
        let Source::Here(offset) = run.source else {
            return None;
        };
        let mut bytes = vec![0; len];
        let place = offset.checked_add(at - run.start)?;
        pages.read_exact_at(&mut bytes, place).ok()?;
        Some(bytes)
    }

    /// The length of the pages that the process has for itself, in bytes.
    #[must_use]
    pub fn private(&self) -> u64 {
        let own = self
            .runs
            .iter()
            .filter(|r| matches!(r.source, Source::Here(_)));
        own.fold(0, |sum, run| sum.saturating_add(run.len))
    }
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
