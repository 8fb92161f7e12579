//! Progress of long calls, and their cancel.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Told how far the work is, and asked whether to go on. Share one between threads to cancel from elsewhere.
#[derive(Clone, Default)]
pub struct Observer {
    cancelled: Arc<AtomicBool>,
    on_progress: Option<Arc<OnProgress>>,
    /// Where this observer's 0 to 1 lies in that of the whole work: start and length.
    part: Option<(f64, f64)>,
}

type OnProgress = dyn Fn(Progress<'_>) + Send + Sync;

/// How far a run is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// Share of the predicted work that the GPU has finished, 0 to 1.
    pub done: f64,
    /// The layer that was submitted last.
    pub layer: &'a str,
}

impl Observer {
    /// An observer that calls `on_progress` after every submission that the GPU finishes.
    pub fn new(on_progress: impl Fn(Progress<'_>) + Send + Sync + 'static) -> Observer {
        Observer { on_progress: Some(Arc::new(on_progress)), ..Observer::default() }
    }

    /// The same observer for the part `start .. start + length` (of 0 to 1) of what it observes.
    pub fn part(&self, start: f64, length: f64) -> Observer {
        let (from, all) = self.part.unwrap_or((0.0, 1.0));
        Observer { part: Some((from + start * all, length * all)), ..self.clone() }
    }

    /// The same cancel, without reports.
    pub fn quiet(&self) -> Observer {
        Observer { cancelled: self.cancelled.clone(), ..Observer::default() }
    }

    /// Asks the run to stop; it ends with [`crate::Error::Cancelled`] once what is in flight is done.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether [`Observer::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Tells the observer how far the work is.
    pub fn report(&self, progress: Progress<'_>) {
        if let Some(call) = &self.on_progress {
            let (from, all) = self.part.unwrap_or((0.0, 1.0));
            call(Progress { done: from + progress.done * all, ..progress });
        }
    }
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observer").field("cancelled", &self.is_cancelled()).finish_non_exhaustive()
    }
}
