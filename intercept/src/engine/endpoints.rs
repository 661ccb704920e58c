//! Endpoint calls under a shared network: bind, listen, connect, accept, and the names told.
//!
//! ```text
//!  bind         performed on a duplicate; the caller's capabilities decide
//!  listen       performed: it carries no memory; this is how services are seen
//!  connect      to a listener of the pod whose real port differs: detour; else the kernel's
//!  accept       the kernel's; where a peer's name differs: detour
//!  getsockname, getpeername    answered where names differ; else the kernel's
//! ```
//!
//! **When CONTINUE is sound here.** For a socket that is not an IPv4 or IPv6 stream the
//! decision rests on the open file description's family and type, which never change. When
//! no name of the pod differs it rests on our own table. For connect it rests on an address
//! in memory, which another thread may change before the kernel reads it: such a program
//! gets the address it wrote last, untranslated, checked by the kernel against the
//! caller's own credentials. Nothing is refused here that this could get around (that is
//! the mask's work), and no privilege of ours is lent, so the race has no winner. A bind is
//! performed instead, because its success is what the table records.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use super::call::{Call, Fail, Fault, Outcome, Served, errno};
use crate::{
    detour::{Course, Detour},
    diag,
    listener::Reply,
    names::{Endpoints, Tables, address::Address},
    socket,
};

/// `CAP_NET_BIND_SERVICE` of `linux/capability.h`.
const BIND_SERVICE: u32 = 10;

const CONTINUE: Served = Ok(Outcome::Reply(Reply::Continue));
const DONE: Served = Ok(Outcome::Reply(Reply::Value(0)));

/// The socket behind the first argument, if its names are ours to translate.
fn stream(call: &Call<'_>) -> Served<Option<OwnedFd>> {
    let fd = call.fd(call.int(0))?;
    let ours = socket::is_inet_stream(fd.as_fd()).map_err(|e| errno(&e))?;
    Ok(ours.then_some(fd))
}

fn listeners(port: u16) -> Served<Vec<diag::Listening>> {
    diag::listeners(port).map_err(|source| Fail::Fault(Fault::Diag { port, source }))
}

/// Whether this listener of the table still listens.
fn alive(cookie: u64, real: SocketAddr) -> Served<bool> {
    Ok(listeners(real.port())?.iter().any(|l| l.cookie == cookie))
}

/// Ports below this need `CAP_NET_BIND_SERVICE` (`ip(7)`).
fn first_free_port() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024)
}

pub(crate) fn bind(call: &Call<'_>, tables: &mut Tables) -> Served {
    let Some(fd) = stream(call)? else {
        return CONTINUE;
    };
    let address = call.read_address(call.n.args[1], call.int(2))?;
    // The kernel takes AF_UNSPEC for AF_INET here, so the port counts whatever the family says.
    let port = address.port();
    if port != 0 && port < first_free_port() && !call.capable(BIND_SERVICE)? {
        return Err(Fail::Errno(libc::EACCES));
    }
    let Some(want) = address.get().filter(|_| port != 0) else {
        socket::bind(fd.as_fd(), &address).map_err(|e| errno(&e))?;
        return DONE;
    };
    let bound = bind_real(&tables.endpoints, fd.as_fd(), address, want)?;
    if bound != want {
        let cookie = socket::cookie(fd.as_fd()).map_err(|e| errno(&e))?;
        tables.endpoints.note_bound(cookie, want, bound);
    }
    DONE
}

/// Binds to the real endpoint for `want` and returns it.
fn bind_real(
    endpoints: &Endpoints,
    fd: BorrowedFd<'_>,
    mut address: Address,
    want: SocketAddr,
) -> Served<SocketAddr> {
    if let Some(port) = real_port(endpoints, want)? {
        address.set(SocketAddr::new(want.ip(), port));
        socket::bind(fd, &address).map_err(|e| errno(&e))?;
        return Ok(SocketAddr::new(want.ip(), port));
    }
    match socket::bind(fd, &address) {
        Ok(()) => return Ok(want),
        Err(e) if e.raw_os_error() == Some(libc::EADDRINUSE) && strangers(endpoints, want)? => {}
        Err(e) => return Err(errno(&e)),
    }
    address.set(SocketAddr::new(want.ip(), 0));
    socket::bind(fd, &address).map_err(|e| errno(&e))?;
    let real = socket::local(fd).map_err(|e| errno(&e))?;
    Ok(real.get().unwrap_or(want))
}

/// The real port that `want` has already: published, or held by a listener of the pod. The
/// kernel then decides about SO_REUSEADDR and SO_REUSEPORT as it would for equal names.
fn real_port(endpoints: &Endpoints, want: SocketAddr) -> Served<Option<u16>> {
    if let Some(port) = endpoints.published(want.port()) {
        return Ok(Some(port));
    }
    for bound in endpoints.conflicting(want) {
        if let Some(real) = bound.real.filter(|r| r.port() != want.port())
            && alive(bound.cookie, real)?
        {
            return Ok(Some(real.port()));
        }
    }
    Ok(None)
}

/// Whether it is somebody else's listener that holds the port, and none of the pod's own.
fn strangers(endpoints: &Endpoints, want: SocketAddr) -> Served<bool> {
    let own: BTreeSet<_> = endpoints.bound().iter().map(|b| b.cookie).collect();
    let there = listeners(want.port())?;
    Ok(!there.is_empty() && there.iter().all(|l| !own.contains(&l.cookie)))
}

