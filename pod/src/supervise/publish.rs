//! The pod's name in the zone, from its start to its end.
//!
//! ```text
//!   running ─▶ publish (nobody has the name) ─┐
//!   arrived ─▶ adopt (the commit wrote it) ───┴▶ held ◀─▶ refresh when it listens on something else
//!                                                  └─ the end: withdraw; after a move: nothing, it is another's
//! ```
//!
//! A thread of its own does it: a zone that does not answer delays nothing. What a pod listens on is seen
//! by looking again from time to time, because with a network of its own no call of it passes us.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use netname::{Epoch, Outcome, Placement, PodName, Proto, Service, Updater};

use super::Supervised;
use crate::agent::config::Settings;
use crate::store::{Net, Phase};

/// Between two looks at what the pod listens on.
const LOOK: Duration = Duration::from_millis(250);
/// Between two attempts at a zone that did not answer, or has the name elsewhere.
const AGAIN: Duration = Duration::from_secs(2);
/// The longest name of a service (RFC 6335 section 5.1).
const SERVICE_NAME: usize = 15;

/// The thread that keeps the name.
pub(super) struct Publisher {
    /// Whether the name is to be withdrawn, at the end.
    stop: Sender<bool>,
    thread: JoinHandle<()>,
}

impl Publisher {
    /// Starts to keep the pod's name, where the host has a zone to keep it in.
    pub(super) fn start(supervised: &Arc<Supervised>) -> Result<Option<Self>> {
        let settings = Settings::of(supervised.store.root())?;
        let (Some(dns), Some(address)) = (&settings.dns, address(supervised, &settings)) else {
            return Ok(None);
        };
        let pod = PodName::new(&supervised.config.name)?;
        let keeper = Keeper {
            supervised: Arc::clone(supervised),
            updater: dns.updater()?,
            pod,
            address,
            held: None,
        };
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new()
            .name("publisher".into())
            .spawn(move || keeper.keep(&stopped))
            .context("start the publisher")?;
        Ok(Some(Self { stop, thread }))
    }

    /// Ends the thread; the name is withdrawn, unless it is another host's now.
    pub(super) fn end(self, withdraw: bool) {
        // A thread that has ended needs no word.
        let _ = self.stop.send(withdraw);
        if self.thread.join().is_err() {
            tracing::error!("the publisher panicked");
        }
    }
}

/// The address the pod is published with: its own where it has one, the host's under a shared network.
fn address(supervised: &Supervised, settings: &Settings) -> Option<IpAddr> {
    match &supervised.config.net {
        Net::Shared => settings.published(),
        Net::None => None,
        Net::Private | Net::Own(_) => {
            let address = supervised.facts().state.address.clone()?;
            address.split('/').next()?.parse().ok()
        }
    }
}

struct Keeper {
    supervised: Arc<Supervised>,
    updater: Updater,
    pod: PodName,
    address: IpAddr,
    /// The epoch we hold, and what stands in the zone under it.
    held: Option<(Epoch, Placement)>,
}

