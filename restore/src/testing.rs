//! A round trip for unit tests of rooms: descriptors of this process go into an image and come back.

use std::{
    collections::HashMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use crate::{
    builder::Builder,
    capture::{Capture, Probe},
    error::{Refusal, Result},
    image::{Image, Writer},
    resource::ObjectId,
};

/// Captures descriptors into an image below `dir`; returns their numbers and what was refused.
pub(crate) fn capture(
    dir: &std::path::Path,
    fds: &[BorrowedFd<'_>],
) -> Result<(Vec<ObjectId>, Vec<Refusal>)> {
    let mut writer = Writer::create(&dir.join("image"))?;
    let mut cx = Capture::new(&mut writer);
    let mut ids = Vec::new();
    for (i, fd) in fds.iter().enumerate() {
        let own = fd.try_clone_to_owned().expect("dup");
        ids.push(cx.description(&Probe::new(1, Some(i as i32), own)?)?);
    }
    cx.complete()?;
    let refusals = cx.refusals().to_vec();
    writer.finish()?;
    Ok((ids, refusals))
}

/// Captures descriptors and rebuilds them; the originals may be closed before by the caller's `close`.
pub(crate) fn round_trip(fds: Vec<OwnedFd>) -> Result<Vec<OwnedFd>> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let (ids, refusals) = capture(dir.path(), &borrowed)?;
    assert_eq!(refusals, []);
    drop(fds);
    let image = Image::open(&dir.path().join("image"))?;
    image.verify()?;
    let mut builder = Builder::new(&image, HashMap::new());
    builder.build()?;
    image.all_read()?;
    ids.iter()
        .map(|id| Ok(builder.object(*id)?.try_clone_to_owned().expect("dup")))
        .collect()
}
