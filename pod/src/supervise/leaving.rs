//! A pod that moves away: the source's end of `migrate`, on the supervisor's and the tracer's thread.
//!
//! ```text
//!   freeze ─▶ capture ─▶ pin: the control group is frozen too ─▶ commit ─┬─ release: kill, end the pod
//!      └─────────┴──────────── resume ◀── thaw ──────────────────────────┘
//! ```
//!
//! A task that is only traced goes on when its tracer dies. From the commit on that must not happen: the
//! pod is pinned. Where there is no control group that can be frozen, its tasks die with the supervisor
//! instead; their image is kept until the outcome is known.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use restore::freeze::{self, Frozen};
use restore::image::Writer;
use restore::network::LostConnections;
use restore::resource::tcp::Connections;
use restore::restart::Held;

use super::names::Pause;
use super::{Event, Supervised, checkpoint};
use crate::agent::config::Settings;
use crate::cgroup;
use crate::failure::Failure;
use crate::messages::{Ask, Channel, Told};
use crate::migrate::authority::{Authority, Fence, Verdict};
use crate::migrate::cold::Cold;
use crate::migrate::frame::Conn;
use crate::migrate::journal::{Duty, Journal};
use crate::migrate::manifest;
use crate::migrate::message::{HostFile, Needs};
use crate::migrate::settle::{Here, Peer, Unreachable, settle};
use crate::migrate::source::{Ended, JOURNAL, Plan, Source};
use crate::migrate::zone::Zone;
use crate::migrate::{SourcePod, Strategy};
use crate::store::{Net, Phase, Pod, private_dir, random_hex};

/// Between two questions to an authority that did not answer.
const AGAIN: Duration = Duration::from_secs(2);

/// The directory of a pod's move.
pub(super) fn directory(pod: &Pod) -> PathBuf {
    pod.path("move")
}

/// The journal of the pod's last move, if there was one.
pub(super) fn journal(pod: &Pod) -> Result<Option<Journal>> {
    Journal::open(&directory(pod).join(JOURNAL))
}

fn strategy(mode: &str) -> Result<Box<dyn Strategy>> {
    match mode {
        "cold" => Ok(Box::new(Cold)),
        other => {
            let failure = Failure::new(format!("--mode {other} is not available in this build"));
            Err(failure.hint("use --mode cold").into())
        }
    }
}

impl Supervised {
    /// Moves the pod over a connection. Tells how it goes and how it ended while nothing else can end the pod.
    pub(super) fn migrate(&self, ask: Ask, fds: Vec<OwnedFd>, tell: &dyn Fn(Told)) -> Result<()> {
        let Ask::Migrate {
            to,
            mode,
            channel,
            reset,
            faults,
        } = ask
        else {
            return Err(Failure::new("this is no request to move").into());
        };
        let _moving = self.no_move()?;
        let mut strategy = strategy(&mode)?;
        let mut conn = Conn::over(self.store.root(), channel, fds)?;
        let dir = self.fresh_directory()?;
        let plan = self.plan(&to, &faults)?;
        let zone = self.zone(plan.fence.as_ref())?;
        let source = Source {
            plan: &plan,
            pod: &mut Leaving {
                reset,
                ..Leaving::of(self)
            },
            conn: &mut conn,
            strategy: &mut *strategy,
            authority: zone.as_ref().map(|zone| zone as &dyn Authority),
            dir: &dir,
            tell: &mut |progress| tell(Told::Progress(progress)),
        };
        let ended = source.run();
        self.clear_image(&dir);
        match ended? {
            Ended::Moved(report) => tell(Told::Migrated(report)),
            Ended::Undecided(cause) => {
                self.change(|state| state.phase = Phase::Undecided)?;
                tell(Told::Undecided(Failure::of(&cause)));
            }
        }
        Ok(())
    }

    /// The directory for a new move, without what an earlier one left.
    fn fresh_directory(&self) -> Result<PathBuf> {
        let dir = directory(&self.pod);
        private_dir(&dir)?;
        if journal(&self.pod)?.is_none_or(|journal| journal.duty() == Duty::Nothing) {
            remove(&dir.join("image"))?;
        }
        Ok(dir)
    }

    /// An image is kept only while the pod could need it.
    fn clear_image(&self, dir: &Path) {
        let open = journal(&self.pod)
            .ok()
            .flatten()
            .is_some_and(|journal| journal.duty() == Duty::Ask);
        if !open && let Err(error) = remove(&dir.join("image")) {
            tracing::warn!(error = format!("{error:#}"), "the image of the move");
        }
    }

    fn plan(&self, to: &str, faults: &str) -> Result<Plan> {
        Ok(Plan {
            id: random_hex(16)?,
            pod: self.pod.id.clone(),
            config: serde_json::to_value(&self.config).context("encode the configuration")?,
            peer: to.to_owned(),
            fence: self.fence()?,
            faults: faults.parse()?,
        })
    }

