//! Waiting for the GPU: for a submission's end, or for the loss of the device.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::task::{Context, Poll, Waker};

use web_time::Instant;

use super::context::lock;

/// When a submission was found to be finished, and who waits for that.
type Ended = Mutex<(Option<Instant>, Option<Waker>)>;

fn end(ended: &Ended) {
    let mut state = lock(ended);
    state.0.get_or_insert_with(Instant::now);
    if let Some(waker) = state.1.take() {
        waker.wake();
    }
}

/// Resolves when the GPU has finished a submission, with the time at which it did, or when the device is lost.
#[derive(Clone)]
pub(crate) struct Done {
    /// When it was handed over: before the call, in which software devices do the work.
    pub(super) started: Instant,
    ended: Arc<Ended>,
}

impl Done {
    pub(crate) fn set(&self) {
        end(&self.ended);
    }
}

/// The reason of a device's loss, and everyone who waits for the device. wgpu drops the callbacks of what was submitted when waiting for
/// it fails, so whoever waits for one has to be told here.
#[derive(Default)]
pub(crate) struct Loss {
    reason: OnceLock<String>,
    waiting: Mutex<Vec<Weak<Ended>>>,
}

impl Loss {
    pub fn reason(&self) -> Option<&String> {
        self.reason.get()
    }

    /// Notes the first reason and ends all waiting.
    pub fn set(&self, reason: String) {
        let _ = self.reason.set(reason);
        lock(&self.waiting).drain(..).filter_map(|waiting| waiting.upgrade()).for_each(|ended| end(&ended));
    }

    /// Something that is handed over now.
    pub fn done(&self) -> Done {
        let done = Done { started: Instant::now(), ended: Arc::default() };
        let mut waiting = lock(&self.waiting);
        waiting.retain(|other| other.strong_count() > 0);
        waiting.push(Arc::downgrade(&done.ended));
        drop(waiting);
        // A loss between the two lines above ended it, an earlier one does here.
        if self.reason.get().is_some() {
            done.set();
        }
        done
    }
}

impl Future for Done {
    type Output = Instant;
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Instant> {
        let mut state = lock(&self.ended);
        match state.0 {
            Some(at) => Poll::Ready(at),
            None => {
                state.1 = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_ends_all_waiting() {
        let loss = Arc::new(Loss::default());
        let waits = |done: Done| {
            let (told, tell) = std::sync::mpsc::channel();
            std::thread::spawn(move || told.send(pollster::block_on(done)));
            tell
        };
        // wgpu has dropped its callback: nobody calls `set`.
        let before = waits(loss.done());
        assert!(before.recv_timeout(std::time::Duration::from_millis(50)).is_err());
        loss.set("gone".into());
        let soon = std::time::Duration::from_secs(10);
        assert!(before.recv_timeout(soon).is_ok() && waits(loss.done()).recv_timeout(soon).is_ok());
        loss.set("again".into());
        assert_eq!(loss.reason().map(String::as_str), Some("gone"));
    }
}
