//! Making descriptions anew, inside the pod's namespaces.
//!
//! The builder is an ordinary process of ours, forked by the pod's init: it has the pod's
//! root, network and credentials, so opening a path or binding a socket means the same as
//! it meant for the program. It makes every description of the image, links them, keeps
//! them all, and hands them to the tasks that are being rebuilt.
//!
//! ```text
//! first ─▶ second ─▶ last ─▶ connect ─▶ status flags ─▶ give (SCM_RIGHTS) … ─▶ end
//! ```

use std::{
    any::{Any, TypeId},
    collections::{BTreeMap, HashMap},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::{
    capture::Attributes,
    error::{Error, Result},
    image::Image,
    resource::{Description, ObjectId, ROOMS},
};

/// Descriptions that are being made, and what their rooms share meanwhile.
pub struct Builder<'i> {
    /// The image they come from.
    pub image: &'i Image,
    made: BTreeMap<ObjectId, OwnedFd>,
    streams: HashMap<String, OwnedFd>,
    shared: HashMap<TypeId, Box<dyn Any>>,
}

impl<'i> Builder<'i> {
    /// A builder that binds the pod's streams to these descriptors.
    #[must_use]
    pub fn new(image: &'i Image, streams: HashMap<String, OwnedFd>) -> Self {
        Self {
            image,
            made: BTreeMap::new(),
            streams,
            shared: HashMap::new(),
        }
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

    /// Makes all descriptions of the image.
    ///
    /// # Errors
    /// The first step that failed; dropping the builder then closes everything.
    pub fn build(&mut self) -> Result<()> {
        let image = self.image;
        let attributes = image.all::<Attributes>()?;
        let mut all = load(image, &attributes)?;
        all.sort_by_key(|(id, d)| (d.order(), *id));
        for (id, description) in &all {
            let fd = description.rebuild(self)?;
            self.made.insert(*id, fd);
        }
        for (id, description) in &all {
            let fd = self.object(*id)?.try_clone_to_owned();
            let fd = fd.map_err(|e| Error::kernel("dup", format!("description {id}"), e))?;
            description.connect(fd.as_fd(), self)?;
        }
        for (id, attributes) in &attributes {
            set_flags(self.object(*id)?, attributes, *id)?;
        }
        Ok(())
    }
}

type Loaded = Vec<(ObjectId, Box<dyn Description>)>;

fn load(image: &Image, attributes: &BTreeMap<ObjectId, Attributes>) -> Result<Loaded> {
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
