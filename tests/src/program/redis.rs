//! Redis with 100 MB, and a client in the pod that never stops writing.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::{Program, words};
use crate::host::Host;
use crate::site::Site;
use crate::wait::eventually;

/// `redis-server`, filled, beside `redis-cli` in an endless loop.
#[derive(Debug, Default)]
pub struct Redis {
    directory: PathBuf,
    keys: u64,
    written: u64,
    digests: Vec<(u8, String)>,
}

const PORT: u16 = 6379;
/// Keys of a thousand bytes put in at each loading: the data stands in databases 1, 2, …; the writer in 0.
const KEYS: u64 = 50_000;

impl Redis {
    fn ask(&self, site: &Site<'_>, words: &[&str]) -> Result<String> {
        let (address, port) = (site.address()?, PORT.to_string());
        let text = site
            .client(&[&["redis-cli", "-h", &address, "-p", &port], words].concat())?
            .ok()?;
        ensure!(!text.starts_with("ERR"), "{words:?}: {text}");
        Ok(text.trim().to_owned())
    }

    fn written(&self, site: &Site<'_>) -> Result<u64> {
        self.ask(site, &["get", "written"])?
            .parse()
            .context("the writer's counter")
    }

    fn digest(&self, site: &Site<'_>, database: u8) -> Result<String> {
        // A digest of the database without the key that changes all the time.
        let script = "local all = redis.call('keys', '*'); table.sort(all); local sum = '' \
            for _, key in ipairs(all) do sum = redis.sha1hex(sum .. key .. redis.call('get', key)) end return sum";
        self.ask(site, &["-n", &database.to_string(), "eval", script, "0"])
    }
}

impl Program for Redis {
    fn prepare(&mut self, host: &Host) -> Result<()> {
        self.directory = host.directory().join("redis");
        std::fs::create_dir_all(&self.directory).context("make Redis' directory")
    }

    fn command(&self) -> Vec<String> {
        let script = format!(
            "redis-server --port {PORT} --bind '* -::*' --protected-mode no --save '' --dir \"$0\" \
                --enable-debug-command yes &
            until redis-cli -p {PORT} ping >/dev/null 2>&1; do sleep 0.05; done
            redis-cli -p {PORT} -r -1 incr written >/dev/null &
            wait"
        );
        words(&["bash", "-c", &script, &self.directory.to_string_lossy()])
    }

    fn ready(&mut self, site: &Site<'_>) -> Result<()> {
        eventually("Redis to answer", || self.written(site)).map(drop)
    }

    fn load(&mut self, site: &Site<'_>) -> Result<()> {
        let database = u8::try_from(self.digests.len() + 1)?;
        let populate = [
            "-n",
            &database.to_string(),
            "debug",
            "populate",
            &KEYS.to_string(),
            "key",
            "1000",
        ];
        self.ask(site, &populate)?;
        self.keys += KEYS;
        self.digests.push((database, self.digest(site, database)?));
        Ok(())
    }

    fn check(&mut self, site: &Site<'_>) -> Result<()> {
        for (database, digest) in &self.digests {
            ensure!(
                *digest == self.digest(site, *database)?,
                "database {database} is not what it was"
            );
        }
        let now = self.written(site)?;
        ensure!(
            now >= self.written,
            "{now} after {}: writes were lost",
            self.written
        );
        self.written = eventually("the writer to go on", || {
            let later = self.written(site)?;
            ensure!(later > now + 100, "the writer stands at {later}");
            Ok(later)
        })?;
        Ok(())
    }
}
