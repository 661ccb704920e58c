//! The name server: sockets, zones and what runs for them.
//!
//! ```text
//!  UDP, TCP ─▶ hickory ─▶ Front ─┬─ QUERY, UPDATE ─▶ catalog ─▶ Zone (journal)
//!                                ├─ AXFR, IXFR ─────────────▶ Zone
//!                                ├─ NOTIFY ──▶ refresher ─ SOA, AXFR ─▶ primary
//!                                └─ other names ────────────▶ resolvers
//!                         Zone ──▶ teller ── NOTIFY ─▶ secondaries
//! ```

pub(crate) mod access;
mod forward;
mod front;
mod held;
mod notify;
mod transfer;
mod view;

use std::{
    fs, io, net::SocketAddr, os::unix::fs::DirBuilderExt, path::Path, sync::Arc, time::Duration,
};

use hickory_server::Server as Wire;
use tokio::{
    net::{TcpListener, UdpSocket},
    task::JoinSet,
};

pub use self::view::ZoneView;
use self::{access::Access, forward::Forwarder, front::Front, held::Held};
use crate::{
    Error, Result, ZoneName,
    config::{DEFAULT_TTL, Role, ServerConfig},
    zone::{Seed, Zone},
};

/// A TCP connection without requests is closed after this time; a transfer must fit in it.
const IDLE: Duration = Duration::from_secs(60);
/// Messages waiting for one slow TCP client.
const BACKLOG: usize = 8192;
/// Attempts to find a port that is free for UDP and TCP.
const PORT_ATTEMPTS: usize = 32;

/// A running name server. Dropping it stops it at once; [`Server::stop`] waits for what is in progress.
pub struct Server {
    wires: [Wire<Front>; 2],
    addresses: Vec<SocketAddr>,
    inside: Vec<SocketAddr>,
    zones: Vec<Arc<Held>>,
    access: Arc<Access>,
    _tasks: JoinSet<()>,
}

/// Starts a name server. When this returns, its addresses answer.
///
/// hickory's catalog logs a line at `warn` for each answer: a program shows the log of the target
/// `hickory_server::zone_handler::catalog` at `error` only.
///
/// # Errors
/// A configuration that contradicts itself, an address that is taken, a journal that is damaged or in
/// use.
pub async fn serve(config: ServerConfig) -> Result<Server> {
    let access = Arc::new(Access::new(&config.keys)?);
    check(&config, &access)?;
    let zones = tokio::task::spawn_blocking({
        let config = config.clone();
        move || open_zones(&config)
    });
    let zones = zones.await.map_err(|source| Error::Task {
        step: "open the zones",
        source,
    })??;
    let front = |inside| Front::new(&zones, &access, Forwarder::new(&config.forwarders), inside);
    let mut wires = [Wire::new(front(false)), Wire::new(front(true))];
    let addresses = listen(&mut wires[0], &config.listen).await?;
    let inside = listen(&mut wires[1], &config.inside).await?;
    let mut tasks = JoinSet::new();
    for held in &zones {
        held.start(&access, &mut tasks);
    }
    Ok(Server {
        wires,
        addresses,
        inside,
        zones,
        access,
        _tasks: tasks,
    })
}

fn check(config: &ServerConfig, access: &Access) -> Result<()> {
    for (at, zone) in config.zones.iter().enumerate() {
        check_role(&zone.name, &zone.role, access)?;
        if config.zones[..at]
            .iter()
            .any(|other| other.name == zone.name)
        {
            return Err(Error::Config(format!("zone {} is listed twice", zone.name)));
        }
    }
    Ok(())
}

fn check_role(zone: &ZoneName, role: &Role, access: &Access) -> Result<()> {
    match role {
        Role::Secondary { key, .. } if access.key(key).is_none() => Err(Error::Config(format!(
            "zone {zone} is to be transferred with key {key}, which is not listed"
        ))),
        _ => Ok(()),
    }
}

fn open_zones(config: &ServerConfig) -> Result<Vec<Arc<Held>>> {
    if let Some(dir) = &config.state {
        make_dir(dir).map_err(|source| Error::Journal {
            path: dir.clone(),
            step: "make its directory",
            source,
        })?;
    }
    let seed = Seed {
        addresses: &config.addresses,
        ttl: DEFAULT_TTL,
    };
    let open = |zone: &crate::ZoneConfig| {
        let zone = Zone::open(
            &zone.name,
            zone.role.clone(),
            config.state.as_deref(),
            &seed,
        )?;
        Ok(Arc::new(Held::new(zone)))
    };
    config.zones.iter().map(open).collect()
}

