//! Rebuilding an address space inside a puppet.
//!
//! ```text
//! clear: all but the stub and what is inherited ─▶ map ─▶ vDSO ─▶ read pages in ─▶ protect, advise
//!   ─▶ tell the kernel the layout and the program (PR_SET_MM_MAP)
//! ```

use super::{
    Advice, Backing, Mm, Run, Source, Vma,
    capture::inherits,
    vma::{RawVma, read_maps},
};
use crate::{
    error::{Error, Result},
    remote::Batch,
    resource::ObjectId,
    restart::{PAGES_OBJECT, Puppet, Site},
};
use intercept::stub;

/// The parent's memory, which a forked puppet has when its own is rebuilt.
#[derive(Clone, Copy)]
pub struct Inherited<'a> {
    /// The parent's record.
    pub parent: &'a Mm,
}

/// Gives a puppet the memory of `mm`.
///
/// # Errors
/// The call that failed in it.
pub fn rebuild(
    mm: &Mm,
    inherited: Option<Inherited<'_>>,
    puppet: &mut Puppet,
    site: &mut dyn Site,
) -> Result<()> {
    let kept: Vec<&Vma> = match inherited {
        Some(i) => mm
            .vmas
            .iter()
            .filter(|v| v.is_private() && same_protection(i.parent, v))
            .collect(),
        None => Vec::new(),
    };
    clear(puppet, &kept)?;
    map_all(mm, &kept, puppet, site)?;
    map_vdso(mm, puppet)?;
    if let Some(inherited) = inherited {
        forget_pages(mm, inherited.parent, &kept, puppet)?;
    }
    read_pages(mm, puppet, site)?;
    protect_and_advise(mm, puppet)?;
    tell_layout(mm, inherited, puppet, site)
}

fn same_protection(parent: &Mm, vma: &Vma) -> bool {
    inherits(parent, vma)
        && parent
            .vmas
            .iter()
            .any(|v| v.start == vma.start && v.prot == vma.prot)
}

/// Runs calls in as many batches as they need.
struct Calls<'p> {
    puppet: &'p mut Puppet,
    batch: Batch,
}

impl<'p> Calls<'p> {
    fn new(puppet: &'p mut Puppet) -> Self {
        Self {
            puppet,
            batch: Batch::new(),
        }
    }

    fn call(&mut self, name: &'static str, nr: i64, args: &[u64]) -> Result<()> {
        if !self.batch.has_room(1, 0) {
            self.flush()?;
        }
        self.batch.call(name, nr, args);
        Ok(())
    }

    /// A call whose failure changes speed only.
    fn attempt(&mut self, name: &'static str, nr: i64, args: &[u64]) -> Result<()> {
        if !self.batch.has_room(1, 0) {
            self.flush()?;
        }
        self.batch.try_call(name, nr, args);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.puppet.run(std::mem::take(&mut self.batch)).map(drop)
    }
}

/// Unmaps everything but the stub, the kernel's fixed page and what is kept.
fn clear(puppet: &mut Puppet, kept: &[&Vma]) -> Result<()> {
    let spare = (stub::ADDR, stub::ADDR + stub::LEN);
    let mut keep: Vec<(u64, u64)> = kept
        .iter()
        .map(|v| (v.start, v.end))
        .chain([spare])
        .collect();
    keep.sort_unstable();
    let maps = read_maps(puppet.task()?.tid())?;
    let mut calls = Calls::new(puppet);
    for vma in maps.iter().filter(|v| v.name != "[vsyscall]") {
        for (start, end) in without(vma, &keep) {
            calls.call("munmap", libc::SYS_munmap, &[start, end - start])?;
        }
    }
    calls.flush()
}

/// The parts of a mapping that lie in none of the `keep` ranges, which are in order.
fn without(vma: &RawVma, keep: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let (mut at, mut parts) = (vma.start, Vec::new());
    for (start, end) in keep.iter().filter(|(s, e)| *s < vma.end && *e > vma.start) {
        if *start > at {
            parts.push((at, *start));
        }
        at = at.max(*end);
    }
    if at < vma.end {
        parts.push((at, vma.end));
    }
    parts
}

/// Protection while pages are read in: private mappings are writable then.
fn first_protection(vma: &Vma) -> u64 {
    let write = if vma.is_private() {
        libc::PROT_WRITE as u32
    } else {
        0
    };
    u64::from(vma.prot | write)
}