impl Keeper {
    fn keep(mut self, stopped: &Receiver<bool>) {
        loop {
            let pause = match self.look() {
                Ok(()) => LOOK,
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), pod = %self.pod, "keep the pod's name");
                    AGAIN
                }
            };
            match stopped.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(true) => return self.withdraw(),
                Ok(false) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Brings the zone up to date.
    fn look(&mut self) -> Result<()> {
        // A pod that has arrived is not ours before the commit; one that leaves is the move's business.
        if self.supervised.facts().state.phase != Phase::Running {
            return Ok(());
        }
        let placement = self.placement()?;
        match self.held.take() {
            None => self.begin(placement),
            Some((epoch, stands)) if stands == placement => {
                self.held = Some((epoch, stands));
                Ok(())
            }
            Some((epoch, stands)) => {
                let outcome = self.updater.refresh(&self.pod, &epoch, &placement);
                self.held = Some((epoch, stands));
                self.done(outcome?, epoch, placement)
            }
        }
    }

    /// Takes the name, or takes it over from the move that brought the pod here.
    fn begin(&mut self, placement: Placement) -> Result<()> {
        match self.updater.lookup(&self.pod)? {
            None => {
                let epoch = Epoch::first();
                let outcome = self.updater.publish(&self.pod, &epoch, &placement)?;
                self.done(outcome, epoch, placement)
            }
            Some(entry) if entry.placement.addresses == placement.addresses => {
                self.held = Some((entry.epoch, entry.placement));
                Ok(())
            }
            Some(entry) => {
                let at = entry.placement.addresses.iter().map(ToString::to_string);
                bail!("the name is at {}", at.collect::<Vec<_>>().join(", "))
            }
        }
    }

    fn done(&mut self, outcome: Outcome, epoch: Epoch, placement: Placement) -> Result<()> {
        match outcome {
            Outcome::Committed { .. } => {
                self.held = Some((epoch, placement));
                Ok(())
            }
            Outcome::Lost { .. } => {
                self.held = None;
                bail!("the zone has another epoch by now")
            }
            Outcome::Unknown { cause, .. } => Err(cause.into()),
        }
    }

    fn placement(&self) -> Result<Placement> {
        let seen = self.supervised.listening()?;
        let mut ports = BTreeSet::new();
        let mut services = Vec::new();
        for (virt, real) in seen
            .into_iter()
            .filter(|(_, real)| !real.ip().is_loopback())
        {
            if ports.insert(virt.port()) {
                services.push(self.service(virt.port(), real)?);
            }
        }
        Ok(Placement {
            addresses: vec![self.address],
            virtual_address: None,
            services,
        })
    }

    fn service(&self, port: u16, real: SocketAddr) -> Result<Service> {
        let service = Service::new(Proto::Tcp, port, &service_name(port))?;
        if real.ip().is_unspecified() && real.port() == port {
            return Ok(service);
        }
        let ip = if real.ip().is_unspecified() {
            self.address
        } else {
            real.ip()
        };
        Ok(service.at(SocketAddr::new(ip, real.port())))
    }

    fn withdraw(self) {
        let Some((epoch, _)) = self.held else { return };
        match self.updater.withdraw(&self.pod, &epoch) {
            Ok(Outcome::Committed { .. } | Outcome::Lost { .. }) => {}
            Ok(Outcome::Unknown { cause, .. }) | Err(cause) => {
                tracing::warn!(%cause, pod = %self.pod, "the name could not be withdrawn");
            }
        }
    }
}

impl Supervised {
    /// What the pod listens on: as it sees it, and as it is on this host.
    fn listening(&self) -> Result<Vec<(SocketAddr, SocketAddr)>> {
        if let Some(engine) = self.names.get().and_then(|names| names.engine.as_ref()) {
            let bound = engine.listeners().context("list the listeners")?;
            let pairs = bound.into_iter().filter_map(|b| Some((b.virt, b.real?)));
            return Ok(pairs.collect());
        }
        let init = self.facts().state.init.context("the pod has no init")?;
        let mut all = Vec::new();
        for table in ["tcp", "tcp6"] {
            let path = format!("/proc/{init}/net/{table}");
            let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            all.extend(text.lines().filter_map(listener).map(|at| (at, at)));
        }
        Ok(all)
    }
}

/// A line of /proc/net/tcp in state LISTEN (proc_pid_net(5)): `sl local remote 0A …`.
fn listener(line: &str) -> Option<SocketAddr> {
    let mut words = line.split_whitespace().skip(1);
    let local = words.next()?;
    (words.nth(1)? == "0A").then_some(())?;
    let (ip, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Each group of eight digits is a 32-bit word of the address in the host's byte order.
    let words: Vec<u8> = (0..ip.len() / 8)
        .filter_map(|i| u32::from_str_radix(&ip[8 * i..8 * i + 8], 16).ok())
        .flat_map(u32::to_ne_bytes)
        .collect();
    let ip: IpAddr = match words.len() {
        4 => <[u8; 4]>::try_from(words).ok()?.into(),
        16 => <[u8; 16]>::try_from(words).ok()?.into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The service's name by /etc/services, or one made of the port.
fn service_name(port: u16) -> String {
    let text = std::fs::read_to_string("/etc/services").unwrap_or_default();
    let wanted = format!("{port}/tcp");
    let line = text
        .lines()
        .find(|line| line.split_whitespace().nth(1) == Some(&wanted));
    let name = line.and_then(|line| line.split_whitespace().next());
    let fits = |name: &&str| name.len() <= SERVICE_NAME && !name.contains(['.', '_']);
    name.filter(fits)
        .map_or_else(|| format!("port-{port}"), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_read_and_connections_are_not() {
        let v4 = "   0: 0100007F:18EB 00000000:0000 0A 00000000:00000000 00:00000000";
        assert_eq!(listener(v4), Some("127.0.0.1:6379".parse().unwrap()));
        let v6 = "   1: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0";
        assert_eq!(listener(v6), Some("[::]:80".parse().unwrap()));
        let established = "   2: 0100007F:18EB 0100007F:A001 01 00000000:00000000";
        assert_eq!(listener(established), None);
    }

    #[test]
    fn services_have_names() {
        assert_eq!(service_name(80), "http");
        assert_eq!(service_name(64999), "port-64999");
    }
}