fn make_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}

async fn listen(wire: &mut Wire<Front>, wanted: &[SocketAddr]) -> Result<Vec<SocketAddr>> {
    let mut bound = Vec::new();
    for addr in wanted {
        let (listener, socket, addr) = bind(*addr).await?;
        wire.register_socket(socket);
        wire.register_listener(listener, IDLE, BACKLOG);
        bound.push(addr);
    }
    Ok(bound)
}

/// Binds UDP and TCP to one address; where the kernel chooses the port, to one that both can have.
async fn bind(addr: SocketAddr) -> Result<(TcpListener, UdpSocket, SocketAddr)> {
    let fault = |proto| {
        move |source| Error::Bind {
            proto,
            addr,
            source,
        }
    };
    for attempt in 1.. {
        let listener = TcpListener::bind(addr).await.map_err(fault("tcp"))?;
        let bound = listener.local_addr().map_err(fault("tcp"))?;
        match UdpSocket::bind(bound).await {
            Ok(socket) => return Ok((listener, socket, bound)),
            Err(e)
                if addr.port() == 0
                    && e.kind() == io::ErrorKind::AddrInUse
                    && attempt < PORT_ATTEMPTS => {}
            Err(e) => return Err(fault("udp")(e)),
        }
    }
    Err(fault("udp")(io::ErrorKind::AddrInUse.into()))
}

impl Server {
    /// Addresses it listens on, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Addresses where pods ask, in the order of the configuration.
    #[must_use]
    pub fn inside_addresses(&self) -> &[SocketAddr] {
        &self.inside
    }

    /// A zone as it is in this process, without asking over the network.
    #[must_use]
    pub fn zone(&self, name: &ZoneName) -> Option<ZoneView> {
        self.held(name)
            .map(|held| ZoneView::new(held.zone.clone()))
            .ok()
    }

    fn held(&self, name: &ZoneName) -> Result<&Arc<Held>> {
        self.zones
            .iter()
            .find(|held| held.zone.name() == name)
            .ok_or_else(|| Error::NoSuchZone(name.to_string()))
    }

    /// Makes this server primary or secondary of `zone`, or changes whom it tells of changes. The
    /// order that keeps one authority at any time: the old primary becomes a secondary first.
    ///
    /// # Errors
    /// No such zone here; a secondary's key is unknown; a zone that never was transferred cannot have
    /// its primary here.
    pub fn set_role(&self, zone: &ZoneName, role: Role) -> Result<()> {
        let held = self.held(zone)?;
        check_role(zone, &role, &self.access)?;
        let empty = held
            .zone
            .snapshot()
            .records
            .soa(held.zone.origin())
            .is_none();
        if empty && matches!(role, Role::Primary { .. }) {
            return Err(Error::Config(format!(
                "zone {zone} was never transferred to this server"
            )));
        }
        held.set_role(role);
        Ok(())
    }

    /// Adds `target` to the servers told of changes of `zone`, and tells it of the present state.
    pub fn add_secondary(&self, zone: &ZoneName, target: SocketAddr) -> Result<()> {
        let held = self.held(zone)?;
        let mut role = held.zone.role();
        match &mut role {
            Role::Primary { notify } | Role::Secondary { notify, .. }
                if !notify.contains(&target) =>
            {
                notify.push(target);
            }
            _ => {}
        }
        held.set_role(role);
        Ok(())
    }

    /// Stops taking requests, waits for the update in progress, and gives the journals back.
    pub async fn stop(mut self) -> Result<()> {
        let mut stopped = Ok(());
        let listening = [!self.addresses.is_empty(), !self.inside.is_empty()];
        for (wire, _) in self
            .wires
            .iter_mut()
            .zip(listening)
            .filter(|(_, listening)| *listening)
        {
            let end = wire.shutdown_gracefully().await;
            stopped = stopped.and(end.map_err(|e| Error::Serve(e.to_string())));
        }
        let zones = std::mem::take(&mut self.zones);
        let close =
            tokio::task::spawn_blocking(move || zones.iter().for_each(|held| held.zone.close()));
        close.await.map_err(|source| Error::Task {
            step: "close the journals",
            source,
        })?;
        stopped
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}
