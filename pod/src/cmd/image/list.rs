//! `pod image ls`: the processes of a sleeping pod as a tree, what they have open, and the image's files.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use restore::image::{FileSum, Image};
use restore::resource::mm::Mm;
use restore::resource::process::{Process, State};
use restore::resource::regular::Regular;
use serde::Serialize;

use crate::cli::Format;
use crate::output;

/// A longer command line is cut, in bytes.
const COMMAND_MAX: u64 = 4096;

#[derive(Debug, Serialize)]
struct Listed {
    processes: Vec<Entry>,
    open_files: BTreeSet<String>,
    files: BTreeMap<String, FileSum>,
}

#[derive(Debug, Serialize)]
struct Entry {
    pid: i32,
    parent: i32,
    /// How many of its ancestors are in the image.
    depth: usize,
    threads: usize,
    descriptors: usize,
    /// Bytes of memory that are its own.
    memory: u64,
    command: String,
}

/// Runs the command.
pub(super) fn list(image: &Image, format: Format) -> Result<u8> {
    let regular = image.all::<Regular>()?;
    let listed = Listed {
        processes: processes(image)?,
        open_files: regular
            .values()
            .map(|r| r.path().display().to_string())
            .collect(),
        files: image.header().files.clone(),
    };
    match format {
        Format::Json => output::json(&listed)?,
        Format::Table => listed.show()?,
    }
    Ok(0)
}

fn processes(image: &Image) -> Result<Vec<Entry>> {
    let (processes, memories) = (image.all::<Process>()?, image.all::<Mm>()?);
    let known: BTreeSet<i32> = processes.values().map(|p| p.place.pid).collect();
    let (mut entries, mut seen) = (Vec::new(), BTreeSet::new());
    let roots = processes
        .values()
        .filter(|p| !known.contains(&p.place.parent));
    let mut ahead: Vec<(&Process, usize)> = roots.map(|p| (p, 0)).collect();
    ahead.reverse();
    while let Some((process, depth)) = ahead.pop() {
        let pid = process.place.pid;
        // A damaged image may hold a process that is its own ancestor.
        if !seen.insert(pid) {
            continue;
        }
        entries.push(entry(
            image,
            process,
            memories.get(&pid.cast_unsigned()),
            depth,
        ));
        let children = processes.values().filter(|p| p.place.parent == pid);
        ahead.extend(children.rev().map(|p| (p, depth + 1)));
    }
    Ok(entries)
}

fn entry(image: &Image, process: &Process, memory: Option<&Mm>, depth: usize) -> Entry {
    let (threads, descriptors, name) = match &process.state {
        State::Alive(alive) => {
            let name = alive.threads.first().map(|t| t.comm.clone());
            (
                alive.threads.len(),
                alive.slots.len(),
                name.unwrap_or_default(),
            )
        }
        State::Zombie { comm, .. } => (0, 0, comm.clone()),
    };
    let command = memory.and_then(|mm| command(image, mm));
    Entry {
        pid: process.place.pid,
        parent: process.place.parent,
        depth,
        threads,
        descriptors,
        memory: memory.map_or(0, Mm::private),
        command: command.unwrap_or_else(|| format!("[{}]", String::from_utf8_lossy(&name))),
    }
}

/// The command line, where the process has its pages for itself.
fn command(image: &Image, mm: &Mm) -> Option<String> {
    let length = mm.layout.arg_end.checked_sub(mm.layout.arg_start)?;
    let length = length.min(COMMAND_MAX) as usize;
    let bytes = mm.bytes(image.pages(), mm.layout.arg_start, length)?;
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim_end_matches('\0').replace(['\0', '\n'], " ");
    (!text.is_empty()).then_some(text)
}

impl Listed {
    fn show(&self) -> Result<()> {
        let row = |e: &Entry| {
            let command = format!("{}{}", "  ".repeat(e.depth), e.command);
            let numbers = [
                e.pid as u64,
                e.threads as u64,
                e.descriptors as u64,
                e.memory >> 10,
            ];
            let [pid, threads, descriptors, memory] = numbers.map(|n| n.to_string());
            [pid, threads, descriptors, memory, command]
        };
        let rows: Vec<_> = self.processes.iter().map(row).collect();
        output::table(["PID", "THREADS", "FDS", "KIB", "COMMAND"], &rows)?;
        let open: Vec<_> = self.open_files.iter().map(|f| [f.clone()]).collect();
        output::print("\n")?;
        output::table(["OPEN FILES"], &open)?;
        let files = self
            .files
            .iter()
            .map(|(name, sum)| [name.clone(), sum.len.to_string()]);
        output::print("\n")?;
        output::table(["IMAGE FILE", "BYTES"], &files.collect::<Vec<_>>())
    }
}
