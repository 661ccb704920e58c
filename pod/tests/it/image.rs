//! Trouble with images: each gives one clear line and a hint, and leaves nothing behind.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::check::goes_on;
use super::host::{Host, Said};
use super::sleeping::{HOLDER, Sleeping, change_header, field, records, write_records};

fn asleep(host: &Host) -> Sleeping {
    Sleeping::of(host, &["python3", "-c", HOLDER])
}

fn restore(host: &Host, image: &Path) -> Said {
    host.pod(&["restore", "-d", "--name", "woken", image.to_str().unwrap()])
}

/// The command, run by a user who may nothing here.
fn of_nobody(mut command: Command) -> Said {
    command.uid(65534).gid(65534).current_dir("/");
    command.output().unwrap().into()
}

/// Fails as it should: one line with these words, a hint, 125, and no pod.
fn refused(host: &Host, said: &Said, words: &[&str]) {
    assert_eq!(said.code, 125, "{said:?}");
    assert!(
        said.err.contains("\nhint: ") && !said.err.contains("panicked"),
        "{}",
        said.err
    );
    for word in words {
        assert!(said.err.contains(word), "{word} is not in {}", said.err);
    }
    assert_eq!(host.good(&["ps", "-a", "--format", "json"]).trim(), "[]");
}

#[test]
fn it_wakes_where_nothing_is_wrong() {
    let host = Host::new();
    let sleeping = asleep(&host);
    host.good(&["image", "verify", sleeping.image().to_str().unwrap()]);
    assert_eq!(restore(&host, &sleeping.image()).code, 0);
    assert_eq!(
        host.good(&["exec", "woken", "--", "cat", "/root/written"]),
        "in the layer"
    );
    let said = restore(&host, &sleeping.image());
    assert!(
        said.code == 125
            && said.err.contains("name woken is taken")
            && said.err.contains("\nhint: "),
        "{said:?}"
    );
}

#[test]
fn every_file_of_an_image_is_proven() {
    let host = Host::new();
    let sleeping = asleep(&host);
    let files = fs::read_dir(sleeping.image()).unwrap().flatten();
    let names: Vec<_> = files
        .map(|f| f.file_name().into_string().unwrap())
        .collect();
    assert!(names.len() >= 4, "{names:?}");
    for name in names {
        let cut = sleeping.copy(&format!("cut-{name}"));
        let bytes = fs::read(cut.join(&name)).unwrap();
        fs::write(cut.join(&name), &bytes[..bytes.len() - 1]).unwrap();
        refused(&host, &restore(&host, &cut), &[&name[..6]]);
        let flipped = sleeping.copy(&format!("flipped-{name}"));
        let mut bytes = bytes;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        fs::write(flipped.join(&name), &bytes).unwrap();
        refused(&host, &restore(&host, &flipped), &[&name[..6]]);
        let verified = host.pod(&["image", "verify", flipped.to_str().unwrap()]);
        assert!(
            verified.code == 125 && verified.err.contains("\nhint: "),
            "{verified:?}"
        );
        let gone = sleeping.copy(&format!("gone-{name}"));
        fs::remove_file(gone.join(&name)).unwrap();
        refused(&host, &restore(&host, &gone), &["image"]);
    }
}

#[test]
fn what_is_newer_or_unknown_is_refused() {
    let host = Host::new();
    let sleeping = asleep(&host);
    let newer = sleeping.copy("newer");
    change_header(&newer, |header| *field(header, "format") = 1_000_000.into());
    refused(&host, &restore(&host, &newer), &["format 1000000", "newer"]);
    let version = sleeping.copy("version");
    let mut all = records(&version);
    *field(&mut all[1], "version") = 9999.into();
    write_records(&version, &all);
    refused(&host, &restore(&host, &version), &["version 9999"]);
    let unknown = sleeping.copy("unknown");
    let mut all = records(&unknown);
    let mut strange = all[1].clone();
    *field(&mut strange, "kind") = "soul".into();
    all.push(strange);
    write_records(&unknown, &all);
    refused(&host, &restore(&host, &unknown), &["unknown kind: soul"]);
    let hidden = host.command(&["restore", "-d", sleeping.image().to_str().unwrap()]);
    refused(&host, &of_nobody(hidden), &["Permission denied"]);
    refused(&host, &restore(&host, Path::new("/")), &["not an image"]);
    refused(
        &host,
        &restore(&host, Path::new("/no/such/image")),
        &["/no/such/image"],
    );
}

