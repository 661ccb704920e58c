//! A host of its own for each test: a temporary root, and a look for leftovers at the end.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// A root directory with the pods of one test.
pub(crate) struct Host {
    root: TempDir,
    binary: PathBuf,
    user: Option<User>,
    network: Option<PathBuf>,
}

/// A network namespace of the test's own, for as long as it lives.
pub(crate) struct Network {
    holder: Child,
}

impl Network {
    pub(crate) fn new() -> Self {
        let mut command = Command::new("busybox");
        command
            .args(["cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        // SAFETY: the closure makes one system call.
        unsafe { command.pre_exec(|| Ok(unshare(CloneFlags::CLONE_NEWNET)?)) };
        let network = Self {
            holder: command.spawn().unwrap(),
        };
        network.good(&["ip", "link", "set", "lo", "up"]);
        network
    }

    pub(crate) fn pid(&self) -> String {
        self.holder.id().to_string()
    }

    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }

    /// Runs a program in the namespace.
    pub(crate) fn run(&self, arguments: &[&str]) -> Said {
        let mut command = Command::new(arguments[0]);
        command.args(&arguments[1..]).stdin(Stdio::null());
        enter(&mut command, &self.path());
        command.output().unwrap().into()
    }

    pub(crate) fn good(&self, arguments: &[&str]) -> String {
        let said = self.run(arguments);
        assert_eq!(said.code, 0, "{arguments:?}: {said:?}");
        said.out
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.holder.kill().unwrap();
        self.holder.wait().unwrap();
    }
}

fn enter(command: &mut Command, network: &Path) {
    let namespace = std::fs::File::open(network).unwrap();
    let join = move || Ok(setns(&namespace, CloneFlags::CLONE_NEWNET)?);
    // SAFETY: the closure makes one system call.
    unsafe { command.pre_exec(join) };
}

/// Who runs the commands, if not root.
#[derive(Clone)]
pub(crate) struct User {
    pub(crate) uid: u32,
    /// What /etc/subuid and /etc/subgid say for the user's commands.
    pub(crate) subordinates: Option<PathBuf>,
}

/// What a finished command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl User {
    fn become_it(&self) -> std::io::Result<()> {
        if let Some(file) = &self.subordinates {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
            for target in ["/etc/subuid", "/etc/subgid"] {
                mount(
                    Some(file),
                    target,
                    None::<&str>,
                    MsFlags::MS_BIND,
                    None::<&str>,
                )?;
            }
        }
        nix::unistd::setgroups(&[])?;
        nix::unistd::setgid(self.uid.into())?;
        nix::unistd::setuid(self.uid.into())?;
        Ok(())
    }
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
        let root = tempfile::tempdir().unwrap();
        Self {
            root,
            binary: env!("CARGO_BIN_EXE_pod").into(),
            user: None,
            network: None,
        }
    }

    /// A host on a network of its own.
    pub(crate) fn on(network: &Network) -> Self {
        let mut host = Self::new();
        host.network = Some(network.path());
        host
    }

    /// A host whose commands are run by a user without privilege. With `range`, the user has subordinate ids.
    pub(crate) fn of_user(range: bool) -> Self {
        let mut host = Self::new();
        let uid = 65534;
        chown(host.root.path(), Some(uid), Some(uid)).unwrap();
        let binary = host.root.path().join("pod");
        // By another program: a file we had open for writing could be held by a child of another test.
        let copied = Command::new("cp").arg(&host.binary).arg(&binary).status();
        assert!(copied.unwrap().success());
        host.binary = binary;
        let subordinates = range.then(|| {
            let path = host.root.path().join("subordinates");
            std::fs::write(&path, format!("{uid}:1000000:65536\n")).unwrap();
            path
        });
        host.user = Some(User { uid, subordinates });
        host
    }

    /// The command line of `pod` on this host.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .arg("--root")
            .arg(self.state())
            .args(arguments)
            .stdin(Stdio::null());
        if let Some(network) = &self.network {
            enter(&mut command, network);
        }
        if let Some(user) = self.user.clone() {
            command.current_dir("/");
            // SAFETY: the closure makes system calls only, in a child of its own.
            unsafe { command.pre_exec(move || user.become_it()) };
        }
        command
    }

    fn state(&self) -> PathBuf {
        self.root.path().join("state")
    }

    /// A directory the commands' user may write.
    pub(crate) fn home(&self) -> &Path {
        self.root.path()
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

    /// Kills everything of ours around a pod at once.
    pub(crate) fn end_holder(&self, pod: &str) {
        let (supervisor, init) = (self.pid(pod, "supervisor"), self.pid(pod, "init"));
        let stat = std::fs::read_to_string(format!("/proc/{supervisor}/stat")).unwrap();
        let parent = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_ascii_whitespace()
            .nth(1)
            .unwrap();
        let holder = Pid::from_raw(parent.parse().unwrap());
        // Stopped first, so that it cannot start another supervisor.
        kill(holder, Signal::SIGSTOP).unwrap();
        for pid in [Pid::from_raw(supervisor), holder, Pid::from_raw(init)] {
            kill(pid, Signal::SIGKILL).unwrap();
        }
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
        let left = std::fs::read_dir(self.state().join("pods")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "directories are left");
    }
}
