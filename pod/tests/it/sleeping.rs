//! Images for tests: taken from a real pod, copied, and rewritten by somebody who knows the format.

use std::fs;
use std::path::{Path, PathBuf};

use ciborium::Value;
use tempfile::TempDir;

use super::host::Host;

/// A directory with one image, taken of a pod that no longer exists.
pub(crate) struct Sleeping {
    pub(crate) dir: TempDir,
}

impl Sleeping {
    /// Runs a program, waits for its first line and puts it to sleep.
    pub(crate) fn of(host: &Host, command: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut run = vec!["run", "-d", "--name", "asleep", "--"];
        run.extend(command);
        host.good(&run);
        super::check::first_line(host, "asleep");
        let image = dir.path().join("image");
        host.good(&["checkpoint", "asleep", "-o", image.to_str().unwrap()]);
        host.good(&["rm", "-f", "asleep"]);
        Self { dir }
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// A copy that may be harmed.
    pub(crate) fn copy(&self, name: &str) -> PathBuf {
        let to = self.dir.path().join(name);
        fs::create_dir(&to).unwrap();
        for entry in fs::read_dir(self.image()).unwrap().flatten() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
        to
    }
}

/// A program that holds a bit of everything, and says when it does.
pub(crate) const HOLDER: &str = r#"
import os, select, signal, socket, tempfile, threading, time
r, w = os.pipe(); os.write(w, b"in the pipe")
a, b = socket.socketpair(); a.send(b"in the socket")
f = tempfile.TemporaryFile(); f.write(b"unnamed" * 1000); f.flush()
m = os.memfd_create("m"); os.write(m, b"shared")
e = select.epoll(); e.register(r, select.EPOLLIN)
open("/root/written", "w").write("in the layer")
open("/dev/shm/written", "w").write("in shared memory")
signal.signal(signal.SIGUSR1, lambda *_: None)
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
if os.fork() == 0:
    time.sleep(1000)
print("up", flush=True)
time.sleep(1000)
"#;

pub(crate) fn records(image: &Path) -> Vec<Value> {
    let bytes = fs::read(image.join("records.cbor")).unwrap();
    let (mut rest, mut all) = (&bytes[..], Vec::new());
    while !rest.is_empty() {
        all.push(ciborium::from_reader(&mut rest).unwrap());
    }
    all
}

/// The value behind a key of a map.
pub(crate) fn field<'v>(value: &'v mut Value, name: &str) -> &'v mut Value {
    let map = value.as_map_mut().unwrap();
    let found = map.iter_mut().find(|(key, _)| key.as_text() == Some(name));
    &mut found.unwrap().1
}

/// Writes records, and a header in which their length and hash are right.
pub(crate) fn write_records(image: &Path, records: &[Value]) {
    let mut bytes = Vec::new();
    for record in records {
        ciborium::into_writer(record, &mut bytes).unwrap();
    }
    fs::write(image.join("records.cbor"), &bytes).unwrap();
    change_header(image, |header| {
        let sum = field(field(header, "files"), "records.cbor");
        *field(sum, "len") = (bytes.len() as u64).into();
        *field(sum, "blake3") = blake3::hash(&bytes).to_hex().as_str().into();
    });
}

/// Changes the header; its own hash is right again.
pub(crate) fn change_header(image: &Path, change: impl FnOnce(&mut Value)) {
    let path = image.join("header.cbor");
    let bytes = fs::read(&path).unwrap();
    let mut header: Value = ciborium::from_reader(&bytes[..]).unwrap();
    change(&mut header);
    let mut bytes = Vec::new();
    ciborium::into_writer(&header, &mut bytes).unwrap();
    let hash = blake3::hash(&bytes);
    bytes.extend_from_slice(hash.as_bytes());
    fs::write(&path, bytes).unwrap();
}
