//! Where the program under test is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The `pod` binary: `$POD_BINARY`, else the debug build of this workspace, brought up to date once.
///
/// # Panics
/// When it does not build.
#[must_use]
pub fn pod_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("POD_BINARY") {
        Some(path) => path.into(),
        None => build(),
    })
}

fn build() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("/"));
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "pod", "--bin", "pod"])
        .current_dir(workspace)
        .status();
    assert!(
        status.as_ref().is_ok_and(std::process::ExitStatus::success),
        "cargo build: {status:?}"
    );
    beside_this_test().unwrap_or_else(|| workspace.join("target/debug/pod"))
}

/// Tests run from `target/PROFILE/deps`; the program lies one directory above.
fn beside_this_test() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let found = own.parent()?.parent()?.join("pod");
    found.exists().then_some(found)
}
