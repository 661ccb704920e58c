//! System V shared memory. A mapping of a segment refers to it by its id.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::FileExt},
};

use intercept::sys;
use nix::sys::statfs::{FsType, fstatfs};
use serde::{Deserialize, Serialize};

use super::perm::{Perm, make, rows};
use crate::{
    capture::Capture,
    error::{Error, Result},
    image::{Content, Image, Record},
};

/// A segment. Its number is its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Segment {
    perm: Perm,
    /// Size, in bytes.
    size: u64,
    content: Content,
}

impl Record for Segment {
    const KIND: &'static str = "shm";
    const VERSION: u16 = 1;
}

/// `SHM_DEST`: removed when the last one detaches.
const REMOVED: u32 = 0o1000;
/// `SHM_LOCKED`: not swapped out.
const LOCKED: u32 = 0o2000;

/// A segment that was seen, with its memory as a file.
pub(super) struct Found {
    perm: Perm,
    size: u64,
    file: File,
    huge: bool,
}

/// Looks at all segments of the calling thread's namespace.
pub(super) fn look() -> Result<Vec<(i32, Found)>> {
    let mut all = Vec::new();
    for row in rows("shm")? {
        let (id, perm, size) = (row.id(), row.perm(7), row.column(3) as u64);
        let failed = |e| Error::kernel("open", format!("shm {id}"), e);
        let file = Attached::new(id, size, true)
            .and_then(|a| a.file())
            .map_err(failed)?;
        let huge = fstatfs(file.as_fd())
            .map_err(|e| failed(e.into()))?
            .filesystem_type()
            == FsType(libc::HUGETLBFS_MAGIC);
        all.push((
            id,
            Found {
                perm,
                size,
                file,
                huge,
            },
        ));
    }
    Ok(all)
}

impl Found {
    pub(super) fn record(self, id: i32, cx: &mut Capture<'_>) -> Result<()> {
        if self.huge {
            let (what, hint) = (format!("shared memory {id}"), "use ordinary pages");
            cx.refuse_process(1, &what, "it is in huge pages of hugetlbfs", hint);
            return Ok(());
        }
        let content = cx.writer.content(&self.file, &format!("shm {id}"))?;
        let (perm, size) = (self.perm, self.size);
        cx.writer.record(
            id as u32,
            &Segment {
                perm,
                size,
                content,
            },
        )
    }
}

/// A segment attached to our own memory.
struct Attached {
    at: *mut libc::c_void,
    len: usize,
}

impl Attached {
    fn new(id: i32, size: u64, read_only: bool) -> io::Result<Self> {
        let flags = if read_only { libc::SHM_RDONLY } else { 0 };
        // SAFETY: the kernel chooses the address.
        let at = unsafe { libc::shmat(id, std::ptr::null(), flags) };
        if at.addr() == usize::MAX {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            at,
            len: size as usize,
        })
    }

    /// The segment's file: what it has never touched stays a hole. Where mappings cannot be opened, a copy.
    fn file(&self) -> io::Result<File> {
        let (start, end) = (
            self.at.addr(),
            self.at.addr() + self.len.next_multiple_of(4096),
        );
        File::open(format!("/proc/self/map_files/{start:x}-{end:x}")).or_else(|_| self.copy())
    }

    fn copy(&self) -> io::Result<File> {
        let copy = File::from(sys::memfd_create(c"segment", 0)?);
        // SAFETY: attached and `len` long; the pod, which could write to it, stands still.
        let bytes = unsafe { std::slice::from_raw_parts(self.at.cast::<u8>(), self.len) };
        copy.write_all_at(bytes, 0)?;
        Ok(copy)
    }

    fn fill(&mut self, content: &Content, pages: &File) -> io::Result<()> {
        // SAFETY: attached for writing, `len` long, and known to nobody else yet.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.at.cast::<u8>(), self.len) };
        for extent in &content.extents {
            let end = extent.at.checked_add(extent.len);
            let place = end.and_then(|end| bytes.get_mut(extent.at as usize..end as usize));
            let place = place.ok_or_else(|| io::Error::other("data outside of the segment"))?;
            pages.read_exact_at(place, extent.offset)?;
        }
        Ok(())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // SAFETY: attached by `new`; no reference into it outlives this value.
        unsafe { libc::shmdt(self.at) };
    }
}

/// Makes all segments of an image.
pub(super) fn rebuild(image: &Image) -> Result<()> {
    for (id, segment) in image.all::<Segment>()? {
        segment.make(id as i32, image.pages())?;
    }
    Ok(())
}

impl Segment {
    fn make(&self, id: i32, pages: &File) -> Result<()> {
        let failed = |step, e| Error::kernel(step, format!("shm {id}"), e);
        let flags = libc::IPC_CREAT | libc::IPC_EXCL | (self.perm.mode & 0o777) as i32;
        // SAFETY: plain values only.
        make("shm", id, &self.perm, || unsafe {
            libc::shmget(self.perm.key, self.size as usize, flags)
        })?;
        let filled = Attached::new(id, self.size, false)
            .and_then(|mut attached| attached.fill(&self.content, pages));
        filled.map_err(|e| failed("fill", e))?;
        self.set_owner(id).map_err(|e| failed("shmctl", e))
    }

    fn set_owner(&self, id: i32) -> io::Result<()> {
        // SAFETY: plain data for which zero is a valid value.
        let mut status: libc::shmid_ds = unsafe { std::mem::zeroed() };
        status.shm_perm.uid = self.perm.owner.0;
        status.shm_perm.gid = self.perm.owner.1;
        status.shm_perm.mode = (self.perm.mode & 0o777) as _;
        // SAFETY: `status` outlives the call.
        sys::check(unsafe { libc::shmctl(id, libc::IPC_SET, &raw mut status) }.into())?;
        if self.perm.mode & LOCKED == 0 {
            return Ok(());
        }
        // SAFETY: the command takes no argument.
        let r = unsafe { libc::shmctl(id, libc::SHM_LOCK, std::ptr::null_mut()) };
        sys::check(r.into()).map(drop)
    }
}

/// Marks those segments for removal that were; they are attached by now.
pub(super) fn mark_removed(image: &Image) -> Result<()> {
    let removed = |s: &Segment| s.perm.mode & REMOVED != 0;
    for (id, _) in image.all::<Segment>()?.iter().filter(|(_, s)| removed(s)) {
        // SAFETY: the command takes no argument.
        let r = unsafe { libc::shmctl(*id as i32, libc::IPC_RMID, std::ptr::null_mut()) };
        sys::check(r.into())
            .map_err(|e| Error::kernel("shmctl IPC_RMID", format!("shm {id}"), e))?;
    }
    Ok(())
}
