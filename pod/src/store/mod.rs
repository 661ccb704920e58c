//! The root directory: everything pod keeps on a host, so that several hosts can live on one machine.
//!
//! ```text
//!   ROOT/lock                   taken while a name is given or freed
//!   ROOT/pods/<id>/config.json  what was asked for; written once
//!                  state.json   what has become of it; replaced atomically
//!                  alive        locked by the holder for as long as it lives
//!                  ctl.sock     the supervisor answers here
//!                  log          what the pod wrote
//!                  layer/       its files (see `layer`)
//! ```
//!
//! A state file can be older than the truth: after a crash or a reboot it still says `running`. Reading
//! goes through [`Pod::state`], which compares it with the lock and the boot id and says `lost` then.

mod config;
mod find;
mod lock;
mod state;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::{Failure, Hinted};

pub(crate) use config::{Base, Config, Mask, NamesChoice, Net, Publish, Volume};
pub(crate) use config::{CONFIG_VERSION, check_name, random_hex};
pub(crate) use lock::Lock;
pub(crate) use state::{Exit, Made, Phase, State, now};

/// A root directory.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    root: PathBuf,
}

/// One pod's directory.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    /// Twelve hexadecimal digits.
    pub(crate) id: String,
    /// Its directory.
    pub(crate) dir: PathBuf,
}

/// Makes a directory only its owner can enter, and its parents.
pub(crate) fn private_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("make {}", path.display()))
}

/// Replaces a file so that readers see the old or the new text, never half of one, even after a crash.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension(format!("new.{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).context("encode JSON")?;
    text.push(b'\n');
    write_atomically(path, &text)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
}

impl Store {
    /// Opens a root, making it where it is missing.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        private_dir(&root.join("pods")).hinted(
            format!("open the root {}", root.display()),
            "choose a directory you may write with --root or POD_ROOT",
        )?;
        let root = root
            .canonicalize()
            .with_context(|| format!("resolve {}", root.display()))?;
        Ok(Self { root })
    }

    /// The root directory, absolute.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Held while something that must be unique in this root is chosen or freed.
    pub(crate) fn lock(&self) -> Result<Lock> {
        Lock::exclusive(&self.root.join("lock"))
    }

    /// Makes a pod's directory and writes its configuration. Its name must be free.
    pub(crate) fn create(&self, config: &Config) -> Result<Pod> {
        let _lock = self.lock()?;
        self.refuse_taken(&config.name)?;
        let pod = self.pod(&config.id);
        private_dir(&pod.dir)?;
        write_json(&pod.dir.join("config.json"), config)?;
        pod.write_state(&State::new(Phase::Created)?)?;
        Ok(pod)
    }

    fn refuse_taken(&self, name: &str) -> Result<()> {
        for pod in self.list()? {
            if pod.id == name || pod.config().is_ok_and(|config| config.name == name) {
                let hint = format!("choose another --name, or remove it with: pod rm {name}");
                return Err(
                    Failure::new(format!("the name {name} is taken by pod {}", pod.id))
                        .hint(hint)
                        .into(),
                );
            }
        }
        Ok(())
    }

    fn pod(&self, id: &str) -> Pod {
        Pod {
            id: id.to_owned(),
            dir: self.root.join("pods").join(id),
        }
    }
}

impl Pod {
    /// The store the pod is in.
    pub(crate) fn store(&self) -> Result<Store> {
        let root = self.dir.parent().and_then(Path::parent);
        Store::open(root.context("a pod's directory is in a root")?)
    }

    /// A file in the pod's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What was asked for.
    pub(crate) fn config(&self) -> Result<Config> {
        read_json(&self.path("config.json"))
    }

    /// The pod runs, and the image it came from goes away.
    pub(crate) fn forget_image(&self) -> Result<()> {
        let config = Config {
            image: None,
            ..self.config()?
        };
        write_json(&self.path("config.json"), &config)
    }

    /// The state as it was last written, true or not.
    pub(crate) fn written_state(&self) -> Result<State> {
        read_json(&self.path("state.json"))
    }

    /// The state as it is: what was written, unless nobody is alive to stand by it.
    pub(crate) fn state(&self) -> Result<State> {
        let alive = self.is_held()?;
        let state = self.written_state()?;
        if alive || !state.phase.needs_a_holder() {
            return Ok(state);
        }
        // The holder may have finished between the two looks.
        Ok(self.written_state()?.without_a_holder())
    }

    /// Replaces the state.
    pub(crate) fn write_state(&self, state: &State) -> Result<()> {
        write_json(&self.path("state.json"), state)
    }

    /// Whether a holder lives.
    pub(crate) fn is_held(&self) -> Result<bool> {
        Lock::is_taken(&self.path(ALIVE))
    }

    /// Taken for the life of a holder.
    pub(crate) fn hold(&self) -> Result<Lock> {
        Lock::exclusive(&self.path(ALIVE))
    }

    /// Returns when no holder lives.
    pub(crate) fn until_let_go(&self) -> Result<()> {
        Lock::await_free(&self.path(ALIVE))
    }
}

/// The file a holder keeps locked.
pub(crate) const ALIVE: &str = "alive";

#[cfg(test)]
mod tests;
