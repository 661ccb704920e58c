//! Waiters: threads that wait for the end of calls that block on a detour.
//!
//! Only the tracer thread may act on a tracee, but any thread of the process may wait for
//! its stop without taking it (`waitid(2)` with `WNOWAIT`). So a blocked task costs the
//! tracer nothing: one of a pool of small threads sits in `waitid` for it and calls the
//! tracer when something has happened. The pool grows to the number of calls that block
//! at one time.

use std::{
    io,
    mem::MaybeUninit,
    sync::{Arc, Mutex, PoisonError, mpsc::Sender, mpsc::channel},
};

use libc::pid_t;

use crate::{detour, tracer::Tracer};

/// A task to wait for. The order carries the waiter's own queue: it comes back to the pool with
/// it, and when the pool is dropped no sender is left and the thread ends.
struct Order {
    tid: pid_t,
    tracer: Tracer,
    queue: Sender<Order>,
}

/// The pool.
#[derive(Default)]
pub(crate) struct Waiters {
    idle: Mutex<Vec<Sender<Order>>>,
}

const STACK: usize = 64 << 10;

impl Waiters {
    /// Waits for `tid` on one of the threads, then lets the tracer go on with it.
    pub(crate) fn arm(self: &Arc<Self>, tid: pid_t, tracer: Tracer) {
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let waiter = idle.or_else(|| self.grow());
        match waiter {
            Some(queue) => {
                let order = Order {
                    tid,
                    tracer,
                    queue: queue.clone(),
                };
                drop(queue.send(order));
            }
            // Without a thread the tracer itself looks again, between its other work.
            None => detour::proceed(&tracer, self, tid),
        }
    }

    fn grow(self: &Arc<Self>) -> Option<Sender<Order>> {
        let (orders, queue) = channel::<Order>();
        let pool = Arc::downgrade(self);
        let body = move || {
            for order in queue {
                wait(order.tid);
                let Some(pool) = pool.upgrade() else { return };
                pool.rest(order.queue);
                detour::proceed(&order.tracer, &pool, order.tid);
            }
        };
        std::thread::Builder::new()
            .name("waiter".into())
            .stack_size(STACK)
            .spawn(body)
            .inspect_err(|error| tracing::warn!(%error, "no thread to wait for a detour"))
            .ok()
            .map(|_| orders)
    }
}

impl Waiters {
    fn rest(&self, queue: Sender<Order>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(queue);
    }
}

/// Blocks until `tid` has stopped or died (or is no child of ours any more), and takes nothing.
fn wait(tid: pid_t) {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT | libc::__WALL;
    loop {
        // SAFETY: `info` is a live siginfo_t.
        let r = unsafe { libc::waitid(libc::P_PID, tid as libc::id_t, info.as_mut_ptr(), flags) };
        if r == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}
