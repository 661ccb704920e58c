//! What cannot be carried is refused before anything is stopped, and the program goes on.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::Value;

use super::host::Host;

/// Takes one of each kind that the kernel gives it, says which, and counts on.
const HOLDER: &str = r#"
import ctypes, os, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
perf = ctypes.create_string_buffer(struct.pack("IIQ", 1, 128, 9).ljust(128, b"\0"))
got = {
    "perf_event": libc.syscall(298, perf, 0, -1, -1, 0),
    "userfaultfd": libc.syscall(323, 1),
    "io_uring": libc.syscall(425, 4, ctypes.create_string_buffer(120)),
    "secretmem": libc.syscall(447, 0),
}
try:
    packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    got["a packet socket"] = packet.fileno()
except OSError:
    pass
print(" ".join(f"{n.replace(' ', '_')}={fd}" for n, fd in got.items() if fd >= 0), flush=True)
i = 0
while True:
    i += 1
    open("/dev/shm/count", "w").write(str(i))
    time.sleep(0.01)
"#;

/// What the program counted up to.
fn count(host: &Host, pod: &str) -> String {
    let init = host.pid(pod, "init");
    fs::read_to_string(format!("/proc/{init}/root/dev/shm/count")).unwrap_or_default()
}

pub(crate) fn goes_on(host: &Host, pod: &str) {
    let before = count(host, pod);
    while count(host, pod) == before || count(host, pod).is_empty() {
        std::thread::yield_now();
    }
}

pub(crate) fn first_line(host: &Host, pod: &str) -> String {
    let mut logs = host.start(&["logs", "-f", pod]);
    let mut line = String::new();
    let mut out = BufReader::new(logs.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    logs.kill().unwrap();
    logs.wait().unwrap();
    line
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).unwrap().next().is_none()
}

#[test]
fn what_cannot_be_carried_is_named_and_the_program_goes_on() {
    let (host, images) = (Host::new(), tempfile::tempdir().unwrap());
    host.good(&[
        "run", "-d", "--name", "p", "--mask", "none", "--", "python3", "-c", HOLDER,
    ]);
    let line = first_line(&host, "p");
    let said = host.pod(&["check", "--pod", "p", "--format", "json"]);
    assert_eq!(said.code, 1, "{said:?}");
    let report: Value = serde_json::from_str(&said.out).unwrap();
    let refusals = report["refusals"].as_array().unwrap();
    assert_eq!(
        refusals.len(),
        line.split_whitespace().count(),
        "{line}{said:?}"
    );
    for (what, fd) in line
        .split_whitespace()
        .filter_map(|got| got.split_once('='))
    {
        let fd: i64 = fd.parse().unwrap();
        let found = refusals.iter().find(|r| r["fd"] == fd).unwrap();
        assert!(
            found["what"]
                .as_str()
                .unwrap()
                .contains(&what.replace('_', " "))
                || found["what"].as_str().unwrap().contains(what),
            "{what}: {found}"
        );
    }
    let image = images.path().join("image");
    let said = host.pod(&["checkpoint", "p", "-o", image.to_str().unwrap()]);
    assert_eq!(said.code, 125);
    assert!(said.err.starts_with("pod: pod p holds "), "{}", said.err);
    assert!(said.err.contains("\nhint: "), "{}", said.err);
    assert!(is_empty(images.path()));
    goes_on(&host, "p");
}

#[test]
fn namespaces_and_tracers_stand_in_the_way() {
    let host = Host::new();
    let script = "busybox sleep 1000 & unshare --uts sleep 2000 & echo up; wait";
    host.good(&[
        "run", "-d", "--name", "p", "--mask", "none", "--", "sh", "-c", script,
    ]);
    assert_eq!(first_line(&host, "p"), "up\n");
    let unshared = || host.pod(&["check", "--pod", "p"]);
    let mut said = unshared();
    while said.code == 0 {
        said = unshared();
    }
    assert_eq!(said.code, 1);
    assert!(said.out.contains("a uts namespace"), "{}", said.out);
}

#[test]
fn a_plain_pod_and_this_host_are_fit() {
    let host = Host::new();
    host.good(&["run", "-d", "--name", "p", "--", "busybox", "sleep", "1000"]);
    assert!(
        host.good(&["check", "--pod", "p"])
            .contains("can be carried")
    );
    let features: Value = serde_json::from_str(&host.good(&["check", "--format", "json"])).unwrap();
    let present = |name| {
        features
            .as_array()
            .unwrap()
            .iter()
            .any(|f| f["feature"] == name && f["present"] == true)
    };
    assert!(present("ptrace") && present("kcmp"), "{features}");
    host.good(&["pause", "p"]);
    let said = host.pod(&["check", "--pod", "p"]);
    assert!(
        said.code == 125 && said.err.contains("hint: a paused pod"),
        "{said:?}"
    );
}

#[test]
fn a_program_without_room_for_our_page_goes_on() {
    let (host, images) = (Host::new(), tempfile::tempdir().unwrap());
    // No address is left, so that a capture cannot map anything.
    let script = r#"
import resource, time
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + 65536, -1))
print("up", flush=True)
i = 0
while True:
    i += 1
    open("/dev/shm/count", "w").write(str(i))
    time.sleep(0.01)
"#;
    host.good(&["run", "-d", "--name", "p", "--", "python3", "-c", script]);
    assert_eq!(first_line(&host, "p"), "up\n");
    let image = images.path().join("image");
    let said = host.pod(&["checkpoint", "p", "-o", image.to_str().unwrap()]);
    assert!(said.code == 125 && said.err.contains("hint: "), "{said:?}");
    assert!(is_empty(images.path()));
    goes_on(&host, "p");
}