    /// The epochs of a move, where the pod is published.
    fn fence(&self) -> Result<Option<Fence>> {
        let Some(dns) = Settings::of(self.store.root())?.dns else {
            return Ok(None);
        };
        let pod = netname::PodName::new(&self.config.name)?;
        let entry = dns
            .updater()?
            .lookup(&pod)
            .context("ask the zone for the pod's epoch")?;
        Ok(entry.map(|entry| Fence {
            zone: dns.zone,
            pod,
            old: entry.epoch,
            new: entry.epoch.next(),
            back: entry.epoch.next(),
        }))
    }

    fn zone(&self, fence: Option<&Fence>) -> Result<Option<Zone>> {
        let Some(fence) = fence else { return Ok(None) };
        let dns = Settings::of(self.store.root())?
            .dns
            .context("no [dns] is configured here any more")?;
        Ok(Some(Zone::source(dns.updater()?, fence.clone())))
    }

    /// The pod's freezer; `None` where it has none.
    fn freezer(&self) -> Option<PathBuf> {
        cgroup::freezer(&self.facts().state.made.cgroups).cloned()
    }

    /// Asks how a move ended, over a connection to the destination where that decides.
    pub(super) fn resolve(&self, channel: Option<Channel>, fds: Vec<OwnedFd>) -> Result<Told> {
        // A supervisor that was just started may be at it already.
        let _moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut journal) =
            journal(&self.pod)?.filter(|journal| journal.duty() != Duty::Nothing)
        else {
            return Ok(Told::Resolved(None));
        };
        let begun = journal.begun().clone();
        let settled = match (self.zone(begun.fence.as_ref())?, channel) {
            (Some(zone), _) => self.settle(&mut journal, &zone),
            (None, None) => self.settle(&mut journal, &Unreachable(begun.peer)),
            (None, Some(channel)) => {
                let peer = Peer::new(Conn::over(self.store.root(), channel, fds)?, begun.id);
                let settled = self.settle(&mut journal, &peer);
                if settled.is_ok() {
                    peer.settled();
                }
                settled
            }
        };
        self.clear_image(&directory(&self.pod));
        match settled {
            Ok(verdict) => Ok(Told::Resolved(verdict)),
            Err(error) if journal.duty() == Duty::Ask => Ok(Told::Undecided(Failure::of(&error))),
            Err(error) => Err(error),
        }
    }

    fn settle(&self, journal: &mut Journal, authority: &dyn Authority) -> Result<Option<Verdict>> {
        let to = journal.begun().peer.clone();
        settle(
            journal,
            authority,
            &mut Left {
                supervised: self,
                to,
            },
        )
    }

    /// After the supervisor was restarted: does what the journal asks for; where the authority must be asked
    /// and does not answer, asks on.
    pub(super) fn take_up_move(self: &Arc<Self>) -> Result<()> {
        if !journal(&self.pod)?.is_some_and(|journal| journal.duty() != Duty::Nothing) {
            return Ok(());
        }
        let by_zone = journal(&self.pod)?.is_some_and(|journal| journal.begun().fence.is_some());
        if let Told::Undecided(_) = self.resolve(None, Vec::new())? {
            self.change(|state| state.phase = Phase::Undecided)?;
            if by_zone {
                let supervised = Arc::clone(self);
                std::thread::spawn(move || supervised.ask_on());
            }
        }
        Ok(())
    }

    /// The zone cannot call us: it is asked again from time to time.
    fn ask_on(&self) {
        while self.facts().state.phase == Phase::Undecided {
            std::thread::sleep(AGAIN);
            if let Err(error) = self.resolve(None, Vec::new()) {
                tracing::warn!(error = format!("{error:#}"), "resolve the move");
            }
        }
    }

    /// Lets a pod go on that was pinned, whoever froze it.
    fn thaw(&self) -> Result<()> {
        match self.freezer() {
            Some(group) => cgroup::set_frozen(&group, false),
            None => Ok(()),
        }
    }

    /// Ends what stands still on the tracer thread, where it is the end of the pod: a tracee that died
    /// keeps its pid namespace from ending until its tracer has seen it.
    pub(super) fn end_traced(&self) -> Result<()> {
        let Some(init) = self.facts().state.init else {
            return Ok(());
        };
        let ended = self.tracer()?.run(move |locals| {
            let (held, frozen) = (locals.take::<Held>(), locals.take::<Frozen>());
            let killed = match (&held, &frozen) {
                (None, None) => Ok(()),
                _ => freeze::kill_all(init),
            };
            drop((held, frozen));
            killed
        });
        self.thaw()?;
        Ok(ended.context("the tracer thread is gone")??)
    }

    /// Takes what a capture kept of connections whose address moves with the pod. Where the pod has moved,
    /// they fall silent: what closing them would say to their far ends would end the new ones.
    fn connections(&self, moved: bool) -> Result<()> {
        let silenced = self.tracer()?.run(move |locals| {
            let connections = locals.take::<Connections>().filter(|_| moved);
            connections.map_or(Ok(()), |connections| connections.silence())
        });
        Ok(silenced.context("the tracer thread is gone")??)
    }

    /// On the tracer thread, with what is frozen there, if anything is.
    fn with_frozen<T: Send + 'static>(
        &self,
        work: impl FnOnce(Option<Frozen>) -> T + Send + 'static,
    ) -> Result<T> {
        self.tracer()?
            .run(move |locals| work(locals.take::<Frozen>()))
            .context("the tracer thread is gone")
    }
}

