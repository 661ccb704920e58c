//! `--net private` for root: a veth pair between the pod and a bridge of this root, an address from the
//! root's own pool, and NAT towards the outside.
//!
//! The pool is a /24 that no route of this host covers, chosen when the root's first private pod starts.
//! `ROOT/network.json` says which pod has which address; the bridge goes when the last lease goes.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::command::{ip, nft};
use super::{Site, link_exists};
use crate::failure::Failure;
use crate::store::{Lock, Pod, Publish, Store, random_hex, write_atomically};

/// A root's private network.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Network {
    bridge: String,
    /// Second and third byte of the /24 in 10.0.0.0/8.
    subnet: (u8, u8),
    /// Pod id to the last byte of its address.
    leases: BTreeMap<String, u8>,
}

/// The bridge's own last byte.
const GATEWAY: u8 = 1;

/// Makes the network of a pod. Returns its address.
pub(super) fn make(site: &Site<'_>) -> Result<String> {
    let id = &site.config.id;
    let (link, table) = (format!("pod-{}", &id[..10]), format!("pod_{id}"));
    (site.note)(&|made| {
        made.lease = true;
        made.links = vec![link.clone()];
        made.tables = vec![table.clone()];
    })?;
    let (network, address) = lease(site.store, id)?;
    connect(site.init, &network, &link, address)?;
    forward()?;
    nft(&rules(&table, &network, address, &site.config.publish))?;
    Ok(address.to_string())
}

/// Gives the pod an address and makes sure that the bridge stands.
fn lease(store: &Store, id: &str) -> Result<(Network, Ipv4Addr)> {
    let _lock = lock(store)?;
    let mut network = read(store)?.map_or_else(fresh, Ok)?;
    let last = network.lease(id)?;
    write(store, &network)?;
    if !link_exists(&network.bridge) {
        let gateway = format!("{}/24", network.address(GATEWAY));
        ip(None, &["link", "add", &network.bridge, "type", "bridge"])?;
        ip(None, &["address", "add", &gateway, "dev", &network.bridge])?;
        ip(None, &["link", "set", &network.bridge, "up"])?;
        // So that a port of the host's loopback can lead to a pod (ip-sysctl.rst).
        let local = format!("/proc/sys/net/ipv4/conf/{}/route_localnet", network.bridge);
        fs::write(&local, "1").with_context(|| format!("write {local}"))?;
    }
    let address = network.address(last);
    Ok((network, address))
}

/// Takes a pod's address back; the last one takes the bridge along.
pub(super) fn let_go(pod: &Pod) -> Result<()> {
    let store = pod.store()?;
    let _lock = lock(&store)?;
    let Some(mut network) = read(&store)? else {
        return Ok(());
    };
    network.leases.remove(&pod.id);
    if !network.leases.is_empty() {
        return write(&store, &network);
    }
    super::remove_link(&network.bridge)?;
    fs::remove_file(path(&store)).context("remove network.json")
}

impl Network {
    fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.subnet.0, self.subnet.1, last)
    }

    fn lease(&mut self, id: &str) -> Result<u8, Failure> {
        if let Some(last) = self.leases.get(id) {
            return Ok(*last);
        }
        let free = (GATEWAY + 1..255).find(|last| !self.leases.values().any(|taken| taken == last));
        let last = free.ok_or_else(|| {
            Failure::new("every address of this root's private network is taken")
                .hint("remove pods that are over")
        })?;
        self.leases.insert(id.to_owned(), last);
        Ok(last)
    }
}

/// A lock of its own: who removes a pod holds the root's.
fn lock(store: &Store) -> Result<Lock> {
    Lock::exclusive(&store.root().join("network.lock"))
}

fn path(store: &Store) -> PathBuf {
    store.root().join("network.json")
}

fn read(store: &Store) -> Result<Option<Network>> {
    match fs::read(path(store)) {
        Ok(text) => serde_json::from_slice(&text)
            .context("network.json is damaged")
            .map(Some),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).context("read network.json"),
    }
}

fn write(store: &Store, network: &Network) -> Result<()> {
    write_atomically(
        &path(store),
        &serde_json::to_vec_pretty(network).context("encode JSON")?,
    )
}

/// A network of its own name, in a /24 that no route here covers.
fn fresh() -> Result<Network> {
    let routes = fs::read_to_string("/proc/net/route").context("read /proc/net/route")?;
    let taken = subnets(&routes);
    let random = u16::from_str_radix(&random_hex(2)?, 16).unwrap_or(0);
    let candidates = (0..=u16::MAX).map(|step| random.wrapping_add(step).to_be_bytes());
    let free = candidates
        .map(|[a, b]| (a, b))
        .find(|subnet| !covered(&taken, *subnet));
    let subnet = free.ok_or_else(|| Failure::new("no private network is free on this host"))?;
    Ok(Network {
        bridge: format!("podbr{}", random_hex(4)?),
        subnet,
        leases: BTreeMap::new(),
    })
}