fn map_all(mm: &Mm, kept: &[&Vma], puppet: &mut Puppet, site: &mut dyn Site) -> Result<()> {
    let fresh: Vec<&Vma> = mm
        .vmas
        .iter()
        .filter(|v| !kept.iter().any(|k| k.start == v.start))
        .collect();
    let objects: Vec<ObjectId> = fresh.iter().filter_map(|v| object(v)).collect();
    let numbers = puppet.fetch(&objects, site)?;
    let numbers: std::collections::HashMap<_, _> = objects.into_iter().zip(numbers).collect();
    let mut calls = Calls::new(puppet);
    for vma in fresh {
        let fd = object(vma).map(|o| numbers[&o]);
        map(vma, fd, &mut calls)?;
    }
    calls.flush()
}

fn object(vma: &Vma) -> Option<ObjectId> {
    match vma.backing {
        Backing::File { object, .. } => Some(object),
        _ => None,
    }
}

fn map(vma: &Vma, fd: Option<i32>, calls: &mut Calls<'_>) -> Result<()> {
    let mut flags = libc::MAP_FIXED
        | if vma.shared {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE
        };
    for (advice, flag) in [
        (Advice::GrowsDown, libc::MAP_GROWSDOWN),
        (Advice::NoReserve, libc::MAP_NORESERVE),
    ] {
        if vma.advice.contains(&advice) {
            flags |= flag;
        }
    }
    let (len, prot) = (vma.len(), first_protection(vma));
    match vma.backing {
        Backing::Anonymous => {
            let flags = (flags | libc::MAP_ANONYMOUS) as u64;
            calls.call(
                "mmap",
                libc::SYS_mmap,
                &[vma.start, len, prot, flags, u64::MAX, 0],
            )
        }
        Backing::File { offset, .. } => {
            let fd = fd.unwrap_or(-1) as u64;
            calls.call(
                "mmap of a file",
                libc::SYS_mmap,
                &[vma.start, len, prot, flags as u64, fd, offset],
            )
        }
        Backing::SystemV { id } => attach(vma, id, calls),
        Backing::Vdso | Backing::Vvar => Ok(()),
    }
}

fn attach(vma: &Vma, id: i32, calls: &mut Calls<'_>) -> Result<()> {
    let read_only = vma.prot & libc::PROT_WRITE as u32 == 0;
    let flags = if read_only { libc::SHM_RDONLY } else { 0 };
    calls.call(
        "shmat",
        libc::SYS_shmat,
        &[id as u64, vma.start, flags as u64],
    )
}

/// Maps this kernel's vDSO where the old one was, when the two are the same.
fn map_vdso(mm: &Mm, puppet: &mut Puppet) -> Result<()> {
    let kernel = |v: &&Vma| matches!(v.backing, Backing::Vdso | Backing::Vvar);
    let Some(first) = mm.vmas.iter().find(kernel) else {
        return Ok(());
    };
    const ARCH_MAP_VDSO_64: u64 = 0x2003;
    let mut batch = Batch::new();
    batch.call(
        "arch_prctl ARCH_MAP_VDSO_64",
        libc::SYS_arch_prctl,
        &[ARCH_MAP_VDSO_64, first.start],
    );
    puppet.run(batch)?;
    let maps = read_maps(puppet.task()?.tid())?;
    let place = mm
        .vmas
        .iter()
        .find(|v| v.backing == Backing::Vdso)
        .map(|v| (v.start, v.end));
    let here = maps
        .iter()
        .find(|v| v.name == "[vdso]")
        .map(|v| (v.start, v.end));
    let mut bytes = vec![0; mm.vdso.len()];
    if place == here && place.is_some() {
        puppet.task()?.read(here.map_or(0, |h| h.0), &mut bytes)?;
    }
    if place != here || bytes != mm.vdso {
        let why = "its kernel gives programs another vDSO than the one they started with";
        return Err(Error::Unfit {
            object: "the image".into(),
            why: why.into(),
        });
    }
    Ok(())
}

/// Drops pages of kept mappings that the parent has and the child has not.
fn forget_pages(mm: &Mm, parent: &Mm, kept: &[&Vma], puppet: &mut Puppet) -> Result<()> {
    let mut calls = Calls::new(puppet);
    let shared: Vec<(u64, u64)> = mm.runs.iter().map(|r| (r.start, r.start + r.len)).collect();
    for run in &parent.runs {
        if !kept
            .iter()
            .any(|v| v.start <= run.start && run.start < v.end)
        {
            continue;
        }
        let raw = RawVma {
            start: run.start,
            end: run.start + run.len,
            ..RawVma::default()
        };
        for (start, end) in without(&raw, &shared) {
            let args = [start, end - start, libc::MADV_DONTNEED as u64];
            calls.call("madvise", libc::SYS_madvise, &args)?;
        }
    }
    calls.flush()
}

/// The most that one read transfers (`MAX_RW_COUNT`, a page less than 2 GiB).
const MOST: u64 = 0x7fff_f000;

