//! Reading an address space from outside, while its threads stand still.

use std::{
    fs::{self, File, OpenOptions},
    io::IoSliceMut,
    os::{fd::AsFd, unix::fs::FileExt},
};

use intercept::sys::{self, PageRegion, PagemapScan, page_is};
use nix::{
    sys::uio::{RemoteIoVec, process_vm_readv},
    unistd::Pid,
};

use super::{
    Layout, Mm, Run, Source,
    vma::{Backing, RawVma, Vma, read_smaps},
};
use crate::{
    capture::{Capture, Probe},
    error::{Error, Result},
    image::PAGE,
};

/// The parent's memory, for pages that parent and child still share.
#[derive(Clone, Copy)]
pub struct Parent<'a> {
    /// The parent's pid on this host.
    pub pid: i32,
    /// Its memory, already captured.
    pub mm: &'a Mm,
}

/// Captures the memory of process `pid`, known in the pod as `vpid`; `brk` is its program break.
///
/// # Errors
/// The read that failed. What cannot be carried goes to [`Capture::refuse`].
pub fn capture(
    pid: i32,
    vpid: i32,
    brk: u64,
    parent: Option<Parent<'_>>,
    cx: &mut Capture<'_>,
) -> Result<Mm> {
    let _span = tracing::debug_span!("memory", pid = vpid).entered();
    let raw = read_smaps(pid)?;
    let exe = open_probe(&format!("/proc/{pid}/exe"), vpid, false)?;
    let mut mm = Mm {
        vmas: Vec::with_capacity(raw.len()),
        runs: Vec::new(),
        layout: layout(pid, brk)?,
        exe: cx.description(&exe)?,
        auxv: read(&format!("/proc/{pid}/auxv"))?,
        vdso: Vec::new(),
    };
    for vma in raw.iter().filter(|v| v.name != "[vsyscall]") {
        if let Some(vma) = to_vma(pid, vpid, vma, cx)? {
            mm.vmas.push(vma);
        }
    }
    if let Some(vdso) = mm.vmas.iter().find(|v| v.backing == Backing::Vdso) {
        mm.vdso = read_at(pid, vdso.start, vdso.len())?;
    }
    capture_pages(pid, &mut mm, parent, cx)?;
    Ok(mm)
}

fn read(path: &str) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| Error::file("read", path, e))
}

fn open_probe(path: &str, vpid: i32, write: bool) -> Result<Probe> {
    let file = OpenOptions::new().read(true).write(write).open(path);
    Probe::new(
        vpid,
        None,
        file.map_err(|e| Error::file("open", path, e))?.into(),
    )
}

/// Fields of /proc/PID/stat, proc_pid_stat(5), counted from 1.
fn layout(pid: i32, brk: u64) -> Result<Layout> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).map_err(|e| Error::file("read", &path, e))?;
    let rest = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let fields: Vec<u64> = rest
        .split_whitespace()
        .map(|f| f.parse().unwrap_or(0))
        .collect();
    let field = |n: usize| {
        let why = || Error::Proc {
            path: (&path).into(),
            why: format!("field {n} is missing"),
        };
        fields.get(n - 3).copied().ok_or_else(why)
    };
    Ok(Layout {
        start_code: field(26)?,
        end_code: field(27)?,
        start_data: field(45)?,
        end_data: field(46)?,
        start_brk: field(47)?,
        brk,
        start_stack: field(28)?,
        arg_start: field(48)?,
        arg_end: field(49)?,
        env_start: field(50)?,
        env_end: field(51)?,
    })
}

fn to_vma(pid: i32, vpid: i32, raw: &RawVma, cx: &mut Capture<'_>) -> Result<Option<Vma>> {
    if let Some(why) = raw.why_not() {
        cx.refuse_process(vpid, &raw.shown(), why, super::HINT);
        return Ok(None);
    }
    let backing = backing(pid, vpid, raw, cx)?;
    let (start, end, prot, shared) = (raw.start, raw.end, raw.prot, raw.shared);
    Ok(Some(Vma {
        start,
        end,
        prot,
        shared,
        advice: raw.advice(),
        backing,
    }))
}

fn backing(pid: i32, vpid: i32, raw: &RawVma, cx: &mut Capture<'_>) -> Result<Backing> {
    Ok(match raw.name.as_str() {
        "[vdso]" => Backing::Vdso,
        "[vvar]" | "[vvar_vclock]" => Backing::Vvar,
        // A private mapping of /dev/zero is what anonymous memory was called once.
        "/dev/zero" if !raw.shared => Backing::Anonymous,
        name if name.starts_with("/SYSV") => Backing::SystemV {
            id: raw.inode as i32,
        },
        _ if raw.inode == 0 => Backing::Anonymous,
        _ => {
            let key = [
                raw.device.0,
                raw.device.1,
                raw.inode,
                u64::from(needs_write(raw)),
            ];
            let object = match cx.mapped(&key) {
                Some(object) => object,
                None => map_file(pid, vpid, raw, &key, cx)?,
            };
            Backing::File {
                object,
                offset: raw.offset,
            }
        }
    })
}

