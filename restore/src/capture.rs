//! What a capture knows while it goes on: objects seen, numbers given, things refused.
//!
//! Descriptions are found through duplicates in our own process, whatever their owner: a
//! descriptor of a task (pidfd_getfd), one in flight on a unix socket (peeked), a mapped
//! file. Two duplicates are one description exactly when kcmp says so, and because kcmp
//! orders descriptions, finding one among thousands takes a binary search.

use std::{
    any::{Any, TypeId},
    cmp::Ordering,
    collections::{HashMap, VecDeque},
    fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use intercept::sys::{self, Kcmp};
use nix::{
    fcntl::{FcntlArg, fcntl},
    sys::stat::{FileStat, fstat},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Refusal, Result},
    image::{Record, Writer},
    network::Network,
    resource::{ObjectId, ROOMS, lock, tty},
};

/// A descriptor that a capture looks at: a duplicate of our own with what /proc says of it.
pub struct Probe {
    /// The process that holds it, by its virtual pid, for messages.
    pub pid: i32,
    /// Its number there, for messages; `None` when it is in flight or mapped.
    pub number: Option<i32>,
    /// The duplicate. It shares offset, flags and queues with the pod's: read without moving anything.
    pub file: OwnedFd,
    /// What /proc/PID/fd/N points to: a path as the pod sees it, or `kind:[inode]`.
    pub link: PathBuf,
    /// Its status.
    pub stat: FileStat,
    /// `F_GETFL`.
    pub flags: i32,
    /// The file offset.
    pub pos: u64,
    /// The text of /proc/PID/fdinfo/N.
    pub fdinfo: String,
}

impl Probe {
    /// Looks at a duplicate.
    ///
    /// # Errors
    /// [`Error::Kernel`] or [`Error::File`] of the step that failed.
    pub fn new(pid: i32, number: Option<i32>, file: OwnedFd) -> Result<Self> {
        let (own, name) = (file.as_raw_fd(), describe(pid, number));
        let link = format!("/proc/self/fd/{own}");
        let link = fs::read_link(&link).map_err(|e| Error::file("readlink", link, e))?;
        let info = format!("/proc/self/fdinfo/{own}");
        let fdinfo = fs::read_to_string(&info).map_err(|e| Error::file("read", info, e))?;
        let stat = fstat(&file).map_err(|e| Error::kernel("fstat", &name, e))?;
        let flags = fcntl(&file, FcntlArg::F_GETFL)
            .map_err(|e| Error::kernel("fcntl F_GETFL", &name, e))?;
        let mut probe = Self {
            pid,
            number,
            file,
            link,
            stat,
            flags,
            pos: 0,
            fdinfo,
        };
        probe.pos = probe
            .field("pos:")
            .and_then(|v| v.parse().ok())
            .unwrap_or(0);
        Ok(probe)
    }

    /// Another duplicate with what is known of it.
    ///
    /// # Errors
    /// [`Error::Kernel`] when there is no descriptor left.
    pub fn try_clone(&self) -> Result<Self> {
        let file = self.file.try_clone();
        Ok(Self {
            file: file.map_err(|e| Error::kernel("dup", self.name(), e))?,
            link: self.link.clone(),
            fdinfo: self.fdinfo.clone(),
            ..*self
        })
    }

    /// The first value of a field of fdinfo, by its name with the colon.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fdinfo
            .lines()
            .find_map(|l| l.strip_prefix(name))
            .map(str::trim)
    }

    /// True when the link is exactly this, as `anon_inode:[eventpoll]`.
    #[must_use]
    pub fn is_link(&self, link: &str) -> bool {
        self.link.as_os_str() == link
    }

    /// `S_IFMT` bits of its mode.
    #[must_use]
    pub fn file_type(&self) -> u32 {
        self.stat.st_mode & libc::S_IFMT
    }

    /// The error for a fdinfo that does not read as it should.
    #[must_use]
    pub fn unreadable(&self, why: &str) -> Error {
        Error::Proc {
            path: PathBuf::from(format!("/proc/self/fdinfo/{}", self.file.as_raw_fd())),
            why: format!("{why}, of {}", self.name()),
        }
    }

    /// How messages name it.
    #[must_use]
    pub fn name(&self) -> String {
        format!(
            "{} ({})",
            describe(self.pid, self.number),
            self.link.display()
        )
    }
}

