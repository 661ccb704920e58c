//! The one thread that does all ptrace of a pod.
//!
//! The kernel ties a tracee to the thread that seized it, and a second SEIZE of a task
//! is EPERM: so detours, checkpoints and restarts of one pod take turns on one thread.
//! Work is sent to it as closures; what must stay there between two pieces of work (a
//! frozen pod, which is full of tracees) is kept in its [`Locals`].

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    sync::mpsc::{self, Sender},
    thread::JoinHandle,
};

/// Objects that live on the tracer thread between two pieces of work, one of each type.
#[derive(Default)]
pub struct Locals {
    slots: HashMap<TypeId, Box<dyn Any>>,
}

impl Locals {
    /// Keeps `value`, dropping an older one of the same type.
    pub fn put<T: 'static>(&mut self, value: T) {
        self.slots.insert(TypeId::of::<T>(), Box::new(value));
    }

    /// Takes the object of this type out.
    pub fn take<T: 'static>(&mut self) -> Option<T> {
        let any = self.slots.remove(&TypeId::of::<T>())?;
        any.downcast().ok().map(|value| *value)
    }

    /// Borrows the object of this type.
    pub fn get_mut<T: 'static>(&mut self) -> Option<&mut T> {
        self.slots.get_mut(&TypeId::of::<T>())?.downcast_mut()
    }
}

type Job = Box<dyn FnOnce(&mut Locals) + Send>;

/// Handle to the tracer thread; clones send to the same thread.
#[derive(Clone)]
pub struct Tracer {
    jobs: Sender<Job>,
}

impl Tracer {
    /// Starts the thread. It ends when the last handle is dropped.
    ///
    /// # Errors
    /// What `pthread_create` said.
    pub fn spawn() -> std::io::Result<(Self, JoinHandle<()>)> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new()
            .name("tracer".into())
            .spawn(move || {
                let mut locals = Locals::default();
                for job in queue {
                    job(&mut locals);
                }
            })?;
        Ok((Self { jobs }, thread))
    }

    /// Queues a piece of work and returns at once.
    pub fn submit(&self, job: impl FnOnce(&mut Locals) + Send + 'static) {
        // The queue is gone only when the thread died of a panic, which ends the process anyway.
        drop(self.jobs.send(Box::new(job)));
    }

    /// Queues a piece of work and waits for its result; `None` when the thread has died.
    pub fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Locals) -> T + Send + 'static,
    ) -> Option<T> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.submit(move |locals| drop(reply.send(job(locals))));
        answer.recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locals_stay_between_jobs() {
        let (tracer, thread) = Tracer::spawn().unwrap();
        tracer.run(|locals| locals.put(41_u32)).unwrap();
        let sum = tracer
            .run(|locals| locals.get_mut::<u32>().map(|n| *n + 1))
            .unwrap();
        assert_eq!(sum, Some(42));
        assert_eq!(tracer.run(Locals::take::<String>).unwrap(), None);
        drop(tracer);
        thread.join().unwrap();
    }
}
