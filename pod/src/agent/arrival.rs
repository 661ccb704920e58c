//! A pod on its way in: its directory, what is received there, and its life until the move is over.
//!
//! ```text
//!   pods/<id>/config.json, state.json    made at once: the name is taken
//!             move/lock                  held by the worker that receives
//!                  journal
//!                  manifest              host files that are not here
//!                  files/<number>        their contents, until the layer can take them
//!                  image/
//! ```

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use netname::Placement;

use super::config::Settings;
use crate::failure::Failure;
use crate::layer::cover;
use crate::messages::{Ask, Overlay, Root};
use crate::migrate::Arrival;
use crate::migrate::authority::{Authority, Decisions};
use crate::migrate::journal::{Begun, Journal, Side};
use crate::migrate::manifest;
use crate::migrate::message::{HostContent, HostFile, Offer};
use crate::migrate::source::JOURNAL;
use crate::migrate::zone::Zone;
use crate::store::{Config, Lock, Phase, Pod, State, Store, private_dir, write_atomically};
use crate::supervise::Client;
use crate::{cleanup, holder};

/// The directory of a pod's move.
pub(crate) fn directory(pod: &Pod) -> PathBuf {
    pod.path("move")
}

/// The lock of whoever receives a pod.
pub(crate) fn lock(pod: &Pod) -> PathBuf {
    directory(pod).join("lock")
}

/// The journal of a pod's last move, if there was one.
///
/// # Errors
/// A journal that is damaged.
pub(crate) fn journal(pod: &Pod) -> Result<Option<Journal>> {
    Journal::open(&directory(pod).join(JOURNAL))
}

/// Who decides about a pod that arrives here.
///
/// # Errors
/// When there is a zone, and no access to it.
pub(crate) fn authority(store: &Store, pod: &Pod, begun: &Begun) -> Result<Box<dyn Authority>> {
    let Some(fence) = &begun.fence else {
        return Ok(Box::new(Decisions::of(store.root()).about(&begun.id)?));
    };
    let settings = Settings::of(store.root())?;
    let dns = settings
        .dns
        .as_ref()
        .context("no [dns] is configured here")?;
    let mut here = Placement {
        addresses: settings.published().into_iter().collect(),
        ..Placement::default()
    };
    // The services are the same ones, at our address: the pod holds their ports already.
    if let Some(entry) = dns.updater()?.lookup(&fence.pod).ok().flatten() {
        here.virtual_address = entry.placement.virtual_address;
        here.services = entry.placement.services;
        for service in &mut here.services {
            service.at = service
                .at
                .and_then(|at| Some((settings.published()?, at.port()).into()));
        }
    }
    tracing::debug!(pod = pod.id, ?here, "placement");
    Ok(Box::new(Zone::destination(
        dns.updater()?,
        fence.clone(),
        here,
    )))
}

/// A pod on its way in.
pub(super) struct Guest {
    store: Store,
    pod: Pod,
    journal: Journal,
    authority: Box<dyn Authority>,
    id: String,
    lacking: Vec<(u32, HostFile)>,
    guard: Option<Client>,
    _lock: Lock,
}

impl Guest {
    /// Takes the pod's name and makes its directory.
    ///
    /// # Errors
    /// A name that is taken, a full disk; nothing is left then.
    pub(super) fn admit(store: &Store, offer: &Offer, from: &str) -> Result<Self> {
        let mut config: Config =
            serde_json::from_value(offer.config.clone()).context("the pod's configuration")?;
        anyhow::ensure!(
            config.id == offer.pod,
            "the offer is of another pod than its configuration"
        );
        crate::store::check_name(&config.name)?;
        check_id(&config.id)?;
        config.image = Some(
            store
                .root()
                .join("pods")
                .join(&config.id)
                .join("move/image"),
        );
        let pod = store.create(&config)?;
        Self::begin(store, pod.clone(), offer, from).inspect_err(|_| {
            if let Err(error) = cleanup::remove(&pod) {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "remove a pod that was not admitted"
                );
            }
        })
    }

    fn begin(store: &Store, pod: Pod, offer: &Offer, from: &str) -> Result<Self> {
        let dir = directory(&pod);
        private_dir(&dir.join("image"))?;
        private_dir(&dir.join("files"))?;
        let lock = Lock::exclusive(&lock(&pod))?;
        let begun = Begun {
            id: offer.id.clone(),
            side: Side::Destination,
            peer: from.to_owned(),
            fence: offer.fence.clone(),
        };
        let authority = authority(store, &pod, &begun)?;
        let journal = Journal::begin(&dir.join(JOURNAL), begun)?;
        Ok(Self {
            store: store.clone(),
            pod,
            journal,
            authority,
            id: offer.id.clone(),
            lacking: Vec::new(),
            guard: None,
            _lock: lock,
        })
    }
}

/// An id names a directory.
fn check_id(id: &str) -> Result<()> {
    let good = id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if good {
        Ok(())
    } else {
        Err(Failure::new(format!("{id:?} is no pod's id")).into())
    }
}