fn describe(pid: i32, number: Option<i32>) -> String {
    match number {
        Some(fd) => format!("descriptor {fd} of process {pid}"),
        None => format!("a file of process {pid}"),
    }
}

/// What every description has, whatever its kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Which kind of record holds the rest, under the same number.
    pub kind: String,
    /// `F_GETFL`.
    pub flags: i32,
    /// `F_GETOWN_EX` as (type, virtual id), where there is an owner.
    pub owner: Option<(i32, i32)>,
    /// `F_GETSIG`.
    pub signal: i32,
}

impl Record for Attributes {
    const KIND: &'static str = "description";
    const VERSION: u16 = 1;
}

/// Work of a room that has to wait until all descriptions are known.
type Later = Box<dyn FnOnce(&mut Capture<'_>) -> Result<()>>;

/// A capture that goes on.
pub struct Capture<'w> {
    /// The image that is being written.
    pub writer: &'w mut Writer,
    /// Whose addresses the pod's sockets have, and what becomes of connections that cannot move.
    pub network: Network,
    /// Duplicates of all descriptions seen, in kcmp's order.
    known: Vec<(OwnedFd, ObjectId)>,
    numbers: HashMap<(&'static str, Vec<u64>), u32>,
    next: HashMap<&'static str, u32>,
    mapped: HashMap<Vec<u64>, ObjectId>,
    /// Names of the pod's stdio streams by the inode of our end.
    streams: HashMap<(u64, u64), String>,
    /// Names and masters of terminals whose masters are ours, by their numbers.
    terminals: HashMap<u32, (String, OwnedFd)>,
    refusals: Vec<Refusal>,
    proc: PathBuf,
    pids: HashMap<i32, i32>,
    later: Vec<Later>,
    shared: HashMap<TypeId, Box<dyn Any>>,
    /// Descriptions found inside another one, which is still being captured.
    found: VecDeque<(Probe, ObjectId)>,
    busy: bool,
}

impl<'w> Capture<'w> {
    /// A capture into `writer`.
    pub fn new(writer: &'w mut Writer) -> Self {
        Self {
            writer,
            known: Vec::new(),
            numbers: HashMap::new(),
            next: HashMap::new(),
            mapped: HashMap::new(),
            streams: HashMap::new(),
            terminals: HashMap::new(),
            refusals: Vec::new(),
            proc: PathBuf::from("/proc/thread-self"),
            pids: HashMap::new(),
            later: Vec::new(),
            network: Network::default(),
            shared: HashMap::new(),
            found: VecDeque::new(),
            busy: false,
        }
    }

    /// What the rooms of one kind keep for the time of the capture. Empty at first.
    pub fn shared<T: Default + 'static>(&mut self) -> &mut T {
        let any = self
            .shared
            .entry(TypeId::of::<T>())
            .or_insert_with(|| Box::new(T::default()));
        any.downcast_mut()
            .expect("the slot of a type holds that type")
    }

    /// Says through which process the pod's root and mounts are seen: `/proc/PID`, our own at first.
    pub fn set_process(&mut self, real_pid: i32) {
        self.proc = PathBuf::from(format!("/proc/{real_pid}"));
    }

    /// Directory of /proc of the process through which the pod's root and mounts are seen.
    #[must_use]
    pub fn process(&self) -> &Path {
        &self.proc
    }

    /// Says which virtual pid each process (and thread) of the pod has.
    pub fn set_pids(&mut self, virtual_of_real: HashMap<i32, i32>) {
        self.pids = virtual_of_real;
    }

    /// The virtual pid of a process of the pod, `None` for another's.
    #[must_use]
    pub fn virtual_pid(&self, real_pid: i32) -> Option<i32> {
        self.pids.get(&real_pid).copied()
    }

    /// All processes of the pod: pids on this host and virtual ones.
    #[must_use]
    pub fn pids(&self) -> Vec<(i32, i32)> {
        self.pids.iter().map(|(real, own)| (*real, *own)).collect()
    }

    /// Leaves work for the time when all descriptions are known.
    pub fn later(&mut self, work: impl FnOnce(&mut Capture<'_>) -> Result<()> + 'static) {
        self.later.push(Box::new(work));
    }

    /// Does the work that rooms left for the time when all descriptions are known: call it
    /// once, after the last one.
    ///
    /// # Errors
    /// What a room failed on.
    pub fn complete(&mut self) -> Result<()> {
        while let Some(work) = self.later.pop() {
            work(self)?;
        }
        Ok(())
    }

    /// Names a stream between the pod and us (its log, its terminal) by our end or the pod's.
    ///
    /// # Errors
    /// [`Error::Kernel`] when it cannot be looked at.
    pub fn name_stream(&mut self, fd: BorrowedFd<'_>, name: &str) -> Result<()> {
        // All masters of terminals have one inode; their number tells them apart.
        if let Ok(index) = tty::index(fd) {
            let own = fd
                .try_clone_to_owned()
                .map_err(|e| Error::kernel("dup", name, e))?;
            self.terminals.insert(index, (name.to_owned(), own));
            return Ok(());
        }
        let stat = fstat(fd).map_err(|e| Error::kernel("fstat", name, e))?;
        self.streams
            .insert((stat.st_dev, stat.st_ino), name.to_owned());
        Ok(())
    }

    /// The stream's name, when the probe is one.
    #[must_use]
    pub fn stream(&self, probe: &Probe) -> Option<&str> {
        self.streams
            .get(&(probe.stat.st_dev, probe.stat.st_ino))
            .map(String::as_str)
    }

    /// The terminal whose master is ours, by its number: the stream's name and the master.
    #[must_use]
    pub fn terminal(&self, index: u32) -> Option<(&str, BorrowedFd<'_>)> {
        let (name, master) = self.terminals.get(&index)?;
        Some((name, master.as_fd()))
    }

    /// A small number for a kernel object, the same for the same `key` of the same `space`: this is
    /// how inode numbers, socket cookies and the like become virtual.
    pub fn number(&mut self, space: &'static str, key: &[u64]) -> u32 {
        let next = self.next.entry(space).or_insert(1);
        *self
            .numbers
            .entry((space, key.to_vec()))
            .or_insert_with(|| {
                *next += 1;
                *next - 1
            })
    }

    /// How many numbers of a space were given so far.
    #[must_use]
    pub fn count(&self, space: &'static str) -> u32 {
        self.next.get(space).map_or(0, |next| next - 1)
    }

    /// The description through which a file was mapped, by the file's identity.
    pub(crate) fn mapped(&self, key: &[u64]) -> Option<ObjectId> {
        self.mapped.get(key).copied()
    }

    pub(crate) fn set_mapped(&mut self, key: &[u64], object: ObjectId) {
        self.mapped.insert(key.to_vec(), object);
    }

    /// True when [`Capture::number`] has seen this key before.
    #[must_use]
    pub fn seen(&self, space: &'static str, key: &[u64]) -> bool {
        self.numbers.contains_key(&(space, key.to_vec()))
    }

    /// Notes something that cannot be carried; the capture goes on to find the others.
    pub fn refuse(&mut self, probe: &Probe, why: impl Into<String>, hint: impl Into<String>) {
        let what = probe.link.display().to_string();
        let (pid, fd) = (probe.pid, probe.number);
        self.refusals.push(Refusal {
            pid,
            fd,
            what,
            why: why.into(),
            hint: hint.into(),
        });
    }

    /// Notes a refusal that is not about a descriptor.
    pub fn refuse_process(&mut self, pid: i32, what: &str, why: &str, hint: &str) {
        let (what, why, hint) = (what.into(), why.into(), hint.into());
        self.refusals.push(Refusal {
            pid,
            fd: None,
            what,
            why,
            hint,
        });
    }

    /// Notes a refusal about a descriptor that was looked at before.
    pub fn refuse_as(&mut self, refusal: Refusal) {
        self.refusals.push(refusal);
    }

    /// All that was refused so far.
    #[must_use]
    pub fn refusals(&self) -> &[Refusal] {
        &self.refusals
    }

    /// The number of the description behind a duplicate, capturing it when it is new.
    ///
    /// One that a room finds while it captures another (in flight on a socket) gets its number at
    /// once and is captured afterwards: a chain of sockets in each other's queues must not become a
    /// chain of calls.
    ///
    /// # Errors
    /// What its room failed on.
    pub fn description(&mut self, probe: &Probe) -> Result<ObjectId> {
        let at = match self.find(probe.file.as_fd())? {
            Ok(at) => return Ok(self.known[at].1),
            Err(at) => at,
        };
        let id = self.number("description", &[u64::MAX, self.known.len() as u64]);
        // Known before its room looks at it: a socket may hold itself in its own queue.
        let own = probe
            .file
            .try_clone()
            .map_err(|e| Error::kernel("dup", probe.name(), e))?;
        self.known.insert(at, (own, id));
        if self.busy {
            self.found.push_back((probe.try_clone()?, id));
            return Ok(id);
        }
        self.busy = true;
        let captured = self.capture_all(probe, id);
        self.busy = false;
        captured.map(|()| id)
    }

    fn capture_all(&mut self, probe: &Probe, id: ObjectId) -> Result<()> {
        self.capture_new(probe, id)?;
        while let Some((probe, id)) = self.found.pop_front() {
            self.capture_new(&probe, id)?;
        }
        Ok(())
    }

    fn capture_new(&mut self, probe: &Probe, id: ObjectId) -> Result<()> {
        for (kind, capture, _) in ROOMS {
            if capture(probe, id, self)? {
                lock::capture(probe, id, self)?;
                let attributes = attributes(probe, kind)?;
                return self.writer.record(id, &attributes);
            }
            if self
                .refusals
                .last()
                .is_some_and(|r| (r.pid, r.fd) == (probe.pid, probe.number))
            {
                return Ok(());
            }
        }
        self.refuse(
            probe,
            "no room for this kind of descriptor",
            "close it before the checkpoint",
        );
        Ok(())
    }

    fn find(&self, fd: BorrowedFd<'_>) -> Result<Result<usize, usize>> {
        let (own, new) = (std::process::id() as i32, fd.as_raw_fd() as u64);
        self.place(|known| {
            sys::kcmp(own, own, Kcmp::File, known.as_raw_fd() as u64, new)
                .map_err(|e| Error::kernel("kcmp", "descriptors", e))
        })
    }

    /// The description that `compare` finds equal; it tells how a known one stands to the one
    /// that is looked for, in kcmp's order.
    ///
    /// # Errors
    /// What `compare` failed on.
    pub fn search(
        &self,
        compare: impl Fn(BorrowedFd<'_>) -> Result<Ordering>,
    ) -> Result<Option<ObjectId>> {
        Ok(self.place(compare)?.ok().map(|at| self.known[at].1))
    }

    fn place(
        &self,
        compare: impl Fn(BorrowedFd<'_>) -> Result<Ordering>,
    ) -> Result<Result<usize, usize>> {
        let (mut low, mut high) = (0, self.known.len());
        while low < high {
            let middle = low.midpoint(high);
            match compare(self.known[middle].0.as_fd())? {
                Ordering::Equal => return Ok(Ok(middle)),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        Ok(Err(low))
    }

    /// All descriptions seen so far, as duplicates with their numbers.
    pub fn descriptions(&self) -> impl Iterator<Item = (BorrowedFd<'_>, ObjectId)> {
        self.known.iter().map(|(fd, id)| (fd.as_fd(), *id))
    }
}

/// `fcntl` command of asm-generic/fcntl.h that `libc` lacks.
const F_GETSIG: i32 = 11;

fn attributes(probe: &Probe, kind: &str) -> Result<Attributes> {
    // SAFETY: F_GETSIG takes no argument.
    let signal = unsafe { libc::fcntl(probe.file.as_raw_fd(), F_GETSIG) };
    Ok(Attributes {
        kind: kind.into(),
        flags: probe.flags,
        owner: None,
        signal: signal.max(0),
    })
}
