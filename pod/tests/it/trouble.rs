//! Processes of ours that are killed, and a pod that outlives whoever started it.

use std::io::{BufRead, BufReader};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::host::Host;

fn sleeper(host: &Host) {
    host.good(&["run", "-d", "--name", "s", "--", "busybox", "sleep", "1000"]);
}

/// Kills a process and waits until it is gone.
fn end(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    while kill(Pid::from_raw(pid), None).is_ok() && !is_zombie(pid) {
        std::thread::yield_now();
    }
}

/// Whether nothing is left of a process but its entry, no other thread either.
fn is_zombie(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let dead = stat
        .rsplit(')')
        .next()
        .is_some_and(|rest| rest.trim_start().starts_with('Z'));
    dead && std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count) < 2
}

#[test]
fn a_killed_supervisor_comes_back_and_the_pod_goes_on() {
    let host = Host::new();
    let script = "trap 'echo heard' USR1; while :; do sleep 0.05; done";
    host.good(&[
        "run", "-d", "--name", "s", "--", "busybox", "sh", "-c", script,
    ]);
    let (init, first) = (host.pid("s", "init"), host.pid("s", "supervisor"));
    let mut waiting = host.start(&["wait", "s"]);
    end(first);
    assert_eq!(
        host.pod(&["exec", "s", "--", "busybox", "echo", "again"])
            .out,
        "again\n"
    );
    assert_eq!(host.pid("s", "init"), init);
    assert_ne!(host.pid("s", "supervisor"), first);
    let mut logs = host.start(&["logs", "-f", "s"]);
    host.good(&["kill", "-s", "USR1", "s"]);
    let mut line = String::new();
    BufReader::new(logs.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "heard\n");
    host.good(&["kill", "s"]);
    assert_eq!(waiting.wait().unwrap().code(), Some(137));
    assert_eq!(logs.wait().unwrap().code(), Some(0));
}

#[test]
fn an_exit_while_no_supervisor_lives_is_not_lost() {
    let host = Host::new();
    host.good(&[
        "run",
        "-d",
        "--name",
        "s",
        "--",
        "busybox",
        "sh",
        "-c",
        "sleep 1000; exit 9",
    ]);
    let program = host.inspect("s")["pids"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()["pid"]
        .as_i64()
        .unwrap();
    let supervisor = host.pid("s", "supervisor");
    // Stopped first, so that it cannot hear of the exit before it is killed.
    kill(Pid::from_raw(supervisor), Signal::SIGSTOP).unwrap();
    end(i32::try_from(program).unwrap());
    end(supervisor);
    assert_eq!(host.pod(&["wait", "s"]).code, 9);
}

#[test]
fn a_supervisor_killed_at_any_point_of_the_end_loses_no_exit() {
    let host = Host::new();
    for turn in 0..6 {
        let name = format!("s{turn}");
        let script = "read x < /dev/shm/go; exit 9";
        let make = format!("busybox mkfifo /dev/shm/go; {script}");
        host.good(&[
            "run", "-d", "--name", &name, "--", "busybox", "sh", "-c", &make,
        ]);
        let supervisor = host.pid(&name, "supervisor");
        let there = "until [ -p /dev/shm/go ]; do :; done; echo > /dev/shm/go";
        // Its own end may come with the pod's.
        host.pod(&["exec", &name, "--", "busybox", "sh", "-c", there]);
        // Later each time: before, while and after the exit is dealt with.
        for _ in 0..turn * 200 {
            std::thread::yield_now();
        }
        // Fails when its own end was faster: then nothing was in its way.
        let _ = kill(Pid::from_raw(supervisor), Signal::SIGKILL);
        assert_eq!(host.pod(&["wait", &name]).code, 9, "turn {turn}");
    }
}

#[test]
fn a_killed_init_ends_the_pod_and_a_killed_holder_too() {
    let host = Host::new();
    sleeper(&host);
    end(host.pid("s", "init"));
    assert_eq!(host.pod(&["wait", "s"]).code, 137);
    assert_eq!(host.inspect("s")["reason"], "init was killed");
    host.good(&["rm", "s"]);
    sleeper(&host);
    let supervisor = host.pid("s", "supervisor");
    let stat = std::fs::read_to_string(format!("/proc/{supervisor}/stat")).unwrap();
    end(stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_ascii_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap());
    assert_eq!(host.pod(&["wait", "s"]).code, 137);
}

#[test]
fn all_of_ours_killed_at_once_is_lost_and_can_be_removed() {
    let host = Host::new();
    sleeper(&host);
    host.end_holder("s");
    let said = host.pod(&["wait", "s"]);
    assert_eq!(said.code, 125, "{said:?}");
    assert!(
        said.err.contains("is lost: its processes were killed"),
        "{}",
        said.err
    );
    assert!(host.good(&["ps", "-a"]).contains("lost"));
    host.good(&["rm", "-f", "s"]);
}

#[test]
fn the_pod_outlives_whoever_started_it() {
    let host = Host::new();
    let mut run = host.start(&[
        "run",
        "--name",
        "s",
        "--",
        "busybox",
        "sh",
        "-c",
        "echo up; exec sleep 1000",
    ]);
    let mut line = String::new();
    BufReader::new(run.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    run.kill().unwrap();
    run.wait().unwrap();
    assert_eq!(host.inspect("s")["state"], "running");
}

#[test]
fn signals_of_the_foreground_reach_the_program() {
    let host = Host::new();
    let script = "trap 'exit 42' TERM; echo up; while :; do sleep 0.05; done";
    let mut run = host.start(&["run", "--name", "s", "--", "busybox", "sh", "-c", script]);
    let mut line = String::new();
    BufReader::new(run.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let pid = Pid::from_raw(i32::try_from(run.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(42));
}