/// Network and mask of each route but the default, host byte order (proc(5), /proc/net/route).
fn subnets(routes: &str) -> Vec<(u32, u32)> {
    let number = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::from_be);
    let line = |line: &str| {
        let field: Vec<&str> = line.split_ascii_whitespace().collect();
        Some((number(field.get(1)?)?, number(field.get(7)?)?))
    };
    routes
        .lines()
        .skip(1)
        .filter_map(line)
        .filter(|(_, mask)| *mask != 0)
        .collect()
}

fn covered(taken: &[(u32, u32)], (a, b): (u8, u8)) -> bool {
    let ours = u32::from(Ipv4Addr::new(10, a, b, 0));
    taken.iter().any(|(network, mask)| {
        let common = mask & 0xffff_ff00;
        network & common == ours & common
    })
}

/// A veth pair: `link` on the bridge, eth0 in the pod.
fn connect(init: i32, network: &Network, link: &str, address: Ipv4Addr) -> Result<()> {
    let (pid, inside) = (init.to_string(), Some(init));
    ip(
        None,
        &[
            "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", &pid,
        ],
    )?;
    ip(
        None,
        &["link", "set", link, "master", &network.bridge, "up"],
    )?;
    ip(
        inside,
        &["address", "add", &format!("{address}/24"), "dev", "eth0"],
    )?;
    ip(inside, &["link", "set", "eth0", "up"])?;
    ip(
        inside,
        &[
            "route",
            "add",
            "default",
            "via",
            &network.address(GATEWAY).to_string(),
        ],
    )
}

/// A packet from the bridge leaves the host only where the host forwards.
fn forward() -> Result<()> {
    let path = "/proc/sys/net/ipv4/ip_forward";
    if fs::read_to_string(path).is_ok_and(|text| text.trim() == "1") {
        return Ok(());
    }
    fs::write(path, "1").with_context(|| format!("write {path}"))
}

/// One table for each pod: its packets to the outside bear the host's address, and its ports of the host
/// lead to it.
fn rules(table: &str, network: &Network, address: Ipv4Addr, publish: &[Publish]) -> String {
    let bridge = &network.bridge;
    let mut ports = String::new();
    for port in publish {
        let (host, pod) = (port.host, port.pod);
        for kind in ["tcp", "udp"] {
            ports.push_str(&format!(
                "    fib daddr type local {kind} dport {host} dnat to {address}:{pod}\n"
            ));
        }
    }
    format!(
        "table ip {table} {{\n\
         \x20 chain in {{\n    type nat hook prerouting priority dstnat;\n{ports}  }}\n\
         \x20 chain here {{\n    type nat hook output priority -100;\n{ports}  }}\n\
         \x20 chain out {{\n    type nat hook postrouting priority srcnat;\n\
         \x20   ip saddr {address} oifname != \"{bridge}\" masquerade\n\
         \x20   ip daddr {address} ip saddr 127.0.0.0/8 masquerade\n  }}\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_leased_once_and_kept() {
        let mut network = Network {
            bridge: "b".into(),
            subnet: (1, 2),
            leases: BTreeMap::new(),
        };
        assert_eq!(
            (network.lease("a").unwrap(), network.lease("b").unwrap()),
            (2, 3)
        );
        assert_eq!(network.lease("a").unwrap(), 2);
        network.leases.remove("a");
        assert_eq!(network.lease("c").unwrap(), 2);
        assert_eq!(network.address(3), Ipv4Addr::new(10, 1, 2, 3));
    }

    #[test]
    fn a_subnet_with_a_route_is_not_taken() {
        let routes = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
            eth0 00000000 010200C0 0003 0 0 0 00000000 0 0 0\n\
            eth0 0002010A 00000000 0001 0 0 0 00FFFFFF 0 0 0\n\
            tun0 0000200A 00000000 0001 0 0 0 0000FFFF 0 0 0\n";
        let taken = subnets(routes);
        assert_eq!(taken.len(), 2);
        assert!(covered(&taken, (1, 2)) && covered(&taken, (32, 77)));
        assert!(!covered(&taken, (1, 3)) && !covered(&taken, (33, 77)));
    }

    #[test]
    fn a_full_pool_is_told() {
        let leases = (2..255).map(|last| (last.to_string(), last)).collect();
        let mut network = Network {
            bridge: "b".into(),
            subnet: (1, 2),
            leases,
        };
        assert!(
            network
                .lease("one more")
                .unwrap_err()
                .to_string()
                .contains("taken")
        );
    }
}
