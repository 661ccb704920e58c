//! Moves in trouble: a fault at each phase on each side, a host that lacks something, an authority that
//! cannot be asked. Whatever happens, the pod runs in exactly one place, it has lost nothing, and nothing
//! of it is left elsewhere.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use tests::{Done, Host, World, eventually, finish};

const POD: &str = "traveller";

/// A world with ssh, a wrapper that carries `POD_FAULT` to the other host, and a pod that counts.
struct Trip {
    world: World,
}

impl Trip {
    fn new() -> Result<Self> {
        let mut world = World::new()?;
        world.serve_ssh()?;
        let trip = Self { world };
        // sshd passes no environment on, so the fault travels in front of the command.
        trip.script(
            "carry",
            "for last; do :; done; exec $REAL_SSH \"$1\" \"POD_FAULT=$POD_FAULT $last\"",
        )?;
        trip.script(
            "once",
            "mkdir \"$0.used\" 2>/dev/null || exit 255; exec $REAL_SSH \"$@\"",
        )?;
        Ok(trip)
    }

    fn script(&self, name: &str, text: &str) -> Result<()> {
        let path = self.world.directory().join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n"))?;
        Ok(fs::set_permissions(
            &path,
            fs::Permissions::from_mode(0o755),
        )?)
    }

    fn count(&self) -> String {
        self.world
            .source
            .directory()
            .join("count")
            .to_string_lossy()
            .into_owned()
    }

    fn start(&self) -> Result<()> {
        let script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done >>\"$0\"";
        let words = [
            "run", "-d", "--name", POD, "-e", "POD_TEST", "--", "busybox", "sh", "-c", script,
        ];
        let mut words: Vec<String> = words.map(str::to_owned).to_vec();
        words.push(self.count());
        self.world.source.pod(&words)?.ok()?;
        self.counts_on(&self.world.source)
    }

    /// `pod migrate` with a fault, through one of the scripts.
    fn migrate(&self, way: &str, faults: &str, more: &[&str]) -> Result<Done> {
        let source = &self.world.source;
        let mut command = source.command(source.program())?;
        let real = command
            .get_envs()
            .find(|(name, _)| *name == "POD_SSH")
            .and_then(|(_, value)| value.map(ToOwned::to_owned));
        command.env("REAL_SSH", real.context("no POD_SSH")?);
        command
            .env("POD_SSH", self.world.directory().join(way))
            .env("POD_FAULT", faults);
        let to = format!("ssh://root@{}", self.world.destination.v4());
        finish(command.args(["migrate", POD]).args(more).arg(to))
    }

    /// The numbers in the pod's file: from 1, each once.
    fn numbers(&self, host: &Host) -> Result<u64> {
        let text = host.pod(&["exec", POD, "--", "cat", &self.count()])?.ok()?;
        let gap = text
            .lines()
            .zip(1_u64..)
            .find(|(line, number)| **line != number.to_string());
        ensure!(gap.is_none(), "the count is broken at {gap:?}");
        Ok(text.lines().count() as u64)
    }

    fn counts_on(&self, host: &Host) -> Result<()> {
        let before = eventually("the pod to count", || self.numbers(host))?;
        eventually("the pod to count on", || {
            let now = self.numbers(host)?;
            ensure!(now > before, "it stands at {now}");
            Ok(())
        })
    }

    /// The one host on which the pod is, running; the other one has nothing of it.
    fn home(&self) -> Result<&Host> {
        let places = [&self.world.source, &self.world.destination];
        eventually("the pod to be in one place", || {
            let states = places.map(state);
            let states: Vec<String> = states.into_iter().collect::<Result<_>>()?;
            match [states[0].as_str(), states[1].as_str()] {
                ["running", ""] => Ok(places[0]),
                ["", "running"] => Ok(places[1]),
                _ => anyhow::bail!("source {:?}, destination {:?}", states[0], states[1]),
            }
        })
    }

    /// The pod is in one place, whole; then it is removed.
    fn arrive(&self) -> Result<&Host> {
        let home = self.home()?;
        self.counts_on(home)?;
        home.pod(&["rm", "-f", POD])?.ok()?;
        for host in [&self.world.source, &self.world.destination] {
            let left = host.processes_in_pods();
            ensure!(
                left.is_empty(),
                "processes left on {}: {left:?}",
                host.name()
            );
            let decisions = fs::read_dir(host.state().join("decisions")).map_or(0, Iterator::count);
            ensure!(
                decisions == 0,
                "{decisions} decisions left on {}",
                host.name()
            );
            let pods = fs::read_dir(host.state().join("pods")).map_or(0, Iterator::count);
            ensure!(
                pods == 0,
                "{pods} directories of pods left on {}",
                host.name()
            );
        }
        Ok(home)
    }
}

/// The state of the only pod of a host; empty where there is none.
fn state(host: &Host) -> Result<String> {
    let listed = host.pod(&["ps", "-a", "--format", "json"])?.ok()?;
    let pods: Vec<serde_json::Value> = serde_json::from_str(&listed)?;
    ensure!(pods.len() <= 1, "{listed}");
    Ok(pods
        .first()
        .and_then(|pod| pod["state"].as_str())
        .unwrap_or_default()
        .to_owned())
}

const PHASES: [&str; 9] = [
    "check",
    "prepare",
    "copy",
    "freeze",
    "last-state",
    "restart",
    "commit",
    "run",
    "release",
];

/// Every fault of a kind on a side, one move after the other in one world.
fn faults(side: &str, kind: &str) -> Result<()> {
    let trip = Trip::new()?;
    for phase in PHASES {
        for when in ["", "after-"] {
            let fault = format!("{side}:{when}{phase}:{kind}");
            let one = || -> Result<()> {
                trip.start()?;
                let done = trip.migrate("carry", &fault, &[])?;
                let told = done.to_string();
                trip.arrive().with_context(|| told).map(drop)
            };
            one().with_context(|| fault.clone())?;
        }
    }
    trip.world.end()
}

