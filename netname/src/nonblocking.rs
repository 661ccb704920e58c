//! The updater for programs with a tokio runtime: each operation runs on the pool for blocking work.

use crate::{Change, Entry, Epoch, Error, Outcome, Placement, PodName, Result, Standing, Updater};

/// [`Updater`] with `async` methods. An operation that was started is finished even when its future is
/// dropped.
#[derive(Clone, Debug)]
pub struct AsyncUpdater {
    updater: Updater,
}

impl AsyncUpdater {
    /// Wraps `updater`.
    #[must_use]
    pub fn new(updater: Updater) -> Self {
        Self { updater }
    }

    /// The updater for plain threads.
    #[must_use]
    pub fn blocking(&self) -> &Updater {
        &self.updater
    }

    async fn run<T: Send + 'static>(
        &self,
        step: &'static str,
        operation: impl FnOnce(&Updater) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let updater = self.updater.clone();
        let task = tokio::task::spawn_blocking(move || operation(&updater));
        task.await.map_err(|source| Error::Task { step, source })?
    }

    /// See [`Updater::lookup`].
    pub async fn lookup(&self, pod: &PodName) -> Result<Option<Entry>> {
        let pod = pod.clone();
        self.run("look up a pod", move |updater| updater.lookup(&pod))
            .await
    }

    /// See [`Updater::publish`].
    pub async fn publish(
        &self,
        pod: &PodName,
        epoch: &Epoch,
        placement: &Placement,
    ) -> Result<Outcome> {
        let (pod, epoch, placement) = (pod.clone(), *epoch, placement.clone());
        self.run("publish a pod", move |updater| {
            updater.publish(&pod, &epoch, &placement)
        })
        .await
    }

    /// See [`Updater::refresh`].
    pub async fn refresh(
        &self,
        pod: &PodName,
        held: &Epoch,
        placement: &Placement,
    ) -> Result<Outcome> {
        let (pod, held, placement) = (pod.clone(), *held, placement.clone());
        self.run("refresh a pod", move |updater| {
            updater.refresh(&pod, &held, &placement)
        })
        .await
    }

    /// See [`Updater::move_to`].
    pub async fn move_to(
        &self,
        pod: &PodName,
        from: &Epoch,
        to: &Epoch,
        placement: &Placement,
    ) -> Result<Outcome> {
        let (pod, from, to, placement) = (pod.clone(), *from, *to, placement.clone());
        self.run("move a pod", move |updater| {
            updater.move_to(&pod, &from, &to, &placement)
        })
        .await
    }

    /// See [`Updater::withdraw`].
    pub async fn withdraw(&self, pod: &PodName, held: &Epoch) -> Result<Outcome> {
        let (pod, held) = (pod.clone(), *held);
        self.run("withdraw a pod", move |updater| {
            updater.withdraw(&pod, &held)
        })
        .await
    }

    /// See [`Updater::make`].
    pub async fn make(&self, change: Change) -> Result<Outcome> {
        self.run("change a pod's name", move |updater| updater.make(change))
            .await
    }

    /// See [`Updater::resolve`].
    pub async fn resolve(&self, change: Change) -> Result<Outcome> {
        self.run("resolve a change", move |updater| {
            Ok(updater.resolve(change))
        })
        .await
    }

    /// See [`Updater::standing`].
    pub async fn standing(&self, change: &Change) -> Result<Standing> {
        let change = change.clone();
        self.run("ask about a change", move |updater| {
            updater.standing(&change)
        })
        .await
    }

    /// See [`Updater::point_back`].
    pub async fn point_back(&self, pod: &PodName, before: &[std::net::IpAddr]) -> Result<()> {
        let (pod, before) = (pod.clone(), before.to_vec());
        self.run("point addresses back to a pod", move |updater| {
            updater.point_back(&pod, &before)
        })
        .await
    }
}
