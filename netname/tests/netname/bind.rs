//! BIND against us: `named` as our primary and as our secondary, `dig` and `nsupdate` as clients.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use netname::{
    Authority, Entry, Epoch, Error, Key, Placement, Proto, ServerConfig, Service, Updater,
    ZoneConfig, ZoneName, serve,
};
use tempfile::TempDir;

use super::{
    common::{any, at, blocking, committed, lost_to, pod, primary, reverse, start, updater},
    forwarding::dig,
};

/// Bounds the wait for `named`; nothing is decided by how long it takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running `named`, its files and its log.
struct Named {
    child: Child,
    addr: SocketAddr,
    log: Receiver<String>,
    _dir: TempDir,
}

impl Drop for Named {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// A port that nobody has on UDP and TCP at this moment.
fn free_port() -> u16 {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = tcp.local_addr().unwrap();
        if UdpSocket::bind(addr).is_ok() {
            return addr.port();
        }
    }
}

impl Named {
    /// Starts `named` with these zone clauses; `port` is replaced by its port in them.
    fn start(key: &Key, zones: &str, files: &[(&str, String)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        fs::write(
            dir.path().join("named.conf"),
            configuration(dir.path(), port, key, zones),
        )
        .unwrap();
        let mut child = Command::new("named")
            .args(["-g", "-c"])
            .arg(dir.path().join("named.conf"))
            .stderr(Stdio::piped())
            .spawn()
            .expect("named, from Debian's bind9, must be installed for this test");
        let (lines, log) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            stderr
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| lines.send(line))
        });
        let named = Self {
            child,
            addr: SocketAddr::new([127, 0, 0, 1].into(), port),
            log,
            _dir: dir,
        };
        named.wait_for("all zones loaded");
        named
    }

    /// Waits until `named` logs a line with `words`.
    fn wait_for(&self, words: &str) {
        let mut seen = Vec::new();
        while !seen
            .last()
            .is_some_and(|line: &String| line.contains(words))
        {
            match self.log.recv_timeout(PATIENCE) {
                Ok(line) => seen.push(line),
                Err(error) => panic!("named never said {words:?} ({error}):\n{}", seen.join("\n")),
            }
        }
    }
}

fn configuration(dir: &Path, port: u16, key: &Key, zones: &str) -> String {
    let dir = dir.display();
    format!(
        "options {{ directory \"{dir}\"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
            pid-file none; session-keyfile none; recursion no; dnssec-validation no; allow-transfer {{ key \"{name}\"; }};
            notify explicit; notify-delay 0; max-records-per-type 0; }};
        controls {{ }};
        {clause} {zones}",
        name = key.name(),
        clause = key.clause(),
    )
}

fn zone_file(records: &str) -> String {
    format!(
        "$TTL 5\n@ IN SOA ns hostmaster 1 3600 600 86400 5\n@ IN NS ns\nns IN A 127.0.0.1\n{records}"
    )
}

/// A primary for both zones, which `key` may change and transfer.
fn named_primary(key: &Key, more: &str, records: &str) -> Named {
    let zone = |zone: &ZoneName, file: &str| {
        format!(
            "zone \"{zone}\" {{ type primary; file \"{file}\"; allow-update {{ key \"{}\"; }}; {more} }};\n",
            key.name()
        )
    };
    let zones = zone(&ZoneName::default(), "forward") + &zone(&reverse(), "reverse");
    let files = [
        ("forward", zone_file(records)),
        (
            "reverse",
            zone_file("")
                .replace(" ns\n", " ns.pod.internal.\n")
                .replace("ns IN A 127.0.0.1\n", ""),
        ),
    ];
    Named::start(key, &zones, &files)
}

