//! nginx with a master and two workers, under `wrk`.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::{Program, words};
use crate::host::Host;
use crate::site::Site;
use crate::wait::eventually;

/// `nginx` beside a `wrk` that never ends.
#[derive(Debug, Default)]
pub struct Nginx {
    directory: PathBuf,
    workers: Vec<String>,
    served: u64,
}

const PORT: u16 = 8080;

impl Nginx {
    fn served(&self, site: &Site<'_>) -> Result<u64> {
        let status = site.get(PORT, "/status")?;
        let counts = status
            .lines()
            .nth(2)
            .context("no third line in the status")?;
        counts
            .split_whitespace()
            .nth(2)
            .context("no third number")?
            .parse()
            .context("requests served")
    }

    fn workers(&self, site: &Site<'_>) -> Result<Vec<String>> {
        // On the host itself other pods' workers are seen too: ours are those of the master with our file.
        let script = "for p in /proc/[0-9]*; do case $(tr '\\0' ' ' <$p/cmdline) in 'nginx: worker'*) \
            m=$(sed -n 's/^PPid:[^0-9]*//p' $p/status); \
            case $(tr '\\0' ' ' </proc/$m/cmdline) in *\"$0\"*) echo ${p#/proc/};; esac;; \
            esac; done 2>/dev/null";
        let directory = self.directory.to_string_lossy();
        let text = site.inside(&["sh", "-c", script, &directory])?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }
}

impl Program for Nginx {
    fn prepare(&mut self, host: &Host) -> Result<()> {
        self.directory = host.directory().join("nginx");
        std::fs::create_dir_all(self.directory.join("files"))?;
        let directory = self.directory.display();
        let configuration = format!(
            "daemon off; worker_processes 2; user root; pid {directory}/pid; error_log stderr;
            events {{ worker_connections 512; }}
            http {{
                access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
                fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi;
                scgi_temp_path {directory}/scgi;
                server {{
                    listen {PORT}; listen [::]:{PORT};
                    location / {{ root {directory}/files; }}
                    location /status {{ stub_status; }}
                }}
            }}"
        );
        std::fs::write(self.directory.join("nginx.conf"), configuration)?;
        std::fs::write(self.directory.join("files/page"), "a page".repeat(1000))?;
        Ok(())
    }

    fn command(&self) -> Vec<String> {
        let script = format!(
            "nginx -c \"$0/nginx.conf\" &
            until curl -s -o /dev/null http://127.0.0.1:{PORT}/page; do sleep 0.05; done
            while :; do wrk -t 1 -c 8 -d 5s http://127.0.0.1:{PORT}/page; done"
        );
        words(&["bash", "-c", &script, &self.directory.to_string_lossy()])
    }

    fn ready(&mut self, site: &Site<'_>) -> Result<()> {
        eventually("nginx to serve", || site.get(PORT, "/page"))?;
        self.workers = eventually("two workers", || {
            let workers = self.workers(site)?;
            ensure!(workers.len() == 2, "{workers:?}");
            Ok(workers)
        })?;
        Ok(())
    }

    fn load(&mut self, site: &Site<'_>) -> Result<()> {
        let before = self.served(site)?;
        self.served = eventually("wrk to get answers", || {
            let now = self.served(site)?;
            ensure!(now > before + 100, "{now} served");
            Ok(now)
        })?;
        Ok(())
    }

    fn check(&mut self, site: &Site<'_>) -> Result<()> {
        ensure!(
            site.get(PORT, "/page")? == "a page".repeat(1000),
            "the page is another one"
        );
        let now = self.served(site)?;
        ensure!(
            now > self.served,
            "{now} served after {}: the counters were lost",
            self.served
        );
        let workers = self.workers(site)?;
        ensure!(
            workers == self.workers,
            "workers {workers:?} were {:?}",
            self.workers
        );
        Ok(())
    }
}
