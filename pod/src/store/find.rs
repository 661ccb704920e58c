//! Finding pods by name, id or the beginning of an id.

use std::fs;

use anyhow::{Context, Result};

use super::{Pod, Store};
use crate::failure::{Failure, Hinted};

impl Store {
    /// Every pod of this root, in no order.
    pub(crate) fn list(&self) -> Result<Vec<Pod>> {
        let dir = self.root().join("pods");
        let mut pods = Vec::new();
        for entry in fs::read_dir(&dir).hinted(
            format!("list {}", dir.display()),
            "run pod as the owner of this root, or choose another with --root",
        )? {
            let entry = entry.with_context(|| format!("list {}", dir.display()))?;
            let id = entry.file_name().to_string_lossy().into_owned();
            if entry.path().join("config.json").exists() {
                pods.push(Pod {
                    id,
                    dir: entry.path(),
                });
            }
        }
        Ok(pods)
    }

    /// The pod with this name, id, or unambiguous beginning of an id (four digits or more).
    pub(crate) fn find(&self, wanted: &str) -> Result<Pod> {
        let pods = self.list()?;
        for pod in &pods {
            if pod.id == wanted || pod.config().is_ok_and(|config| config.name == wanted) {
                return Ok(pod.clone());
            }
        }
        let mut begins = pods
            .into_iter()
            .filter(|pod| wanted.len() >= 4 && pod.id.starts_with(wanted));
        match (begins.next(), begins.next()) {
            (Some(pod), None) => Ok(pod),
            (Some(_), Some(_)) => {
                Err(Failure::new(format!("{wanted} begins more than one pod's id")).into())
            }
            _ => Err(self.unknown(wanted).into()),
        }
    }

    fn unknown(&self, wanted: &str) -> Failure {
        let hint = format!(
            "pod --root {} ps -a lists the pods of this root",
            self.root().display()
        );
        Failure::new(format!("no pod {wanted}")).hint(hint)
    }
}
