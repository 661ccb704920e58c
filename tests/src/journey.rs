//! What happens to a program between putting a datum in and asking for it again.

use std::cell::RefCell;
use std::process::Child;

use anyhow::{Context, Result, ensure};

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
    let world = World::new()?;
    program.prepare(&world.source)?;
    let mut site = site(&world);
    match journey {
        // What a program leaves natively is its own affair.
        Journey::Native => return live_natively(program, &site),
        Journey::Pod(names) => {
            start(program, &mut site, names)?;
            live(program, &site, || Ok(()))?;
            remove(&site)?;
        }
        Journey::Checkpoint(before, after) => {
            start(program, &mut site, before)?;
            live(program, &site, || {
                sleep_and_wake(&site, &world, before, after)
            })?;
            remove(&site)?;
        }
    }
    drop(site);
    world.end()
}

fn site(world: &World) -> Site<'_> {
    let log = world.directory().join("native.log");
    Site {
        host: &world.source,
        desk: &world.desk,
        pod: None,
        log,
        terminal: RefCell::default(),
    }
}

fn live(
    program: &mut dyn Program,
    site: &Site<'_>,
    between: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let told = |step: &'static str| {
        move || {
            format!(
                "{step}; the program wrote:\n{}",
                site.output().unwrap_or_else(|error| format!("{error:#}"))
            )
        }
    };
    program.ready(site).with_context(told("become ready"))?;
    program.load(site).with_context(told("put data in"))?;
    program
        .check(site)
        .with_context(told("ask before the journey"))?;
    between()?;
    program
        .check(site)
        .with_context(told("ask after the journey"))?;
    program.load(site).with_context(told("go on"))?;
    program.check(site).with_context(told("ask after going on"))
}

fn live_natively(program: &mut dyn Program, site: &Site<'_>) -> Result<()> {
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
        live(program, site, || Ok(()))?;
        site.terminal.replace(None);
    } else {
        let _child = Guard(site.host.spawn(&words, &site.log)?);
        live(program, site, || Ok(()))?;
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

fn remove(site: &Site<'_>) -> Result<()> {
    site.host.pod(&["rm", "-f", POD])?.ok().map(drop)
}
