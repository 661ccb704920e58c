//! A server killed with SIGKILL in the middle of its work: what was promised stands.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
};

use netname::{Epoch, Key, ZoneName, serve};

use super::common::{at, blocking, committed, pod, primary, updater};

const STATE: &str = "NETNAME_CRASH_STATE";
const SECRET: &str = "NETNAME_CRASH_SECRET";

/// The server process of the test below; it is that test that runs it.
#[tokio::test]
#[ignore = "runs as a process of a_killed_server_keeps_what_it_promised"]
async fn server_process() {
    let (state, secret) = (
        std::env::var(STATE).unwrap(),
        std::env::var(SECRET).unwrap(),
    );
    let key = Key::new("agent", &secret).unwrap();
    let server = serve(primary(&key, Some(&PathBuf::from(state))))
        .await
        .unwrap();
    println!("\nserving {}", server.addresses()[0]);
    std::future::pending::<()>().await;
}

/// Killed at the end of its scope.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn spawn(state: &std::path::Path, key: &Key) -> (Killed, SocketAddr) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "crash::server_process",
            "--ignored",
            "--nocapture",
        ])
        .env(STATE, state)
        .env(SECRET, key.secret())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let killed = Killed(child);
    let line = lines
        .map(Result::unwrap)
        .find(|line| line.starts_with("serving "))
        .unwrap();
    (killed, line.trim_start_matches("serving ").parse().unwrap())
}

/// Moves the pod on and on, telling each epoch before it is tried and after it was promised.
fn keep_moving(addr: SocketAddr, key: &Key) -> Receiver<(Epoch, bool)> {
    let (tell, told) = channel();
    let updater = updater(addr, key);
    std::thread::spawn(move || {
        let mut held = Epoch::first();
        tell.send((held, false))?;
        let mut outcome = updater.publish(&pod("web"), &held, &at(1));
        while outcome.is_ok_and(|outcome| committed(&outcome)) {
            tell.send((held, true))?;
            let next = held.next();
            tell.send((next, false))?;
            outcome = updater.move_to(&pod("web"), &held, &next, &at(2));
            held = next;
        }
        Ok::<_, std::sync::mpsc::SendError<_>>(())
    });
    told
}

#[tokio::test]
async fn a_killed_server_keeps_what_it_promised() {
    for moves in [1, 7, 40] {
        let dir = tempfile::tempdir().unwrap();
        let key = Key::generate("agent").unwrap();
        let (state, agent) = (dir.path().to_owned(), key.clone());
        let (promised, tried) = blocking(move || {
            let (server, addr) = spawn(&state, &agent);
            let told = keep_moving(addr, &agent);
            let enough = |(epoch, promised): &(Epoch, bool)| *promised && epoch.number >= moves;
            let mut promised = told.iter().find(enough).unwrap().0;
            drop(server);
            let mut tried = promised;
            for (epoch, stands) in told {
                if stands {
                    promised = epoch;
                } else {
                    tried = epoch;
                }
            }
            (promised, tried)
        })
        .await;
        let server = serve(primary(&key, Some(dir.path()))).await.unwrap();
        let found = server
            .zone(&ZoneName::default())
            .unwrap()
            .pod(&pod("web"))
            .unwrap()
            .epoch;
        assert!(
            found == promised || found == tried,
            "{found}, promised {promised}, tried {tried}"
        );
        server.stop().await.unwrap();
    }
}