fn remove(image: &Path) -> Result<()> {
    match fs::remove_dir_all(image) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {}", image.display()))
        }
        _ => Ok(()),
    }
}

/// The pod, for the source's machine.
struct Leaving<'a> {
    supervised: &'a Supervised,
    /// Interception stands still while the pod does.
    still: Option<Pause<'a>>,
    /// What becomes of connections that cannot move.
    reset: bool,
}

impl<'a> Leaving<'a> {
    fn of(supervised: &'a Supervised) -> Self {
        Self {
            supervised,
            still: None,
            reset: false,
        }
    }
}

impl SourcePod for Leaving<'_> {
    fn needs(&mut self) -> Result<Needs> {
        self.supervised.check_fit()?;
        self.supervised.needs()
    }

    fn manifest(&mut self) -> Result<Vec<HostFile>> {
        manifest::manifest(&self.supervised.ground()?, &self.supervised.pids()?)
    }

    fn open(&mut self, file: &HostFile) -> Result<File> {
        self.supervised.ground()?.open(&file.path)
    }

    fn freeze(&mut self) -> Result<()> {
        self.still = Some(self.supervised.pause_names()?);
        let job = self.supervised.checkpoint_job(PathBuf::new(), false)?;
        self.supervised
            .tracer()?
            .run(move |locals| {
                locals.put(freeze::freeze(job.init, &[])?);
                Ok(())
            })
            .context("the tracer thread is gone")?
    }

    fn capture(&mut self, image: &Path) -> Result<()> {
        let mut job = self.supervised.checkpoint_job(image.to_owned(), false)?;
        let image = image.to_owned();
        job.lost = match self.reset {
            true => LostConnections::Reset,
            false => LostConnections::Refuse,
        };
        let own = self.supervised.config.net != Net::Shared;
        self.supervised
            .tracer()?
            .run(move |locals| {
                let frozen = locals
                    .get_mut::<Frozen>()
                    .context("the pod is not frozen")?;
                let mut writer = Writer::create(&image)?;
                let connections = checkpoint::capture(&job, frozen, &mut writer)?;
                frozen.calm()?;
                writer.finish()?;
                if own {
                    locals.put(connections);
                }
                Ok(())
            })
            .context("the tracer thread is gone")?
    }

    fn pin(&mut self) -> Result<()> {
        if let Some(group) = self.supervised.freezer() {
            return cgroup::set_frozen(&group, true);
        }
        self.supervised
            .tracer()?
            .run(|locals| {
                let frozen = locals
                    .get_mut::<Frozen>()
                    .context("the pod is not frozen")?;
                Ok(frozen.die_with_us()?)
            })
            .context("the tracer thread is gone")?
    }

    fn resume(&mut self) -> Result<()> {
        let still = self.still.take();
        self.supervised.connections(false)?;
        let resumed = self
            .supervised
            .with_frozen(|frozen| frozen.map_or(Ok(()), Frozen::resume))?;
        self.supervised.thaw()?;
        drop(still);
        Ok(resumed?)
    }

    fn release(&mut self, to: &str) -> Result<()> {
        // The move is made: a far end that hears of it is no reason to keep the pod here.
        if let Err(error) = self.supervised.connections(true) {
            tracing::warn!(
                error = format!("{error:#}"),
                "silence the pod's connections"
            );
        }
        self.supervised.facts().moved_to = Some(to.to_owned());
        self.supervised
            .with_frozen(|frozen| frozen.map(Frozen::kill))?;
        self.supervised.thaw()?;
        self.supervised.raise(Event::Moved(to.to_owned()));
        Ok(())
    }
}

/// The pod after its move's end was not seen.
struct Left<'a> {
    supervised: &'a Supervised,
    to: String,
}

impl Here for Left<'_> {
    fn live(&mut self) -> Result<()> {
        Leaving::of(self.supervised).resume()?;
        self.supervised.change(|state| {
            if state.phase == Phase::Undecided {
                state.phase = Phase::Running;
            }
        })
    }

    fn vanish(&mut self) -> Result<()> {
        self.supervised.facts().moved_to = Some(self.to.clone());
        let init = self
            .supervised
            .facts()
            .state
            .init
            .context("the pod has no init")?;
        self.supervised.connections(true)?;
        let kill = self.supervised.with_frozen(move |frozen| match frozen {
            Some(frozen) => {
                frozen.kill();
                Ok(())
            }
            None => freeze::kill_all(init),
        })?;
        kill?;
        Leaving::of(self.supervised).release(&self.to)
    }
}
