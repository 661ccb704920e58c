//! The state of tasks over a checkpoint: each C program runs natively, under checkpoints that leave it
//! running, and from an image, and must say the same each time.

mod calls;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::host::Host;

/// Compiles a C program of this directory.
pub(crate) fn compile(directory: &Path, name: &str, source: &str) -> PathBuf {
    let (from, to) = (directory.join(format!("{name}.c")), directory.join(name));
    std::fs::write(&from, source).unwrap();
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-g", "-pthread", "-o"])
        .arg(&to)
        .arg(&from);
    let said = gcc.output().unwrap();
    assert!(
        said.status.success(),
        "{}",
        String::from_utf8_lossy(&said.stderr)
    );
    to
}

/// Waits until `is` answers something; only a hang ends it otherwise.
pub(crate) fn eventually<T>(what: &str, mut is: impl FnMut() -> Option<T>) -> T {
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = is() {
            return found;
        }
        assert!(Instant::now() < patience, "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Lines in order, for programs whose children speak in no order.
pub(crate) fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

/// A program in a pod, and the images made of it.
pub(crate) struct Subject {
    pub(crate) host: Host,
    pub(crate) files: tempfile::TempDir,
}

impl Subject {
    /// Runs a program detached and waits until it has said `word`.
    pub(crate) fn run(source: &str, arguments: &[&str], word: &str) -> Self {
        let (host, files) = (Host::new(), tempfile::tempdir().unwrap());
        let program = compile(files.path(), "program", source);
        let program = program.to_str().unwrap();
        host.good(&[&["run", "-d", "--name", "p", "--", program], arguments].concat());
        let subject = Self { host, files };
        subject.says("p", word);
        subject
    }

    /// Waits until a pod has said a line with this beginning.
    pub(crate) fn says(&self, pod: &str, word: &str) -> String {
        eventually(word, || {
            let said = self.host.pod(&["logs", pod]).out;
            said.lines().any(|l| l.starts_with(word)).then_some(said)
        })
    }

    /// Where an image of that name lies.
    pub(crate) fn image(&self, name: &str) -> String {
        self.files.path().join(name).to_str().unwrap().to_owned()
    }

    /// Checkpoints the pod; it goes on.
    pub(crate) fn leave(&self, name: &str) {
        self.host.good(&[
            "checkpoint",
            "p",
            "-o",
            &self.image(name),
            "--leave-running",
        ]);
    }
}
