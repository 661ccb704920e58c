//! The System V table: ids and keys of shared memory, semaphore sets and message queues.
//!
//! Ids count from 0 in each of the three spaces. A key is a name too: two pods (or a pod and
//! its host) may use the same one, so each virtual key stands for a random real one, and the
//! kernel itself decides about existence, size and permission under that.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

/// One of the three spaces.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Space {
    next: i32,
    taken: BTreeSet<i32>,
    #[serde(skip)]
    real: BTreeMap<i32, i32>,
    #[serde(skip)]
    virt: HashMap<i32, i32>,
    #[serde(skip)]
    keys: BTreeMap<i32, i32>,
}

/// The System V table of one pod.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Ipc {
    /// Shared memory.
    pub shm: Space,
    /// Semaphore sets.
    pub sem: Space,
    /// Message queues.
    pub msg: Space,
}

fn random() -> i32 {
    let mut bytes = [0u8; 4];
    // SAFETY: pointer and length describe `bytes`; on failure they stay zero, which is handled.
    unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    i32::from_ne_bytes(bytes)
}

impl Space {
    /// The virtual id of an object, which gets one if it is new.
    pub fn virt_or_new(&mut self, real: i32) -> i32 {
        if let Some(virt) = self.virt(real) {
            return virt;
        }
        while self.taken.contains(&self.next) {
            self.next = self.next.checked_add(1).unwrap_or(0);
        }
        let virt = self.next;
        self.bind(virt, real);
        virt
    }

    /// Lets `virt` stand for `real` (an object that was rebuilt).
    pub fn bind(&mut self, virt: i32, real: i32) {
        self.taken.insert(virt);
        if let Some(old) = self.real.insert(virt, real) {
            self.virt.remove(&old);
        }
        self.virt.insert(real, virt);
    }

    /// The virtual id of an object.
    #[must_use]
    pub fn virt(&self, real: i32) -> Option<i32> {
        self.virt.get(&real).copied()
    }

    /// The object behind a virtual id.
    #[must_use]
    pub fn real(&self, virt: i32) -> Option<i32> {
        self.real.get(&virt).copied()
    }

    /// Forgets an object that was removed.
    pub fn forget(&mut self, virt: i32) {
        self.taken.remove(&virt);
        if let Some(real) = self.real.remove(&virt) {
            self.virt.remove(&real);
        }
    }

    /// The real key for a virtual one; `IPC_PRIVATE` is no name.
    pub fn real_key(&mut self, virt: i32) -> i32 {
        if virt == libc::IPC_PRIVATE {
            return virt;
        }
        *self.keys.entry(virt).or_insert_with(|| {
            std::iter::repeat_with(random)
                .find(|key| *key != libc::IPC_PRIVATE)
                .unwrap_or(virt)
        })
    }

    /// The virtual key for a real one.
    #[must_use]
    pub fn virt_key(&self, real: i32) -> Option<i32> {
        let mut keys = self.keys.iter();
        keys.find(|(_, r)| **r == real).map(|(virt, _)| *virt)
    }

    /// All virtual ids with the objects they stand for.
    pub fn all(&self) -> impl Iterator<Item = (i32, i32)> {
        self.real.iter().map(|(virt, real)| (*virt, *real))
    }
}

impl Ipc {
    /// Removes every object of the pod from this host, when the pod is over.
    pub fn remove_all(&mut self) {
        for (_, id) in self.shm.all() {
            // SAFETY: IPC_RMID takes no memory; an object that is gone already is no harm.
            unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
        }
        for (_, id) in self.sem.all() {
            // SAFETY: as above.
            unsafe { libc::semctl(id, 0, libc::IPC_RMID) };
        }
        for (_, id) in self.msg.all() {
            // SAFETY: as above.
            unsafe { libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
        }
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_count_and_invert_and_come_back() {
        let mut space = Space::default();
        for i in 0..50 {
            assert_eq!(space.virt_or_new(1000 + i), i);
            assert_eq!(space.virt_or_new(1000 + i), i);
            assert_eq!(
                (space.real(i), space.virt(1000 + i)),
                (Some(1000 + i), Some(i))
            );
        }
        space.forget(7);
        assert_eq!((space.real(7), space.virt(1007)), (None, None));
        assert_eq!(space.virt_or_new(2000), 50);
    }

    #[test]
    fn keys_are_the_pods_own() {
        let (mut a, mut b) = (Space::default(), Space::default());
        assert_eq!(a.real_key(libc::IPC_PRIVATE), libc::IPC_PRIVATE);
        let real = a.real_key(5);
        assert_eq!((a.real_key(5), a.virt_key(real)), (real, Some(5)));
        assert_ne!(b.real_key(5), real);
    }

    #[test]
    fn an_image_holds_virtual_ids_only() {
        let mut ipc = Ipc::default();
        ipc.shm.virt_or_new(987_654);
        let text = serde_json::to_string(&ipc).unwrap();
        assert!(!text.contains("987654"), "{text}");
        let mut back: Ipc = serde_json::from_str(&text).unwrap();
        assert_eq!(back.shm.real(0), None);
        assert_eq!(back.shm.virt_or_new(5), 1);
        back.shm.bind(0, 6);
        assert_eq!(back.shm.real(0), Some(6));
    }
}
