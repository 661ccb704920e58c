//! bash on a terminal: variables, background jobs, pipes, a trap and a stopped job.

use anyhow::{Result, ensure};

use super::{Program, words};
use crate::host::Host;
use crate::site::Site;

/// An interactive `bash`.
#[derive(Debug, Default)]
pub struct Bash {
    loaded: u32,
    pids: String,
}

impl Program for Bash {
    fn prepare(&mut self, _: &Host) -> Result<()> {
        Ok(())
    }

    fn command(&self) -> Vec<String> {
        words(&["bash", "--norc", "--noprofile", "--noediting", "-i"])
    }

    fn terminal(&self) -> bool {
        true
    }

    fn ready(&mut self, site: &Site<'_>) -> Result<()> {
        site.type_at(|terminal| {
            terminal.ask("trap 'caught=$((caught+1))' USR1")?;
            terminal.ask("sleep 100000 & { sleep 100001 | cat; } & true")?;
            terminal.write("cat\nfirst line\n")?;
            terminal.expect("first line")?;
            terminal.expect("first line")?;
            terminal.write("\u{1a}")?;
            terminal.expect("Stopped")?;
            self.pids = terminal.ask("jobs -p; echo $$")?;
            Ok(())
        })
    }

    fn load(&mut self, site: &Site<'_>) -> Result<()> {
        self.loaded += 1;
        let number = self.loaded;
        site.type_at(|terminal| {
            terminal
                .ask(&format!("kept[{number}]=$(seq {number} | wc -l)"))
                .map(drop)
        })
    }

    fn check(&mut self, site: &Site<'_>) -> Result<()> {
        site.type_at(|terminal| {
            let kept = terminal.ask("echo ${kept[@]}")?;
            let wanted: Vec<String> = (1..=self.loaded).map(|number| number.to_string()).collect();
            ensure!(kept == wanted.join(" "), "the variables hold {kept:?}");
            let jobs = terminal.ask("jobs")?;
            let count = |word: &str| jobs.matches(word).count();
            ensure!(
                count("Running") == 2 && count("Stopped") == 1,
                "jobs: {jobs}"
            );
            let pids = terminal.ask("jobs -p; echo $$")?;
            ensure!(
                pids == self.pids,
                "the jobs' pids are {pids:?}, they were {:?}",
                self.pids
            );
            let caught = terminal.ask("caught=0; kill -USR1 $$; echo $caught")?;
            ensure!(caught == "1", "the trap counted {caught:?}");
            terminal.write("fg cat\nanother line\n")?;
            terminal.expect("another line")?;
            terminal.expect("another line")?;
            terminal.write("\u{1a}")?;
            terminal.expect("Stopped")?;
            let size = terminal.ask("stty size")?;
            ensure!(size == "50 200", "the window is {size:?}");
            Ok(())
        })
    }
}
