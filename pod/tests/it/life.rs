//! A pod's life, with a static program: run, ps, logs, kill, wait, rm, and what goes wrong.

use super::host::Host;

const SH: [&str; 3] = ["busybox", "sh", "-c"];

/// `pod run <options> -- busybox sh -c <script>`
fn script<'a>(options: &[&'a str], script: &'a str) -> Vec<&'a str> {
    [&["run"], options, &["--"], &SH, &[script]].concat()
}

#[test]
fn output_streams_and_exit_code_are_the_programs_own() {
    let host = Host::new();
    let said = host.pod(&script(&["--name", "a"], "echo out; echo err >&2; exit 3"));
    assert_eq!(
        (said.code, said.out.as_str(), said.err.as_str()),
        (3, "out\n", "err\n")
    );
    let logs = host.pod(&["logs", "a"]);
    assert_eq!(
        (logs.code, logs.out.as_str(), logs.err.as_str()),
        (0, "out\n", "err\n")
    );
    assert_eq!(host.pod(&["wait", "a"]).code, 3);
    assert_eq!(host.inspect("a")["state"], "exited");
}

#[test]
fn large_output_arrives_whole() {
    let host = Host::new();
    let said = host.pod(&script(&[], "busybox seq 1 200000"));
    assert_eq!(said.out.lines().count(), 200_000);
    assert!(said.out.ends_with("200000\n"));
}

#[test]
fn names_of_processes_and_host_are_the_pods_own() {
    let host = Host::new();
    let said = host.pod(&script(
        &["--name", "web", "--hostname", "box"],
        "echo $$; hostname; cat /etc/hostname; ls -d /proc/[0-9]*",
    ));
    assert_eq!(said.out, "2\nbox\nbox\n/proc/1\n/proc/2\n");
    assert_eq!(host.inspect("web")["names"]["process"], "kernel");
}

#[test]
fn writes_go_to_the_layer() {
    let host = Host::new();
    let mark = host
        .good(&script(
            &["--name", "w"],
            "f=/root/mark.$$.$RANDOM; echo mine > $f; echo $f",
        ))
        .trim()
        .to_owned();
    assert!(
        !std::path::Path::new(&mark).exists(),
        "{mark} reached the host"
    );
    let refused = host.pod(&["rm", "w"]);
    assert_eq!(refused.code, 125);
    assert!(
        refused.err.contains("hint: ") && refused.err.contains("rm -f"),
        "{}",
        refused.err
    );
    host.good(&["rm", "-f", "w"]);
    assert_eq!(host.pod(&["inspect", "w"]).code, 125);
}

#[test]
fn a_detached_pod_is_listed_killed_and_waited_for() {
    let host = Host::new();
    assert_eq!(
        host.good(&script(&["-d", "--name", "s"], "sleep 1000")),
        "s\n"
    );
    assert!(host.good(&["ps"]).contains("running"));
    assert_eq!(
        host.pod(&["rm", "s"]).code,
        125,
        "a running pod was removed"
    );
    host.good(&["kill", "s"]);
    assert_eq!(host.pod(&["wait", "s"]).code, 137);
    assert!(!host.good(&["ps"]).contains("sleep"));
    assert!(host.good(&["ps", "-a"]).contains("exited (137)"));
    host.good(&["rm", "s"]);
}

#[test]
fn a_program_that_cannot_run_leaves_nothing() {
    let host = Host::new();
    for (command, code) in [("no-such-program", 127), ("/etc/passwd", 126)] {
        let said = host.pod(&["run", "--name", "x", "--", command]);
        assert_eq!(said.code, code, "{said:?}");
        assert!(
            said.err.starts_with(&format!("pod: execute {command}: ")),
            "{}",
            said.err
        );
    }
    assert_eq!(host.good(&["ps", "-a", "--format", "json"]), "[]\n");
}

#[test]
fn bad_input_is_refused_with_125_and_a_hint() {
    let host = Host::new();
    host.good(&script(&["-d", "--name", "taken"], "sleep 1000"));
    for arguments in [
        &["run", "--name", "taken", "--", "true"][..],
        &["run", "--name", "Not/A/Name", "--", "true"],
        &["run", "-w", "/no/such/place", "--", "true"],
        &["run", "-u", "nosuchuser", "--", "true"],
        &["run", "-v", "/no/such/place:/x", "--", "true"],
        &["run", "--rootfs", "/no/such/place", "--", "true"],
        &["kill", "-s", "NOSIG", "taken"],
        &["logs", "nobody"],
    ] {
        let said = host.pod(arguments);
        assert_eq!(said.code, 125, "{arguments:?} {said:?}");
        assert!(
            said.err.starts_with("pod: ") && said.err.contains("\nhint: "),
            "{arguments:?} {}",
            said.err
        );
    }
    assert_eq!(host.pod(&["kill", "--pid", "4242", "taken"]).code, 125);
    assert_eq!(host.pod(&["frobnicate"]).code, 125);
}
