//! Networks of a pod's own, on hosts that are network namespaces.

use super::host::{Host, Network};

const SERVE: [&str; 7] = ["busybox", "httpd", "-f", "-p", "80", "-h", "/etc"];

/// Starts a pod that serves its /etc on port 80; returns when it listens.
fn serve(host: &Host, name: &str, options: &[&str]) -> String {
    host.good(&[&["run", "-d", "--name", name], options, &["--"], &SERVE].concat());
    let listens = "until busybox netstat -ltn | busybox grep -q ':80 '; do :; done";
    host.good(&["exec", name, "--", "busybox", "sh", "-c", listens]);
    host.inspect(name)["address"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn fetch(network: &Network, place: &str) -> String {
    let url = format!("http://{place}/hostname");
    network.good(&["curl", "-s", "--max-time", "10", &url])
}

/// Devices and tables that pods left behind.
fn leftovers(network: &Network) -> String {
    let links = network.good(&["ip", "-br", "link"]);
    let links: Vec<&str> = links
        .lines()
        .filter(|line| line.starts_with("pod"))
        .collect();
    links.join("\n") + &network.good(&["nft", "list", "tables"])
}

#[test]
fn no_network_is_a_loopback_device() {
    let host = Host::new();
    let said = host.good(&[
        "run",
        "--net",
        "none",
        "--",
        "busybox",
        "sh",
        "-c",
        "ip -o link | wc -l; ping -c 1 -q 127.0.0.1 > /dev/null; echo $?",
    ]);
    assert_eq!(said, "1\n0\n");
}

#[test]
fn private_pods_reach_each_other_and_ports_lead_to_them() {
    let network = Network::new();
    let host = Host::on(&network);
    let first = serve(&host, "first", &["--net", "private", "-p", "8080:80"]);
    let second = serve(&host, "second", &["--net", "private"]);
    assert_ne!(first, second);
    assert_eq!(fetch(&network, &first), "first\n");
    assert_eq!(fetch(&network, "127.0.0.1:8080"), "first\n");
    let url = format!("http://{second}/hostname");
    assert_eq!(
        host.good(&[
            "exec", "first", "--", "busybox", "wget", "-q", "-O", "-", &url
        ]),
        "second\n"
    );
    host.good(&["rm", "-f", "first"]);
    assert_eq!(serve(&host, "third", &["--net", "private"]), first);
    host.good(&["rm", "-f", "second", "third"]);
    assert_eq!(leftovers(&network), "");
}

#[test]
fn a_private_pod_reaches_the_outside_by_its_hosts_address() {
    let (network, outside) = (Network::new(), Network::new());
    network.good(&[
        "ip",
        "link",
        "add",
        "wire",
        "type",
        "veth",
        "peer",
        "name",
        "wire",
        "netns",
        &outside.pid(),
    ]);
    network.good(&["ip", "address", "add", "192.0.2.1/24", "dev", "wire"]);
    network.good(&["ip", "link", "set", "wire", "up"]);
    outside.good(&["ip", "address", "add", "192.0.2.2/24", "dev", "wire"]);
    outside.good(&["ip", "link", "set", "wire", "up"]);
    let host = Host::on(&network);
    let ping = [
        "run",
        "--net",
        "private",
        "--",
        "busybox",
        "ping",
        "-c",
        "1",
        "-W",
        "10",
        "192.0.2.2",
    ];
    assert!(host.good(&ping).contains("1 packets received"));
}

#[test]
fn what_a_killed_pod_made_is_released() {
    let network = Network::new();
    let host = Host::on(&network);
    serve(&host, "k", &["--net", "private"]);
    assert_ne!(leftovers(&network), "");
    host.end_holder("k");
    host.good(&["rm", "-f", "k"]);
    assert_eq!(leftovers(&network), "");
}

#[test]
fn an_own_address_moves_with_its_pod() {
    let (a, b) = (Network::new(), Network::new());
    a.good(&[
        "ip",
        "link",
        "add",
        "wire",
        "type",
        "veth",
        "peer",
        "name",
        "wire",
        "netns",
        &b.pid(),
    ]);
    for (network, address) in [(&a, "10.9.0.1/24"), (&b, "10.9.0.2/24")] {
        network.good(&["ip", "address", "add", address, "dev", "wire"]);
        network.good(&["ip", "link", "set", "wire", "up"]);
    }
    let (here, there) = (Host::on(&a), Host::on(&b));
    assert_eq!(
        serve(&here, "own", &["--net", "own=10.9.0.7/24"]),
        "10.9.0.7"
    );
    assert_eq!(fetch(&b, "10.9.0.7"), "own\n");
    let neighbour = b.good(&["ip", "neighbour", "show", "10.9.0.7"]);
    here.good(&["rm", "-f", "own"]);
    serve(&there, "moved", &["--net", "own=10.9.0.7/24"]);
    assert_eq!(fetch(&a, "10.9.0.7"), "moved\n");
    let hardware = a.good(&["ip", "neighbour", "show", "10.9.0.7"]);
    let address = |text: &str| text.split_ascii_whitespace().nth(4).map(str::to_owned);
    assert_eq!(address(&hardware), address(&neighbour));
    there.good(&["rm", "-f", "moved"]);
    assert_eq!(leftovers(&a) + &leftovers(&b), "");
}

#[test]
fn a_network_that_cannot_be_had_is_refused() {
    let network = Network::new();
    let host = Host::on(&network);
    for options in [
        &["--net", "own=10.9.0.7/24"][..],
        &["--net", "none", "-p", "80:80"],
        &["--net", "own=10.9.0.7/24", "-p", "80:80"],
    ] {
        let said = host.pod(&[&["run", "--name", "x"], options, &["--", "true"]].concat());
        assert!(said.code == 125 && said.err.contains("hint: "), "{said:?}");
    }
    assert_eq!(host.good(&["ps", "-a", "--format", "json"]), "[]\n");
    assert_eq!(leftovers(&network), "");
}
