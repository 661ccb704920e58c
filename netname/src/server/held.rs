//! A zone together with what runs for it: the refresher of a secondary and the teller of changes.

use std::{net::IpAddr, sync::Arc, time::Duration};

use tokio::{sync::Notify, task::JoinSet};

use super::{access::Access, notify};
use crate::{client::transfer, config::Role, zone::Zone};

/// Between two attempts at a primary that was never reached.
const FIRST_RETRY: Duration = Duration::from_secs(2);

/// A zone of a running server.
pub(crate) struct Held {
    pub(crate) zone: Arc<Zone>,
    poke: Notify,
}

impl Held {
    pub(crate) fn new(zone: Zone) -> Self {
        Self {
            zone: Arc::new(zone),
            poke: Notify::new(),
        }
    }

    pub(crate) fn is_primary(&self) -> bool {
        matches!(self.zone.role(), Role::Primary { .. })
    }

    /// A notification came from `source`: if that is the primary, look there soon.
    pub(crate) fn poke_from(&self, source: IpAddr) -> bool {
        let role = self.zone.role();
        let ours = matches!(role, Role::Secondary { primary, .. } if primary.ip() == source.to_canonical());
        if ours {
            self.poke.notify_one();
        }
        ours
    }

    pub(crate) fn set_role(&self, role: Role) {
        self.zone.set_role(role);
        self.poke.notify_one();
    }

    /// Starts what runs for this zone.
    pub(crate) fn start(self: &Arc<Self>, access: &Arc<Access>, tasks: &mut JoinSet<()>) {
        tasks.spawn(self.clone().refresh(access.clone()));
        tasks.spawn(notify::tell(self.zone.clone()));
    }

    /// While this server is a secondary: look at the primary's serial now, when poked, and after the
    /// time that the SOA says (RFC 1034 section 4.3.5); transfer when it is newer.
    async fn refresh(self: Arc<Self>, access: Arc<Access>) {
        loop {
            match self.zone.role() {
                Role::Primary { .. } => self.poke.notified().await,
                Role::Secondary { primary, key, .. } => {
                    let wait = self.refresh_once(primary, access.key(&key).cloned()).await;
                    // The time may pass or not: either way the next look is due.
                    let _ = tokio::time::timeout(wait, self.poke.notified()).await;
                }
            }
        }
    }

    async fn refresh_once(
        &self,
        primary: std::net::SocketAddr,
        key: Option<crate::Key>,
    ) -> Duration {
        let zone = self.zone.clone();
        let look =
            tokio::task::spawn_blocking(move || transfer::refresh(&zone, primary, key.as_ref()));
        let failed = match look.await {
            Ok(Ok(())) => false,
            Ok(Err(error)) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(zone = %self.zone.name(), %error, source, "zone not refreshed");
                true
            }
            Err(error) => {
                tracing::error!(zone = %self.zone.name(), %error, "refresh ended early");
                true
            }
        };
        self.pause(failed)
    }

    fn pause(&self, failed: bool) -> Duration {
        let snapshot = self.zone.snapshot();
        let Some(soa) = snapshot.records.soa(self.zone.origin()) else {
            return FIRST_RETRY;
        };
        let seconds = if failed { soa.retry } else { soa.refresh };
        Duration::from_secs(u64::from(seconds.unsigned_abs()).max(1))
    }
}
