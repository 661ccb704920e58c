//! Copies of a zone: large, prompt, lasting, and made primary.

use netname::{
    Entry, Epoch, Error, Key, KeyConfig, Role, Server, ServerConfig, ZoneConfig, ZoneName,
    ZoneView, serve,
};

use super::{
    common::{any, at, blocking, committed, pod, primary, start, updater},
    forwarding::dig,
};

/// A server with a copy of `primary`'s zone, transferred with `key`, told of changes by `primary`.
async fn follow(primary: &Server, key: &Key, state: Option<&std::path::Path>) -> Server {
    let config = copy(primary.addresses()[0], key, state);
    let server = serve(config).await.unwrap();
    primary
        .add_secondary(&ZoneName::default(), server.addresses()[0])
        .unwrap();
    server
}

fn copy(primary: std::net::SocketAddr, key: &Key, state: Option<&std::path::Path>) -> ServerConfig {
    ServerConfig {
        listen: vec![any()],
        zones: vec![ZoneConfig::secondary(
            ZoneName::default(),
            primary,
            &key.name(),
        )],
        keys: primary_keys(key),
        state: state.map(std::path::Path::to_owned),
        ..ServerConfig::default()
    }
}

fn primary_keys(key: &Key) -> Vec<KeyConfig> {
    primary(key, None).keys
}

fn zone(server: &Server) -> ZoneView {
    server.zone(&ZoneName::default()).unwrap()
}

fn publish(
    server: &Server,
    key: &Key,
    name: &str,
    epoch: Epoch,
) -> impl Future<Output = ()> + use<> {
    let (updater, pod) = (updater(server.addresses()[0], key), pod(name));
    blocking(move || {
        let outcome = updater.publish(&pod, &epoch, &at(7)).unwrap();
        assert!(committed(&outcome), "{outcome:?}");
    })
}

#[tokio::test]
async fn a_copy_follows_each_change() {
    let (first, key) = start(None).await;
    let second = follow(&first, &key, None).await;
    for round in 0..10 {
        publish(&first, &key, &format!("pod{round}"), Epoch::first()).await;
        zone(&second).wait_for(zone(&first).serial()).await.unwrap();
        assert_eq!(zone(&second).dump(), zone(&first).dump());
    }
    let (updater, expected) = (
        updater(second.addresses()[0], &key),
        zone(&first).pod(&pod("pod3")),
    );
    blocking(move || {
        assert_eq!(updater.lookup(&pod("pod3")).unwrap(), expected);
        let error = updater
            .publish(&pod("more"), &Epoch::first(), &at(7))
            .unwrap_err();
        assert!(
            matches!(error, Error::Refused { step: "update", .. }),
            "a copy takes no updates: {error}"
        );
    })
    .await;
    second.stop().await.unwrap();
    first.stop().await.unwrap();
}

#[tokio::test]
async fn a_zone_larger_than_a_message_arrives_whole() {
    let (first, key) = start(None).await;
    let updater = updater(first.addresses()[0], &key);
    blocking(move || {
        for number in 0..300 {
            let outcome = updater
                .publish(
                    &pod(&format!("pod-with-a-long-name-{number}")),
                    &Epoch::first(),
                    &at(7),
                )
                .unwrap();
            assert!(committed(&outcome), "{outcome:?}");
        }
    })
    .await;
    let second = follow(&first, &key, None).await;
    zone(&second).wait_for(zone(&first).serial()).await.unwrap();
    let dump = zone(&first).dump();
    assert!(
        dump.iter().map(String::len).sum::<usize>() > 2 * 65536,
        "large enough to need messages"
    );
    assert_eq!(zone(&second).dump(), dump);
    assert_eq!(zone(&second).pods().len(), 300);
    second.stop().await.unwrap();
    first.stop().await.unwrap();
}

#[tokio::test]
async fn a_copy_lasts_and_becomes_the_primary() {
    let dir = tempfile::tempdir().unwrap();
    let (first, key) = start(None).await;
    let (epoch, old) = (Epoch::first(), first.addresses()[0]);
    publish(&first, &key, "web", epoch).await;
    let second = follow(&first, &key, Some(dir.path())).await;
    zone(&second).wait_for(zone(&first).serial()).await.unwrap();
    let serial = zone(&first).serial();
    first.stop().await.unwrap();
    second.stop().await.unwrap();

    let second = serve(copy(old, &key, Some(dir.path()))).await.unwrap();
    assert_eq!(
        zone(&second).pod(&pod("web")),
        Some(Entry {
            epoch,
            placement: at(7)
        })
    );
    second
        .set_role(&ZoneName::default(), Role::Primary { notify: Vec::new() })
        .unwrap();
    let (updater, next) = (updater(second.addresses()[0], &key), epoch.next());
    blocking(move || {
        let mut authority = updater.authority().clone();
        authority.reverse.clear();
        let outcome = netname::Updater::new(authority)
            .move_to(&pod("web"), &epoch, &next, &at(8))
            .unwrap();
        assert!(committed(&outcome), "{outcome:?}");
    })
    .await;
    assert_eq!(zone(&second).serial(), serial + 1);
    second.stop().await.unwrap();
}