#[test]
fn our_client_publishes_moves_and_withdraws_at_named() {
    let key = Key::generate("agent").unwrap();
    let named = named_primary(&key, "", "");
    let updater = updater(named.addr, &key);
    let (one, web) = (Epoch::first(), pod("web"));
    let two = one.next();
    assert!(committed(&updater.publish(&web, &one, &at(7)).unwrap()));
    assert_eq!(
        lost_to(&updater.publish(&web, &Epoch::first(), &at(9)).unwrap()),
        Some(one)
    );
    assert!(committed(
        &updater.move_to(&web, &one, &two, &at(8)).unwrap()
    ));
    assert_eq!(
        lost_to(&updater.move_to(&web, &one, &one.next(), &at(7)).unwrap()),
        Some(two)
    );
    assert_eq!(
        updater.lookup(&web).unwrap(),
        Some(Entry {
            epoch: two,
            placement: at(8)
        })
    );
    let back = |addr: &str| dig(named.addr, &["+short", "-x", addr]);
    assert_eq!(
        (back("192.0.2.8").as_str(), back("192.0.2.7").as_str()),
        ("web.pod.internal.\n", "")
    );
    let mut other = at(8);
    other.services = vec![Service::new(Proto::Tcp, 80, "http").unwrap()];
    assert!(committed(&updater.refresh(&web, &two, &other).unwrap()));
    assert_eq!(
        dig(
            named.addr,
            &["+short", "_http._tcp.web.pod.internal", "SRV"]
        ),
        "0 0 80 web.pod.internal.\n"
    );
    assert_eq!(
        dig(named.addr, &["+short", "_redis._tcp.pod.internal", "PTR"]),
        ""
    );
    assert!(committed(&updater.withdraw(&web, &two).unwrap()));
    assert_eq!(updater.lookup(&web).unwrap(), None);
    assert!(dig(named.addr, &["web.pod.internal", "TXT"]).contains("NXDOMAIN"));
}

#[test]
fn of_eight_movers_at_named_one_wins() {
    let key = Key::generate("agent").unwrap();
    let named = named_primary(&key, "", "");
    let updater = updater(named.addr, &key);
    let held = Epoch::first();
    assert!(committed(
        &updater.publish(&pod("race"), &held, &at(1)).unwrap()
    ));
    let movers: Vec<_> = (0..8)
        .map(|writer| {
            let updater = updater.clone();
            std::thread::spawn(move || {
                updater
                    .move_to(&pod("race"), &held, &held.next(), &at(writer + 10))
                    .unwrap()
            })
        })
        .collect();
    let outcomes: Vec<_> = movers
        .into_iter()
        .map(|mover| mover.join().unwrap())
        .collect();
    assert_eq!(
        outcomes.iter().filter(|outcome| committed(outcome)).count(),
        1,
        "{outcomes:?}"
    );
}

#[test]
fn named_tells_a_wrong_key_from_an_unknown_one() {
    let key = Key::generate("agent").unwrap();
    let named = named_primary(&key, "", "");
    let publish = |key: &Key| {
        updater(named.addr, key)
            .publish(&pod("web"), &Epoch::first(), &at(7))
            .unwrap_err()
    };
    let error = publish(&Key::generate("agent").unwrap());
    assert!(matches!(error, Error::WrongKey { .. }), "{error}");
    let error = publish(&Key::generate("stranger").unwrap());
    assert!(matches!(error, Error::UnknownKey { .. }), "{error}");
    let unsigned = Updater::new(Authority::new(named.addr, None));
    let error = unsigned
        .publish(&pod("web"), &Epoch::first(), &at(7))
        .unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
}

/// Runs `nsupdate` against `server`; its output and whether it succeeded.
fn nsupdate(server: SocketAddr, key: &Key, script: &str) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    fs::write(&path, key.clause()).unwrap();
    let mut child = Command::new("nsupdate")
        .arg("-v")
        .arg("-k")
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nsupdate, from Debian's bind9-dnsutils, must be installed for this test");
    let script = format!(
        "server {} {}\nzone pod.internal\n{script}\nsend\n",
        server.ip(),
        server.port()
    );
    child
        .stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[tokio::test]
