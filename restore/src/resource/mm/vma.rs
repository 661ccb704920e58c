//! One mapping, and how it is read from /proc/PID/smaps.

use std::{
    fs::File,
    io::{BufRead, BufReader},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    resource::ObjectId,
};

/// A mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// `PROT_*`.
    pub prot: u32,
    /// `MAP_SHARED` rather than `MAP_PRIVATE`.
    pub shared: bool,
    /// What was said about it by mmap, madvise and mlock.
    pub advice: Vec<Advice>,
    /// What lies behind it.
    pub backing: Backing,
}

/// What lies behind a mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backing {
    /// Nothing: zero pages of its own.
    Anonymous,
    /// A file (or shared anonymous memory, or a memfd) from this offset on.
    File {
        /// The description it was mapped through.
        object: ObjectId,
        /// Offset, in bytes.
        offset: u64,
    },
    /// A System V segment, by its virtual id.
    SystemV {
        /// The id.
        id: i32,
    },
    /// The kernel's code for the process.
    Vdso,
    /// The kernel's data for that code.
    Vvar,
}

/// `VmFlags` that a restart must say again (Documentation/filesystems/proc.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Advice {
    /// `MAP_GROWSDOWN`.
    GrowsDown,
    /// `MAP_NORESERVE`.
    NoReserve,
    /// `mlock`.
    Locked,
    /// `MADV_SEQUENTIAL`.
    Sequential,
    /// `MADV_RANDOM`.
    Random,
    /// `MADV_DONTFORK`.
    DontFork,
    /// `MADV_WIPEONFORK`.
    WipeOnFork,
    /// `MADV_DONTDUMP`.
    DontDump,
    /// `MADV_HUGEPAGE`.
    Huge,
    /// `MADV_NOHUGEPAGE`.
    NoHuge,
    /// `MADV_MERGEABLE`.
    Mergeable,
}

const FLAGS: [(&str, Advice); 11] = [
    ("gd", Advice::GrowsDown),
    ("nr", Advice::NoReserve),
    ("lo", Advice::Locked),
    ("sr", Advice::Sequential),
    ("rr", Advice::Random),
    ("dc", Advice::DontFork),
    ("wf", Advice::WipeOnFork),
    ("dd", Advice::DontDump),
    ("hg", Advice::Huge),
    ("nh", Advice::NoHuge),
    ("mg", Advice::Mergeable),
];

impl Advice {
    /// The `madvise` advice that says it, where it is one.
    #[must_use]
    pub fn madvise(self) -> Option<i32> {
        Some(match self {
            Self::GrowsDown | Self::NoReserve | Self::Locked => return None,
            Self::Sequential => libc::MADV_SEQUENTIAL,
            Self::Random => libc::MADV_RANDOM,
            Self::DontFork => libc::MADV_DONTFORK,
            Self::WipeOnFork => libc::MADV_WIPEONFORK,
            Self::DontDump => libc::MADV_DONTDUMP,
            Self::Huge => libc::MADV_HUGEPAGE,
            Self::NoHuge => libc::MADV_NOHUGEPAGE,
            Self::Mergeable => libc::MADV_MERGEABLE,
        })
    }
}

impl Vma {
    /// Length, in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// True for a mapping of no length, which the kernel does not make.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// True when pages written here belong to the process alone.
    #[must_use]
    pub fn is_private(&self) -> bool {
        !self.shared && matches!(self.backing, Backing::Anonymous | Backing::File { .. })
    }
}

/// A mapping as /proc tells it, before its file has become an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RawVma {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) prot: u32,
    pub(super) shared: bool,
    pub(super) offset: u64,
    pub(super) device: (u64, u64),
    pub(super) inode: u64,
    pub(super) name: String,
    pub(super) flags: Vec<String>,
}

impl RawVma {
    pub(super) fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|f| f == flag)
    }

    pub(super) fn advice(&self) -> Vec<Advice> {
        FLAGS
            .iter()
            .filter(|(flag, _)| self.has(flag))
            .map(|(_, advice)| *advice)
            .collect()
    }
}

/// Reads /proc/PID/smaps.
pub(super) fn read_smaps(pid: i32) -> Result<Vec<RawVma>> {
    let path = format!("/proc/{pid}/smaps");
    let file = File::open(&path).map_err(|e| Error::file("open", &path, e))?;
    let mut vmas: Vec<RawVma> = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line.map_err(|e| Error::file("read", &path, e))?;
        if let Some(flags) = line.strip_prefix("VmFlags: ") {
            if let Some(last) = vmas.last_mut() {
                last.flags = flags.split_whitespace().map(str::to_owned).collect();
            }
        } else if let Some(vma) = parse_header(&line) {
            vmas.push(vma);
        }
    }
    Ok(vmas)
}

/// Reads /proc/PID/maps: ranges and names only.
pub(super) fn read_maps(pid: i32) -> Result<Vec<RawVma>> {
    let path = format!("/proc/{pid}/maps");
    let text = std::fs::read_to_string(&path).map_err(|e| Error::file("read", &path, e))?;
    Ok(text.lines().filter_map(parse_header).collect())
}

/// `start-end perms offset major:minor inode   name`; anything else is no header line.
fn parse_header(line: &str) -> Option<RawVma> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let perms = words.next()?.as_bytes();
    let hex = |s: &str| u64::from_str_radix(s, 16).ok();
    let prot = [
        (b'r', libc::PROT_READ),
        (b'w', libc::PROT_WRITE),
        (b'x', libc::PROT_EXEC),
    ];
    let set = perms
        .iter()
        .zip(prot)
        .filter(|(p, (letter, _))| **p == *letter);
    let offset = hex(words.next()?)?;
    let (major, minor) = words.next()?.split_once(':')?;
    Some(RawVma {
        start: hex(start)?,
        end: hex(end)?,
        prot: set.map(|(_, (_, bit))| bit as u32).sum(),
        shared: perms.get(3) == Some(&b's'),
        offset,
        device: (hex(major)?, hex(minor)?),
        inode: words.next()?.parse().ok()?,
        name: words.next().unwrap_or("").trim_start().to_owned(),
        flags: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_is_read_whole() {
        let line = "7f0a-7f0c r-xp 0000b000 fe:01 1234                           /usr/lib/a b.so (deleted)";
        let vma = parse_header(line).unwrap();
        assert_eq!(
            (vma.start, vma.end, vma.offset, vma.inode),
            (0x7f0a, 0x7f0c, 0xb000, 1234)
        );
        assert_eq!((vma.prot, vma.shared, vma.device), (5, false, (0xfe, 1)));
        assert_eq!(vma.name, "/usr/lib/a b.so (deleted)");
        assert_eq!(parse_header("Size:                132 kB"), None);
    }

    #[test]
    fn our_own_smaps_have_flags() {
        let vmas = read_smaps(std::process::id() as i32).unwrap();
        let stack = vmas.iter().find(|v| v.name == "[stack]").unwrap();
        assert!(stack.advice().contains(&Advice::GrowsDown));
    }
}
