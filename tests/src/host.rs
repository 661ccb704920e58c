//! One machine, as far as a program can tell: a network namespace with an address on the switch, mounts,
//! a hostname, System V IPC and a state directory of its own.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::anchor::{Anchor, Mount};
use crate::done::{Done, finish};
use crate::leftovers::processes;
use crate::ssh::Keys;
use crate::wait::eventually;

/// A host of a [`crate::World`].
#[derive(Debug)]
pub struct Host {
    name: String,
    number: u8,
    directory: PathBuf,
    token: String,
    anchor: Anchor,
    /// Ids of every pod ever seen here, by which what they left can be recognised.
    seen: Mutex<BTreeSet<String>>,
}

/// Directories that are a host's own and empty at the start.
pub(crate) const OWN: [&str; 3] = ["/tmp", "/run", "/dev/shm"];

impl Host {
    /// Makes a host that is not yet connected to anything.
    pub(crate) fn new(name: &str, number: u8, directory: PathBuf, token: &str) -> Result<Self> {
        for part in ["state", "home"] {
            fs::create_dir_all(directory.join(part))
                .with_context(|| format!("make {}", directory.display()))?;
        }
        let resolver = directory.join("resolv.conf");
        fs::write(&resolver, "options attempts:1 timeout:2\n").context("write resolv.conf")?;
        let mut mounts: Vec<Mount> = OWN.iter().map(|at| Mount::Empty(at)).collect();
        mounts.push(Mount::Bind(resolver, "/etc/resolv.conf".into()));
        let anchor = Anchor::new(name, mounts).with_context(|| format!("make host {name}"))?;
        let seen = Mutex::default();
        Ok(Self {
            name: name.to_owned(),
            number,
            directory,
            token: token.to_owned(),
            anchor,
            seen,
        })
    }

    /// Its hostname.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn v4(&self) -> IpAddr {
        Ipv4Addr::new(10, 77, 0, self.number).into()
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn v6(&self) -> IpAddr {
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, self.number.into()).into()
    }

    /// The namespaces.
    #[must_use]
    pub fn anchor(&self) -> &Anchor {
        &self.anchor
    }

    /// A directory for a test's files. Every host sees it under this path.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where its `pod` keeps its state.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Writes what `/etc/resolv.conf` says on this host.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn resolve_at(&self, server: IpAddr) -> Result<()> {
        let text = format!("nameserver {server}\noptions attempts:2 timeout:2\n");
        fs::write(self.directory.join("resolv.conf"), text).context("write resolv.conf")
    }

    /// A command that will run on this host, with a small environment of its own.
    ///
    /// # Errors
    /// When the namespaces' descriptors cannot be duplicated.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let mut command = Command::new(program);
        command
            .env_clear()
            .current_dir(&self.directory)
            .envs(self.environment());
        for name in ["POD_LOG", "RUST_BACKTRACE"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        self.anchor.enter(&mut command)?;
        Ok(command)
    }

    /// The environment of every command here.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("PATH", self.path()),
            ("LANG", "C.UTF-8".to_owned()),
            ("TERM", "dumb".to_owned()),
            (
                "HOME",
                self.directory.join("home").to_string_lossy().into_owned(),
            ),
            ("POD_ROOT", self.state().to_string_lossy().into_owned()),
            ("POD_SSH", Keys::command(self.world())),
            ("POD_TEST", self.token.clone()),
        ]
    }

    /// The `pod` program, in the world's directory: a checkout under /tmp is out of a host's sight.
    #[must_use]
    pub fn program(&self) -> PathBuf {
        self.world().join("bin/pod")
    }

    fn world(&self) -> &Path {
        self.directory.parent().unwrap_or(Path::new("/"))
    }

    fn path(&self) -> String {
        let own = self.world().join("bin");
        format!(
            "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            own.display()
        )
    }

    /// Runs a command on this host to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run<S: AsRef<str>>(&self, words: &[S]) -> Result<Done> {
        let Some((program, arguments)) = words.split_first() else {
            bail!("an empty command");
        };
        let mut command = self.command(program.as_ref())?;
        finish(command.args(arguments.iter().map(AsRef::as_ref)))
            .with_context(|| format!("on host {}", self.name))
    }

    /// Runs a shell script on this host to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn shell(&self, script: &str) -> Result<Done> {
        self.run(&["sh", "-c", script])
    }

    /// Starts a program of this host's own that is not in a pod; its output goes to a file.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn<S: AsRef<str>>(&self, words: &[S], log: &Path) -> Result<Child> {
        let Some((program, arguments)) = words.split_first() else {
            bail!("an empty command");
        };
        let log = fs::File::create(log).with_context(|| format!("make {}", log.display()))?;
        let mut command = self.command(program.as_ref())?;
        command
            .args(arguments.iter().map(AsRef::as_ref))
            .stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        command
            .spawn()
            .with_context(|| format!("start {} on host {}", program.as_ref(), self.name))
    }

    /// Runs `pod` on this host to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn pod<S: AsRef<str>>(&self, arguments: &[S]) -> Result<Done> {
        let mut command = self.command(self.program())?;
        let done = finish(command.args(arguments.iter().map(AsRef::as_ref)));
        self.note_pods();
        done
    }

    fn note_pods(&self) {
        if let (Ok(mut seen), Ok(entries)) =
            (self.seen.lock(), fs::read_dir(self.state().join("pods")))
        {
            seen.extend(
                entries
                    .flatten()
                    .map(|entry| entry.file_name().to_string_lossy().into_owned()),
            );
        }
    }

    /// Ids of every pod that was ever seen here.
    pub(crate) fn ids(&self) -> Vec<String> {
        self.seen
            .lock()
            .map(|seen| seen.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// Processes on this host, but for the one that holds its namespaces.
    fn processes(&self) -> Vec<crate::leftovers::Process> {
        let net = self
            .anchor
            .net_inode()
            .map_or(Vec::new(), |inode| vec![inode]);
        processes("", &net, &[self.anchor.pid(), std::process::id()])
    }

    /// Command lines of what runs on this host, but for servants that are not in pods.
    #[must_use]
    pub fn processes_in_pods(&self) -> Vec<String> {
        let all = self.processes().into_iter().map(|process| process.command);
        all.filter(|command| {
            !command.contains("sshd")
                && !command.contains("pod agent")
                && !command.contains("name-server")
        })
        .collect()
    }

    /// Kills everything that runs on this host, one pid after the other.
    ///
    /// # Errors
    /// When something does not die.
    pub fn kill_all(&self) -> Result<()> {
        eventually("the host to be quiet", || {
            let left = self.processes();
            for process in &left {
                // Fails only when it is gone.
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
            }
            ensure!(left.is_empty(), "{left:?} run on");
            Ok(())
        })
    }
}
