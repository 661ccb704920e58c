//! The pod's network, where it is not the host's.
//!
//! ```text
//!   none       lo
//!   private    lo, eth0 ── veth ── bridge of this root ── NAT ── host        (root)
//!              lo, eth0 ── tap ── pasta ── the user's own sockets            (without privilege)
//!   own        lo, eth0: a macvlan of the host's device; the address is the pod's and moves with it
//! ```
//!
//! Devices are made from outside, by ip(8) and nft(8), while the pod's init waits in its fresh network
//! namespace. What is made is noted first, so that [`crate::cleanup`] finds it after any crash.

mod command;
mod own;
mod private;
mod user;

use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::failure::Failure;
use crate::store::{Config, Made, Net, Pod, Store};
use crate::userns;
use command::ip;

/// Applies a change to what is recorded as made, and writes it down.
pub(crate) type Note<'a> = dyn Fn(&dyn Fn(&mut Made)) -> Result<()> + 'a;

/// A pod whose network is to be made.
pub(crate) struct Site<'a> {
    pub(crate) store: &'a Store,
    pub(crate) config: &'a Config,
    /// The real pid of its init.
    pub(crate) init: i32,
    /// Notes what is about to be made.
    pub(crate) note: &'a Note<'a>,
}

/// Makes a pod's devices. Returns its address, where it has one of its own.
pub(crate) fn make(site: &Site<'_>) -> Result<Option<String>> {
    match &site.config.net {
        Net::Shared => Ok(host_address().map(|address| address.to_string())),
        Net::None => Ok(None),
        Net::Private if userns::needed() => user::make(site).map(|()| None),
        Net::Private => private::make(site).map(Some),
        Net::Own(address) => own::make(site, address).map(Some),
    }
}

/// Says whether a network can be had, before anything is made.
pub(crate) fn check(config: &Config) -> Result<(), Failure> {
    let ports = !config.publish.is_empty();
    match &config.net {
        Net::None if ports => {
            Err(Failure::new("-p needs a network").hint("leave --net none out, or -p"))
        }
        Net::Own(_) if ports => {
            let hint = "with --net own the pod's ports are reached at its own address";
            Err(
                Failure::new("-p maps a port of the host, and the pod has its own address")
                    .hint(hint),
            )
        }
        Net::Own(_) if userns::needed() => {
            Err(Failure::new("--net own needs root").hint("use --net private"))
        }
        Net::Private if userns::needed() && !user::is_usable() => Err(Failure::new(
            "--net private without privilege needs the program pasta and /dev/net/tun",
        )
        .hint("install passt and allow /dev/net/tun, or use --net none or --net shared")),
        _ => Ok(()),
    }
}

/// What a user gets who does not say.
pub(crate) fn usual() -> Net {
    match userns::needed() {
        false => Net::Shared,
        true if user::is_usable() => Net::Private,
        true => Net::None,
    }
}

/// The address this host would use to reach others. No packet is sent.
fn host_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// Brings the loopback device of the calling process's network namespace up (netdevice(7)).
pub(crate) fn loopback_up() -> Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .context("socket")?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which outlives the call.
    Errno::result(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    })
    .map(drop)
    .context("SIOCSIFFLAGS lo")
}

/// Releases what was made for a pod's network. What is gone already is fine.
pub(crate) fn release(pod: &Pod, made: &Made) -> Result<()> {
    let mut first = Ok(());
    for link in &made.links {
        first = first.and(remove_link(link));
    }
    for table in &made.tables {
        first = first.and(command::remove_table(table));
    }
    for helper in &made.helpers {
        helper.end();
    }
    if made.lease {
        first = first.and(private::let_go(pod));
    }
    first
}

fn link_exists(name: &str) -> bool {
    nix::net::if_::if_nametoindex(name).is_ok()
}

fn remove_link(name: &str) -> Result<()> {
    let removed = ip(None, &["link", "delete", name]);
    // The kernel takes it away by itself, a little after the pod's network namespace has gone.
    if link_exists(name) { removed } else { Ok(()) }
}
