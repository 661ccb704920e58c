//! A host of its own for each test: a temporary root, and a look for leftovers at the end.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A root directory with the pods of one test.
pub(crate) struct Host {
    root: TempDir,
}

/// What a finished command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Host {
    pub(crate) fn new() -> Self {
        Self {
            root: tempfile::tempdir().unwrap(),
        }
    }

    /// The command line of `pod` on this host.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pod"));
        command
            .arg("--root")
            .arg(self.root.path())
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn pod(&self, arguments: &[&str]) -> Said {
        self.command(arguments).output().unwrap().into()
    }

    /// Runs a command that must succeed.
    pub(crate) fn good(&self, arguments: &[&str]) -> String {
        let said = self.pod(arguments);
        assert_eq!(said.code, 0, "pod {arguments:?}: {said:?}");
        said.out
    }

    /// Starts a command with pipes.
    pub(crate) fn start(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    pub(crate) fn inspect(&self, pod: &str) -> Value {
        serde_json::from_str(&self.good(&["inspect", pod])).unwrap()
    }

    /// A real pid from `inspect`.
    pub(crate) fn pid(&self, pod: &str, role: &str) -> i32 {
        i32::try_from(self.inspect(pod)[role].as_i64().unwrap()).unwrap()
    }

    /// Processes that were started for this host and are neither gone nor zombies.
    fn processes(&self) -> Vec<String> {
        let root = self.root.path().to_str().unwrap().to_owned();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.contains(&root) {
                found.push(format!("{} {command}", entry.file_name().display()));
            }
        }
        found
    }

    fn mounts(&self) -> Vec<String> {
        let root = self.root.path().to_str().unwrap().to_owned();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts
            .lines()
            .filter(|line| line.contains(&root))
            .map(str::to_owned)
            .collect()
    }
}

/// Control groups of pods with these ids that still exist.
pub(crate) fn groups(ids: &[String]) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut found = Vec::new();
    for at in mounts
        .lines()
        .filter(|line| line.contains(" - cgroup"))
        .filter_map(|line| line.split(' ').nth(4))
    {
        found.extend(
            ids.iter()
                .map(|id| PathBuf::from(at).join(format!("pod-{id}")))
                .filter(|path| path.exists()),
        );
    }
    found
}

impl Drop for Host {
    /// Removes every pod, then nothing may be left.
    fn drop(&mut self) {
        let all: Value = serde_json::from_str(&self.pod(&["ps", "-a", "--format", "json"]).out)
            .unwrap_or_default();
        let all = all.as_array().cloned().unwrap_or_default();
        let ids: Vec<String> = all
            .iter()
            .filter_map(|pod| Some(pod["id"].as_str()?.to_owned()))
            .collect();
        let removed: Vec<Said> = ids.iter().map(|id| self.pod(&["rm", "-f", id])).collect();
        if std::thread::panicking() {
            return;
        }
        assert!(removed.iter().all(|said| said.code == 0), "{removed:?}");
        assert_eq!(self.processes(), Vec::<String>::new());
        assert_eq!(self.mounts(), Vec::<String>::new());
        assert_eq!(groups(&ids), Vec::<PathBuf>::new());
        let left = std::fs::read_dir(self.root.path().join("pods")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "directories are left");
    }
}
