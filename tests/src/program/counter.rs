//! A static shell that counts into a file: the smallest program with memory, a file and children.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::{Program, words};
use crate::host::Host;
use crate::site::Site;
use crate::wait::eventually;

/// `busybox sh` in a loop.
#[derive(Debug, Default)]
pub struct Counter {
    file: PathBuf,
    last: u64,
}

impl Counter {
    fn read(&self, site: &Site<'_>) -> Result<Vec<u64>> {
        let text = site.inside(&["cat", &self.file.to_string_lossy()])?;
        text.lines()
            .map(|line| {
                line.parse()
                    .with_context(|| format!("a line of the file: {line:?}"))
            })
            .collect()
    }
}

impl Program for Counter {
    fn prepare(&mut self, host: &Host) -> Result<()> {
        self.file = host.directory().join("count");
        Ok(())
    }

    fn command(&self) -> Vec<String> {
        let script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done >>\"$0\"";
        words(&["busybox", "sh", "-c", script, &self.file.to_string_lossy()])
    }

    fn ready(&mut self, site: &Site<'_>) -> Result<()> {
        eventually("the first number", || {
            ensure!(!self.read(site)?.is_empty(), "the file is empty");
            Ok(())
        })
    }

    fn load(&mut self, site: &Site<'_>) -> Result<()> {
        self.last = eventually("ten more numbers", || {
            let now = *self.read(site)?.last().context("the file is empty")?;
            ensure!(now >= self.last + 10, "it counted to {now}");
            Ok(now)
        })?;
        Ok(())
    }

    fn check(&mut self, site: &Site<'_>) -> Result<()> {
        let numbers = self.read(site)?;
        let gap = numbers.iter().zip(1..).find(|(have, want)| **have != *want);
        ensure!(
            gap.is_none(),
            "a number is missing or twice: have, wanted {gap:?}"
        );
        ensure!(
            numbers.len() as u64 >= self.last,
            "it forgot numbers: {} of {}",
            numbers.len(),
            self.last
        );
        Ok(())
    }
}