/// Starts a pod's holder on its image, and waits until it is held.
///
/// # Errors
/// Why it could not be rebuilt.
pub(crate) fn rebuild(store: &Store, pod: &Pod) -> Result<Client> {
    let lock = pod.hold()?;
    remove(&pod.path("layer"))?;
    pod.write_state(&State::new(Phase::Starting)?)?;
    holder::spawn(store, pod, lock)?;
    if let Some(client) = Client::connect(pod)?
        && client.send(&Ask::Guard, &[]).is_ok()
        && client.receive()?.is_some()
    {
        return Ok(client);
    }
    pod.until_let_go()?;
    let failure = pod.state()?.failure;
    Err(failure
        .unwrap_or_else(|| Failure::new("the pod could not be rebuilt"))
        .into())
}

/// Ends a pod that is held, and removes everything of it.
///
/// # Errors
/// What could not be removed.
pub(crate) fn erase(store: &Store, pod: &Pod, guard: Option<Client>) -> Result<()> {
    if let Some(client) = guard {
        // It may have ended by itself.
        let vanished = client.ask(&Ask::Vanish);
        tracing::debug!(?vanished, pod = pod.id);
    }
    pod.until_let_go()?;
    let _lock = store.lock()?;
    cleanup::remove(pod)
}

impl Arrival for Guest {
    fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }

    fn authority(&self) -> &dyn Authority {
        &*self.authority
    }

    fn missing(&mut self, manifest: &[HostFile]) -> Result<Vec<u32>> {
        let missing = manifest::missing(manifest)?;
        self.lacking = missing
            .iter()
            .map(|number| (*number, manifest[*number as usize].clone()))
            .collect();
        let mut bytes = Vec::new();
        ciborium::into_writer(&self.lacking, &mut bytes).context("encode the manifest")?;
        write_atomically(&directory(&self.pod).join("manifest"), &bytes)?;
        Ok(missing)
    }

    fn place(&mut self, number: u32, _: &HostFile) -> Result<PathBuf> {
        anyhow::ensure!(
            self.lacking.iter().any(|(lacking, _)| *lacking == number),
            "file {number} was not asked for"
        );
        Ok(directory(&self.pod).join("files").join(number.to_string()))
    }

    fn image(&self) -> PathBuf {
        directory(&self.pod).join("image")
    }

    fn restart(&mut self) -> Result<()> {
        self.guard = Some(rebuild(&self.store, &self.pod)?);
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        let guard = self.guard.as_ref().context("the pod is not held")?;
        guard.ask(&Ask::Go)?;
        clear(&self.pod)
    }

    fn destroy(&mut self) -> Result<()> {
        erase(&self.store, &self.pod, self.guard.take())?;
        Ok(Decisions::of(self.store.root()).about(&self.id)?.forget()?)
    }
}

/// What was received is not needed once the pod runs.
///
/// # Errors
/// When it cannot be removed.
pub(crate) fn clear(pod: &Pod) -> Result<()> {
    for name in ["image", "files", "manifest"] {
        remove(&directory(pod).join(name))?;
    }
    pod.forget_image()
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Puts the host files that this host lacks into the pod's layer.
///
/// # Errors
/// A file that no part of the layer covers, a full disk.
pub(crate) fn furnish(pod: &Pod, root: &Root) -> Result<()> {
    let list = directory(pod).join("manifest");
    let bytes = match fs::read(&list) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        bytes => bytes.with_context(|| format!("read {}", list.display()))?,
    };
    let lacking: Vec<(u32, HostFile)> =
        ciborium::from_reader(bytes.as_slice()).context("read the manifest")?;
    let overlays = root.overlays.as_deref().unwrap_or_default();
    for (number, file) in &lacking {
        let content = directory(pod).join("files").join(number.to_string());
        put(overlays, file, &content)
            .with_context(|| format!("give the pod its {}", file.path.display()))?;
    }
    Ok(())
}

fn put(overlays: &[Overlay], file: &HostFile, content: &Path) -> Result<()> {
    let parts: Vec<_> = overlays
        .iter()
        .map(|overlay| (overlay.at.clone(), overlay.upper.clone()))
        .collect();
    anyhow::ensure!(
        file.path.components().all(|part| part.as_os_str() != ".."),
        "this is no path"
    );
    let path = cover(&parts, &file.path).context("no layer of the pod covers it")?;
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    parents(overlays, &file.path, &path)?;
    match &file.content {
        HostContent::Link(target) => symlink(target, &path)?,
        HostContent::File { .. } => {
            fs::set_permissions(content, fs::Permissions::from_mode(file.mode))?;
            // The content stays until the pod runs: it may have to be rebuilt.
            fs::hard_link(content, &path)?;
        }
    }
    if nix::unistd::geteuid().is_root() && matches!(file.content, HostContent::File { .. }) {
        chown(&path, Some(file.uid), Some(file.gid))?;
        // chown(2) takes set-user-id bits away.
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
    }
    Ok(())
}

/// Makes the directories above a file in the layer, with the attributes they have on this host.
fn parents(overlays: &[Overlay], path: &Path, upper: &Path) -> Result<()> {
    let uppers: Vec<_> = overlays
        .iter()
        .map(|overlay| overlay.upper.as_path())
        .collect();
    let mut ahead = Vec::new();
    let pairs = upper.ancestors().skip(1).zip(path.ancestors().skip(1));
    for (there, here) in pairs.take_while(|(there, _)| !uppers.contains(there) && !there.exists()) {
        ahead.push((there.to_owned(), here.to_owned()));
    }
    for (there, here) in ahead.into_iter().rev() {
        fs::create_dir(&there)?;
        let mode = here
            .metadata()
            .map_or(0o755, |meta| meta.permissions().mode() & 0o7777);
        fs::set_permissions(&there, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}
