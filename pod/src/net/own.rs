//! `--net own=ADDR/LEN`: an address that belongs to the pod and moves with it.
//!
//! The pod gets a macvlan on the host's device for that network: its own link, beside the host's. Its
//! hardware address is made of the IP address, so that it is the same on every host, and the kernel
//! announces it when the device comes up (`arp_notify`, `ndisc_notify`; ip-sysctl.rst): switches learn the
//! new place, and nobody's neighbour table has to change. A host does not reach its own macvlans; others do.

use std::fs;
use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Site;
use super::command::ip;
use crate::failure::{Failure, Hinted};

/// Makes the network of a pod. Returns its address.
pub(super) fn make(site: &Site<'_>, address: &str) -> Result<String> {
    let (text, length) = address.split_once('/').context("an address has a length")?;
    let bare: IpAddr = text.parse().context("the address does not parse")?;
    let parent = parent(bare)?;
    let link = format!("pod-{}", &site.config.id[..10]);
    (site.note)(&|made| made.links = vec![link.clone()])?;
    let (hardware, pid) = (hardware(bare), site.init.to_string());
    ip(
        None,
        &[
            "link",
            "add",
            &link,
            "link",
            &parent.device,
            "address",
            &hardware,
            "type",
            "macvlan",
            "mode",
            "bridge",
        ],
    )?;
    ip(None, &["link", "set", &link, "netns", &pid, "name", "eth0"])?;
    announce(site.init, bare)?;
    let whole = format!("{bare}/{length}");
    ip(
        Some(site.init),
        &[
            "address",
            "add",
            &whole,
            "dev",
            "eth0",
            if bare.is_ipv6() {
                "nodad"
            } else {
                "noprefixroute"
            },
        ],
    )?;
    ip(Some(site.init), &["link", "set", "eth0", "up"])?;
    routes(site.init, &whole, parent.gateway.as_deref())?;
    Ok(bare.to_string())
}

/// The host's device towards an address, and the gateway of its default route.
struct Parent {
    device: String,
    gateway: Option<String>,
}

fn parent(address: IpAddr) -> Result<Parent> {
    let hint = "--net own takes an address of a network this host is on, and that no host has yet";
    let what = format!("find the device of this host that leads to {address}");
    let route = query(&["route", "get", &address.to_string()]).hinted(what, hint)?;
    let device = route[0]["dev"].as_str().filter(|device| *device != "lo");
    let device =
        device.ok_or_else(|| Failure::new(format!("{address} is this host's own")).hint(hint))?;
    let family = if address.is_ipv4() { "-4" } else { "-6" };
    let default = query(&[family, "route", "show", "default", "dev", device])?;
    let gateway = default[0]["gateway"].as_str().map(str::to_owned);
    Ok(Parent {
        device: device.to_owned(),
        gateway,
    })
}

fn query(arguments: &[&str]) -> Result<Value> {
    let output = Command::new("ip")
        .arg("-json")
        .args(arguments)
        .output()
        .hinted("run the program ip", "install iproute2")?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    anyhow::ensure!(
        output.status.success(),
        Failure::new(format!("ip {}: {said}", arguments.join(" ")))
    );
    if output.stdout.trim_ascii().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&output.stdout).context("read what ip said")
}

/// A locally administered address (IEEE 802c) that every host makes of the same IP address.
fn hardware(address: IpAddr) -> String {
    let hash = blake3::hash(address.to_string().as_bytes());
    let byte: Vec<String> = hash.as_bytes()[..5]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("02:{}", byte.join(":"))
}

/// Has the kernel tell the network when the device comes up. The pod's own sysctls, through its init.
fn announce(init: i32, address: IpAddr) -> Result<()> {
    let file = match address {
        IpAddr::V4(_) => "ipv4/conf/eth0/arp_notify",
        IpAddr::V6(_) => "ipv6/conf/eth0/ndisc_notify",
    };
    crate::sys::in_network_of(init, || fs::write(format!("/proc/sys/net/{file}"), "1"))
        .with_context(|| format!("write net/{file} in the pod"))
}

fn routes(init: i32, whole: &str, gateway: Option<&str>) -> Result<()> {
    let network = network(whole)?;
    if whole.contains('.') {
        ip(Some(init), &["route", "add", &network, "dev", "eth0"])?;
    }
    match gateway {
        Some(gateway) => ip(
            Some(init),
            &["route", "add", "default", "via", gateway, "dev", "eth0"],
        ),
        None => Ok(()),
    }
}

/// `10.1.2.3/24` is in `10.1.2.0/24`.
fn network(whole: &str) -> Result<String> {
    let (address, length) = whole.split_once('/').context("an address has a length")?;
    let bits: u32 = length.parse().context("the length does not parse")?;
    Ok(
        match address
            .parse::<IpAddr>()
            .context("the address does not parse")?
        {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
                format!("{}/{bits}", std::net::Ipv4Addr::from(u32::from(v4) & mask))
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
                format!("{}/{bits}", std::net::Ipv6Addr::from(u128::from(v6) & mask))
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_its_network_and_its_hardware_address() {
        assert_eq!(network("10.1.2.3/24").unwrap(), "10.1.2.0/24");
        assert_eq!(network("10.1.2.3/32").unwrap(), "10.1.2.3/32");
        assert_eq!(network("fd00::1:2/64").unwrap(), "fd00::/64");
        let address: IpAddr = "10.1.2.3".parse().unwrap();
        assert_eq!(hardware(address), hardware(address));
        assert!(hardware(address).starts_with("02:") && hardware(address).len() == 17);
    }
}
