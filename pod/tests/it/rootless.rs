//! Pods of a user without privilege.

use super::host::Host;

fn sh<'a>(options: &[&'a str], script: &'a str) -> Vec<&'a str> {
    [&["run"], options, &["--", "busybox", "sh", "-c", script]].concat()
}

#[test]
fn a_user_without_privilege_is_root_of_a_pod() {
    let host = Host::of_user(false);
    let said = host.pod(&sh(
        &["--name", "r", "--net", "none"],
        "id -u; echo $$; hostname; echo x > /tmp/mark.$$; rm -f /etc/passwd; ls /dev/shm; exit 3",
    ));
    assert_eq!((said.code, said.out.as_str()), (3, "0\n2\nr\n"), "{said:?}");
    assert!(!std::fs::exists("/tmp/mark.2").unwrap());
    assert_eq!(host.good(&["diff", "r"]), "D /etc/passwd\nA /tmp/mark.2\n");
    let got = host.home().join("got").to_str().unwrap().to_owned();
    host.good(&["cp", "r:/tmp/mark.2", &got]);
    assert_eq!(std::fs::read_to_string(got).unwrap(), "x\n");
}

#[test]
fn only_one_user_without_subordinate_ids() {
    let host = Host::of_user(false);
    let said = host.pod(&["run", "-u", "daemon", "--", "busybox", "id"]);
    assert_eq!(said.code, 125);
    assert!(
        said.err.contains("hint: ") && said.err.contains("subuid"),
        "{}",
        said.err
    );
}

#[test]
fn subordinate_ids_are_users_of_the_pod() {
    let host = Host::of_user(true);
    let script =
        "id -u; umask 077; mkdir /tmp/own; echo x > /tmp/own/file; busybox stat -c %u /tmp/own";
    assert_eq!(
        host.good(&sh(&["--name", "s", "-u", "daemon"], script)),
        "1\n1\n"
    );
    assert_eq!(host.good(&["diff", "s"]), "A /tmp/own\nA /tmp/own/file\n");
    host.good(&["rm", "-f", "s"]);
}

#[test]
fn a_running_pod_of_a_user_is_reached() {
    let host = Host::of_user(true);
    host.good(&sh(
        &["-d", "--name", "d"],
        "echo in > /tmp/f; exec sleep 1000",
    ));
    assert_eq!(
        host.good(&["exec", "d", "--", "busybox", "id", "-u"]),
        "0\n"
    );
    let written = "until [ -s /tmp/f ]; do :; done";
    host.good(&["exec", "d", "--", "busybox", "sh", "-c", written]);
    let got = host.home().join("got").to_str().unwrap().to_owned();
    host.good(&["cp", "d:/tmp/f", &got]);
    host.good(&["cp", &got, "d:/tmp/g"]);
    assert_eq!(
        host.good(&["exec", "d", "--", "busybox", "cat", "/tmp/g"]),
        "in\n"
    );
    let refused = host.pod(&["pause", "d"]);
    assert!(
        refused.code == 125 && refused.err.contains("cannot be paused"),
        "{refused:?}"
    );
    assert_eq!(
        host.pod(&["run", "--memory", "64m", "--", "true"]).code,
        125
    );
    host.good(&["stop", "-t", "0", "d"]);
}
