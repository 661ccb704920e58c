//! A round trip for unit tests of rooms: descriptors of this process go into an image and come back.

use std::{
    collections::HashMap,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use intercept::sys::{Kcmp, kcmp};

use crate::{
    builder::Builder,
    capture::{Capture, Probe},
    error::{Refusal, Result},
    image::{Image, Writer},
    resource::ObjectId,
};

/// Captures descriptors into an image below `dir`; returns their numbers and what was refused.
pub(crate) fn capture(dir: &Path, fds: &[BorrowedFd<'_>]) -> Result<(Vec<ObjectId>, Vec<Refusal>)> {
    capture_with(dir, fds, |_| ())
}

/// [`capture`] with something said to the capture first.
pub(crate) fn capture_with(
    dir: &Path,
    fds: &[BorrowedFd<'_>],
    prepare: impl FnOnce(&mut Capture<'_>),
) -> Result<(Vec<ObjectId>, Vec<Refusal>)> {
    capture_around(dir, fds, prepare, |_| ())
}

/// [`capture`] with something said to the capture first and last.
fn capture_around(
    dir: &Path,
    fds: &[BorrowedFd<'_>],
    prepare: impl FnOnce(&mut Capture<'_>),
    last: impl FnOnce(&Capture<'_>),
) -> Result<(Vec<ObjectId>, Vec<Refusal>)> {
    let mut writer = Writer::create(&dir.join("image"))?;
    let mut cx = Capture::new(&mut writer);
    prepare(&mut cx);
    let mut ids = Vec::new();
    for fd in fds {
        let own = fd.try_clone_to_owned().expect("dup");
        ids.push(cx.description(&Probe::new(1, Some(fd.as_raw_fd()), own)?)?);
    }
    cx.complete()?;
    let refusals = cx.refusals().to_vec();
    last(&cx);
    drop(cx);
    writer.finish()?;
    Ok((ids, refusals))
}

/// Captures descriptors, closes them and rebuilds them.
pub(crate) fn round_trip(fds: Vec<OwnedFd>) -> Result<Vec<OwnedFd>> {
    round_trip_with(fds, |_| (), HashMap::new())
}

/// [`round_trip`] with something said to the capture first and streams for the builder.
pub(crate) fn round_trip_with(
    fds: Vec<OwnedFd>,
    prepare: impl FnOnce(&mut Capture<'_>),
    streams: HashMap<String, OwnedFd>,
) -> Result<Vec<OwnedFd>> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    // What the originals say when they are closed must not reach those that are rebuilt.
    let silence = |cx: &Capture<'_>| {
        let connections = crate::resource::tcp::Connections::of(cx).expect("dup");
        connections.silence().expect("silence");
    };
    let (ids, refusals) = capture_around(dir.path(), &borrowed, prepare, silence)?;
    assert_eq!(refusals, []);
    drop(fds);
    let image = Image::open(&dir.path().join("image"))?;
    image.verify()?;
    let mut builder = Builder::new(&image, streams);
    builder.build()?;
    image.all_read()?;
    ids.iter()
        .map(|id| Ok(builder.object(*id)?.try_clone_to_owned().expect("dup")))
        .collect()
}

/// True when two descriptors share one open file description.
pub(crate) fn same_description(a: &OwnedFd, b: &OwnedFd) -> bool {
    let (own, a, b) = (std::process::id() as i32, a.as_raw_fd(), b.as_raw_fd());
    kcmp(own, own, Kcmp::File, a as u64, b as u64)
        .expect("kcmp")
        .is_eq()
}

/// Gives the calling thread a network namespace of its own, with the loopback up.
pub(crate) fn own_network() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
    // SAFETY: the struct is plain data for which zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l' as i8, b'o' as i8]);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: the request reads a struct ifreq, and `request` is one.
    let r = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    assert_eq!(r, 0, "the loopback is up");
}
