//! Pages that processes share since a fork are shared again when they wake, and are in the image once.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Host, World, eventually};

const CHILDREN: u64 = 20;
const BYTES: u64 = 16 << 20;

/// Forks children that look at what they have from their parent and write nothing to it.
const SCRIPT: &str = "
import os, sys, time, zlib
data = os.urandom(int(sys.argv[2]))
total = zlib.crc32(data)
for number in range(int(sys.argv[1])):
    if os.fork() == 0: break
while zlib.crc32(data) == total: time.sleep(0.2)
";

/// The proportional set size of all processes of the pod, in bytes, and how many they are.
fn pss(host: &Host) -> Result<(u64, u64)> {
    let told: Value = serde_json::from_str(&host.pod(&["inspect", "fork"])?.ok()?)?;
    let pids = told["pids"].as_array().context("pids")?;
    let mut sum = 0;
    for pid in pids {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", pid["pid"]))?;
        let line = text
            .lines()
            .find(|line| line.starts_with("Pss:"))
            .context("Pss")?;
        sum += line
            .split_whitespace()
            .nth(1)
            .context("a number")?
            .parse::<u64>()?
            * 1024;
    }
    Ok((sum, pids.len() as u64))
}

fn settled(host: &Host) -> Result<u64> {
    eventually("all children", || {
        let (sum, count) = pss(host)?;
        ensure!(count == CHILDREN + 1, "{count} processes");
        Ok(sum)
    })
}

#[test]
fn forked_processes_share_memory_after_a_sleep() -> Result<()> {
    let world = World::new()?;
    let (host, image) = (&world.source, world.directory().join("image"));
    let image = image.to_string_lossy();
    let (children, bytes) = (CHILDREN.to_string(), BYTES.to_string());
    let command = ["/usr/bin/python3", "-c", SCRIPT, &children, &bytes];
    host.pod(&[&["run", "-d", "--name", "fork", "--"], &command[..]].concat())?
        .ok()?;
    let before = settled(host)?;
    host.pod(&["checkpoint", "fork", "-o", &image, "--leave-running"])?
        .ok()?;
    let during = settled(host)?;
    host.pod(&["rm", "-f", "fork"])?.ok()?;
    host.pod(&["restore", "-d", &image])?.ok()?;
    let after = settled(host)?;
    let stored = std::fs::metadata(format!("{image}/pages.img"))?.len();
    // One copy for each child would be twenty times as much.
    for (what, size) in [
        ("beside the image", during),
        ("after it", after),
        ("in the image", stored),
    ] {
        ensure!(
            size < before + CHILDREN * BYTES / 4,
            "{size} bytes {what}, {before} before"
        );
    }
    host.pod(&["rm", "-f", "fork"])?.ok()?;
    world.end()
}
