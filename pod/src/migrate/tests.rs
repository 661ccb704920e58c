//! Both machines against each other over a real socket, with trouble at every point: a pod is a flag
//! here, and what is checked is who may raise it.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};

use super::authority::{Authority, DecisionFile, Decisions, Unknown, Verdict};
use super::cold::Cold;
use super::fault::Faults;
use super::frame::Conn;
use super::journal::{Begun, Duty, Entry, Journal, Side};
use super::link::Link;
use super::message::{HostContent, HostFile, Lack, Needs, Offer};
use super::phase::Phase;
use super::settle::{Here, Peer, settle};
use super::source::{Ended, JOURNAL, Plan, Source};
use super::{Arrival, Host, SourcePod, destination};

/// Where the pod runs, and what was ever wrong with that.
#[derive(Debug, Default)]
struct Places {
    source: bool,
    destination: bool,
    twice: bool,
    content: Option<blake3::Hash>,
}

type Shared = Arc<Mutex<Places>>;

fn set(places: &Shared, source: Option<bool>, destination: Option<bool>) {
    let mut places = places.lock().unwrap();
    places.source = source.unwrap_or(places.source);
    places.destination = destination.unwrap_or(places.destination);
    places.twice |= places.source && places.destination;
}

struct Flag(Shared);

impl SourcePod for Flag {
    fn needs(&mut self) -> Result<Needs> {
        Ok(Needs::default())
    }
    fn manifest(&mut self) -> Result<Vec<HostFile>> {
        let content = HostContent::File {
            length: 5,
            blake3: *blake3::hash(b"bytes").as_bytes(),
        };
        Ok(vec![HostFile {
            path: "/lacking".into(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            content,
        }])
    }
    fn open(&mut self, _: &HostFile) -> Result<File> {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("f"), b"bytes")?;
        Ok(File::open(dir.path().join("f"))?)
    }
    fn freeze(&mut self) -> Result<()> {
        set(&self.0, Some(false), None);
        Ok(())
    }
    fn capture(&mut self, image: &Path) -> Result<()> {
        fs::create_dir(image)?;
        Ok(fs::write(image.join("pages.img"), [7; 100_000])?)
    }
    fn pin(&mut self) -> Result<()> {
        Ok(())
    }
    fn resume(&mut self) -> Result<()> {
        set(&self.0, Some(true), None);
        Ok(())
    }
    fn release(&mut self, _: &str) -> Result<()> {
        set(&self.0, Some(false), None);
        Ok(())
    }
}

impl Here for Flag {
    fn live(&mut self) -> Result<()> {
        self.resume()
    }
    fn vanish(&mut self) -> Result<()> {
        self.release("")
    }
}

struct Ground {
    root: PathBuf,
    places: Shared,
}

impl Host for Ground {
    fn lacks(&mut self, _: &Needs) -> Result<Vec<Lack>> {
        Ok(Vec::new())
    }
    fn admit(&mut self, offer: &Offer, from: &str) -> Result<Box<dyn Arrival>> {
        let dir = self.root.join(&offer.pod);
        fs::create_dir_all(dir.join("image"))?;
        let begun = Begun {
            id: offer.id.clone(),
            side: Side::Destination,
            peer: from.into(),
            fence: None,
        };
        let journal = Journal::begin(&dir.join(JOURNAL), begun)?;
        let decision = Decisions::of(&self.root).about(&offer.id)?;
        Ok(Box::new(Guest {
            dir,
            journal,
            decision,
            places: self.places.clone(),
        }))
    }
    fn resolve(&mut self, id: &str) -> Result<Verdict, Unknown> {
        Decisions::of(&self.root)
            .about(id)
            .unwrap()
            .decide(Verdict::Aborted)
    }
    fn settled(&mut self, id: &str) -> Result<()> {
        let arrival = Journal::open(&self.root.join("p1").join(JOURNAL))?;
        if arrival.is_none_or(|journal| journal.duty() == Duty::Nothing) {
            Decisions::of(&self.root).about(id)?.forget()?;
        }
        Ok(())
    }
}