/// A shared mapping that may be made writable was mapped through a writable descriptor.
fn needs_write(raw: &RawVma) -> bool {
    raw.shared && raw.has("mw")
}

fn map_file(pid: i32, vpid: i32, raw: &RawVma, key: &[u64], cx: &mut Capture<'_>) -> Result<u32> {
    let write = needs_write(raw);
    let mapped = format!("/proc/{pid}/map_files/{:x}-{:x}", raw.start, raw.end);
    // map_files needs CAP_CHECKPOINT_RESTORE in the first user namespace; a name serves without it.
    let probe = open_probe(&mapped, vpid, write)
        .or_else(|_| open_probe(&format!("/proc/{pid}/root{}", raw.name), vpid, write))?;
    let object = cx.description(&probe)?;
    cx.set_mapped(key, object);
    Ok(object)
}

/// What a scan of private memory asks for: present or swapped, no file's page, not the zero page.
fn private_pages(vma: &Vma) -> PagemapScan {
    PagemapScan {
        start: vma.start,
        end: vma.end,
        category_inverted: page_is::FILE | page_is::PFNZERO,
        category_mask: page_is::FILE | page_is::PFNZERO,
        category_anyof_mask: page_is::PRESENT | page_is::SWAPPED,
        ..PagemapScan::default()
    }
}

/// The parts of a private mapping that hold pages of the process's own.
fn own_regions(pagemap: &File, vma: &Vma) -> std::io::Result<Vec<PageRegion>> {
    let (mut all, mut scan) = (Vec::new(), private_pages(vma));
    let mut page = vec![PageRegion::default(); 1024];
    while scan.start < vma.end {
        match sys::pagemap_scan(pagemap.as_fd(), &mut scan, &mut page) {
            Ok(n) => all.extend_from_slice(&page[..n]),
            Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => {
                return own_regions_by_entry(pagemap, vma);
            }
            Err(e) => return Err(e),
        }
        scan.start = scan.walk_end;
    }
    Ok(all)
}

/// The same from the entries of /proc/PID/pagemap, for kernels before 6.7.
fn own_regions_by_entry(pagemap: &File, vma: &Vma) -> std::io::Result<Vec<PageRegion>> {
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const FILE: u64 = 1 << 61;
    let mut all: Vec<PageRegion> = Vec::new();
    for (i, entry) in entries(pagemap, vma.start, vma.len())?
        .into_iter()
        .enumerate()
    {
        if entry & (PRESENT | SWAPPED) == 0 || entry & FILE != 0 {
            continue;
        }
        let start = vma.start + i as u64 * PAGE;
        match all.last_mut() {
            Some(last) if last.end == start => last.end += PAGE,
            _ => all.push(PageRegion {
                start,
                end: start + PAGE,
                categories: 0,
            }),
        }
    }
    Ok(all)
}

fn entries(pagemap: &File, start: u64, len: u64) -> std::io::Result<Vec<u64>> {
    let mut bytes = vec![0u8; (len / PAGE * 8) as usize];
    pagemap.read_exact_at(&mut bytes, start / PAGE * 8)?;
    Ok(bytes
        .chunks_exact(8)
        .map(|e| u64::from_ne_bytes(e.try_into().unwrap_or_default()))
        .collect())
}

fn capture_pages(
    pid: i32,
    mm: &mut Mm,
    parent: Option<Parent<'_>>,
    cx: &mut Capture<'_>,
) -> Result<()> {
    let open = |pid: i32| {
        let path = format!("/proc/{pid}/pagemap");
        File::open(&path).map_err(|e| Error::file("open", path, e))
    };
    let pagemap = open(pid)?;
    let theirs = parent
        .map(|p| Ok::<_, Error>((open(p.pid)?, p.mm)))
        .transpose()?;
    let family = theirs.is_some() || has_children(pid);
    let mut parts = Vec::new();
    for vma in mm.vmas.iter().filter(|v| v.is_private()) {
        let failed = |e| {
            Error::kernel(
                "PAGEMAP_SCAN",
                format!("memory at {:#x} of task {pid}", vma.start),
                e,
            )
        };
        let alone = match vma.prot & libc::PROT_READ as u32 {
            0 => Held::WithOthers,
            _ => Held::Alone,
        };
        let parent = theirs.as_ref().filter(|(_, mm)| inherits(mm, vma));
        for region in own_regions(&pagemap, vma).map_err(failed)? {
            if family {
                split(
                    &pagemap,
                    parent.map(|(map, _)| map),
                    region,
                    alone,
                    &mut parts,
                )
                .map_err(failed)?;
            } else {
                parts.push(Part::new(region.start, region.end, alone));
            }
        }
    }
    mm.runs = store(pid, &parts, cx)?;
    Ok(())
}