#[test]
fn a_source_that_is_killed_loses_nothing() -> Result<()> {
    faults("source", "kill")
}

#[test]
fn a_destination_that_is_killed_loses_nothing() -> Result<()> {
    faults("destination", "kill")
}

#[test]
fn a_source_that_fails_loses_nothing() -> Result<()> {
    faults("source", "error")
}

#[test]
fn a_destination_that_fails_loses_nothing() -> Result<()> {
    faults("destination", "error")
}

#[test]
fn a_source_that_is_cut_off_loses_nothing() -> Result<()> {
    faults("source", "disconnect")
}

#[test]
fn a_destination_that_is_cut_off_loses_nothing() -> Result<()> {
    faults("destination", "disconnect")
}

/// The destination commits and can then not be asked: the pod stays frozen here until it can.
#[test]
fn an_outcome_nobody_knows_is_undecided_until_it_is_asked_for() -> Result<()> {
    for (fault, moved) in [
        ("source:after-commit:disconnect", true),
        ("source:commit:disconnect", false),
    ] {
        let trip = Trip::new()?;
        trip.start()?;
        let told = trip.migrate("once", fault, &[])?.fails(125)?;
        ensure!(
            told.contains("undecided") && told.contains("--resolve"),
            "{told}"
        );
        ensure!(state(&trip.world.source)? == "undecided");
        let before = trip.world.source.shell(&format!(
            "wc -l < {}/count",
            trip.world.source.directory().display()
        ))?;
        drop(before);
        trip.world
            .source
            .pod(&["migrate", POD, "--resolve"])?
            .ok()?;
        let home = trip.arrive()?.name().to_owned();
        ensure!(
            (home == "destination") == moved,
            "{fault}: it lives on {home}"
        );
        trip.world.end()?;
    }
    Ok(())
}

#[test]
fn what_the_destination_lacks_is_told_before_anything_is_touched() -> Result<()> {
    let trip = Trip::new()?;
    trip.start()?;
    let (source, destination) = (&trip.world.source, &trip.world.destination);
    destination
        .pod(&[
            "run", "-d", "--name", POD, "-e", "POD_TEST", "--", "sleep", "1000",
        ])?
        .ok()?;
    let told = trip.migrate("carry", "", &[])?.fails(125)?;
    ensure!(told.contains("the name traveller is taken"), "{told}");
    destination.pod(&["rm", "-f", POD])?.ok()?;

    let to = "ssh://root@10.77.0.77";
    let mut command = source.command(source.program())?;
    let told = finish(
        command
            .env("POD_SSH", "sh -c 'echo Welcome; exit 255' ssh")
            .args(["migrate", POD, to]),
    )?
    .fails(125)?;
    ensure!(
        told.contains("Welcome") || told.contains("closed"),
        "{told}"
    );
    let told = source.pod(&["migrate", POD, "10.77.0.2:1"])?.fails(125)?;
    ensure!(
        told.contains("connect to 10.77.0.2:1") && told.contains("hint:"),
        "{told}"
    );
    ensure!(trip.arrive()?.name() == "source");
    trip.world.end()
}

/// A program that only the source has goes along, into the pod's layer.
#[test]
fn a_program_that_the_destination_lacks_goes_along() -> Result<()> {
    let trip = Trip::new()?;
    let (source, destination) = (&trip.world.source, &trip.world.destination);
    source.shell("mkdir /run/only && cp $(command -v busybox) /run/only/busybox && echo here > /run/only/note")?.ok()?;
    let run = [
        "run",
        "-d",
        "--name",
        POD,
        "-e",
        "POD_TEST",
        "--",
        "/run/only/busybox",
        "sleep",
        "1000",
    ];
    source.pod(&run)?.ok()?;
    trip.migrate("carry", "", &[])?.ok()?;
    ensure!(trip.home()?.name() == "destination");
    destination.shell("test ! -e /run/only")?.ok()?;
    for (words, wanted) in [
        (vec!["/run/only/busybox", "echo", "goes"], "goes"),
        (vec!["cat", "/run/only/note"], "here"),
    ] {
        let mut command = vec!["exec", POD, "--"];
        command.extend(words);
        let out = destination.pod(&command)?.ok()?;
        ensure!(out.trim() == wanted, "{out}");
    }
    destination.pod(&["rm", "-f", POD])?.ok()?;
    source.shell("rm -r /run/only")?.ok()?;
    trip.world.end()
}

/// A host of another cluster has a certificate that says nothing here.
#[test]
fn a_host_of_another_cluster_is_refused() -> Result<()> {
    let mut world = World::new()?;
    let at = |host: &Host| format!("{}:7077", host.v4());
    for host in [&world.source, &world.destination] {
        host.pod(&["agent", "init", "--listen", &at(host)])?.ok()?;
    }
    let agent = world.destination.spawn(
        &["pod", "agent"],
        &world.destination.directory().join("agent.log"),
    )?;
    let to = at(&world.destination);
    world.keep(agent);
    eventually("the agent to listen", || {
        world
            .destination
            .shell("ss -Hltn sport = 7077 | grep -q .")?
            .ok()
    })?;
    world
        .source
        .pod(&[
            "run", "-d", "--name", POD, "-e", "POD_TEST", "--", "sleep", "1000",
        ])?
        .ok()?;
    let told = world.source.pod(&["migrate", POD, &to])?.fails(125)?;
    ensure!(told.contains("certificate"), "{told}");
    ensure!(state(&world.source)? == "running");
    world.source.pod(&["rm", "-f", POD])?.ok()?;
    world.end()
}