/// The task reads its own pages from the image: no copy through us.
fn read_pages(mm: &Mm, puppet: &mut Puppet, site: &mut dyn Site) -> Result<()> {
    if !mm.runs.iter().any(|r| matches!(r.source, Source::Here(_))) {
        return Ok(());
    }
    make_kept_writable(mm, puppet)?;
    let pages = puppet.fetch(&[PAGES_OBJECT], site)?[0];
    let mut calls = Calls::new(puppet);
    for run in &mm.runs {
        let Run {
            start,
            len,
            source: Source::Here(offset),
        } = *run
        else {
            continue;
        };
        for done in (0..len).step_by(MOST as usize) {
            let n = MOST.min(len - done);
            calls.call(
                "pread64",
                libc::SYS_pread64,
                &[pages as u64, start + done, n, offset + done],
            )?;
        }
    }
    calls.flush()
}

/// Kept mappings have their final protection already; pages are read into some of them.
fn make_kept_writable(mm: &Mm, puppet: &mut Puppet) -> Result<()> {
    let mut calls = Calls::new(puppet);
    for vma in mm
        .vmas
        .iter()
        .filter(|v| v.is_private() && first_protection(v) != u64::from(v.prot))
    {
        calls.call(
            "mprotect",
            libc::SYS_mprotect,
            &[vma.start, vma.len(), first_protection(vma)],
        )?;
    }
    calls.flush()
}

fn protect_and_advise(mm: &Mm, puppet: &mut Puppet) -> Result<()> {
    let mut calls = Calls::new(puppet);
    for vma in &mm.vmas {
        if vma.is_private() && first_protection(vma) != u64::from(vma.prot) {
            calls.call(
                "mprotect",
                libc::SYS_mprotect,
                &[vma.start, vma.len(), u64::from(vma.prot)],
            )?;
        }
        if matches!(vma.backing, Backing::Vdso | Backing::Vvar) {
            continue;
        }
        for advice in vma.advice.iter().filter_map(|a| a.madvise()) {
            calls.attempt(
                "madvise",
                libc::SYS_madvise,
                &[vma.start, vma.len(), advice as u64],
            )?;
        }
        if vma.advice.contains(&Advice::Locked) {
            calls.call("mlock", libc::SYS_mlock, &[vma.start, vma.len()])?;
        }
    }
    calls.flush()
}

/// `PR_SET_MM_MAP`: layout, auxiliary vector and program in one call (prctl(2)).
fn tell_layout(
    mm: &Mm,
    inherited: Option<Inherited<'_>>,
    puppet: &mut Puppet,
    site: &mut dyn Site,
) -> Result<()> {
    let same_exe = inherited.is_some_and(|i| i.parent.exe == mm.exe);
    let exe = if same_exe {
        -1
    } else {
        let held = puppet.fetch(&[mm.exe], site)?[0];
        if executes(puppet.task()?.tid(), held)? {
            -1
        } else {
            held
        }
    };
    let l = &mm.layout;
    let mut batch = Batch::new();
    let auxv = batch.bytes(&mm.auxv);
    let map = batch.words(&[
        l.start_code,
        l.end_code,
        l.start_data,
        l.end_data,
        l.start_brk,
        l.brk,
        l.start_stack,
        l.arg_start,
        l.arg_end,
        l.env_start,
        l.env_end,
        auxv,
        u64::from(exe as u32) << 32 | mm.auxv.len() as u64,
    ]);
    let args = [
        libc::PR_SET_MM as u64,
        libc::PR_SET_MM_MAP as u64,
        map,
        104,
        0,
    ];
    batch.call("prctl PR_SET_MM_MAP", libc::SYS_prctl, &args);
    puppet.run(batch).map(drop)
}

/// True when descriptor `fd` of a task is the file it executes: it was forked from one that does, and the
/// kernel refuses (`EBUSY`) to change the program while the old one is mapped, even to itself.
fn executes(tid: i32, fd: i32) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let identity = |path: String| {
        std::fs::metadata(&path)
            .map(|m| (m.dev(), m.ino()))
            .map_err(|e| Error::file("stat", path, e))
    };
    Ok(identity(format!("/proc/{tid}/exe"))? == identity(format!("/proc/{tid}/fd/{fd}"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_cuts_kept_ranges_out() {
        let vma = RawVma {
            start: 10,
            end: 50,
            ..RawVma::default()
        };
        assert_eq!(without(&vma, &[]), [(10, 50)]);
        assert_eq!(without(&vma, &[(0, 10), (50, 60)]), [(10, 50)]);
        assert_eq!(
            without(&vma, &[(5, 15), (20, 30), (45, 60)]),
            [(15, 20), (30, 45)]
        );
        assert_eq!(without(&vma, &[(10, 50)]), []);
    }
}
