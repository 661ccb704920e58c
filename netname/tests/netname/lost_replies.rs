//! Connections that break at the worst moment: a relay between updater and server cuts them.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use netname::{Epoch, Outcome, Standing, Updater, ZoneName};

use super::common::{at, blocking, committed, lost_to, pod, start, updater};

/// Opcode UPDATE in the first byte of a DNS header's flags (RFC 1035 section 4.1.1).
const UPDATE: u8 = 5;

/// Where the relay cuts the connection that carries an update.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cut {
    /// The server never sees the update.
    Before,
    /// The update is made, the answer is lost.
    After,
}

/// Relays to `server`; cuts the next `cuts` updates, passes everything else.
fn relay(server: SocketAddr, cut: Cut, cuts: u32) -> (SocketAddr, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (addr, left) = (
        listener.local_addr().unwrap(),
        Arc::new(AtomicU32::new(cuts)),
    );
    let count = left.clone();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, count) = (client.unwrap(), count.clone());
            std::thread::spawn(move || serve_one(client, server, cut, &count));
        }
    });
    (addr, left)
}

fn message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut bytes = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut bytes).ok()?;
    Some([length.to_vec(), bytes].concat())
}

fn serve_one(mut client: TcpStream, server: SocketAddr, cut: Cut, left: &AtomicU32) {
    let Ok(mut upstream) = TcpStream::connect(server) else {
        return;
    };
    while let Some(request) = message(&mut client) {
        let update = (request[4] >> 3) & 0xf == UPDATE;
        let cutting = update
            && left
                .fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1))
                .is_ok();
        if cutting && cut == Cut::Before {
            return;
        }
        upstream.write_all(&request).unwrap();
        let Some(answer) = message(&mut upstream) else {
            return;
        };
        if cutting {
            return;
        }
        client.write_all(&answer).unwrap();
    }
}

fn through(relay: SocketAddr, direct: &Updater) -> Updater {
    let mut authority = direct.authority().clone();
    authority.server = relay;
    authority.reverse.clear();
    Updater::new(authority)
}

#[tokio::test]
async fn a_lost_answer_is_read_back_and_a_lost_update_is_sent_again() {
    let (server, key) = start(None).await;
    let (zone, direct) = (
        server.zone(&ZoneName::default()).unwrap(),
        updater(server.addresses()[0], &key),
    );
    let addr = server.addresses()[0];
    blocking(move || {
        let mut held = Epoch::first();
        assert!(committed(
            &direct.publish(&pod("web"), &held, &at(1)).unwrap()
        ));
        for (host, cut) in [(2, Cut::Before), (3, Cut::After)] {
            let (relayed, left) = relay(addr, cut, 1);
            let (next, serial) = (held.next(), zone.serial());
            let outcome = through(relayed, &direct)
                .move_to(&pod("web"), &held, &next, &at(host))
                .unwrap();
            assert!(committed(&outcome), "{cut:?}: {outcome:?}");
            assert_eq!(
                (left.load(SeqCst), zone.serial()),
                (0, serial + 1),
                "{cut:?}"
            );
            held = next;
        }
        assert_eq!(
            direct.lookup(&pod("web")).unwrap().unwrap().placement,
            at(3)
        );
    })
    .await;
    server.stop().await.unwrap();
}

#[tokio::test]
async fn without_an_answer_the_outcome_is_unknown_until_asked() {
    let (server, key) = start(None).await;
    let direct = updater(server.addresses()[0], &key);
    let addr = server.addresses()[0];
    blocking(move || {
        let held = Epoch::first();
        assert!(committed(
            &direct.publish(&pod("web"), &held, &at(1)).unwrap()
        ));
        let (relayed, _) = relay(addr, Cut::Before, u32::MAX);
        let mut authority = through(relayed, &direct).authority().clone();
        authority.patience = Duration::from_secs(30);
        let outcome = Updater::new(authority)
            .move_to(&pod("web"), &held, &held.next(), &at(2))
            .unwrap();
        let Outcome::Unknown { change, .. } = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(direct.standing(&change).unwrap(), Standing::Open);
        // Kept in a journal and read again by the next process.
        let change = serde_json::from_str(&serde_json::to_string(&change).unwrap()).unwrap();
        assert!(committed(&direct.resolve(change)));
        assert_eq!(
            direct.lookup(&pod("web")).unwrap().unwrap().placement,
            at(2)
        );
    })
    .await;
    server.stop().await.unwrap();
}

#[tokio::test]
async fn whoever_was_overtaken_in_the_meantime_learns_it() {
    let (server, key) = start(None).await;
    let direct = updater(server.addresses()[0], &key);
    let addr = server.addresses()[0];
    blocking(move || {
        let held = Epoch::first();
        assert!(committed(
            &direct.publish(&pod("web"), &held, &at(1)).unwrap()
        ));
        let (relayed, _) = relay(addr, Cut::Before, u32::MAX);
        let outcome = through(relayed, &direct)
            .move_to(&pod("web"), &held, &held.next(), &at(2))
            .unwrap();
        let Outcome::Unknown { change, .. } = outcome else {
            panic!("{outcome:?}")
        };
        let winner = held.next();
        assert!(committed(
            &direct.move_to(&pod("web"), &held, &winner, &at(3)).unwrap()
        ));
        assert_eq!(
            direct.standing(&change).unwrap(),
            Standing::Overtaken(Some(winner))
        );
        assert_eq!(lost_to(&direct.resolve(change)), Some(winner));
    })
    .await;
    server.stop().await.unwrap();
}
