//! `pod agent`: accepts connections, gives each to a worker process, keeps the name server running, and
//! puts right what workers that died have left.

use std::fs::File;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::config::{PORT, Settings};
use super::identity::Identity;
use super::sweep;
use crate::failure::{Failure, Hinted};
use crate::messages::Channel;
use crate::store::Store;

/// Connections at a time; more are closed at once.
const MOST: usize = 64;

/// Our own program again, in a role of the agent.
fn ourselves(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("pod").arg("--root").arg(root).args(arguments);
    command
}

/// Runs a worker on these descriptors until it ends, and puts right what it may have left.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn worker(
    store: &Store,
    channel: Channel,
    input: Stdio,
    output: Stdio,
) -> Result<ExitStatus> {
    let role = match channel {
        Channel::Plain => "agent-worker",
        Channel::Tls => "agent-worker-tls",
    };
    let mut child = ourselves(store.root(), &[role])
        .stdin(input)
        .stdout(output)
        .spawn()
        .context("start a worker")?;
    let status = child.wait().context("wait for a worker")?;
    if !status.success() {
        sweep::sweep(store)?;
    }
    Ok(status)
}

/// Keeps the name server, on a thread of its own: the kernel ends a process that wants to end with its
/// parent when the *thread* that made it ends (`PR_SET_PDEATHSIG`), and connections come and go.
struct NameServer {
    wishes: SyncSender<Wish>,
}

/// To run with the configuration as it is now; answered when that is so.
type Wish = SyncSender<Result<()>>;

impl NameServer {
    fn keep(root: PathBuf) -> Result<Self> {
        let (wishes, queue) = sync_channel::<Wish>(MOST);
        let keeper = move || {
            let mut running = None;
            for wish in queue {
                // Whoever wished may be gone.
                let _ = wish.send(refresh(&root, &mut running));
            }
        };
        std::thread::Builder::new()
            .name("name-server".into())
            .spawn(keeper)
            .context("start a thread")?;
        Ok(Self { wishes })
    }

    /// Starts it, or starts it again where its configuration has changed.
    fn refresh(&self) -> Result<()> {
        let (answer, done) = sync_channel(1);
        self.wishes
            .send(answer)
            .context("the name server's thread is gone")?;
        done.recv().context("the name server's thread is gone")?
    }
}

fn refresh(root: &Path, running: &mut Option<(Child, String)>) -> Result<()> {
    let wanted = Settings::of(root)?
        .server
        .map(|server| toml::to_string(&server))
        .transpose()
        .context("encode TOML")?;
    if let Some((child, with)) = running {
        let lives = child
            .try_wait()
            .context("look at the name server")?
            .is_none();
        if lives && Some(&*with) == wanted.as_ref() {
            return Ok(());
        }
    }
    if let Some((child, _)) = running.take() {
        stop(child)?;
    }
    *running = wanted
        .map(|wanted| Ok::<_, anyhow::Error>((start(root)?, wanted)))
        .transpose()?;
    Ok(())
}

/// Starts a name server and waits until it answers.
fn start(root: &Path) -> Result<Child> {
    let mut command = ourselves(root, &["name-server"]);
    let ours = std::process::id();
    let follow = move || -> std::io::Result<()> {
        // SAFETY: plain values.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) };
        let orphan = nix::unistd::getppid().as_raw() as u32 != ours;
        if orphan {
            Err(std::io::ErrorKind::NotConnected.into())
        } else {
            Ok(())
        }
    };
    // SAFETY: the closure makes system calls only.
    unsafe { command.pre_exec(follow) };
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start the name server")?;
    let mut ready = child
        .stdout
        .take()
        .context("the name server has no output")?;
    ready
        .read_to_end(&mut Vec::new())
        .context("wait for the name server")?;
    match child.try_wait().context("wait for the name server")? {
        None => Ok(child),
        Some(status) => Err(
            Failure::new(format!("the name server could not start ({status})"))
                .hint("its message stands above")
                .into(),
        ),
    }
}

fn stop(mut child: Child) -> Result<()> {
    // Not waited for yet, so the pid is still its own; one that has ended needs no signal.
    let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
    child.wait().context("wait for the name server").map(drop)
}

/// Listens until it is killed.
///
/// # Errors
/// A host in no cluster, an address that is taken, a name server that cannot start.
pub(crate) fn listen(store: &Store, told: Option<SocketAddr>) -> Result<()> {
    Identity::of(store.root()).authority_pem()?;
    let at = told.or(Settings::of(store.root())?.listen);
    let at = at.unwrap_or_else(|| SocketAddr::new([0, 0, 0, 0].into(), PORT));
    let listener = TcpListener::bind(at).hinted(
        format!("listen on {at}"),
        "choose another address with --listen",
    )?;
    sweep::sweep(store)?;
    let names = NameServer::keep(store.root().to_owned())?;
    names.refresh()?;
    tracing::info!(%at, "agent ready");
    let shared = Arc::new((store.clone(), names, AtomicUsize::new(0)));
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => welcome(&shared, stream),
            Err(error) => tracing::warn!(%error, "accept"),
        }
    }
    Ok(())
}

fn welcome(shared: &Arc<(Store, NameServer, AtomicUsize)>, stream: TcpStream) {
    if shared.2.fetch_add(1, Ordering::Relaxed) >= MOST {
        shared.2.fetch_sub(1, Ordering::Relaxed);
        tracing::warn!("too many connections");
        return;
    }
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        let (store, names, count) = &*shared;
        let served = serve(store, stream).and_then(|()| names.refresh());
        if let Err(error) = served {
            tracing::warn!(error = format!("{error:#}"), "a connection");
        }
        count.fetch_sub(1, Ordering::Relaxed);
    });
}

fn serve(store: &Store, stream: TcpStream) -> Result<()> {
    let output = stream.try_clone().context("dup")?;
    let stdio = |socket: TcpStream| Stdio::from(File::from(OwnedFd::from(socket)));
    worker(store, Channel::Tls, stdio(stream), stdio(output)).map(drop)
}
