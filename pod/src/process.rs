//! Looking at processes through /proc.

use std::collections::BTreeSet;
use std::fs;

/// Every living descendant of a process, in no order. Complete when orphans cannot leave the tree: under an
/// init (or subreaper) they become its children.
pub(crate) fn descendants(pid: i32) -> BTreeSet<i32> {
    let mut found = BTreeSet::new();
    let mut ahead = vec![pid];
    while let Some(pid) = ahead.pop() {
        ahead.extend(
            children(pid)
                .into_iter()
                .filter(|child| found.insert(*child)),
        );
    }
    found
}

fn children(pid: i32) -> Vec<i32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let mut children = Vec::new();
    for task in tasks.flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.extend(
            text.split_ascii_whitespace()
                .filter_map(|pid| pid.parse::<i32>().ok()),
        );
    }
    children
}

/// A process's command line, or its name in brackets when it has none.
pub(crate) fn command_line(pid: i32) -> String {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&raw)
        .trim_end_matches('\0')
        .replace('\0', " ");
    if !text.is_empty() {
        return text;
    }
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("[{}]", name.trim_end())
}
