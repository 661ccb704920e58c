//! A list of syscalls with the data their pointers point at.

use intercept::stub;

/// A call's place in its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallId(usize);

/// A place in the scratch area that calls write to and [`Results`] reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Out {
    /// Its address in the task.
    pub addr: u64,
    len: usize,
}

/// Syscalls to be run by a task, in order.
///
/// ```text
/// SCRATCH  | entry 0 | entry 1 | … up to MAX_CALLS … | data |
/// ```
#[derive(Debug, Default)]
pub struct Batch {
    names: Vec<(&'static str, bool)>,
    entries: Vec<u8>,
    data: Vec<u8>,
}

/// The data begins behind room for so many calls.
const MAX_CALLS: usize = 4096;
const DATA: u64 = stub::SCRATCH + (MAX_CALLS * stub::ENTRY) as u64;
const MAX_DATA: usize = stub::SCRATCH_LEN as usize - MAX_CALLS * stub::ENTRY;

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// True when it holds no call.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// True when another `calls` calls with `data` bytes of data have room.
    #[must_use]
    pub fn has_room(&self, calls: usize, data: usize) -> bool {
        self.names.len() + calls <= MAX_CALLS && self.data.len() + data + 16 * calls <= MAX_DATA
    }

    /// Puts bytes into the data and returns their address in the task, a multiple of 16.
    pub fn bytes(&mut self, bytes: &[u8]) -> u64 {
        let at = self.data.len().next_multiple_of(16);
        self.data.resize(at, 0);
        self.data.extend_from_slice(bytes);
        DATA + at as u64
    }

    /// Puts a string with its final NUL into the data.
    pub fn c_string(&mut self, s: &[u8]) -> u64 {
        let mut bytes = s.to_vec();
        bytes.push(0);
        self.bytes(&bytes)
    }

    /// Puts 64-bit words into the data.
    pub fn words(&mut self, words: &[u64]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        self.bytes(&bytes)
    }

    /// Reserves `len` zero bytes that a call fills in.
    pub fn out(&mut self, len: usize) -> Out {
        Out {
            addr: self.bytes(&vec![0; len]),
            len,
        }
    }

    /// Adds a call; the batch ends there when it fails.
    pub fn call(&mut self, name: &'static str, nr: i64, args: &[u64]) -> CallId {
        self.push(name, nr, args, stub::MUST_SUCCEED)
    }

    /// Adds a call that may fail; see [`Results::value`].
    pub fn try_call(&mut self, name: &'static str, nr: i64, args: &[u64]) -> CallId {
        self.push(name, nr, args, 0)
    }

    fn push(&mut self, name: &'static str, nr: i64, args: &[u64], flags: u32) -> CallId {
        debug_assert!(
            args.len() <= 6 && self.has_room(1, 0),
            "{name}: batch too large"
        );
        self.entries.extend_from_slice(&(nr as u32).to_ne_bytes());
        self.entries.extend_from_slice(&flags.to_ne_bytes());
        for i in 0..6 {
            self.entries
                .extend_from_slice(&args.get(i).copied().unwrap_or(0).to_ne_bytes());
        }
        self.entries.extend_from_slice(&NOT_RUN.to_ne_bytes());
        self.names.push((name, flags == stub::MUST_SUCCEED));
        CallId(self.names.len() - 1)
    }

    /// The results of an empty batch.
    pub(crate) fn nothing(self) -> Results {
        Results {
            names: self.names,
            values: Vec::new(),
            data: self.data,
        }
    }

    pub(super) fn calls(&self) -> usize {
        self.names.len()
    }

    pub(super) fn parts(&self) -> [(u64, &[u8]); 2] {
        [(stub::SCRATCH, &self.entries), (DATA, &self.data)]
    }

    pub(super) fn results(self, entries: &[u8], data: Vec<u8>) -> Results {
        let word = |e: &[u8]| i64::from_ne_bytes(e[56..64].try_into().unwrap_or_default());
        let values = entries.chunks_exact(stub::ENTRY).map(word).collect();
        Results {
            names: self.names,
            values,
            data,
        }
    }

    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.entries.len(), self.data.len())
    }
}

/// What the result of a call is until it has run: no syscall returns it.
const NOT_RUN: i64 = i64::MIN;

/// What a batch brought back.
#[derive(Debug)]
pub struct Results {
    names: Vec<(&'static str, bool)>,
    values: Vec<i64>,
    data: Vec<u8>,
}

impl Results {
    /// What a call returned, negative errno included.
    #[must_use]
    pub fn value(&self, id: CallId) -> i64 {
        self.values[id.0]
    }

    /// The bytes that calls left at `out`.
    #[must_use]
    pub fn bytes(&self, out: Out) -> &[u8] {
        let at = (out.addr - DATA) as usize;
        &self.data[at..at + out.len]
    }

    /// The 64-bit words that calls left at `out`.
    pub fn words(&self, out: Out) -> impl Iterator<Item = u64> + '_ {
        self.bytes(out)
            .chunks_exact(8)
            .map(|w| u64::from_ne_bytes(w.try_into().unwrap_or_default()))
    }

    /// The call that ended the batch, if one did: its name and errno.
    pub(super) fn failure(&self) -> Option<(&'static str, i32)> {
        let ran = self
            .values
            .iter()
            .position(|v| *v == NOT_RUN)
            .unwrap_or(self.values.len());
        let last = ran.checked_sub(1)?;
        let ((name, required), value) = (self.names[last], self.values[last]);
        (required && is_error(value)).then_some((name, -value as i32))
    }
}

fn is_error(value: i64) -> bool {
    (-4095..0).contains(&value)
}
