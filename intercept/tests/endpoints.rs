//! A program's own endpoints look the same whether it has its port or another one.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
};

use common::{Pod, command, compile, same, text};
use intercept::table::Plan;

const PLAN: Plan = Plan {
    pids: intercept::table::Backing::Kernel,
    ipc: intercept::table::Backing::Kernel,
    hosts: intercept::table::Backing::Kernel,
    endpoints: true,
};

/// A port that was free a moment ago, outside the range the kernel chooses from.
fn free_port() -> u16 {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    let base = std::process::id() as u16 % 200 * 50;
    std::iter::repeat_with(|| 20000 + base + TRIED.fetch_add(1, Ordering::Relaxed) % 50)
        .find(|port| TcpListener::bind(("::", *port)).is_ok())
        .unwrap()
}

#[test]
fn a_program_sees_what_it_sees_natively() {
    let dir = tempfile::tempdir().unwrap();
    let binary = compile(dir.path(), "endpoints");
    let port = free_port().to_string();
    same(&binary, &[&port], PLAN);
}

#[test]
fn a_port_that_a_stranger_holds_is_still_the_programs_own() {
    let dir = tempfile::tempdir().unwrap();
    let binary = compile(dir.path(), "endpoints");
    let port = free_port();
    let native = text(&command(&binary, &[&port.to_string()]).output().unwrap());
    let _stranger = TcpListener::bind(("::", port)).unwrap();
    let pod = Pod::spawn(command(&binary, &[&port.to_string()]), PLAN);
    let inside = text(&pod.output());
    // Behind the end of its own listener the program meets the stranger on the shared loopback.
    let (native, inside) = (native.lines(), inside.lines());
    let differ: Vec<_> = native.zip(inside).filter(|(a, b)| a != b).collect();
    assert_eq!(
        differ,
        [(
            "connect after close: Connection refused",
            "connect after close: ok"
        )]
    );
}

#[test]
fn redis_keeps_its_port_beside_another_redis_and_is_seen() {
    let port = free_port();
    let _stranger = TcpListener::bind(("0.0.0.0", port)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut redis = command("redis-server".as_ref(), &["--save", "", "--port"]);
    redis.arg(port.to_string()).current_dir(dir.path());
    let mut pod = Pod::spawn(redis, PLAN);
    let out = BufReader::new(pod.child.stdout.take().unwrap());
    let ready = out
        .lines()
        .map_while(Result::ok)
        .any(|l| l.contains("Ready to accept connections"));
    assert!(ready);
    let bound = pod.engine.listeners().unwrap();
    assert!(bound.iter().all(|b| b.virt.port() == port && b.listening));
    let four = bound.iter().find(|b| b.virt.is_ipv4()).unwrap();
    let real = four.real.unwrap().port();
    assert_ne!(real, port);
    assert!(TcpStream::connect(("127.0.0.1", real)).is_ok());
    let pong = Command::new("redis-cli")
        .args(["-p", &real.to_string(), "config", "get", "port"])
        .output()
        .unwrap();
    assert_eq!(text(&pong), format!("port\n{port}\n"));
    pod.child.kill().unwrap();
    pod.child.wait().unwrap();
    assert_eq!(pod.engine.listeners().unwrap(), []);
}
