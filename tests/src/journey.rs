//! What happens to a program between putting a datum in and asking for it again.

use std::cell::RefCell;
use std::process::Child;

use anyhow::{Context, Result, ensure};

use crate::host::Host;
use crate::program::Program;
use crate::site::Site;
use crate::terminal::Terminal;
use crate::world::World;

/// A program's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journey {
    /// It runs as it always did: what the other journeys must look like.
    Native,
    /// It runs in a pod.
    Pod(Backing),
    /// It sleeps in an image and is restarted on the same host, under a backing that may be another one.
    Checkpoint(Backing, Backing),
    /// It moves to another host.
    Move(Way),
}

/// How a pod gets to the other host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `ssh://`: no agent runs anywhere, and there is no zone.
    Ssh,
    /// From agent to agent over TLS, with a zone in which its name follows it.
    Agent,
}

/// What holds a pod's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Namespaces.
    Kernel,
    /// Interception.
    Notify,
}

impl Backing {
    /// As `--names` takes it.
    #[must_use]
    pub fn option(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Notify => "notify",
        }
    }
}

/// The pod's name in every journey.
const POD: &str = "traveller";

/// Takes `program` on its journey: starts it, puts a datum in, sends it, asks for the datum, uses it on,
/// ends it, and looks for leftovers.
///
/// # Errors
/// When any of it fails.
pub fn travel(program: &mut dyn Program, journey: Journey) -> Result<()> {
    let mut world = World::new()?;
    program.prepare(&world.source)?;
    prepare(&mut world, journey)?;
    let mut site = site(&world, journey);
    match journey {
        // What a program leaves natively is its own affair.
        Journey::Native => return live_natively(program, &mut site),
        Journey::Pod(names) => {
            start(program, &mut site, names)?;
            live(program, &mut site, |_, _| Ok(()))?;
        }
        Journey::Checkpoint(before, after) => {
            start(program, &mut site, before)?;
            live(program, &mut site, |_, site| {
                sleep_and_wake(site, &world, before, after)
            })?;
        }
        Journey::Move(way) => {
            start(program, &mut site, Backing::Kernel)?;
            live(program, &mut site, |program, site| {
                wander(program, site, &world, way)
            })?;
        }
    }
    site.host.pod(&["rm", "-f", POD])?.ok()?;
    drop(site);
    world.end()
}

fn prepare(world: &mut World, journey: Journey) -> Result<()> {
    match journey {
        Journey::Move(Way::Ssh) => world.serve_ssh(),
        Journey::Move(Way::Agent) => world.make_cluster(),
        _ => Ok(()),
    }
}

fn site(world: &World, journey: Journey) -> Site<'_> {
    let zone = matches!(journey, Journey::Move(Way::Agent));
    Site {
        host: &world.source,
        desk: &world.desk,
        pod: None,
        name: zone.then(|| format!("{POD}.pod.internal")),
        log: world.directory().join("native.log"),
        terminal: RefCell::default(),
    }
}

fn live<'w>(
    program: &mut dyn Program,
    site: &mut Site<'w>,
    between: impl FnOnce(&mut dyn Program, &mut Site<'w>) -> Result<()>,
) -> Result<()> {
    program
        .ready(site)
        .with_context(|| told(site, "become ready"))?;
    program
        .load(site)
        .with_context(|| told(site, "put data in"))?;
    program
        .check(site)
        .with_context(|| told(site, "ask before the journey"))?;
    between(program, site)?;
    program
        .check(site)
        .with_context(|| told(site, "ask after the journey"))?;
    program.load(site).with_context(|| told(site, "go on"))?;
    program
        .check(site)
        .with_context(|| told(site, "ask after going on"))
}

fn told(site: &Site<'_>, step: &str) -> String {
    let output = site.output().unwrap_or_else(|error| format!("{error:#}"));
    format!("{step}; the program wrote:\n{output}")
}

fn live_natively(program: &mut dyn Program, site: &mut Site<'_>) -> Result<()> {
    let words = program.command();
    let words: Vec<&str> = program
        .native_prefix()
        .iter()
        .copied()
        .chain(words.iter().map(String::as_str))
        .collect();
    if program.terminal() {
        let mut command = site.host.command(words[0])?;
        site.terminal
            .replace(Some(Terminal::start(command.args(&words[1..]))?));
        live(program, site, |_, _| Ok(()))?;
        site.terminal.replace(None);
    } else {
        let _child = Guard(site.host.spawn(&words, &site.log)?);
        live(program, site, |_, _| Ok(()))?;
    }
    // What the program started goes with it: in a pod that is what `rm` does.
    site.host.kill_all()
}

struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // Both fail only when it is gone.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(program: &dyn Program, site: &mut Site<'_>, names: Backing) -> Result<()> {
    let options = program.options();
    let command = program.command();
    let mut words = vec![
        "run",
        "-d",
        "--name",
        POD,
        "--names",
        names.option(),
        "-e",
        "POD_TEST",
    ];
    words.extend(options.iter().map(String::as_str));
    words.extend(program.terminal().then_some("-t"));
    words.push("--");
    words.extend(command.iter().map(String::as_str));
    site.host.pod(&words)?.ok()?;
    site.pod = Some(POD.to_owned());
    Ok(())
}

fn sleep_and_wake(site: &Site<'_>, world: &World, before: Backing, after: Backing) -> Result<()> {
    let image = world.directory().join("image");
    let image = image.to_string_lossy();
    site.terminal.replace(None);
    let host = site.host;
    host.pod(&["checkpoint", POD, "-o", &image])?.ok()?;
    host.pod(&["rm", "-f", POD])?.ok()?;
    host.pod(&["image", "verify", &image])?.ok()?;
    let left = host.processes_in_pods();
    ensure!(
        left.is_empty(),
        "processes of the pod that sleeps: {left:?}"
    );
    let mut words = vec!["restore", &image, "-d", "--name", POD];
    if before != after {
        words.extend(["--names", after.option()]);
    }
    host.pod(&words)?.ok().map(drop)
}

/// How often the pod moves: once, and in a soak as often as `POD_SOAK_MOVES` says.
fn moves() -> Result<u32> {
    match std::env::var("POD_SOAK_MOVES") {
        Ok(text) => text.parse().context("POD_SOAK_MOVES"),
        Err(_) => Ok(1),
    }
}

/// Moves to the destination, and on from there back to the source, and so on, and asks after each
/// move.
fn wander<'w>(
    program: &mut dyn Program,
    site: &mut Site<'w>,
    world: &'w World,
    way: Way,
) -> Result<()> {
    let ends = [&world.source, &world.destination];
    for number in 1..=moves()? {
        let to = ends[number as usize % 2];
        migrate(site, to, way).with_context(|| format!("move {number}"))?;
        program
            .check(site)
            .with_context(|| told(site, &format!("ask after move {number}")))?;
    }
    Ok(())
}

fn migrate<'w>(site: &mut Site<'w>, host: &'w Host, way: Way) -> Result<()> {
    let to = match way {
        Way::Ssh => format!("ssh://root@{}", host.v4()),
        Way::Agent => format!("{}:7077", host.v4()),
    };
    site.terminal.replace(None);
    site.host
        .pod(&["migrate", POD, &to, "--on-lost-connection", "reset"])?
        .ok()?;
    let left = site.host.processes_in_pods();
    ensure!(
        left.is_empty(),
        "processes of the pod that moved away: {left:?}"
    );
    let listed = site.host.pod(&["ps", "-a", "--format", "json"])?.ok()?;
    ensure!(listed.trim() == "[]", "the source still lists {listed}");
    site.host = host;
    Ok(())
}
