//! The hosts themselves: connected, apart, and gone without a trace.

use anyhow::Result;
use tests::{World, eventually};

#[test]
fn hosts_reach_each_other_by_both_protocols() -> Result<()> {
    let world = World::new()?;
    for (from, to) in [
        (&world.source, &world.destination),
        (&world.desk, &world.source),
    ] {
        for address in [to.v4(), to.v6()] {
            let text = address.to_string();
            let busybox = ["busybox", "ping", "-c", "1", "-W", "5", &text];
            eventually("an answer to a ping", || from.run(&busybox)?.ok())?;
        }
    }
    world.end()
}

#[test]
fn a_host_has_its_own_name_files_and_ipc() -> Result<()> {
    let world = World::new()?;
    let (source, destination) = (&world.source, &world.destination);
    assert_eq!(source.run(&["hostname"])?.ok()?.trim(), "source");
    source
        .shell("echo here > /tmp/note; ipcmk -M 4096 >/dev/null")?
        .ok()?;
    destination.run(&["cat", "/tmp/note"])?.fails(1)?;
    assert_eq!(
        destination
            .shell("tail -n +2 /proc/sysvipc/shm | wc -l")?
            .ok()?
            .trim(),
        "0"
    );
    let left = world
        .end()
        .expect_err("a file and a segment were left behind");
    let left = format!("{left:#}");
    assert!(
        left.contains("/tmp/note") && left.contains("shm:"),
        "{left}"
    );
    Ok(())
}

#[test]
fn a_process_that_stays_is_found_and_ended() -> Result<()> {
    let world = World::new()?;
    let mut child = world
        .desk
        .spawn(&["sleep", "1000"], &world.directory().join("log"))?;
    drop(world);
    assert!(!child.wait()?.success());
    Ok(())
}

#[test]
fn a_cable_can_be_pulled() -> Result<()> {
    let world = World::new()?;
    let address = world.destination.v4().to_string();
    let ping = ["busybox", "ping", "-c", "1", "-W", "1", &address];
    eventually("an answer to a ping", || world.source.run(&ping)?.ok())?;
    world.plug(&world.destination, false)?;
    world.source.run(&ping)?.fails(1)?;
    world.plug(&world.destination, true)?;
    eventually("an answer to a ping", || world.source.run(&ping)?.ok())?;
    world.end()
}