struct Guest {
    dir: PathBuf,
    journal: Journal,
    decision: DecisionFile,
    places: Shared,
}

impl Arrival for Guest {
    fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }
    fn authority(&self) -> &dyn Authority {
        &self.decision
    }
    fn missing(&mut self, manifest: &[HostFile]) -> Result<Vec<u32>> {
        super::manifest::missing(manifest)
    }
    fn place(&mut self, _: u32, _: &HostFile) -> Result<PathBuf> {
        Ok(self.dir.join("file"))
    }
    fn image(&self) -> PathBuf {
        self.dir.join("image")
    }
    fn restart(&mut self) -> Result<()> {
        let pages = fs::read(self.dir.join("image/pages.img"))?;
        self.places.lock().unwrap().content = Some(blake3::hash(&pages));
        Ok(())
    }
    fn run(&mut self) -> Result<()> {
        set(&self.places, None, Some(true));
        Ok(())
    }
    fn destroy(&mut self) -> Result<()> {
        set(&self.places, None, Some(false));
        Ok(fs::remove_dir_all(&self.dir)?)
    }
}

impl Here for Guest {
    fn live(&mut self) -> Result<()> {
        self.run()
    }
    fn vanish(&mut self) -> Result<()> {
        set(&self.places, None, Some(false));
        Ok(())
    }
}

struct Trial {
    root: tempfile::TempDir,
    places: Shared,
}

impl Trial {
    fn new() -> Self {
        let trial = Self {
            root: tempfile::tempdir().unwrap(),
            places: Shared::default(),
        };
        fs::create_dir(trial.root.path().join("source")).unwrap();
        set(&trial.places, Some(true), None);
        trial
    }

    fn source_dir(&self) -> PathBuf {
        self.root.path().join("source")
    }

    fn ground(&self) -> Ground {
        Ground {
            root: self.root.path().join("destination"),
            places: self.places.clone(),
        }
    }

    /// A connection to a destination that serves until it is closed.
    fn connect(&self, faults: &str) -> (Conn, std::thread::JoinHandle<Result<()>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut ground, faults) = (self.ground(), faults.parse::<Faults>().unwrap());
        let server = std::thread::spawn(move || {
            let mut conn = Conn::new(Link::socket(theirs.into())?);
            conn.handshake()?;
            destination::serve(&mut conn, &mut ground, &faults)
        });
        let mut conn = Conn::new(Link::socket(ours.into()).unwrap());
        conn.handshake().unwrap();
        (conn, server)
    }

    fn migrate(&self, faults: &str) -> Result<Ended> {
        let (mut conn, server) = self.connect(faults);
        let plan = Plan {
            id: "m1".into(),
            pod: "p1".into(),
            config: serde_json::json!({"name": "p"}),
            peer: "there".into(),
            fence: None,
            faults: faults.parse()?,
        };
        let source = Source {
            plan: &plan,
            pod: &mut Flag(self.places.clone()),
            conn: &mut conn,
            strategy: &mut Cold,
            authority: None,
            dir: &self.source_dir(),
            tell: &mut |_| {},
        };
        let ended = source.run();
        drop(conn);
        // What failed there was told to this end, or is the fault itself.
        let _ = server.join().unwrap();
        ended
    }

    /// What the destination's supervisor, or its next agent, does with what is left.
    fn settle_destination(&self) -> Result<()> {
        let dir = self.ground().root.join("p1");
        let Some(mut journal) = Journal::open(&dir.join(JOURNAL))? else {
            return Ok(());
        };
        let decision = Decisions::of(&self.ground().root).about("m1")?;
        let again = Journal::open(&dir.join(JOURNAL))?.context("journal")?;
        let mut guest = Guest {
            dir,
            journal: again,
            decision,
            places: self.places.clone(),
        };
        let authority = Decisions::of(&self.ground().root).about("m1")?;
        settle(&mut journal, &authority, &mut guest).map(drop)
    }

    fn settle_source(&self) -> Result<()> {
        let mut journal = Journal::open(&self.source_dir().join(JOURNAL))?.context("journal")?;
        let (conn, server) = self.connect("");
        let peer = Peer::new(conn, "m1".into());
        settle(&mut journal, &peer, &mut Flag(self.places.clone()))?;
        peer.settled();
        drop(peer);
        server.join().unwrap()
    }

    /// Never two; and when both ends have settled, exactly one.
    fn check(&self, faults: &str) {
        let places = self.places.lock().unwrap();
        assert!(!places.twice, "{faults}: the pod ran twice: {places:?}");
        assert!(
            places.source != places.destination,
            "{faults}: the pod is nowhere: {places:?}"
        );
    }
}

