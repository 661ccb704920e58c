//! What several test programs use: a server with one agent's key, and words for placements.

use std::{net::SocketAddr, path::Path};

use netname::{
    Authority, Epoch, Grant, Key, KeyConfig, Outcome, Placement, PodName, Proto, Server,
    ServerConfig, Service, Updater, ZoneConfig, ZoneName, serve,
};

/// An address the kernel may complete with a port.
pub(crate) fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// The reverse zone of the addresses that tests publish.
pub(crate) fn reverse() -> ZoneName {
    ZoneName::reverse("192.0.2.0".parse().unwrap(), 24)
}

/// A primary for `pod.internal` and the reverse zone, with `key` allowed everything.
pub(crate) fn primary(key: &Key, state: Option<&Path>) -> ServerConfig {
    let everything = KeyConfig::new(key)
        .with_transfer()
        .with_update(Grant::Subtree(ZoneName::default()))
        .with_update(Grant::Subtree(reverse()));
    ServerConfig {
        listen: vec![any()],
        zones: vec![
            ZoneConfig::primary(ZoneName::default()),
            ZoneConfig::primary(reverse()),
        ],
        keys: vec![everything],
        state: state.map(Path::to_owned),
        addresses: vec!["127.0.0.1".parse().unwrap()],
        ..ServerConfig::default()
    }
}

/// A running server and its key.
pub(crate) async fn start(state: Option<&Path>) -> (Server, Key) {
    let key = Key::generate("agent").unwrap();
    (serve(primary(&key, state)).await.unwrap(), key)
}

/// An updater for the server at `addr`.
pub(crate) fn updater(addr: SocketAddr, key: &Key) -> Updater {
    let mut authority = Authority::new(addr, Some(key.clone()));
    authority.reverse = vec![reverse()];
    Updater::new(authority)
}

pub(crate) fn pod(name: &str) -> PodName {
    PodName::new(name).unwrap()
}

/// At 192.0.2.`host`, listening on a redis port that the host mapped.
pub(crate) fn at(host: u8) -> Placement {
    let real = SocketAddr::new([192, 0, 2, host].into(), 16379);
    Placement {
        addresses: vec![real.ip()],
        virtual_address: Some("10.77.0.3".parse().unwrap()),
        services: vec![Service::new(Proto::Tcp, 6379, "redis").unwrap().at(real)],
    }
}

pub(crate) fn committed(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Committed { reverse: None })
}

pub(crate) fn lost_to(outcome: &Outcome) -> Option<Epoch> {
    match outcome {
        Outcome::Lost { current } => *current,
        other => panic!("not lost: {other:?}"),
    }
}

/// Runs blocking work beside the server's runtime.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}
