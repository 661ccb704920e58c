//! PostgreSQL in the middle of `pgbench`: System V and POSIX shared memory, semaphores, unix sockets.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::{Program, words};
use crate::host::Host;
use crate::site::Site;
use crate::wait::eventually;

/// `postgres` beside `pgbench`, as the user of Debian's package.
#[derive(Debug, Default)]
pub struct Postgres {
    directory: PathBuf,
    binaries: PathBuf,
    transactions: u64,
}

const PORT: u16 = 5432;

impl Postgres {
    fn ask(&self, site: &Site<'_>, query: &str) -> Result<String> {
        let (address, port) = (site.address()?, PORT.to_string());
        let psql = self.binaries.join("psql").to_string_lossy().into_owned();
        let words = [
            &psql, "-h", &address, "-p", &port, "-U", "postgres", "-Atc", query, "postgres",
        ];
        Ok(site.client(&words)?.ok()?.trim().to_owned())
    }

    fn transactions(&self, site: &Site<'_>) -> Result<u64> {
        self.ask(site, "select count(*) from pgbench_history")?
            .parse()
            .context("the number of transactions")
    }
}

/// The newest version that is installed.
fn binaries() -> Result<PathBuf> {
    let versions =
        std::fs::read_dir("/usr/lib/postgresql").context("PostgreSQL is not installed")?;
    let mut found: Vec<PathBuf> = versions
        .flatten()
        .map(|version| version.path().join("bin"))
        .collect();
    found.retain(|bin| bin.join("initdb").exists());
    found.sort();
    found.pop().context("no initdb")
}

impl Program for Postgres {
    fn prepare(&mut self, host: &Host) -> Result<()> {
        self.binaries = binaries()?;
        self.directory = host.directory().join("postgres");
        std::fs::create_dir_all(&self.directory)?;
        let (bin, data) = (self.binaries.display(), self.directory.display());
        host.shell(&format!(
            "chmod 711 {data}/../.. {data}/.. && chown postgres {data} && cd {data} && \
             setpriv --reuid postgres --regid postgres --init-groups \
             {bin}/initdb -D {data}/db -A trust --no-sync >/dev/null && \
             echo 'host all all 0.0.0.0/0 trust' >>{data}/db/pg_hba.conf"
        ))?
        .ok()
        .map(drop)
    }

    fn command(&self) -> Vec<String> {
        let script = format!(
            "cd \"$0\"
            PATH={}:$PATH
            postgres -D db -k \"$0\" -p {PORT} -c listen_addresses='*' -c shared_memory_type=sysv &
            until psql -h \"$0\" -p {PORT} -c 'select 1' postgres >/dev/null 2>&1; do sleep 0.1; done
            pgbench -h \"$0\" -p {PORT} -i -q postgres 2>/dev/null
            while :; do pgbench -h \"$0\" -p {PORT} -c 4 -j 2 -n -T 1000 postgres; done",
            self.binaries.display()
        );
        words(&["bash", "-c", &script, &self.directory.to_string_lossy()])
    }

    fn options(&self) -> Vec<String> {
        words(&["-u", "postgres"])
    }

    fn native_prefix(&self) -> &'static [&'static str] {
        &[
            "setpriv",
            "--reuid",
            "postgres",
            "--regid",
            "postgres",
            "--init-groups",
        ]
    }

    fn ready(&mut self, site: &Site<'_>) -> Result<()> {
        eventually("pgbench to work", || {
            ensure!(self.transactions(site)? > 0, "no transaction yet");
            Ok(())
        })
    }

    fn load(&mut self, site: &Site<'_>) -> Result<()> {
        let before = self.transactions(site)?;
        self.transactions = eventually("a hundred more transactions", || {
            let now = self.transactions(site)?;
            ensure!(now > before + 100, "{now} after {before}");
            Ok(now)
        })?;
        Ok(())
    }

    fn check(&mut self, site: &Site<'_>) -> Result<()> {
        // Each transaction adds the same amount to three tables and to the history.
        let sums = "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), \
            (select sum(bbalance) from pgbench_branches), (select sum(delta) from pgbench_history)";
        let sums = self.ask(site, sums)?;
        let sums: Vec<&str> = sums.split('|').collect();
        ensure!(
            sums.len() == 4 && sums.iter().all(|sum| *sum == sums[0]),
            "the books do not balance: {sums:?}"
        );
        let now = self.transactions(site)?;
        ensure!(
            now >= self.transactions,
            "{now} transactions, there were {}",
            self.transactions
        );
        Ok(())
    }
}