#[test]
fn a_file_that_this_host_lacks_is_named() {
    let host = Host::new();
    let outside = tempfile::tempdir_in("/var/tmp").unwrap();
    let data = outside.path().join("data");
    fs::write(&data, "of the host").unwrap();
    let script =
        format!("f = open({data:?}); print('up', flush=True); import time; time.sleep(1000)");
    let sleeping = Sleeping::of(&host, &["python3", "-c", &script]);
    fs::remove_file(&data).unwrap();
    refused(
        &host,
        &restore(&host, &sleeping.image()),
        &[data.to_str().unwrap()],
    );
}

/// A file system of a given size, for as long as it lives.
struct Small(tempfile::TempDir);

impl Small {
    fn new(options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(
            Some("tmpfs"),
            dir.path(),
            Some("tmpfs"),
            flags,
            Some(options),
        )
        .unwrap();
        Self(dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let unmounted = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
        assert!(unmounted.is_ok() || std::thread::panicking());
    }
}

/// Counts, with some memory that is its own.
const COUNTER: &str = r#"
import os, time
data = os.urandom(60 << 20)
print("up", flush=True)
i = 0
while True:
    i += 1
    open("/dev/shm/count", "w").write(str(i))
    time.sleep(0.01)
"#;

fn counter(host: &Host) {
    host.good(&["run", "-d", "--name", "c", "--", "python3", "-c", COUNTER]);
    super::check::first_line(host, "c");
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().flatten();
    entries
        .map(|e| e.file_name().into_string().unwrap())
        .collect()
}

#[test]
fn a_full_disk_costs_nothing() {
    let (host, small) = (Host::new(), Small::new("size=16m"));
    counter(&host);
    let image = small.0.path().join("image");
    let said = host.pod(&["checkpoint", "c", "-o", image.to_str().unwrap()]);
    assert_eq!(said.code, 125, "{said:?}");
    assert!(
        said.err.contains("No space left") && said.err.contains("hint: make room"),
        "{}",
        said.err
    );
    assert_eq!(names(small.0.path()), Vec::<String>::new());
    goes_on(&host, "c");
}

#[test]
fn a_place_that_does_not_serve_costs_nothing() {
    let (host, taken) = (Host::new(), tempfile::tempdir().unwrap());
    counter(&host);
    let places = [
        (taken.path().to_owned(), "File exists"),
        (taken.path().join("no/such/image"), "No such file"),
    ];
    for (place, word) in places {
        let said = host.pod(&["checkpoint", "c", "-o", place.to_str().unwrap()]);
        assert!(
            said.code == 125 && said.err.contains(word) && said.err.contains("\nhint: "),
            "{said:?}"
        );
        goes_on(&host, "c");
    }
    assert_eq!(names(taken.path()), Vec::<String>::new());
    host.good(&["pause", "c"]);
    let image = taken.path().join("image");
    let said = host.pod(&["checkpoint", "c", "-o", image.to_str().unwrap()]);
    assert!(
        said.code == 125 && said.err.contains("hint: a paused pod"),
        "{said:?}"
    );
    host.good(&["resume", "c"]);
    host.good(&["kill", "c"]);
    host.pod(&["wait", "c"]);
    let said = host.pod(&["checkpoint", "c", "-o", image.to_str().unwrap()]);
    assert!(
        said.code == 125 && said.err.contains("exited") && said.err.contains("\nhint: "),
        "{said:?}"
    );
}

#[test]
fn an_image_is_listed_and_compared() {
    let (host, images) = (Host::new(), tempfile::tempdir().unwrap());
    counter(&host);
    let take = |name: &str| {
        let path = images.path().join(name).to_str().unwrap().to_owned();
        host.good(&["checkpoint", "c", "--leave-running", "-o", &path]);
        path
    };
    let (old, new) = (take("old"), take("new"));
    let listed: serde_json::Value =
        serde_json::from_str(&host.good(&["image", "ls", &old, "--format", "json"])).unwrap();
    let process = &listed["processes"][0];
    assert!(
        process["command"].as_str().unwrap().contains("python3 -c"),
        "{listed}"
    );
    assert!(process["memory"].as_u64().unwrap() > 60 << 20, "{listed}");
    assert!(listed["files"]["pages.img"]["len"].as_u64().unwrap() > 60 << 20);
    assert!(host.good(&["image", "ls", &old]).contains("OPEN FILES"));
    assert_eq!(host.good(&["image", "diff", &old, &old]), "");
    let differs = host.good(&["image", "diff", &old, &new]);
    assert!(
        differs.contains("C pages.img") && differs.contains("C process 2"),
        "{differs}"
    );
}
