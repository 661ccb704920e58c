//! Waiting for somebody else's program.
//!
//! Nothing tells a stranger that a port is open or a row was written, so these look again every few
//! milliseconds. The deadline is there to end a test that hangs; it decides nothing else.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(10);

/// Tries `work` until it succeeds.
///
/// # Errors
/// The last error, after a minute.
pub fn eventually<T>(what: &str, mut work: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match work() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("waited for {what}"));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// Waits until `holds` says so.
///
/// # Errors
/// After a minute.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    eventually(what, || {
        if holds() {
            Ok(())
        } else {
            bail!("it did not happen")
        }
    })
}
