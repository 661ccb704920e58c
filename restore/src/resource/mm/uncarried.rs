//! Mappings that cannot be carried, and why.

use super::vma::{RawVma, read_smaps};
use crate::{error::Result, resource::device};

/// What to do about such a mapping.
pub(crate) const HINT: &str = "stop using it before the checkpoint";

/// By `VmFlags` (Documentation/filesystems/proc.rst).
const FLAGS: [(&str, &str); 5] = [
    ("ht", "it is in huge pages of hugetlbfs"),
    ("pf", "it maps a device's memory"),
    ("um", "userfaultfd watches it"),
    ("uw", "userfaultfd write-protects it"),
    ("ss", "the processor's shadow stack cannot be written"),
];

/// By the beginning of the name.
const AIO: (&str, &str) = (
    "/[aio]",
    "requests of asynchronous input and output (io_setup) are under way in the kernel",
);

impl RawVma {
    /// Why it cannot be carried; `None` when it can.
    pub(super) fn why_not(&self) -> Option<&'static str> {
        if matches!(self.name.as_str(), "[vdso]" | "[vvar]" | "[vvar_vclock]") {
            return None;
        }
        let by_flag = FLAGS.iter().find(|(flag, _)| self.has(flag));
        if let Some((_, why)) = by_flag {
            return Some(why);
        }
        if self.name.starts_with(AIO.0) {
            return Some(AIO.1);
        }
        let object = self.name.starts_with("anon_inode:") || self.name == device::SECRET;
        let reason = object.then(|| device::reason(self.name.as_ref()));
        reason.flatten().map(|(why, _)| why)
    }

    /// How messages name it.
    pub(super) fn shown(&self) -> String {
        let text = format!("memory at {:#x} {}", self.start, self.name);
        text.trim_end().to_owned()
    }
}

/// All mappings of a process that cannot be carried: which, and why.
///
/// # Errors
/// /proc/PID/smaps cannot be read.
pub(crate) fn uncarried(pid: i32) -> Result<Vec<(String, &'static str)>> {
    let vmas = read_smaps(pid)?;
    let not = |vma: &RawVma| Some((vma.shown(), vma.why_not()?));
    Ok(vmas.iter().filter_map(not).collect())
}