#[test]
fn a_move_moves() {
    let trial = Trial::new();
    let Ended::Moved(report) = trial.migrate("").unwrap() else {
        panic!("undecided")
    };
    trial.check("none");
    assert!(trial.places.lock().unwrap().destination);
    assert_eq!(
        trial.places.lock().unwrap().content,
        Some(blake3::hash(&[7; 100_000]))
    );
    assert_eq!(
        (report.bytes.files, report.bytes.image, report.pod.as_str()),
        (5, 100_000, "p")
    );
    assert!(report.bytes.sent > 100_005 && report.bytes.received > 0);
    assert_eq!(
        fs::read_dir(trial.ground().root.join("decisions"))
            .unwrap()
            .count(),
        0
    );
}

/// Every fault at every point of either side, then both ends settle, in both orders.
#[test]
fn trouble_anywhere_leaves_exactly_one() {
    for side in ["source", "destination"] {
        for phase in Phase::ALL {
            for when in ["", "after-"] {
                for kind in ["error", "disconnect"] {
                    for source_first in [true, false] {
                        troubled(&format!("{side}:{when}{phase}:{kind}"), source_first);
                    }
                }
            }
        }
    }
}

fn troubled(faults: &str, source_first: bool) {
    let trial = Trial::new();
    let ended = trial.migrate(faults);
    assert!(!trial.places.lock().unwrap().twice, "{faults}");
    let duty = Journal::open(&trial.source_dir().join(JOURNAL))
        .unwrap()
        .unwrap()
        .duty();
    match &ended {
        Ok(Ended::Undecided(_)) => assert_eq!(duty, Duty::Ask, "{faults}"),
        Ok(Ended::Moved(_)) => assert!(!trial.places.lock().unwrap().source, "{faults}"),
        Err(error) if duty == Duty::Nothing => {
            assert!(trial.places.lock().unwrap().source, "{faults}: {error:#}");
        }
        Err(_) => assert_eq!(duty, Duty::Release, "{faults}"),
    }
    let settle = || {
        if source_first {
            trial.settle_source()?;
        }
        trial.settle_destination()?;
        trial.settle_source()
    };
    settle().with_context(|| faults.to_owned()).unwrap();
    trial.check(faults);
}

#[test]
fn a_crash_between_any_two_entries_settles_to_one() {
    let through = |last: Phase| {
        Phase::ALL
            .into_iter()
            .filter(move |p| *p <= last)
            .map(Entry::Entered)
    };
    for last in Phase::ALL
        .into_iter()
        .filter(|phase| *phase <= Phase::Commit)
    {
        let trial = Trial::new();
        let begun = Begun {
            id: "m1".into(),
            side: Side::Source,
            peer: "there".into(),
            fence: None,
        };
        let mut journal = Journal::begin(&trial.source_dir().join(JOURNAL), begun).unwrap();
        through(last).for_each(|entry| journal.write(entry).unwrap());
        set(&trial.places, Some(false), None);
        drop(journal);
        trial.settle_source().unwrap();
        trial.check(last.name());
        assert!(trial.places.lock().unwrap().source);
    }
}