async fn nsupdate_changes_our_zone_under_prerequisites() {
    let (server, key) = start(None).await;
    let addr = server.addresses()[0];
    blocking(move || {
        let run = |script: &str| nsupdate(addr, &key, script);
        let (done, text) =
            run("prereq nxdomain db.pod.internal\nupdate add db.pod.internal 5 A 192.0.2.3");
        assert!(done, "{text}");
        let (done, text) =
            run("prereq nxdomain db.pod.internal\nupdate add db.pod.internal 5 A 192.0.2.4");
        assert!(!done && text.contains("YXDOMAIN"), "{text}");
        let (done, text) =
            run("prereq yxrrset db.pod.internal A 192.0.2.9\nupdate delete db.pod.internal");
        assert!(!done && text.contains("NXRRSET"), "{text}");
        let (done, text) = run("update add db.example.org 5 A 192.0.2.4");
        assert!(!done && text.contains("NOTZONE"), "{text}");
        let (done, text) = run("update delete pod.internal\nupdate add db.pod.internal 5 TXT kept");
        assert!(done, "{text}");
        assert_eq!(
            dig(addr, &["+short", "pod.internal", "NS"]),
            "ns.pod.internal.\n"
        );
        assert_eq!(
            dig(addr, &["+short", "db.pod.internal", "TXT"]),
            "\"kept\"\n"
        );
        let (done, text) = nsupdate(
            addr,
            &Key::generate("agent").unwrap(),
            "update delete db.pod.internal",
        );
        assert!(!done && text.contains("BADSIG"), "{text}");
        let (done, text) = nsupdate(
            addr,
            &Key::generate("other").unwrap(),
            "update delete db.pod.internal",
        );
        assert!(!done && text.contains("BADKEY"), "{text}");
        assert_eq!(
            dig(addr, &["+short", "db.pod.internal", "A"]),
            "192.0.2.3\n"
        );
    })
    .await;
    server.stop().await.unwrap();
}

#[tokio::test]
async fn dig_reads_our_zone() {
    let (server, key) = start(None).await;
    let (addr, updater) = (server.addresses()[0], updater(server.addresses()[0], &key));
    blocking(move || {
        assert!(committed(
            &updater
                .publish(&pod("web"), &Epoch::first(), &at(7))
                .unwrap()
        ));
        assert_eq!(
            dig(addr, &["+short", "WEB.pod.internal", "A"]),
            "192.0.2.7\n"
        );
        assert_eq!(
            dig(addr, &["+short", "_redis._tcp.pod.internal", "PTR"]),
            "web._redis._tcp.pod.internal.\n"
        );
        assert_eq!(
            dig(addr, &["+short", "web._redis._tcp.pod.internal", "TXT"]),
            "\"port=6379\"\n"
        );
        assert_eq!(
            dig(addr, &["+short", "-x", "192.0.2.7"]),
            "web.pod.internal.\n"
        );
        let srv = dig(addr, &["_redis._tcp.web.pod.internal", "SRV"]);
        assert!(
            srv.contains("0 0 16379 web.pod.internal.") && srv.contains("ADDITIONAL: 2"),
            "{srv}"
        );
        let none = dig(addr, &["none.pod.internal", "A"]);
        assert!(
            none.contains("NXDOMAIN") && none.contains("SOA") && none.contains("flags: qr aa"),
            "{none}"
        );
        let no_data = dig(addr, &["web.pod.internal", "MX"]);
        assert!(
            no_data.contains("NOERROR") && no_data.contains("ANSWER: 0") && no_data.contains("SOA"),
            "{no_data}"
        );
        assert!(dig(addr, &["pod.internal", "AXFR"]).contains("Transfer failed"));
        let signed = format!("hmac-sha256:{}:{}", key.name(), key.secret());
        let all = dig(addr, &["-y", &signed, "pod.internal", "AXFR"]);
        assert!(
            all.contains("web.pod.internal.") && !all.contains("failed"),
            "{all}"
        );
        assert!(
            dig(addr, &["-y", &signed, "+short", "web.pod.internal", "A"]).contains("192.0.2.7")
        );
    })
    .await;
    server.stop().await.unwrap();
}

#[tokio::test]
async fn pods_are_told_virtual_endpoints_and_outsiders_real_ones() {
    let key = Key::generate("agent").unwrap();
    let config = ServerConfig {
        inside: vec![any()],
        ..primary(&key, None)
    };
    let server = serve(config).await.unwrap();
    let (outside, inside) = (server.addresses()[0], server.inside_addresses()[0]);
    let updater = updater(outside, &key);
    blocking(move || {
        let epoch = Epoch::first();
        assert!(committed(
            &updater.publish(&pod("web"), &epoch, &at(7)).unwrap()
        ));
        let host = ["+short", "web.pod.internal", "A"];
        assert_eq!(dig(outside, &host), "192.0.2.7\n");
        assert_eq!(dig(inside, &host), "10.77.0.3\n");
        for owner in [
            "_redis._tcp.web.pod.internal",
            "web._redis._tcp.pod.internal",
        ] {
            assert_eq!(
                dig(outside, &["+short", owner, "SRV"]),
                "0 0 16379 web.pod.internal.\n"
            );
            assert_eq!(
                dig(inside, &["+short", owner, "SRV"]),
                "0 0 6379 web.pod.internal.\n"
            );
        }
        let same = Placement {
            virtual_address: None,
            ..at(8)
        };
        assert!(committed(
            &updater
                .move_to(&pod("web"), &epoch, &epoch.next(), &same)
                .unwrap()
        ));
        assert_eq!(dig(inside, &host), "192.0.2.8\n");
    })
    .await;
    server.stop().await.unwrap();
}

