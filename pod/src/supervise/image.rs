//! What an image says of the pod itself, beside what `restore` says of its processes.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::BufReader;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path};

use anyhow::{Context, Result};
use intercept::names::Tables;
use restore::image::{Image, Record, Writer};
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Hinted};
use crate::store::Config;

/// The pod of an image: record 0 of its kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    /// What it was run with.
    pub(crate) config: Config,
    /// The main program, by its pid in the pod.
    pub(crate) main: i32,
    /// CLOCK_MONOTONIC and CLOCK_BOOTTIME as the pod saw them, in nanoseconds.
    pub(crate) clocks: (i64, i64),
    /// The tables of its names.
    pub(crate) names: Tables,
}

impl Record for PodRecord {
    const KIND: &'static str = "pod";
    const VERSION: u16 = 1;
}

/// Before the name of each packed part of the layer; what follows is the part's directory (see `layer`).
const LAYER: &str = "layer.";

/// Packs the parts of a pod's layer into an image that is being written.
pub(crate) fn pack_layer(layer: &Path, writer: &mut Writer) -> Result<()> {
    for part in parts(layer)? {
        let name = format!("{LAYER}{part}");
        let path = writer.directory().join(&name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        let mut file = file.with_context(|| format!("create {}", path.display()))?;
        restore::resource::layer::pack(&layer.join(&part).join("upper"), &mut file)?;
        file.sync_all()
            .with_context(|| format!("sync {}", path.display()))?;
        writer.add_file(&name)?;
    }
    Ok(())
}

/// The parts of a layer: one directory for each file system under it. A pod on the host's files has none.
fn parts(layer: &Path) -> Result<Vec<String>> {
    match std::fs::read_dir(layer) {
        Ok(entries) => Ok(entries
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok())
            .collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).with_context(|| format!("read {}", layer.display())),
    }
}

/// Unpacks the layer of an image into a pod's own, which has none yet.
pub(crate) fn unpack_layer(image: &Path, layer: &Path) -> Result<()> {
    let header = Image::open(image)?.header().clone();
    for (name, part) in header
        .files
        .keys()
        .filter_map(|name| Some((name, name.strip_prefix(LAYER)?)))
    {
        let plain = matches!(
            Path::new(part).components().next(),
            Some(Component::Normal(_))
        );
        let why = || {
            Failure::new(format!("{part:?} is no name of a part of a layer"))
                .hint("the image was not written by pod checkpoint")
        };
        anyhow::ensure!(plain && !part.contains('/'), why());
        let directory = layer.join(part);
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory);
        made.with_context(|| format!("make {}", directory.display()))?;
        let path = image.join(name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let upper = directory.join("upper");
        let unpacked =
            restore::resource::layer::unpack(&mut BufReader::with_capacity(1 << 20, file), &upper);
        unpacked.hinted(
            format!("unpack {}", path.display()),
            "pod image verify tells whether the image is whole",
        )?;
    }
    Ok(())
}

/// This host's CLOCK_MONOTONIC and CLOCK_BOOTTIME, in nanoseconds.
pub(crate) fn clocks() -> Result<(i64, i64)> {
    let read = |clock| -> Result<i64> {
        let now = nix::time::clock_gettime(clock).context("clock_gettime")?;
        Ok(now.tv_sec() * 1_000_000_000 + now.tv_nsec())
    };
    Ok((
        read(nix::time::ClockId::CLOCK_MONOTONIC)?,
        read(nix::time::ClockId::CLOCK_BOOTTIME)?,
    ))
}

/// How far a pod's clocks are ahead of this host's: `timens_offsets` of a task in its time namespace.
pub(crate) fn offsets_of(pid: i32) -> Result<(i64, i64)> {
    let path = format!("/proc/{pid}/timens_offsets");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let offset = |clock: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(clock));
        let mut words = line.unwrap_or_default().split_whitespace();
        let mut next = || words.next().and_then(|word| word.parse::<i64>().ok());
        next().zip(next()).map(|(s, ns)| s * 1_000_000_000 + ns)
    };
    let both = offset("monotonic").zip(offset("boottime"));
    both.with_context(|| format!("{path} does not read as expected"))
}
