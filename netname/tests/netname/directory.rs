//! Pods in the zone: published, moved, refreshed and withdrawn, with exactly one winner.

use std::sync::{Arc, Barrier};

use super::common::{at, blocking, committed, lost_to, pod, primary, reverse, start, updater};
use netname::{
    Entry, Epoch, Error, Grant, Key, KeyConfig, Outcome, Placement, Proto, Service, Standing,
    Updater, ZoneName, serve,
};

#[tokio::test]
async fn a_published_pod_is_seen_from_everywhere() {
    let (server, key) = start(None).await;
    let updater = updater(server.addresses()[0], &key);
    let entry = Entry {
        epoch: Epoch::first(),
        placement: at(7),
    };
    let expected = entry.clone();
    blocking(move || {
        assert!(committed(
            &updater.publish(&pod("web"), &entry.epoch, &at(7)).unwrap()
        ));
        assert_eq!(updater.lookup(&pod("web")).unwrap(), Some(entry));
    })
    .await;
    let zone = server.zone(&ZoneName::default()).unwrap();
    assert_eq!(zone.pods(), vec![(pod("web"), expected.clone())]);
    let real = zone
        .pod(&pod("web"))
        .unwrap()
        .placement
        .real(Proto::Tcp, 6379);
    assert_eq!(real, Some("192.0.2.7:16379".parse().unwrap()));
    let back = server.zone(&reverse()).unwrap().dump();
    let pointer = |r: &&String| {
        r.starts_with("7.2.0.192.in-addr.arpa.") && r.ends_with("PTR web.pod.internal.")
    };
    assert_eq!(back.iter().filter(pointer).count(), 1, "{back:#?}");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_host_that_was_away_cannot_point_the_name_back() {
    let (server, key) = start(None).await;
    let updater = updater(server.addresses()[0], &key);
    let (one, web) = (Epoch::first(), pod("web"));
    let two = one.next();
    blocking(move || {
        assert!(committed(&updater.publish(&web, &one, &at(7)).unwrap()));
        assert!(committed(
            &updater.move_to(&web, &one, &two, &at(8)).unwrap()
        ));
        assert_eq!(
            updater.lookup(&web).unwrap(),
            Some(Entry {
                epoch: two,
                placement: at(8)
            })
        );
        assert_eq!(
            lost_to(&updater.move_to(&web, &one, &one.next(), &at(7)).unwrap()),
            Some(two)
        );
        assert_eq!(lost_to(&updater.withdraw(&web, &one).unwrap()), Some(two));
        assert_eq!(
            lost_to(&updater.publish(&web, &Epoch::first(), &at(9)).unwrap()),
            Some(two)
        );
    })
    .await;
    for zone in [ZoneName::default(), reverse()] {
        let dump = server.zone(&zone).unwrap().dump().join("\n");
        assert!(
            !dump.contains("192.0.2.7") && !dump.contains("7.2.0.192"),
            "{dump}"
        );
    }
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_withdrawn_pod_leaves_nothing_behind() {
    let (server, key) = start(None).await;
    let zones = [
        server.zone(&ZoneName::default()).unwrap(),
        server.zone(&reverse()).unwrap(),
    ];
    let without = zones.clone().map(|zone| zone.len());
    let updater = updater(server.addresses()[0], &key);
    let (one, web) = (Epoch::first(), pod("web"));
    blocking(move || {
        assert!(committed(&updater.publish(&web, &one, &at(7)).unwrap()));
        let other = Placement {
            services: vec![Service::new(Proto::Udp, 53, "domain").unwrap()],
            ..at(8)
        };
        assert!(committed(&updater.refresh(&web, &one, &other).unwrap()));
        assert_eq!(
            updater.lookup(&web).unwrap(),
            Some(Entry {
                epoch: one,
                placement: other
            })
        );
        assert!(committed(&updater.withdraw(&web, &one).unwrap()));
        assert_eq!(updater.lookup(&web).unwrap(), None);
    })
    .await;
    assert_eq!(
        zones.clone().map(|zone| zone.len()),
        without,
        "{:#?}",
        zones.map(|zone| zone.dump())
    );
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_eight_movers_exactly_one_wins_each_round() {
    const WRITERS: u8 = 8;
    const ROUNDS: usize = 25;
    let dir = tempfile::tempdir().unwrap();
    let (server, key) = start(Some(dir.path())).await;
    let updater = updater(server.addresses()[0], &key);
    let zone = server.zone(&ZoneName::default()).unwrap();
    blocking(move || {
        let mut held = Epoch::first();
        assert!(committed(
            &updater.publish(&pod("race"), &held, &at(1)).unwrap()
        ));
        for round in 0..ROUNDS {
            let start = Arc::new(Barrier::new(WRITERS.into()));
            let movers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let (updater, start, to) = (updater.clone(), start.clone(), held.next());
                    std::thread::spawn(move || {
                        start.wait();
                        (
                            to,
                            writer,
                            updater
                                .move_to(&pod("race"), &held, &to, &at(writer + 10))
                                .unwrap(),
                        )
                    })
                })
                .collect();
            let ends: Vec<_> = movers
                .into_iter()
                .map(|mover| mover.join().unwrap())
                .collect();
            let winners: Vec<_> = ends
                .iter()
                .filter(|(_, _, outcome)| committed(outcome))
                .collect();
            assert_eq!(winners.len(), 1, "round {round}: {ends:?}");
            let (epoch, writer, _) = winners[0];
            for (_, _, outcome) in ends.iter().filter(|(_, _, outcome)| !committed(outcome)) {
                assert_eq!(lost_to(outcome), Some(*epoch));
            }
            assert_eq!(
                updater.lookup(&pod("race")).unwrap(),
                Some(Entry {
                    epoch: *epoch,
                    placement: at(writer + 10)
                })
            );
            held = *epoch;
        }
    })
    .await;
    assert_eq!(zone.pods().len(), 1);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_change_is_made_once_however_often_it_is_sent() {
    let (server, key) = start(None).await;
    let updater = updater(server.addresses()[0], &key);
    let zone = server.zone(&ZoneName::default()).unwrap();
    let serial = zone.serial();
    let view = zone.clone();
    blocking(move || {
        let change = netname::Change {
            pod: pod("web"),
            from: None,
            to: Some(Entry {
                epoch: Epoch::first(),
                placement: at(7),
            }),
        };
        assert_eq!(updater.standing(&change).unwrap(), Standing::Open);
        assert!(committed(&updater.make(change.clone()).unwrap()));
        assert!(committed(&updater.make(change.clone()).unwrap()));
        assert!(committed(&updater.resolve(change.clone())));
        assert_eq!(view.serial(), serial + 1);
        assert_eq!(updater.standing(&change).unwrap(), Standing::Made);
        let other = netname::Change {
            to: Some(Entry {
                epoch: Epoch::first(),
                placement: at(8),
            }),
            ..change.clone()
        };
        assert_eq!(
            updater.standing(&other).unwrap(),
            Standing::Overtaken(change.to.map(|to| to.epoch))
        );
    })
    .await;
    server.stop().await.unwrap();
}

#[tokio::test]
async fn wrong_and_unknown_keys_are_refused_by_name() {
    let (server, key) = start(None).await;
    let addr = server.addresses()[0];
    let serial = server.zone(&ZoneName::default()).unwrap().serial();
    blocking(move || {
        let publish = |key: &Key| updater(addr, key).publish(&pod("web"), &Epoch::first(), &at(7)).unwrap_err();
        let wrong = Key::generate("agent").unwrap();
        assert_ne!(wrong.secret(), key.secret());
        let error = publish(&wrong);
        assert!(matches!(&error, Error::WrongKey { server, key, .. } if *server == addr && key == "agent"), "{error}");
        let error = publish(&Key::generate("stranger").unwrap());
        assert!(matches!(&error, Error::UnknownKey { key, .. } if key == "stranger"), "{error}");
        let mut authority = updater(addr, &key).authority().clone();
        authority.key = None;
        let error = Updater::new(authority).publish(&pod("web"), &Epoch::first(), &at(7)).unwrap_err();
        assert!(matches!(&error, Error::Refused { step: "update", .. }), "{error}");
    })
    .await;
    assert_eq!(server.zone(&ZoneName::default()).unwrap().serial(), serial);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_pods_own_key_moves_that_pod_only() {
    let (agent, own) = (
        Key::generate("agent").unwrap(),
        Key::generate("web-key").unwrap(),
    );
    let mut config = primary(&agent, None);
    config
        .keys
        .push(KeyConfig::new(&own).with_update(Grant::Pod {
            pod: pod("web"),
            zone: ZoneName::default(),
        }));
    let server = serve(config).await.unwrap();
    let updater = updater(server.addresses()[0], &own);
    blocking(move || {
        let one = Epoch::first();
        assert!(committed(
            &updater.publish(&pod("web"), &one, &at(7)).unwrap()
        ));
        assert!(committed(
            &updater
                .move_to(&pod("web"), &one, &one.next(), &at(8))
                .unwrap()
        ));
        let error = updater.publish(&pod("db"), &one, &at(7)).unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error}");
    })
    .await;
    server.stop().await.unwrap();
}

#[tokio::test]
async fn zones_survive_a_restart_and_are_locked() {
    let dir = tempfile::tempdir().unwrap();
    let (server, key) = start(Some(dir.path())).await;
    let busy = serve(primary(&key, Some(dir.path()))).await.unwrap_err();
    assert!(matches!(busy, Error::JournalBusy { .. }), "{busy}");
    let (addr, agent) = (server.addresses()[0], key.clone());
    let epoch = Epoch::first();
    blocking(move || {
        assert!(committed(
            &updater(addr, &agent)
                .publish(&pod("web"), &epoch, &at(7))
                .unwrap()
        ));
    })
    .await;
    let before = server.zone(&ZoneName::default()).unwrap().dump();
    server.stop().await.unwrap();
    let server = serve(primary(&key, Some(dir.path()))).await.unwrap();
    let zone = server.zone(&ZoneName::default()).unwrap();
    assert_eq!(zone.dump(), before);
    assert_eq!(zone.pod(&pod("web")).unwrap().epoch, epoch);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_foreign_name_is_not_taken() {
    let (server, key) = start(None).await;
    let updater = updater(server.addresses()[0], &key);
    blocking(move || {
        let error = updater
            .publish(&pod("ns"), &Epoch::first(), &at(7))
            .unwrap_err();
        assert!(matches!(error, Error::Foreign { .. }), "{error}");
    })
    .await;
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_error_and_unknown_when_asked_again() {
    let (server, key) = start(None).await;
    let addr = server.addresses()[0];
    server.stop().await.unwrap();
    blocking(move || {
        let change = netname::Change {
            pod: pod("web"),
            from: None,
            to: Some(Entry {
                epoch: Epoch::first(),
                placement: at(7),
            }),
        };
        let error = updater(addr, &key).make(change.clone()).unwrap_err();
        assert!(
            matches!(error, Error::Connect { server, .. } if server == addr),
            "{error}"
        );
        let outcome = updater(addr, &key).resolve(change);
        assert!(
            matches!(
                outcome,
                Outcome::Unknown {
                    cause: Error::Connect { .. },
                    ..
                }
            ),
            "{outcome:?}"
        );
    })
    .await;
}

#[tokio::test]
async fn pointers_can_follow_later() {
    let (server, key) = start(None).await;
    let full = updater(server.addresses()[0], &key);
    let mut authority = full.authority().clone();
    authority.reverse.clear();
    let quick = Updater::new(authority);
    let back = server.zone(&reverse()).unwrap();
    blocking(move || {
        let (one, web) = (Epoch::first(), pod("web"));
        let pointers = |owner: &str| back.dump().iter().filter(|r| r.starts_with(owner)).count();
        assert!(committed(&full.publish(&web, &one, &at(7)).unwrap()));
        assert!(committed(
            &quick.move_to(&web, &one, &one.next(), &at(8)).unwrap()
        ));
        assert_eq!((pointers("7.2."), pointers("8.2.")), (1, 0));
        full.point_back(&web, &at(7).addresses).unwrap();
        assert_eq!((pointers("7.2."), pointers("8.2.")), (0, 1));
    })
    .await;
    server.stop().await.unwrap();
}