pub(crate) fn listen(call: &Call<'_>, tables: &mut Tables) -> Served {
    let Some(fd) = stream(call)? else {
        return CONTINUE;
    };
    socket::listen(fd.as_fd(), call.int(1)).map_err(|e| errno(&e))?;
    let real = socket::local(fd.as_fd()).map_err(|e| errno(&e))?;
    if let Some(real) = real.get() {
        let cookie = socket::cookie(fd.as_fd()).map_err(|e| errno(&e))?;
        prune(&mut tables.endpoints, cookie)?;
        tables.endpoints.note_listening(cookie, real);
    }
    DONE
}

/// Forgets listeners that are closed, before a new one is noted.
fn prune(endpoints: &mut Endpoints, newcomer: u64) -> Served<()> {
    let alive = listeners(0)?
        .into_iter()
        .map(|l| l.cookie)
        .chain([newcomer]);
    endpoints.retain_listeners(&alive.collect());
    Ok(())
}

fn own_address(ip: IpAddr) -> bool {
    ip.is_unspecified() || socket::is_local(ip)
}

pub(crate) fn connect(call: &Call<'_>, tables: &mut Tables) -> Served {
    if !tables.endpoints.differs() {
        return CONTINUE;
    }
    let Some(_) = stream(call)? else {
        return CONTINUE;
    };
    let mut address = call.read_address(call.n.args[1], call.int(2))?;
    let Some(real) = address
        .get()
        .map(|want| destination(&tables.endpoints, want))
        .transpose()?
        .flatten()
    else {
        return CONTINUE;
    };
    address.set(real);
    Ok(Outcome::Detour(Box::new(Detour {
        nr: call.n.nr,
        args: call.n.args,
        data: Some((1, address.bytes().to_vec())),
        course: Course::Blocks,
        back: Box::new(|_, result, _| result),
        untraceable: Reply::Errno(libc::EPERM),
    })))
}

/// Where a connect to `want` has to go instead, if it is a living listener of the pod's own.
fn destination(endpoints: &Endpoints, want: SocketAddr) -> Served<Option<SocketAddr>> {
    let Some(bound) = endpoints.listener_at(want) else {
        return Ok(None);
    };
    let (Some(at), Some(real)) = (bound.real, endpoints.real_of(want)) else {
        return Ok(None);
    };
    let here = bound.virt.ip() == want.ip() || own_address(want.ip());
    Ok((real != want && here && alive(bound.cookie, at)?).then_some(real))
}

pub(crate) fn accept(call: &Call<'_>, tables: &mut Tables) -> Served {
    let wanted = call.n.args[1] != 0;
    if !wanted || !tables.endpoints.differs() {
        return CONTINUE;
    }
    let Some(_) = stream(call)? else {
        return CONTINUE;
    };
    let (at, len_at) = (call.n.args[1], call.n.args[2]);
    Ok(Outcome::Detour(Box::new(Detour {
        nr: call.n.nr,
        args: call.n.args,
        data: None,
        course: Course::Blocks,
        back: Box::new(move |task, fd, tables| {
            told(task, at, len_at, &tables.endpoints);
            fd
        }),
        untraceable: Reply::Continue,
    })))
}

/// Replaces the real name of a peer that the kernel has just told by its virtual one.
fn told(task: &crate::tracee::Stopped, at: u64, len_at: u64, endpoints: &Endpoints) -> Option<()> {
    let mut len = [0u8; 4];
    task.read(len_at, &mut len).ok()?;
    let mut bytes = [0u8; 28];
    let len = (u32::from_ne_bytes(len) as usize).min(bytes.len());
    task.read(at, &mut bytes[..len]).ok()?;
    let mut address = Address::new(&bytes[..len]);
    let real = address.get()?;
    let virt = endpoints.virtual_remote(real, real);
    address.set(virt);
    (virt != real).then(|| task.write(at, address.bytes()).ok())?
}

/// Which end of a socket is asked for.
#[derive(Clone, Copy)]
enum End {
    Local,
    Remote,
}

pub(crate) fn getsockname(call: &Call<'_>, tables: &mut Tables) -> Served {
    name(call, &tables.endpoints, End::Local)
}

pub(crate) fn getpeername(call: &Call<'_>, tables: &mut Tables) -> Served {
    name(call, &tables.endpoints, End::Remote)
}

fn name(call: &Call<'_>, endpoints: &Endpoints, end: End) -> Served {
    if !endpoints.differs() {
        return CONTINUE;
    }
    let Some(fd) = stream(call)? else {
        return CONTINUE;
    };
    let mut address = match end {
        End::Local => socket::local(fd.as_fd()),
        End::Remote => socket::remote(fd.as_fd()),
    }
    .map_err(|e| errno(&e))?;
    if let Some(virt) = virtual_name(endpoints, fd.as_fd(), end)? {
        address.set(virt);
    }
    call.write_address(&address, call.n.args[1], call.n.args[2])?;
    DONE
}

fn virtual_name(endpoints: &Endpoints, fd: BorrowedFd<'_>, end: End) -> Served<Option<SocketAddr>> {
    let local = socket::local(fd).map_err(|e| errno(&e))?.get();
    let remote = socket::remote(fd).ok().and_then(|a| a.get());
    let cookie = socket::cookie(fd).map_err(|e| errno(&e))?;
    Ok(match (end, local, remote) {
        (End::Local, Some(local), _) => Some(endpoints.virtual_local(cookie, local, remote)),
        (End::Remote, Some(local), Some(remote)) => Some(endpoints.virtual_remote(local, remote)),
        _ => None,
    })
}
