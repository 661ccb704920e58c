//! What the servers in `programs/` have in common: data in memory, numbers that grow, facts that stay.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::site::Site;
use crate::wait::eventually;

/// A client of one of the servers.
#[derive(Debug)]
pub(super) struct Talker {
    port: u16,
    /// Whether it keeps data, or only shows that it lives.
    keeps: bool,
    loaded: u32,
    fixed: Option<Value>,
}

struct State {
    alive: BTreeMap<String, u64>,
    fixed: Value,
}

impl Talker {
    pub(super) fn new(port: u16, keeps: bool) -> Self {
        Self {
            port,
            keeps,
            loaded: 0,
            fixed: None,
        }
    }

    fn state(&self, site: &Site<'_>) -> Result<State> {
        let text = site.get(self.port, "/state")?;
        let mut value: Value =
            serde_json::from_str(&text).with_context(|| format!("the state: {text}"))?;
        let alive = serde_json::from_value(value["alive"].take()).context("numbers under alive")?;
        Ok(State {
            alive,
            fixed: value["fixed"].take(),
        })
    }

    /// Every part was alive at least once.
    pub(super) fn ready(&self, site: &Site<'_>) -> Result<()> {
        eventually("every part to live", || {
            let state = self.state(site)?;
            let dead: Vec<_> = state
                .alive
                .iter()
                .filter(|(_, count)| **count == 0)
                .collect();
            ensure!(
                !state.alive.is_empty() && dead.is_empty(),
                "not alive yet: {dead:?}"
            );
            Ok(())
        })
    }

    pub(super) fn load(&mut self, site: &Site<'_>) -> Result<()> {
        if self.keeps {
            for number in self.loaded..self.loaded + 20 {
                site.get(self.port, &format!("/put?key{number}=value{number}"))?;
            }
            self.loaded += 20;
        }
        Ok(())
    }

    /// Data and facts are what they were, and every part goes on.
    pub(super) fn check(&mut self, site: &Site<'_>) -> Result<()> {
        for number in 0..self.loaded {
            let have = site.get(self.port, &format!("/get?key{number}"))?;
            ensure!(have == format!("value{number}"), "key{number} is {have:?}");
        }
        let now = self.state(site)?;
        let before = self.fixed.get_or_insert_with(|| now.fixed.clone());
        ensure!(
            *before == now.fixed,
            "facts changed\nbefore: {before}\nnow:    {}",
            now.fixed
        );
        eventually("every part to go on", || {
            let later = self.state(site)?.alive;
            let stuck: Vec<_> = later
                .iter()
                .filter(|(part, count)| now.alive.get(*part) >= Some(count))
                .collect();
            ensure!(stuck.is_empty(), "these stand still: {stuck:?}");
            Ok(())
        })
    }
}