fn copy_of(named: &Named, key: &Key, port: u16) -> ServerConfig {
    ServerConfig {
        listen: vec![SocketAddr::new([127, 0, 0, 1].into(), port)],
        zones: vec![ZoneConfig::secondary(
            ZoneName::default(),
            named.addr,
            &key.name(),
        )],
        keys: vec![netname::KeyConfig::new(key)],
        ..ServerConfig::default()
    }
}

#[tokio::test]
async fn we_are_a_secondary_of_named() {
    const RECORDS: usize = 4000;
    let (key, port) = (Key::generate("agent").unwrap(), free_port());
    let records: String = (0..RECORDS)
        .map(|n| format!("text{n} IN TXT \"{n:060}\"\n"))
        .collect();
    let signer = key.clone();
    let more = format!("also-notify {{ 127.0.0.1 port {port}; }};");
    let named = blocking(move || named_primary(&signer, &more, &records)).await;
    let server = serve(copy_of(&named, &key, port)).await.unwrap();
    let zone = server.zone(&ZoneName::default()).unwrap();
    zone.wait_for(1).await.unwrap();
    assert_eq!(zone.len(), RECORDS + 3, "more than fits in some messages");
    let updater = updater(named.addr, &key);
    let named = blocking(move || {
        assert!(committed(
            &updater
                .publish(&pod("web"), &Epoch::first(), &at(7))
                .unwrap()
        ));
        named
    })
    .await;
    zone.wait_for(2).await.unwrap();
    assert_eq!(zone.pod(&pod("web")).unwrap().placement, at(7));
    drop(named);
    server.stop().await.unwrap();
}

fn named_secondary(key: &Key, addr: SocketAddr) -> Named {
    let zone = format!(
        "zone \"pod.internal\" {{ type secondary; file \"copy\"; masterfile-format text; allow-notify {{ 127.0.0.1; }};
            primaries {{ {} port {} key \"{}\"; }}; }};",
        addr.ip(),
        addr.port(),
        key.name()
    );
    Named::start(key, &zone, &[])
}

#[tokio::test]
async fn named_is_a_secondary_of_ours() {
    let (server, key) = start(None).await;
    let direct = updater(server.addresses()[0], &key);
    blocking({
        let direct = direct.clone();
        move || {
            for number in 0..300 {
                let name = pod(&format!("pod-with-a-long-name-{number}"));
                assert!(committed(
                    &direct.publish(&name, &Epoch::first(), &at(7)).unwrap()
                ));
            }
        }
    })
    .await;
    let (signer, primary) = (key.clone(), server.addresses()[0]);
    let named = blocking(move || {
        let named = named_secondary(&signer, primary);
        named.wait_for("Transfer status: success");
        named
    })
    .await;
    server
        .add_secondary(&ZoneName::default(), named.addr)
        .unwrap();
    let epoch = Epoch::first();
    let named = blocking(move || {
        assert!(committed(
            &direct.publish(&pod("web"), &epoch, &at(7)).unwrap()
        ));
        named.wait_for("Transfer status: success");
        named
    })
    .await;
    let copy = updater(named.addr, &key);
    blocking(move || {
        assert_eq!(
            copy.lookup(&pod("web")).unwrap(),
            Some(Entry {
                epoch,
                placement: at(7)
            })
        );
        assert!(
            copy.lookup(&pod("pod-with-a-long-name-299"))
                .unwrap()
                .is_some()
        );
        drop(named);
    })
    .await;
    server.stop().await.unwrap();
}
