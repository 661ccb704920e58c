//! Control groups: limits, pause and resume.

use super::host::Host;

#[test]
fn a_process_limit_holds() {
    let host = Host::new();
    let script = "i=0; while [ $i -lt 20 ]; do busybox sleep 5 & i=$((i+1)); done; echo all";
    let said = host.pod(&["run", "--pids", "8", "--", "busybox", "sh", "-c", script]);
    assert!(said.err.contains("fork"), "{said:?}");
    assert_eq!(
        host.pod(&["run", "--pids", "40", "--", "busybox", "sh", "-c", script])
            .out,
        "all\n"
    );
}

#[test]
fn a_memory_limit_holds() {
    let host = Host::new();
    let script = "x=$(busybox head -c 200000000 /dev/zero | busybox tr '\\0' x); echo ${#x}";
    assert_eq!(
        host.pod(&[
            "run", "--memory", "32m", "--", "busybox", "sh", "-c", script
        ])
        .out,
        ""
    );
}

#[test]
fn a_paused_pod_does_nothing_until_it_is_resumed() {
    let host = Host::new();
    let script = "i=0; while :; do i=$((i+1)); echo $i > /dev/shm/count; done";
    host.good(&[
        "run", "-d", "--name", "p", "--", "busybox", "sh", "-c", script,
    ]);
    let init = host.pid("p", "init");
    let count =
        || std::fs::read_to_string(format!("/proc/{init}/root/dev/shm/count")).unwrap_or_default();
    host.good(&["pause", "p"]);
    assert_eq!(host.inspect("p")["state"], "paused");
    let before = count();
    assert_eq!(host.pod(&["exec", "p", "--", "true"]).code, 125);
    assert_eq!(count(), before);
    host.good(&["resume", "p"]);
    while count() == before {
        std::thread::yield_now();
    }
    host.good(&["pause", "p"]);
    host.good(&["stop", "-t", "0", "p"]);
    assert_eq!(host.inspect("p")["state"], "exited");
}

#[test]
fn stop_asks_first() {
    let host = Host::new();
    let script = "trap 'echo bye; exit 0' TERM; echo up; while :; do busybox sleep 0.02; done";
    host.good(&[
        "run", "-d", "--name", "s", "--", "busybox", "sh", "-c", script,
    ]);
    let mut follow = host.start(&["logs", "-f", "s"]);
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(follow.stdout.take().unwrap()),
        &mut line,
    )
    .unwrap();
    host.good(&["stop", "s"]);
    follow.wait().unwrap();
    assert_eq!(host.pod(&["wait", "s"]).code, 0);
    assert_eq!(host.good(&["logs", "s"]), "up\nbye\n");
}
