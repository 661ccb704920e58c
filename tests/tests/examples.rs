//! The stories in `examples/` go as they are told.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use tests::{finish, pod_binary};

#[test]
fn redis_moves_and_is_found_by_name() -> Result<()> {
    let story = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/move-redis");
    let told = finish(Command::new(story).env("POD_BINARY", pod_binary()))?.ok()?;
    assert!(told.contains("shop.pod.internal is 10.88.0.1"), "{told}");
    assert!(told.contains("shop.pod.internal is 10.88.0.2"), "{told}");
    assert!(told.contains("Every key was found again"), "{told}");
    Ok(())
}
