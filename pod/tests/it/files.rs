//! A pod's files: the layer, volumes, roots, and what reaches them from outside.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::host::Host;

/// Runs a script in a new pod; it must succeed.
fn script(host: &Host, options: &[&str], script: &str) -> String {
    let arguments = [&["run"], options, &["--", "busybox", "sh", "-c", script]].concat();
    host.good(&arguments)
}

#[test]
fn diff_tells_what_was_added_changed_and_deleted() {
    let host = Host::new();
    let lower = tempfile::tempdir().unwrap();
    fs::create_dir_all(lower.path().join("bin")).unwrap();
    fs::copy("/bin/busybox", lower.path().join("bin/busybox")).unwrap();
    for name in ["kept", "changed", "deleted"] {
        fs::write(lower.path().join(name), name).unwrap();
    }
    fs::create_dir(lower.path().join("dir")).unwrap();
    fs::write(lower.path().join("dir/old"), "old").unwrap();
    let root = lower.path().to_str().unwrap();
    let change = "cd /; echo x > added; echo x > changed; rm deleted; rm -r dir; mkdir dir; echo x > dir/new; /bin/busybox ls dir";
    assert_eq!(
        script(
            &host,
            &["--name", "d", "--rootfs", root, "-e", "PATH=/bin"],
            change
        ),
        "new\n"
    );
    assert_eq!(
        host.good(&["diff", "d"]),
        "A /added\nC /changed\nD /deleted\nC /dir\nA /dir/new\n"
    );
    assert_eq!(
        fs::read_to_string(lower.path().join("changed")).unwrap(),
        "changed"
    );
    assert!(lower.path().join("dir/old").exists() && !lower.path().join("proc").exists());
}

#[test]
fn an_empty_layer_needs_no_force() {
    let host = Host::new();
    script(
        &host,
        &["--name", "e"],
        "cat /etc/hostname /etc/passwd; ls /tmp",
    );
    assert_eq!(host.good(&["diff", "e"]), "");
    host.good(&["rm", "e"]);
}

#[test]
fn files_are_copied_both_ways_while_it_runs_and_after() {
    let host = Host::new();
    let here = tempfile::tempdir().unwrap();
    let path = |name: &str| here.path().join(name).to_str().unwrap().to_owned();
    host.good(&[
        "run",
        "-d",
        "--name",
        "c",
        "--",
        "busybox",
        "sh",
        "-c",
        "mkdir -p /root/d; echo in > /root/d/f; ln -s /etc/shadow /root/d/l; exec sleep 1000",
    ]);
    let written = "until [ -L /root/d/l ]; do :; done";
    host.good(&["exec", "c", "--", "busybox", "sh", "-c", written]);
    fs::write(path("up"), "up").unwrap();
    fs::set_permissions(path("up"), fs::Permissions::from_mode(0o751)).unwrap();
    for copy in ["live", "over"] {
        host.good(&["cp", "c:/root/d", &path(copy)]);
        assert_eq!(fs::read_to_string(path(copy) + "/f").unwrap(), "in\n");
        assert_eq!(
            fs::read_link(path(copy) + "/l").unwrap().to_str(),
            Some("/etc/shadow")
        );
        host.good(&["cp", &path("up"), &format!("c:/root/d/up-{copy}")]);
        host.good(&[
            "cp",
            &format!("c:/root/d/up-{copy}"),
            here.path().to_str().unwrap(),
        ]);
        if copy == "live" {
            host.good(&["kill", "c"]);
            host.pod(&["wait", "c"]);
        }
    }
    let mode = fs::metadata(path("up-over")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o751);
    assert_eq!(host.pod(&["cp", "c:/no/such", &path("x")]).code, 125);
    assert!(!fs::exists("/root/d/f").unwrap());
}

#[test]
fn a_link_of_the_pod_does_not_lead_out() {
    let host = Host::new();
    let here = tempfile::tempdir().unwrap();
    let secret = here.path().join("secret");
    fs::write(&secret, "of the host").unwrap();
    let hole = format!(
        "mkdir -p /root/x; ln -s ../../../../../../../.. /root/x/up; ln -s {} /root/x/out",
        here.path().display()
    );
    script(&host, &["--name", "l", "--net", "none"], &hole);
    let target = here.path().join("got").to_str().unwrap().to_owned();
    let said = host.pod(&["cp", "l:/root/x/up/etc/hostname", &target]);
    assert_eq!(said.code, 0, "{said:?}");
    host.good(&["cp", &target, "l:/root/x/out/planted"]);
    assert!(!here.path().join("planted").exists());
}

#[test]
fn volumes_reach_the_host_and_read_only_ones_do_not() {
    let host = Host::new();
    let here = tempfile::tempdir().unwrap();
    let volume = format!("{}:/data", here.path().display());
    script(&host, &["-v", &volume], "echo mine > /data/f");
    assert_eq!(fs::read_to_string(here.path().join("f")).unwrap(), "mine\n");
    let said = host.pod(&[
        "run",
        "-v",
        &(volume + ":ro"),
        "--",
        "busybox",
        "sh",
        "-c",
        "cat /data/f; echo no > /data/f",
    ]);
    assert_eq!((said.code, said.out.as_str()), (1, "mine\n"));
}

#[test]
fn fs_host_writes_through() {
    let host = Host::new();
    let here = tempfile::tempdir().unwrap();
    script(
        &host,
        &["--fs", "host"],
        &format!("echo $$ > {}/pid", here.path().display()),
    );
    assert_eq!(fs::read_to_string(here.path().join("pid")).unwrap(), "2\n");
}

#[test]
fn devices_are_the_harmless_ones_and_state_is_hidden() {
    let host = Host::new();
    let said = script(
        &host,
        &["--name", "d"],
        "ls /dev; echo x > /dev/null; head -c 3 /dev/zero | wc -c; touch /dev/shm/x; ls /dev/shm",
    );
    let devices = "fd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n";
    assert_eq!(said, format!("{devices}3\nx\n"));
    let state = host.inspect("d")["layer"].as_str().unwrap().to_owned();
    assert_ne!(host.pod(&["run", "--", "busybox", "ls", &state]).code, 0);
}

#[test]
fn a_user_of_the_pod_runs_it() {
    let host = Host::new();
    let said = script(
        &host,
        &["-u", "nobody", "-w", "/"],
        "id -u; id -g; echo $HOME $USER; umask; touch /x 2>/dev/null || echo no",
    );
    assert_eq!(said, "65534\n65534\n/nonexistent nobody\n0022\nno\n");
    assert_eq!(
        script(
            &host,
            &["-u", "12345:54321", "-w", "/"],
            "id -u; id -g; id -G"
        ),
        "12345\n54321\n54321\n"
    );
}
