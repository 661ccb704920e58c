//! Making descriptions anew, inside the pod's namespaces.
//!
//! The builder is an ordinary process of ours, forked by the pod's init: it has the pod's
//! root, network and credentials, so opening a path or binding a socket means the same as
//! it meant for the program. It makes every description of the image, links them, keeps
//! them all, and hands them to the tasks that are being rebuilt.
//!
//! ```text
//! make: first ─▶ second ─▶ last      (the process tree is made meanwhile)
//! link: tree ─▶ connect ─▶ status flags ─▶ give (SCM_RIGHTS) …
//! settle: when memory is mapped  ─▶ end
//! ```

use std::{
    any::{Any, TypeId},
    collections::{BTreeMap, HashMap},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::{
    capture::Attributes,
    error::{Error, Result},
    image::Image,
    network::Network,
    resource::{Description, ObjectId, Order, ROOMS, ipc, lock::Locks},
};

/// Descriptions that are being made, and what their rooms share meanwhile.
pub struct Builder<'i> {
    /// The image they come from.
    pub image: &'i Image,
    /// Whose addresses the pod's sockets have here.
    pub network: Network,
    made: BTreeMap<ObjectId, OwnedFd>,
    streams: HashMap<String, OwnedFd>,
    shared: HashMap<TypeId, Box<dyn Any>>,
    loaded: Loaded,
    attributes: BTreeMap<ObjectId, Attributes>,
    pids: HashMap<i32, i32>,
}

type Loaded = Rc<Vec<(ObjectId, Box<dyn Description>)>>;

impl<'i> Builder<'i> {
    /// A builder that binds the pod's streams to these descriptors.
    #[must_use]
    pub fn new(image: &'i Image, streams: HashMap<String, OwnedFd>) -> Self {
        Self {
            image,
            network: Network::default(),
            made: BTreeMap::new(),
            streams,
            shared: HashMap::new(),
            loaded: Loaded::default(),
            attributes: BTreeMap::new(),
            pids: HashMap::new(),
        }
    }

    /// Says which process here stands for a virtual pid, where they differ.
    pub fn set_pids(&mut self, real_of_virtual: HashMap<i32, i32>) {
        self.pids = real_of_virtual;
    }

    /// The process here that stands for a virtual pid, as the builder sees it.
    #[must_use]
    pub fn real_pid(&self, virtual_pid: i32) -> i32 {
        *self.pids.get(&virtual_pid).unwrap_or(&virtual_pid)
    }

    /// What the rooms of one kind share: the pipes made so far, say. Empty at first.
    pub fn shared<T: Default + 'static>(&mut self) -> &mut T {
        let any = self
            .shared
            .entry(TypeId::of::<T>())
            .or_insert_with(|| Box::new(T::default()));
        any.downcast_mut()
            .expect("the slot of a type holds that type")
    }

    /// The binding of a stream between the pod and us.
    #[must_use]
    pub fn stream(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.streams.get(name).map(AsFd::as_fd)
    }

    /// A description that was made already.
    ///
    /// # Errors
    /// [`Error::NoRecord`] when the image does not have it or its turn has not come.
    pub fn object(&self, id: ObjectId) -> Result<BorrowedFd<'_>> {
        let missing = || Error::NoRecord {
            kind: "description".into(),
            id,
        };
        self.made.get(&id).map(AsFd::as_fd).ok_or_else(missing)
    }

    /// Makes, links and settles all descriptions at once: for an image whose descriptions need no process.
    ///
    /// # Errors
    /// The first step that failed; dropping the builder then closes everything.
    pub fn build(&mut self) -> Result<()> {
        self.make()?;
        self.link()?;
        self.settle()
    }

    /// Makes all descriptions that do not need the process tree.
    ///
    /// # Errors
    /// The first step that failed; dropping the builder then closes everything.
    pub fn make(&mut self) -> Result<()> {
        self.attributes = self.image.all::<Attributes>()?;
        self.loaded = Rc::new(load(self.image, &self.attributes)?);
        self.rebuild(|order| order < Order::Tree)
    }

    /// Makes the rest, now that the process tree exists, links all, sets their status flags
    /// and takes their locks.
    ///
    /// # Errors
    /// The first step that failed.
    pub fn link(&mut self) -> Result<()> {
        self.rebuild(|order| order == Order::Tree)?;
        self.each(|description, fd, builder| description.connect(fd, builder))?;
        for (id, attributes) in &self.attributes {
            set_flags(self.object(*id)?, attributes, *id)?;
        }
        for (id, locks) in self.image.all::<Locks>()? {
            locks.rebuild(self.object(id)?)?;
        }
        Ok(())
    }

    /// Gives the last touch, when the pod's memory is mapped and only its release is to come.
    ///
    /// # Errors
    /// The first step that failed.
    pub fn settle(&mut self) -> Result<()> {
        ipc::settle(self.image)?;
        self.each(|description, fd, builder| description.settle(fd, builder))
    }

    fn rebuild(&mut self, when: impl Fn(Order) -> bool) -> Result<()> {
        let loaded = Rc::clone(&self.loaded);
        for (id, description) in loaded.iter().filter(|(_, d)| when(d.order())) {
            let fd = description.rebuild(self)?;
            self.made.insert(*id, fd);
        }
        Ok(())
    }

    fn each(
        &mut self,
        step: impl Fn(&dyn Description, BorrowedFd<'_>, &mut Self) -> Result<()>,
    ) -> Result<()> {
        let loaded = Rc::clone(&self.loaded);
        for (id, description) in loaded.iter() {
            let fd = self.object(*id)?.try_clone_to_owned();
            let fd = fd.map_err(|e| Error::kernel("dup", format!("description {id}"), e))?;
            step(description.as_ref(), fd.as_fd(), self)?;
        }
        Ok(())
    }
}

fn load(
    image: &Image,
    attributes: &BTreeMap<ObjectId, Attributes>,
) -> Result<Vec<(ObjectId, Box<dyn Description>)>> {
    let mut all = Vec::with_capacity(attributes.len());
    for envelope in image.envelopes() {
        let Some((_, _, load)) = ROOMS.iter().find(|(kind, ..)| *kind == envelope.kind) else {
            continue;
        };
        if attributes
            .get(&envelope.id)
            .is_some_and(|a| a.kind == envelope.kind)
        {
            all.push((envelope.id, load(image, envelope)?));
        }
    }
    if let Some(id) = attributes
        .keys()
        .find(|id| all.iter().all(|(i, _)| i != *id))
    {
        return Err(Error::NoRecord {
            kind: attributes[id].kind.clone(),
            id: *id,
        });
    }
    all.sort_by_key(|(id, d)| (d.order(), *id));
    Ok(all)
}

/// Sets what `F_SETFL` can set; access mode and creation flags are the room's business.
fn set_flags(fd: BorrowedFd<'_>, attributes: &Attributes, id: ObjectId) -> Result<()> {
    let settable =
        OFlag::O_APPEND | OFlag::O_ASYNC | OFlag::O_DIRECT | OFlag::O_NOATIME | OFlag::O_NONBLOCK;
    let has = fcntl(fd, FcntlArg::F_GETFL)
        .map_err(|e| Error::kernel("fcntl F_GETFL", describe(id), e))?;
    let want = OFlag::from_bits_retain(attributes.flags) & settable;
    if OFlag::from_bits_retain(has) & settable != want {
        fcntl(fd, FcntlArg::F_SETFL(want))
            .map_err(|e| Error::kernel("fcntl F_SETFL", describe(id), e))?;
    }
    Ok(())
}

fn describe(id: ObjectId) -> String {
    format!("description {id}")
}
