//! A program sees the same of processes, threads and System V objects, whoever holds their names.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::path::Path;

use common::{Pod, command, compile, same, text};
use intercept::table::{Backing, Plan};

const PLAN: Plan = Plan {
    pids: Backing::Notify,
    ipc: Backing::Notify,
    hosts: Backing::Notify,
    endpoints: false,
};

fn inside(program: &str, args: &[&str]) -> String {
    text(&Pod::spawn(command(Path::new(program), args), PLAN).output())
}

#[test]
fn processes_and_threads_look_as_they_do_natively() {
    let dir = tempfile::tempdir().unwrap();
    same(&compile(dir.path(), "pids"), &[], PLAN);
}

#[test]
fn system_v_objects_look_as_they_do_natively() {
    let dir = tempfile::tempdir().unwrap();
    let out = same(&compile(dir.path(), "ipc"), &[], PLAN);
    assert!(out.contains("semop with a signal: Interrupted"), "{out}");
}

#[test]
fn numbers_count_from_one_and_a_shell_runs() {
    let script =
        "echo $$; sh -c 'echo $$ $PPID'; for i in 1 2 3; do /bin/true & done; wait; echo done";
    assert_eq!(inside("sh", &["-c", script]), "1\n2 1\ndone\n");
    let (trap, kills) = (
        "trap 'echo caught' USR1; kill -USR1 $$",
        "sleep 9 & kill $!; wait $!; echo $?",
    );
    assert_eq!(inside("bash", &["-c", trap]), "caught\n");
    assert_eq!(inside("bash", &["-c", kills]), "143\n");
}

#[test]
fn kill_of_all_stays_in_the_pod() {
    let mut outside = command("sleep".as_ref(), &["1000"]).spawn().unwrap();
    let script = "(sh -c 'trap \"\" TERM; echo ready; sleep 1000' & sleep 1000 & read x < /dev/stdin; true) | \
                  head -1; python3 -c 'import os; os.kill(-1, 9)'; echo rest";
    assert_eq!(inside("sh", &["-c", script]), "ready\nrest\n");
    assert!(outside.try_wait().unwrap().is_none());
    outside.kill().unwrap();
    outside.wait().unwrap();
}

#[test]
fn host_names_are_the_pods() {
    let mut shell = command(
        "sh".as_ref(),
        &["-c", "hostname inside; uname -n; hostname"],
    );
    shell.env("LC_ALL", "C");
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(text(&Pod::spawn(shell, PLAN).output()), "inside\ninside\n");
    let after = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(host, after);
}

#[test]
fn a_debugger_in_the_pod_hinders_nobody() {
    let script = "/bin/true; (exit 3); echo $?; echo end";
    let traced = ["-f", "-qq", "-o", "/dev/null", "sh", "-c", script];
    assert_eq!(inside("strace", &traced), "3\nend\n");
}
