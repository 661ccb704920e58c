//! `pod image diff`: what differs between two images, record by record and file by file.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use restore::image::{Envelope, Image, Value};
use serde::Serialize;

use crate::cli::Format;
use crate::output;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Change {
    Added,
    Changed,
    Deleted,
}

#[derive(Debug, Serialize)]
struct Difference {
    change: Change,
    /// `mm 12`, or the name of a file.
    what: String,
    /// Fields of a record that differ; the lengths of a file.
    details: Vec<String>,
}

/// Runs the command.
pub(super) fn diff(old: &Image, new: &Image, format: Format) -> Result<u8> {
    let mut all = compare(&records(old), &records(new), fields);
    let files = |image: &Image| image.header().files.clone().into_iter().collect();
    all.extend(compare(&files(old), &files(new), |a, b| {
        vec![format!("{} → {} bytes", a.len, b.len)]
    }));
    match format {
        Format::Json => output::json(&all)?,
        Format::Table => output::print(&all.iter().map(Difference::line).collect::<String>())?,
    }
    Ok(0)
}

fn records(image: &Image) -> BTreeMap<String, &Envelope> {
    let name = |e: &Envelope| format!("{} {}", e.kind, e.id);
    image.envelopes().map(|e| (name(e), e)).collect()
}

fn compare<T: PartialEq>(
    old: &BTreeMap<String, T>,
    new: &BTreeMap<String, T>,
    details: impl Fn(&T, &T) -> Vec<String>,
) -> Vec<Difference> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let one = |what: &String| {
        let (change, details) = match (old.get(what), new.get(what)) {
            (Some(a), Some(b)) if a == b => return None,
            (Some(a), Some(b)) => (Change::Changed, details(a, b)),
            (Some(_), None) => (Change::Deleted, Vec::new()),
            (None, _) => (Change::Added, Vec::new()),
        };
        let what = what.clone();
        Some(Difference {
            change,
            what,
            details,
        })
    };
    names.into_iter().filter_map(one).collect()
}

/// The fields in which two records differ.
fn fields(old: &&Envelope, new: &&Envelope) -> Vec<String> {
    let of = |envelope: &Envelope| -> BTreeMap<String, Value> {
        let map = envelope.body.as_map().cloned().unwrap_or_default();
        let named = map
            .into_iter()
            .filter_map(|(key, value)| Some((key.into_text().ok()?, value)));
        named.collect()
    };
    let (old, new) = (of(old), of(new));
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let differ = names
        .into_iter()
        .filter(|name| old.get(*name) != new.get(*name));
    differ.cloned().collect()
}

impl Difference {
    fn line(&self) -> String {
        let letter = match self.change {
            Change::Added => 'A',
            Change::Changed => 'C',
            Change::Deleted => 'D',
        };
        let details = self.details.join(", ");
        let text = format!("{letter} {}  {details}", self.what);
        format!("{}\n", text.trim_end())
    }
}
