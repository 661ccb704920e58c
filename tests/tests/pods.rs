//! A pod's life, as its user sees it.

use anyhow::{Context, Result};
use serde_json::Value;
use tests::{World, eventually};

fn inspect(world: &World, pod: &str) -> Result<Value> {
    serde_json::from_str(&world.source.pod(&["inspect", pod])?.ok()?).context("inspect is JSON")
}

#[test]
fn a_program_runs_is_listed_logged_killed_and_removed() -> Result<()> {
    let world = World::new()?;
    let host = &world.source;
    host.pod(&[
        "run",
        "-d",
        "--name",
        "a",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exec sleep 1000",
    ])?
    .ok()?;
    let log = eventually("both lines in the log", || {
        let done = host.pod(&["logs", "a"])?;
        anyhow::ensure!(done.out == "out\n" && done.err == "err\n", "{done}");
        Ok(done)
    })?;
    assert_eq!(log.code, 0);
    let all: Value = serde_json::from_str(&host.pod(&["ps", "--format", "json"])?.ok()?)?;
    assert_eq!(all[0]["name"], "a", "{all}");
    assert_eq!(inspect(&world, "a")?["state"], "running");
    host.pod(&["rm", "a"])?.fails(125)?;
    host.pod(&["kill", "-s", "TERM", "a"])?.ok()?;
    assert_eq!(host.pod(&["wait", "a"])?.code, 128 + 15);
    assert_eq!(inspect(&world, "a")?["state"], "exited");
    host.pod(&["rm", "a"])?.ok()?;
    assert_eq!(
        host.pod(&["ps", "-a", "--format", "json"])?.ok()?.trim(),
        "[]"
    );
    world.end()
}

#[test]
fn the_exit_code_is_the_programs_own_or_the_shells_way() -> Result<()> {
    let world = World::new()?;
    let host = &world.source;
    for (command, code) in [("exit 0", 0), ("exit 37", 37), ("kill -9 $$", 137)] {
        let done = host.pod(&["run", "--name", "a", "--", "bash", "-c", command])?;
        assert_eq!(done.code, code, "{done}");
        host.pod(&["rm", "-f", "a"])?.ok()?;
    }
    let missing = host.pod(&["run", "--name", "a", "--", "/no/such/program"])?;
    assert_eq!(missing.code, 127, "{missing}");
    assert!(missing.err.contains("/no/such/program"), "{missing}");
    let directory = host.pod(&["run", "--name", "b", "--", "/etc/passwd"])?;
    assert_eq!(directory.code, 126, "{directory}");
    for pod in ["a", "b"] {
        // Whether a pod that never started is kept is not what this asks.
        let _ = host.pod(&["rm", "-f", pod])?;
    }
    world.end()
}

#[test]
fn pids_start_at_one_and_are_the_pods_own() -> Result<()> {
    let world = World::new()?;
    let host = &world.source;
    host.pod(&["run", "-d", "--name", "a", "--", "sleep", "1000"])?
        .ok()?;
    host.pod(&["run", "-d", "--name", "b", "--", "sleep", "1000"])?
        .ok()?;
    let (a, b) = (inspect(&world, "a")?, inspect(&world, "b")?);
    assert_eq!(a["pids"][0]["vpid"], b["pids"][0]["vpid"]);
    assert_ne!(a["pids"][0]["pid"], b["pids"][0]["pid"]);
    let vpid = a["pids"][0]["vpid"].to_string();
    assert_eq!(
        host.pod(&["exec", "b", "--", "cat", &format!("/proc/{vpid}/comm")])?
            .ok()?
            .trim(),
        "sleep"
    );
    assert_eq!(
        host.pod(&["exec", "a", "--", "hostname"])?.ok()?.trim(),
        "a"
    );
    host.pod(&["rm", "-f", "a", "b"])?.ok()?;
    world.end()
}

#[test]
fn writes_stay_in_the_layer() -> Result<()> {
    let world = World::new()?;
    let host = &world.source;
    let file = host.directory().join("note");
    std::fs::write(&file, "host")?;
    let path = file.to_string_lossy();
    host.pod(&[
        "run",
        "--name",
        "a",
        "--",
        "sh",
        "-c",
        &format!("cat {path}; echo pod >{path}; cat {path}"),
    ])?
    .ok()
    .map(|out| assert_eq!(out, "hostpod\n"))?;
    assert_eq!(std::fs::read_to_string(&file)?, "host");
    host.pod(&["rm", "-f", "a"])?.ok()?;
    world.end()
}

#[test]
fn a_taken_name_and_an_unknown_pod_are_told_in_one_line() -> Result<()> {
    let world = World::new()?;
    let host = &world.source;
    host.pod(&["run", "-d", "--name", "a", "--", "sleep", "1000"])?
        .ok()?;
    let taken = host
        .pod(&["run", "-d", "--name", "a", "--", "true"])?
        .fails(125)?;
    assert!(taken.contains("\"a\"") || taken.contains(" a "), "{taken}");
    let unknown = host.pod(&["logs", "nobody"])?.fails(125)?;
    assert!(
        unknown.starts_with("pod: ") && unknown.contains("nobody"),
        "{unknown}"
    );
    host.pod(&["rm", "-f", "a"])?.ok()?;
    world.end()
}
