//! Three hosts on one switch.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::anchor::Anchor;
use crate::binary::pod_binary;
use crate::done::finish;
use crate::host::Host;
use crate::leftovers::{belongings, groups, processes};
use crate::ssh::Keys;
use crate::wait::eventually;

/// A source, a destination and a desk where the clients sit, on a network of their own.
#[derive(Debug)]
pub struct World {
    /// Where pods start.
    pub source: Host,
    /// Where they go.
    pub destination: Host,
    /// Where their users are, and the zone.
    pub desk: Host,
    switch: Anchor,
    token: String,
    before: Vec<BTreeSet<String>>,
    /// Programs that the world runs for the tests.
    servants: Vec<Child>,
    directory: tempfile::TempDir,
}

impl World {
    /// Makes the hosts and connects them. Keep the thread that calls this alive as long as the world.
    ///
    /// # Errors
    /// When a namespace or a device cannot be made: this needs root.
    pub fn new() -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("pod-world-")
            .tempdir_in("/var/tmp")?;
        let token = directory
            .path()
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        install(directory.path())?;
        let switch = Anchor::new("switch", Vec::new())?;
        let host =
            |name: &str, number| Host::new(name, number, directory.path().join(name), &token);
        let (source, destination, desk) = (
            host("source", 1)?,
            host("destination", 2)?,
            host("desk", 3)?,
        );
        inside(
            &switch,
            "link set lo up\nlink add switch type bridge\nlink set switch up\n",
        )?;
        for host in [&source, &destination, &desk] {
            connect(&switch, host)?;
            // Debian's sshd wants it, and systemd makes it.
            host.shell("mkdir /run/sshd")?.ok()?;
        }
        let mut world = Self {
            source,
            destination,
            desk,
            switch,
            token,
            before: Vec::new(),
            servants: Vec::new(),
            directory,
        };
        world.before = world.belongings()?;
        Ok(world)
    }

    /// All hosts.
    #[must_use]
    pub fn hosts(&self) -> [&Host; 3] {
        [&self.source, &self.destination, &self.desk]
    }

    /// A directory for files of the test. Every host sees it under this path.
    #[must_use]
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// Pulls a host's cable out of the switch, or puts it back.
    ///
    /// # Errors
    /// When the device cannot be changed.
    pub fn plug(&self, host: &Host, connected: bool) -> Result<()> {
        let state = if connected { "up" } else { "down" };
        inside(&self.switch, &format!("link set {} {state}\n", port(host)))
    }

    /// Starts ssh's daemon on the source and the destination, with keys that all hosts trust.
    ///
    /// # Errors
    /// When a key cannot be made or a daemon does not start.
    pub fn serve_ssh(&mut self) -> Result<()> {
        let keys = Keys::make(self.directory())?;
        for host in [&self.source, &self.destination] {
            self.servants.push(keys.serve(host)?);
        }
        Ok(())
    }

    /// Makes the three hosts a cluster: an agent on each, the zone's primary on the desk, and every host
    /// asks its own name server.
    ///
    /// # Errors
    /// When an agent does not start.
    pub fn make_cluster(&mut self) -> Result<()> {
        let at = |host: &Host| format!("{}:7077", host.v4());
        let first = at(&self.desk);
        let told = self
            .desk
            .pod(&["agent", "init", "--listen", &first])?
            .ok()?;
        let token = told
            .split_whitespace()
            .last()
            .context("agent init printed no token")?
            .to_owned();
        self.start_agent(2)?;
        for number in [0, 1] {
            let host = self.hosts()[number];
            host.pod(&[
                "agent",
                "join",
                &first,
                "--token",
                &token,
                "--listen",
                &at(host),
            ])?
            .ok()?;
            self.start_agent(number)?;
        }
        Ok(())
    }

    fn start_agent(&mut self, number: usize) -> Result<()> {
        let host = self.hosts()[number];
        let pod = host.program().to_string_lossy().into_owned();
        let child = host.spawn(&[&pod, "agent"], &host.directory().join("agent.log"))?;
        host.resolve_at(host.v4())?;
        self.servants.push(child);
        let host = self.hosts()[number];
        let question = [
            "dig",
            "+short",
            "+time=1",
            "+tries=1",
            "pod.internal",
            "SOA",
        ];
        eventually("the name server to know the zone", || {
            let answer = host.run(&question)?.ok()?;
            ensure!(answer.contains(' ') && !answer.starts_with(';'), "{answer}");
            Ok(())
        })
        .with_context(|| format!("on {}", host.name()))
    }

    /// Keeps a program until the end of the world, where it is killed.
    pub fn keep(&mut self, child: Child) {
        self.servants.push(child);
    }

    fn belongings(&self) -> Result<Vec<BTreeSet<String>>> {
        self.hosts().map(belongings).into_iter().collect()
    }

    /// Ends the world and makes sure that nothing of it is left: no process, mount, control group, device,
    /// address, firewall rule, IPC object or temporary file. Pods must have been removed before.
    ///
    /// # Errors
    /// With the list of what is left.
    pub fn end(mut self) -> Result<()> {
        self.dismiss();
        let ids: Vec<String> = self.hosts().iter().flat_map(|host| host.ids()).collect();
        // A process that was killed is gone a moment later.
        eventually(
            "the world's processes and control groups to be gone",
            || {
                let left = self.processes();
                ensure!(left.is_empty(), "left behind: {left:?}");
                let left = groups(&ids);
                ensure!(left.is_empty(), "left behind: {left:?}");
                Ok(())
            },
        )?;
        for ((host, before), after) in self
            .hosts()
            .iter()
            .zip(&self.before)
            .zip(self.belongings()?)
        {
            let left: Vec<_> = after.difference(before).collect();
            ensure!(left.is_empty(), "left behind on {}: {left:#?}", host.name());
        }
        Ok(())
    }

    fn dismiss(&mut self) {
        for mut servant in self.servants.drain(..) {
            // It may have children to end, so it is asked first. Both fail only when it is gone.
            let _ = kill(Pid::from_raw(servant.id() as i32), Signal::SIGTERM);
            let _ = servant.wait();
        }
    }

    fn processes(&self) -> Vec<crate::leftovers::Process> {
        let anchors = [&self.source, &self.destination, &self.desk].map(Host::anchor);
        let nets: Vec<u64> = anchors
            .iter()
            .filter_map(|anchor| anchor.net_inode().ok())
            .collect();
        let but = [
            anchors[0].pid(),
            anchors[1].pid(),
            anchors[2].pid(),
            std::process::id(),
        ];
        processes(&self.token, &nets, &but)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.dismiss();
        for process in self.processes() {
            // Fails only when it is gone.
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
    }
}

