//! Who submits next. A device has one queue: running work and the frames of a shell take turns on it.

use std::sync::{Condvar, Mutex, PoisonError};

use super::context::lock;

/// One at a time, and of the two kinds in turn where both wait: a frame waits for one submission of work at most, and
/// work for one frame. wgpu's own locks promise neither: a thread that submits again and again may keep a frame out.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    taken: bool,
    /// How many wait: work, frames.
    waiting: [usize; 2],
    frame_was_last: bool,
}

impl State {
    fn is_next(&self, frame: bool) -> bool {
        let other = self.waiting[usize::from(!frame)] > 0;
        let other_first = other && self.frame_was_last == frame;
        !(self.taken || other_first)
    }
}

/// The right to submit, until it is dropped.
#[derive(Debug)]
#[must_use = "dropped at once it is no turn"]
pub struct Turn<'a>(&'a Gate);

impl Gate {
    /// Waits for the turn of a submission of work.
    pub fn work(&self) -> Turn<'_> {
        self.take(false)
    }

    /// Waits for the turn of a frame. (A page has one thread, and its frames come from the browser.)
    #[cfg(not(target_arch = "wasm32"))]
    pub fn frame(&self) -> Turn<'_> {
        self.take(true)
    }

    fn take(&self, frame: bool) -> Turn<'_> {
        let mut state = lock(&self.state);
        state.waiting[usize::from(frame)] += 1;
        while !state.is_next(frame) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting[usize::from(frame)] -= 1;
        (state.taken, state.frame_was_last) = (true, frame);
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).taken = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_both_wait_they_take_turns() {
        let state = |waiting, frame_was_last| State { taken: false, waiting, frame_was_last };
        assert!(state([1, 0], false).is_next(false) && state([0, 1], true).is_next(true), "alone");
        assert!(state([1, 1], false).is_next(true) && !state([1, 1], false).is_next(false), "after work");
        assert!(state([1, 1], true).is_next(false) && !state([1, 1], true).is_next(true), "after a frame");
        assert!(!State { taken: true, ..state([1, 0], true) }.is_next(false));
    }

    #[test]
    fn a_frame_waits_for_one_submission_at_most_however_many_threads_submit() {
        let gate = Gate::default();
        let order = Mutex::new(String::new());
        let inside = Mutex::new(());
        let enter = |turn: Turn<'_>, kind: char| {
            let alone = inside.try_lock().expect("one at a time");
            std::thread::sleep(std::time::Duration::from_millis(2));
            lock(&order).push(kind);
            // In this order: with the turn gone the next one is inside.
            drop(alone);
            drop(turn);
        };
        let first = gate.work();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| enter(gate.work(), 'w'));
            }
            for _ in 0..2 {
                scope.spawn(|| enter(gate.frame(), 'f'));
            }
            while lock(&gate.state).waiting != [3, 2] {
                std::thread::yield_now();
            }
            drop(first);
        });
        assert_eq!(order.into_inner().unwrap(), "fwfww");
        assert!(lock(&gate.state).is_next(false) && lock(&gate.state).is_next(true), "free again");
    }
}
