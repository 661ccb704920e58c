//! Putting right what a worker that died has left: pods that were on their way in.
//!
//! ```text
//!   nobody receives it (its lock is free), and
//!     its supervisor lives      it settles the move itself
//!     the journal says destroy  remove it
//!     the journal says ask      ask; then as below
//!     the journal says run      rebuild it from its image, and let it run
//! ```

use anyhow::{Context, Result};

use super::arrival::{authority, clear, erase, journal, lock, rebuild};
use crate::messages::Ask;
use crate::migrate::journal::{Duty, Side};
use crate::migrate::settle::{Here, settle};
use crate::store::{Lock, Pod, Store};

/// Looks at every pod of a root. What cannot be put right now is tried again the next time.
///
/// # Errors
/// A root that cannot be read.
pub(crate) fn sweep(store: &Store) -> Result<()> {
    for pod in store.list()? {
        if let Err(error) = put_right(store, &pod) {
            tracing::warn!(
                pod = pod.id,
                error = format!("{error:#}"),
                "a move that was not finished"
            );
        }
    }
    Ok(())
}

fn put_right(store: &Store, pod: &Pod) -> Result<()> {
    if Lock::is_taken(&lock(pod))? {
        return Ok(());
    }
    let Some(mut journal) =
        journal(pod)?.filter(|journal| journal.begun().side == Side::Destination)
    else {
        return Ok(());
    };
    if journal.duty() == Duty::Nothing || settles_itself(pod)? {
        return Ok(());
    }
    let authority = authority(store, pod, journal.begun())?;
    let settled = settle(&mut journal, &*authority, &mut Left { store, pod });
    settled.map(drop).with_context(|| format!("pod {}", pod.id))
}

/// A pod that is being removed by its supervisor is waited for.
fn settles_itself(pod: &Pod) -> Result<bool> {
    if !pod.is_held()? {
        return Ok(false);
    }
    let gone = journal(pod)?.is_some_and(|journal| journal.duty() == Duty::Destroy);
    if gone {
        pod.until_let_go()?;
    }
    Ok(!gone)
}

/// A pod without a supervisor.
struct Left<'a> {
    store: &'a Store,
    pod: &'a Pod,
}

impl Here for Left<'_> {
    fn live(&mut self) -> Result<()> {
        rebuild(self.store, self.pod)?.ask(&Ask::Go)?;
        clear(self.pod)
    }

    fn vanish(&mut self) -> Result<()> {
        erase(self.store, self.pod, None)
    }
}
