//! This host as a destination.

use anyhow::{Context, Result};

use super::arrival::{Guest, journal};
use super::config::Settings;
use super::sweep;
use crate::migrate::authority::{Authority, Decisions, Unknown, Verdict};
use crate::migrate::journal::Duty;
use crate::migrate::message::{Lack, Needs, Offer};
use crate::migrate::{Arrival, Host, needs};
use crate::store::Store;

/// This host, with the pods of one root.
pub(super) struct LocalHost {
    store: Store,
}

impl LocalHost {
    /// Puts right what workers before us have left.
    ///
    /// # Errors
    /// A root that cannot be read.
    pub(super) fn new(store: &Store) -> Result<Self> {
        sweep::sweep(store)?;
        Ok(Self {
            store: store.clone(),
        })
    }

    fn taken(&self, name: &str) -> Result<Option<Lack>> {
        for pod in self.store.list()? {
            if pod.config().is_ok_and(|config| config.name == name) {
                let hint = format!("remove or rename the pod {} there", pod.id);
                return Ok(Some(Lack {
                    what: format!("the name {name} is taken there"),
                    hint,
                }));
            }
        }
        Ok(None)
    }

    fn zone(&self, wanted: Option<&str>) -> Result<Option<Lack>> {
        let Some(wanted) = wanted else {
            return Ok(None);
        };
        let ours = Settings::of(self.store.root())?
            .dns
            .map(|dns| dns.zone.to_string());
        let what = match ours {
            Some(zone) if zone == wanted => return Ok(None),
            Some(zone) => format!("it publishes names in {zone}, not in {wanted}"),
            None => format!("it cannot publish names in {wanted}"),
        };
        Ok(Some(Lack {
            what,
            hint: "bring it into the cluster with pod agent join".to_owned(),
        }))
    }
}

impl Host for LocalHost {
    fn lacks(&mut self, needs: &Needs) -> Result<Vec<Lack>> {
        let mut lacks = needs::lacks(needs, self.store.root())?;
        lacks.extend(self.taken(&needs.name)?);
        lacks.extend(self.zone(needs.zone.as_deref())?);
        Ok(lacks)
    }

    fn admit(&mut self, offer: &Offer, from: &str) -> Result<Box<dyn Arrival>> {
        Ok(Box::new(Guest::admit(&self.store, offer, from)?))
    }

    fn resolve(&mut self, id: &str) -> Result<Verdict, Unknown> {
        let decisions = Decisions::of(self.store.root());
        let unknown = |source: std::io::Error| Unknown {
            authority: "this host".to_owned(),
            source: source.into(),
        };
        decisions
            .about(id)
            .map_err(unknown)?
            .decide(Verdict::Aborted)
    }

    fn settled(&mut self, id: &str) -> Result<()> {
        for pod in self.store.list()? {
            let arrival = journal(&pod)?.filter(|journal| journal.begun().id == id);
            if arrival.is_some_and(|journal| journal.duty() != Duty::Nothing) {
                return Ok(());
            }
        }
        Decisions::of(self.store.root())
            .about(id)?
            .forget()
            .context("forget a decision")
    }
}
