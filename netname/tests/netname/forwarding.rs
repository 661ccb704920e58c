//! Names of others, and names of nobody.

use std::process::Command;

use netname::{Epoch, Key, ServerConfig, ZoneConfig, ZoneName, serve};

use super::common::{any, at, blocking, committed, pod, primary, start, updater};

/// `dig`'s answer in short form, or its status.
pub(crate) fn dig(server: std::net::SocketAddr, words: &[&str]) -> String {
    let (at, port) = (format!("@{}", server.ip()), server.port().to_string());
    let output = Command::new("dig")
        .args([&at, "-p", &port])
        .args(words)
        .args(["+tries=1", "+time=20"])
        .output();
    let output =
        output.expect("dig, from Debian's bind9-dnsutils, must be installed for this test");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn other_names_are_asked_of_the_forwarder_and_refused_without() {
    let (upstream, key) = start(None).await;
    let (up, epoch) = (updater(upstream.addresses()[0], &key), Epoch::first());
    blocking(move || assert!(committed(&up.publish(&pod("web"), &epoch, &at(7)).unwrap()))).await;
    let own = ZoneName::new("own.internal").unwrap();
    let forwarding = |forwarders| ServerConfig {
        listen: vec![any()],
        zones: vec![ZoneConfig::primary(own.clone())],
        forwarders,
        ..primary(&Key::generate("other").unwrap(), None)
    };
    let near = serve(forwarding(vec![upstream.addresses()[0]]))
        .await
        .unwrap();
    let alone = serve(forwarding(Vec::new())).await.unwrap();
    let (near_addr, alone_addr) = (near.addresses()[0], alone.addresses()[0]);
    blocking(move || {
        assert_eq!(
            dig(near_addr, &["+short", "web.pod.internal", "A"]),
            "192.0.2.7\n"
        );
        assert_eq!(
            dig(near_addr, &["+short", "+tcp", "web.pod.internal", "A"]),
            "192.0.2.7\n"
        );
        assert!(dig(near_addr, &["none.pod.internal", "A"]).contains("status: NXDOMAIN"));
        assert!(
            dig(near_addr, &["+norecurse", "web.pod.internal", "A"]).contains("status: REFUSED")
        );
        assert!(dig(near_addr, &["none.own.internal", "A"]).contains("flags: qr aa"));
        assert!(dig(alone_addr, &["web.pod.internal", "A"]).contains("status: REFUSED"));
    })
    .await;
    for server in [near, alone, upstream] {
        server.stop().await.unwrap();
    }
}

#[tokio::test]
async fn a_dead_forwarder_is_passed_over() {
    let (upstream, key) = start(None).await;
    let dead = start(None).await.0;
    let dead_addr = dead.addresses()[0];
    dead.stop().await.unwrap();
    let (up, epoch) = (updater(upstream.addresses()[0], &key), Epoch::first());
    blocking(move || assert!(committed(&up.publish(&pod("web"), &epoch, &at(7)).unwrap()))).await;
    let config = ServerConfig {
        listen: vec![any()],
        forwarders: vec![dead_addr, upstream.addresses()[0]],
        ..ServerConfig::default()
    };
    let near = serve(config).await.unwrap();
    let addr = near.addresses()[0];
    blocking(move || {
        assert_eq!(
            dig(addr, &["+short", "web.pod.internal", "A"]),
            "192.0.2.7\n"
        );
    })
    .await;
    near.stop().await.unwrap();
    upstream.stop().await.unwrap();
}
