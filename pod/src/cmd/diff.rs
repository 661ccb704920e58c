//! `pod diff`: what a pod has changed under its root: A added, C changed, D deleted.

use anyhow::Result;

use super::rm::lower;
use crate::cli::Format;
use crate::layer::{Kind, changes};
use crate::output;
use crate::store::Pod;
use crate::userns;

/// Runs the command.
pub(super) fn diff(pod: &Pod, format: Format) -> Result<u8> {
    let config = pod.config()?;
    if userns::needed() {
        userns::enter()?;
    }
    let changes = changes(pod, &|path| lower(&config, path))?;
    if format == Format::Json {
        output::json(&changes)?;
        return Ok(0);
    }
    let line = |kind, path: &std::path::Path| {
        let letter = match kind {
            Kind::Added => 'A',
            Kind::Changed => 'C',
            Kind::Deleted => 'D',
        };
        format!("{letter} {}\n", path.display())
    };
    let text: String = changes
        .iter()
        .map(|change| line(change.kind, &change.path))
        .collect();
    output::print(&text)?;
    Ok(0)
}
