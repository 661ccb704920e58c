//! Waking a pod from an image, in a world that init has made already.
//!
//! The builder is forked by init, the seeds too; what comes of them is the tracer thread's work. A pod
//! that could not be woken whole is killed whole.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use restore::image::{Image, Record};
use restore::resource::ObjectId;
use restore::resource::process::Process;
use restore::restart::{self, Held, Site};
use restore::service::Client;

use super::Supervised;
use super::image::PodRecord;
use super::init_link::InitLink;
use super::numbers::HeldBy;
use crate::failure::Failure;
use crate::messages::{Answer, ToInit};

/// Streams between the pod and us, by name: the pod's ends.
pub(super) type Streams = Vec<(String, OwnedFd)>;

/// Reads what an image says of its pod.
pub(crate) fn pod_of(path: &Path) -> Result<PodRecord> {
    let image = Image::open(path)?;
    Ok(image.get::<PodRecord>(0)?)
}

/// Rebuilds the pod of `image`, held; [`release`] lets it run. Answers the main program's pid in the pod.
pub(super) fn wake(
    supervised: &Supervised,
    link: &Arc<InitLink>,
    path: PathBuf,
    streams: Streams,
) -> Result<i32> {
    let init = supervised
        .facts()
        .state
        .init
        .context("the pod has no init")?;
    let link = Arc::clone(link);
    let held_by = supervised.held_by()?;
    let proof = prove(path.clone());
    let woken = supervised.tracer()?.run(move |locals| {
        let woken = wake_here(&link, held_by, &path, &streams);
        match woken {
            Ok((main, held)) => {
                locals.put(held);
                Ok(main)
            }
            Err(error) => {
                restore::freeze::kill_all(init)?;
                Err(error)
            }
        }
    });
    let main = woken.context("the tracer thread is gone")??;
    match proof.join() {
        Ok(Ok(())) => Ok(main),
        Ok(Err(error)) => {
            kill_held(supervised, init)?;
            Err(error.into())
        }
        Err(_) => anyhow::bail!("the thread that verifies the image is gone"),
    }
}

/// Proves the image whole while the pod is rebuilt from it: nothing of it runs before. BLAKE3 takes some
/// 0.7 s for a GiB, on a processor that the rebuild, which is one task's work at a time, leaves idle.
fn prove(path: PathBuf) -> JoinHandle<restore::Result<()>> {
    std::thread::spawn(move || Image::open(&path)?.verify())
}

fn kill_held(supervised: &Supervised, init: i32) -> Result<()> {
    let killed = supervised.tracer()?.run(move |locals| {
        drop(locals.take::<Held>());
        restore::freeze::kill_all(init)
    });
    Ok(killed.context("the tracer thread is gone")??)
}

/// Lets a held pod run.
pub(super) fn release(supervised: &Supervised) -> Result<()> {
    let released = supervised.tracer()?.run(|locals| {
        let held: Held = locals.take().context("no pod is held")?;
        Ok::<_, anyhow::Error>(held.run()?)
    });
    released.context("the tracer thread is gone")?
}

fn wake_here(
    link: &InitLink,
    held_by: HeldBy,
    path: &Path,
    streams: &[(String, OwnedFd)],
) -> Result<(i32, Held)> {
    let image = Image::open(path)?;
    restart::all_known(&image, &[PodRecord::KIND])?;
    let pod: PodRecord = image.get(0)?;
    has_main(&image, pod.main)?;
    let spare = held_by.wanted(restart::spare_pid(&image)?);
    let mut site = PodSite::new((link, held_by), path, streams, spare)?;
    let held = restart::restart(&image, &mut site)?;
    site.held_by.bound(&site.builder.made()?);
    let main = site.held_by.inner(pod.main);
    link.order(ToInit::Adopt { vpid: main }, &[])?;
    site.end()?;
    Ok((pod.main, held))
}

