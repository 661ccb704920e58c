//! `pod restore`: wakes a pod from an image, under the virtual names it had.

use anyhow::{Context, Result};

use super::follow::{Ended, Session};
use super::run::start_or_forget;
use crate::cli::Restore;
use crate::failure::Hinted;
use crate::output;
use crate::store::{Store, check_name, now, random_hex};
use crate::supervise::pod_of;

/// Runs the command.
pub(super) fn restore(store: &Store, arguments: Restore) -> Result<u8> {
    let what = format!("read the image {}", arguments.image.display());
    let image = arguments
        .image
        .canonicalize()
        .hinted(what.clone(), "give the path of an image")?;
    let mut config = pod_of(&image).context(what)?.config;
    config.id = random_hex(6)?;
    if let Some(name) = arguments.name {
        config.name = name;
    }
    config.names = arguments.names.unwrap_or(config.names);
    config.net = arguments.net.unwrap_or(config.net);
    check_name(&config.name)?;
    config.created = now();
    config.image = Some(image);
    let pod = store.create(&config)?;
    let session = Session::prepare(&pod, &config, arguments.detach)?;
    start_or_forget(store, &pod)?;
    if arguments.detach {
        output::print(&format!("{}\n", config.name))?;
        return Ok(0);
    }
    match session.stay()? {
        Ended::Exited(exit) => Ok(exit.code()),
        Ended::Detached => Ok(0),
    }
}
