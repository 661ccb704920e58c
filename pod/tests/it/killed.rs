//! A checkpoint whose processes are killed: the pod goes on or its image is whole, and no half of one is left.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::check::{first_line, goes_on};
use super::host::Host;

/// Counts, with memory enough that a checkpoint takes a while.
const LARGE: &str = r#"
import os, time
data = os.urandom(120 << 20)
print("up", flush=True)
i = 0
while True:
    i += 1
    open("/dev/shm/count", "w").write(str(i))
    time.sleep(0.01)
"#;

fn large(host: &Host) {
    host.good(&["run", "-d", "--name", "l", "--", "python3", "-c", LARGE]);
    first_line(host, "l");
}

/// The length of a file of the image that is being written in `directory`; 0 when there is none.
fn written(directory: &Path, name: &str) -> u64 {
    let entries = fs::read_dir(directory).unwrap().flatten();
    let lengths = entries.filter_map(|e| Some(fs::metadata(e.path().join(name)).ok()?.len()));
    lengths.max().unwrap_or(0)
}

/// State letters of all tasks below init.
fn states(init: i32) -> Vec<char> {
    let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap();
    let tasks = children.split_whitespace().flat_map(|pid| {
        fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
            .flatten()
    });
    let state = |stat: String| stat.rsplit(") ").next()?.chars().next();
    tasks
        .filter_map(|task| state(fs::read_to_string(task.path().join("stat")).ok()?))
        .collect()
}

#[test]
fn a_supervisor_that_is_killed_leaves_a_running_pod_and_no_half_image() {
    for half in [1, 40 << 20, 100 << 20] {
        let (host, images) = (Host::new(), tempfile::tempdir().unwrap());
        large(&host);
        let supervisor = host.pid("l", "supervisor");
        let image = images.path().join("image");
        let mut checkpoint = host.start(&["checkpoint", "l", "-o", image.to_str().unwrap()]);
        while written(images.path(), "pages.img") < half {
            assert!(
                checkpoint.try_wait().unwrap().is_none(),
                "it was too fast for this test"
            );
        }
        kill(Pid::from_raw(supervisor), Signal::SIGKILL).unwrap();
        let said: super::host::Said = checkpoint.wait_with_output().unwrap().into();
        assert_eq!(said.code, 125, "{said:?}");
        assert!(
            said.err.contains("supervisor") && said.err.contains("\nhint: "),
            "{said:?}"
        );
        assert_eq!(host.inspect("l")["state"], "running");
        while host.inspect("l")["supervisor"] == supervisor {
            std::thread::yield_now();
        }
        goes_on(&host, "l");
        assert!(
            !states(host.pid("l", "init"))
                .iter()
                .any(|s| "tTZ".contains(*s))
        );
        let left: Vec<_> = fs::read_dir(images.path())
            .unwrap()
            .flatten()
            .map(|e| e.file_name())
            .collect();
        assert!(left.is_empty(), "{left:?}");
        host.good(&["checkpoint", "l", "-o", image.to_str().unwrap()]);
        host.good(&["image", "verify", image.to_str().unwrap()]);
    }
}

#[test]
fn a_command_line_that_is_killed_changes_nothing() {
    let (host, images) = (Host::new(), tempfile::tempdir().unwrap());
    large(&host);
    let image = images.path().join("image");
    let mut checkpoint = host.start(&["checkpoint", "l", "-o", image.to_str().unwrap()]);
    while written(images.path(), "pages.img") == 0 {
        assert!(
            checkpoint.try_wait().unwrap().is_none(),
            "it was too fast for this test"
        );
    }
    checkpoint.kill().unwrap();
    checkpoint.wait().unwrap();
    assert_eq!(host.pod(&["wait", "l"]).code, 137);
    host.good(&["image", "verify", image.to_str().unwrap()]);
    host.good(&["rm", "-f", "l"]);
    host.good(&["restore", "-d", image.to_str().unwrap()]);
    goes_on(&host, "l");
}