/// Puts `pod` where every host sees it.
fn install(world: &Path) -> Result<()> {
    let bin = world.join("bin");
    std::fs::create_dir(&bin).context("make a directory for pod")?;
    let (from, to) = (pod_binary(), bin.join("pod"));
    std::fs::hard_link(from, &to)
        .or_else(|_| std::fs::copy(from, &to).map(drop))
        .with_context(|| format!("copy {}", from.display()))
}

fn inside(anchor: &Anchor, batch: &str) -> Result<()> {
    let script = format!("ip -batch - <<'END'\n{batch}END\n");
    let mut command = Command::new("sh");
    anchor.enter(command.args(["-c", &script]))?;
    finish(&mut command)?.ok().map(drop)
}

fn port(host: &Host) -> String {
    format!("to-{}", &host.name()[..4])
}

fn connect(switch: &Anchor, host: &Host) -> Result<()> {
    let port = port(host);
    let (v4, v6, pid) = (host.v4(), host.v6(), host.anchor().pid());
    inside(
        switch,
        &format!(
            "link add {port} type veth peer name eth0 netns {pid}\nlink set {port} master switch\nlink set {port} up\n"
        ),
    )?;
    let addresses = format!(
        "link set lo up\nlink set eth0 addrgenmode none\naddress add {v4}/24 dev eth0\naddress add {v6}/64 dev eth0 nodad\nlink set eth0 up\n"
    );
    inside(host.anchor(), &addresses).with_context(|| format!("give {} its addresses", host.name()))
}