/// True when a fork of the parent has this mapping as it is: under another protection it is mapped anew, so
/// its pages must be in the image.
pub(super) fn inherits(parent: &Mm, vma: &Vma) -> bool {
    use super::Advice;
    let lost = [Advice::DontFork, Advice::WipeOnFork];
    let at = parent.vmas.binary_search_by_key(&vma.start, |v| v.start);
    at.is_ok_and(|i| {
        let theirs = &parent.vmas[i];
        theirs.end == vma.end
            && theirs.prot == vma.prot
            && theirs.is_private()
            && theirs.backing == vma.backing
            && !lost
                .iter()
                .any(|l| theirs.advice.contains(l) || vma.advice.contains(l))
    })
}

/// Who has a page frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// The parent, too: it need not be stored twice.
    ByParent,
    /// Maybe others, or it may not be read by the process itself: it is read through /proc/PID/mem.
    WithOthers,
    /// Nobody else.
    Alone,
}

/// Pages that are held alike.
#[derive(Debug, Clone, Copy)]
struct Part {
    start: u64,
    end: u64,
    held: Held,
}

impl Part {
    fn new(start: u64, end: u64, held: Held) -> Self {
        Self { start, end, held }
    }
}

fn has_children(pid: i32) -> bool {
    crate::freeze::descendants(pid).map_or(true, |all| !all.is_empty())
}

/// Splits a region by who has its page frames; `alone` is what is said of those that nobody else has.
fn split(
    ours: &File,
    theirs: Option<&File>,
    region: PageRegion,
    alone: Held,
    parts: &mut Vec<Part>,
) -> std::io::Result<()> {
    const FRAME: u64 = (1 << 55) - 1;
    /// Mapped once (Documentation/admin-guide/mm/pagemap.rst).
    const EXCLUSIVE: u64 = 1 << 56;
    let len = region.end - region.start;
    let own = entries(ours, region.start, len)?;
    let their = theirs
        .map(|map| entries(map, region.start, len))
        .transpose()?;
    let first = parts.len();
    for (i, entry) in own.iter().enumerate() {
        let start = region.start + i as u64 * PAGE;
        // Without privilege the kernel shows frame 0: then nothing counts as the parent's.
        let same = |other: &u64| {
            entry & FRAME != 0 && entry & FRAME == other & FRAME && (entry & other) >> 63 == 1
        };
        let held = match &their {
            Some(other) if same(&other[i]) => Held::ByParent,
            _ if entry & EXCLUSIVE == 0 => Held::WithOthers,
            _ => alone,
        };
        match parts[first..].last_mut() {
            Some(last) if last.held == held => last.end += PAGE,
            _ => parts.push(Part::new(start, start + PAGE, held)),
        }
    }
    Ok(())
}

/// Reads at most so many bytes at a time: larger buffers fall out of the cache.
const CHUNK: usize = 1 << 20;

/// Writes pages to the image. A frame that others have, too, is not read by process_vm_readv(2): that
/// pins it, and the kernel gives a pinned page a copy of its own (`gup_must_unshare`, mm/gup.c), which
/// would end the sharing that is about to be noted.
fn store(pid: i32, parts: &[Part], cx: &mut Capture<'_>) -> Result<Vec<Run>> {
    let (mut runs, mut buf) = (Vec::with_capacity(parts.len()), vec![0u8; CHUNK]);
    let mem = File::open(format!("/proc/{pid}/mem"))
        .map_err(|e| Error::file("open", format!("/proc/{pid}/mem"), e))?;
    for Part { start, end, held } in parts.iter().copied() {
        let len = end - start;
        let mut source = (held == Held::ByParent).then_some(Source::ParentProcess);
        let stored = if source.is_some() { start } else { end };
        for at in (start..stored).step_by(CHUNK) {
            let part = &mut buf[..CHUNK.min((end - at) as usize)];
            if held == Held::Alone {
                read_into(pid, at, part)?;
            } else {
                read_forced(&mem, pid, at, part)?;
            }
            let offset = cx.writer.append(part)?;
            source.get_or_insert(Source::Here(offset));
        }
        runs.extend(source.map(|source| Run { start, len, source }));
    }
    Ok(runs)
}

fn memory_error(pid: i32, addr: u64, source: std::io::Error) -> Error {
    intercept::tracee::TraceError::Memory {
        tid: pid,
        addr,
        source,
    }
    .into()
}

fn read_into(pid: i32, addr: u64, buf: &mut [u8]) -> Result<()> {
    let remote = [RemoteIoVec {
        base: addr as usize,
        len: buf.len(),
    }];
    let want = buf.len();
    match process_vm_readv(Pid::from_raw(pid), &mut [IoSliceMut::new(buf)], &remote) {
        Ok(n) if n == want => Ok(()),
        Ok(_) => Err(memory_error(
            pid,
            addr,
            std::io::Error::from_raw_os_error(libc::EFAULT),
        )),
        Err(e) => Err(memory_error(pid, addr, e.into())),
    }
}

/// Memory without PROT_READ: /proc/PID/mem reads it for a tracer.
fn read_forced(mem: &File, pid: i32, addr: u64, buf: &mut [u8]) -> Result<()> {
    mem.read_exact_at(buf, addr)
        .map_err(|e| memory_error(pid, addr, e))
}

fn read_at(pid: i32, addr: u64, len: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    read_into(pid, addr, &mut bytes)?;
    Ok(bytes)
}
