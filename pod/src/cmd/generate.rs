//! `pod generate`: completions and man pages, from the definition of the command line.

use anyhow::Result;
use clap::CommandFactory;

use crate::cli::{Cli, Generate};
use crate::failure::Hinted;
use crate::output;

/// Runs the command.
pub(super) fn generate(what: &Generate) -> Result<u8> {
    let mut command = Cli::command();
    match what {
        Generate::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut command, "pod", &mut text);
            output::print(&String::from_utf8_lossy(&text))?;
        }
        Generate::Man { directory } => {
            let what = format!("write man pages into {}", directory.display());
            clap_mangen::generate_to(command, directory)
                .hinted(what, "name a directory that exists")?;
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_that_is_shown_has_a_page_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().to_owned();
        generate(&Generate::Man { directory }).unwrap();
        let page = |name: &str| dir.path().join(format!("pod-{name}.1")).exists();
        assert!(dir.path().join("pod.1").exists() && page("run") && page("cp"));
        assert!(!page("holder") && !page("supervise") && !page("init"));
    }
}