#[tokio::test]
async fn the_old_primary_follows_the_new_one() {
    let (first, key) = start(None).await;
    publish(&first, &key, "web", Epoch::first()).await;
    let second = follow(&first, &key, None).await;
    zone(&second).wait_for(zone(&first).serial()).await.unwrap();
    let (zone_name, to) = (ZoneName::default(), second.addresses()[0]);
    first
        .set_role(
            &zone_name,
            Role::Secondary {
                primary: to,
                key: key.name(),
                notify: Vec::new(),
            },
        )
        .unwrap();
    second
        .set_role(
            &zone_name,
            Role::Primary {
                notify: vec![first.addresses()[0]],
            },
        )
        .unwrap();
    let mut authority = updater(to, &key).authority().clone();
    authority.reverse.clear();
    blocking(move || {
        let outcome = netname::Updater::new(authority)
            .publish(&pod("db"), &Epoch::first(), &at(9))
            .unwrap();
        assert!(committed(&outcome), "{outcome:?}");
    })
    .await;
    zone(&first).wait_for(zone(&second).serial()).await.unwrap();
    assert_eq!(zone(&first).dump(), zone(&second).dump());
    first.stop().await.unwrap();
    second.stop().await.unwrap();
}

#[tokio::test]
async fn an_empty_copy_neither_answers_nor_becomes_primary() {
    let (first, key) = start(None).await;
    let gone = first.addresses()[0];
    first.stop().await.unwrap();
    let second = serve(copy(gone, &key, None)).await.unwrap();
    assert!(
        second
            .set_role(&ZoneName::default(), Role::Primary { notify: Vec::new() })
            .is_err()
    );
    let updater = updater(second.addresses()[0], &key);
    blocking(move || {
        let error = updater.lookup(&pod("web")).unwrap_err();
        assert!(error.to_string().contains("Server Failure"), "{error}");
    })
    .await;
    second.stop().await.unwrap();
}

#[tokio::test]
async fn a_key_without_transfer_gets_no_copy() {
    let (agent, weak) = (
        Key::generate("agent").unwrap(),
        Key::generate("weak").unwrap(),
    );
    let mut config = primary(&agent, None);
    config.keys.push(KeyConfig::new(&weak));
    let first = serve(config).await.unwrap();
    let addr = first.addresses()[0];
    blocking(move || {
        for (key, allowed) in [
            (&weak, false),
            (&agent, true),
            (&Key::generate("agent").unwrap(), false),
        ] {
            let signed = format!("hmac-sha256:{}:{}", key.name(), key.secret());
            let all = dig(addr, &["-y", &signed, "pod.internal", "AXFR"]);
            assert_eq!(all.contains("ns.pod.internal."), allowed, "{all}");
            assert_eq!(all.contains("Transfer failed"), !allowed, "{all}");
        }
    })
    .await;
    first.stop().await.unwrap();
}

#[tokio::test]
async fn an_old_copy_is_not_believed_about_a_lost_race() {
    let (first, key) = start(None).await;
    let (one, two) = (Epoch::first(), Epoch::first().next());
    publish(&first, &key, "web", one).await;
    // Nobody tells this copy of changes.
    let second = serve(copy(first.addresses()[0], &key, None)).await.unwrap();
    zone(&second).wait_for(zone(&first).serial()).await.unwrap();
    let (at_first, at_second) = (
        updater(first.addresses()[0], &key),
        updater(second.addresses()[0], &key),
    );
    blocking(move || {
        assert!(committed(
            &at_first.move_to(&pod("web"), &one, &two, &at(8)).unwrap()
        ));
        assert_eq!(at_second.lookup(&pod("web")).unwrap().unwrap().epoch, one);
        let error = at_second
            .move_to(&pod("web"), &two, &two.next(), &at(9))
            .unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error}");
    })
    .await;
    first.stop().await.unwrap();
    second.stop().await.unwrap();
}