/// A pod whose main program is not there would never end.
fn has_main(image: &Image, main: i32) -> Result<()> {
    let processes = image.all::<Process>()?;
    let found = processes.values().any(|p| p.place.pid == main);
    let why = || {
        Failure::new(format!(
            "the image has no process {main}, which should be its main program"
        ))
        .hint("pod image ls shows the processes of an image")
    };
    anyhow::ensure!(found, why());
    Ok(())
}

/// The surroundings of a restart.
struct PodSite<'a> {
    link: &'a InitLink,
    builder: Client,
    feed: OwnedFd,
    feed_inode: u64,
    /// A pidfd for the builder.
    process: OwnedFd,
    held_by: HeldBy,
}

impl<'a> PodSite<'a> {
    fn new(
        (link, held_by): (&'a InitLink, HeldBy),
        image: &Path,
        streams: &[(String, OwnedFd)],
        spare: Option<i32>,
    ) -> Result<Self> {
        let pair = || {
            let flags = SockFlag::SOCK_CLOEXEC;
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).context("socketpair")
        };
        let ((ours, theirs), (sender, feed)) = (pair()?, pair()?);
        let (_, fds) = link.order(ToInit::Builder { vpid: spare }, &[theirs])?;
        let process = fds.into_iter().next().context("init gave no pidfd")?;
        held_by.trusted.insert(pid_of(&process)?);
        let directory = File::open(image).with_context(|| format!("open {}", image.display()))?;
        let builder = Client::start(
            ours,
            directory.as_fd(),
            sender.as_fd(),
            streams,
            held_by.network(),
        )?;
        let feed_inode = nix::sys::stat::fstat(&feed).context("fstat")?.st_ino;
        Ok(Self {
            link,
            builder,
            feed,
            feed_inode,
            process,
            held_by,
        })
    }
}

impl PodSite<'_> {
    /// Lets the builder go and waits until it has: a checkpoint that follows shall not find it.
    fn end(self) -> Result<()> {
        let pid = pid_of(&self.process)?;
        drop(self.builder);
        let mut fds = [PollFd::new(self.process.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE).context("wait for the builder")?;
        self.held_by.trusted.remove(pid);
        Ok(())
    }
}

fn outside(what: &'static str) -> impl Fn(anyhow::Error) -> restore::Error {
    move |error| restore::Error::Builder(format!("{what}: {}", Failure::of(&error)))
}

/// The process behind a pidfd, on this host (`Pid` of proc_pid_fdinfo(5)).
fn pid_of(pidfd: &OwnedFd) -> Result<i32> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    pid.and_then(|pid| pid.trim().parse().ok())
        .context("the seed died")
}

impl Site for PodSite<'_> {
    fn seed(&mut self, virtual_pid: i32) -> restore::Result<i32> {
        let seed = || -> Result<i32> {
            let feed = self.feed.try_clone().context("dup")?;
            let order = ToInit::SpawnSeed {
                vpid: self.held_by.wanted(virtual_pid),
            };
            let (answer, fds) = self.link.order(order, &[feed])?;
            anyhow::ensure!(
                matches!(answer, Answer::Spawned { .. }),
                "init gave another answer"
            );
            pid_of(fds.first().context("init gave no pidfd")?)
        };
        seed().map_err(outside("fork a task"))
    }

    fn feed_inode(&self) -> u64 {
        self.feed_inode
    }

    fn give(&mut self, ids: &[ObjectId]) -> restore::Result<()> {
        self.builder.give(ids)
    }

    fn wanted_pid(&self, virtual_pid: i32) -> Option<i32> {
        self.held_by.wanted(virtual_pid)
    }

    fn born(&mut self, virtual_pid: i32, real: i32) {
        self.held_by.bind(virtual_pid, real);
    }

    fn inner_pid(&self, virtual_pid: i32) -> i32 {
        self.held_by.inner(virtual_pid)
    }

    fn link(&mut self) -> restore::Result<()> {
        self.builder.link(self.held_by.differing())
    }

    fn settle(&mut self) -> restore::Result<()> {
        self.builder.settle()
    }
}
