//! What to decode next: rest after a change, one job at a time, stale ones cancelled.

use std::time::{Duration, Instant};

use super::tiles::Tile;
use super::view::Level;

/// One of the two decoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The one that the program is about.
    A,
    /// The one it is compared with.
    B,
}

/// One piece of decoding, and the name of its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    /// The whole picture as one texture.
    Whole(Side, Level),
    /// What all tiles of a level share.
    Prepare(Side, Level),
    /// One tile.
    Tile(Side, Level, Tile),
}

impl Key {
    /// Which decoder it needs.
    pub fn side(self) -> Side {
        match self {
            Key::Whole(side, _) | Key::Prepare(side, _) | Key::Tile(side, ..) => side,
        }
    }

    /// Which size it belongs to.
    pub fn level(self) -> Level {
        match self {
            Key::Whole(_, level) | Key::Prepare(_, level) | Key::Tile(_, level, _) => level,
        }
    }
}

/// Waits for a change to come to rest.
#[derive(Debug, Clone)]
pub struct Rest {
    delay: Duration,
    due: Option<Instant>,
}

impl Rest {
    /// At rest.
    pub fn new(delay: Duration) -> Rest {
        Rest { delay, due: None }
    }

    /// Something changed at `now`.
    pub fn disturb(&mut self, now: Instant) {
        self.due = Some(now + self.delay);
    }

    /// Ends the wait.
    pub fn settle(&mut self) {
        self.due = None;
    }

    /// Whether nothing changed for the delay.
    pub fn is_over(&self, now: Instant) -> bool {
        self.due.is_none_or(|due| now >= due)
    }

    /// When to look again, if it is not over.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        self.due.filter(|&due| now < due)
    }
}

/// What to do about the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action<K> {
    /// Nothing: it does what is wanted, or nothing is.
    Leave,
    /// Tell the running job to stop; its end will be reported.
    Cancel,
    /// Hand it this job under this number.
    Start(u64, K),
}

/// The job that the worker has. There is at most one: what comes next is decided when it ends, by what is wanted then.
#[derive(Debug)]
pub struct Work<K> {
    running: Option<Running<K>>,
    count: u64,
}

#[derive(Debug)]
struct Running<K> {
    id: u64,
    job: K,
    cancelled: bool,
}

impl<K: Copy + PartialEq> Default for Work<K> {
    fn default() -> Self {
        Work { running: None, count: 0 }
    }
}

impl<K: Copy + PartialEq> Work<K> {
    /// Nothing to do yet, with numbers that `earlier` has not given.
    pub fn after(earlier: &Work<K>) -> Work<K> {
        Work { running: None, count: earlier.count }
    }

    /// What to do, given what is wanted, most urgent first. A job that is still wanted goes on even if another has become
    /// more urgent: jobs are short next to what a restart would throw away.
    pub fn steer(&mut self, wanted: &[K]) -> Action<K> {
        match (&mut self.running, wanted.first()) {
            (Some(running), _) if running.cancelled || wanted.contains(&running.job) => Action::Leave,
            (Some(running), _) => {
                running.cancelled = true;
                Action::Cancel
            }
            (None, None) => Action::Leave,
            (None, Some(&job)) => {
                self.count += 1;
                self.running = Some(Running { id: self.count, job, cancelled: false });
                Action::Start(self.count, job)
            }
        }
    }

    /// What runs and is still wanted.
    pub fn running(&self) -> Option<K> {
        self.running.as_ref().filter(|running| !running.cancelled).map(|running| running.job)
    }

    /// Whether the worker has a job, be it a cancelled one.
    pub fn is_busy(&self) -> bool {
        self.running.is_some()
    }

    /// The worker ended job `id`. The job, if its result is still of use: it was not told to stop and `current` holds of it. (A
    /// change may come between the end of a job and the next [`Work::steer`].)
    pub fn ended(&mut self, id: u64, current: impl Fn(&K) -> bool) -> Option<K> {
        let running = self.running.take_if(|running| running.id == id)?;
        (!running.cancelled && current(&running.job)).then_some(running.job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rest_is_counted_from_the_last_change() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut rest = Rest::new(Duration::from_millis(100));
        assert!(rest.is_over(at(0)));
        rest.disturb(at(0));
        rest.disturb(at(80));
        assert!(!rest.is_over(at(150)));
        assert_eq!(rest.due(at(150)), Some(at(180)));
        assert!(rest.is_over(at(180)));
        assert_eq!(rest.due(at(180)), None);
        rest.disturb(at(200));
        rest.settle();
        assert!(rest.is_over(at(200)));
    }

    #[test]
    fn a_stale_job_is_cancelled_once_and_the_next_starts_when_it_has_ended() {
        let mut work = Work::default();
        assert_eq!(work.steer(&[]), Action::Leave);
        assert_eq!(work.steer(&['a', 'b']), Action::Start(1, 'a'));
        assert_eq!(work.steer(&['a', 'b']), Action::Leave);
        assert_eq!(work.steer(&['b', 'a']), Action::Leave, "still wanted");
        assert_eq!(work.steer(&['c']), Action::Cancel);
        assert_eq!(work.steer(&['c']), Action::Leave, "asked once");
        assert_eq!(work.running(), None);
        assert_eq!(work.steer(&['a']), Action::Leave, "it was told to stop, so it is not revived");
        assert_eq!(work.ended(7, |_| true), None, "another job's end changes nothing");
        assert!(work.is_busy());
        assert_eq!(work.ended(1, |_| true), None, "its result is not wanted, even if it came through");
        assert_eq!(work.steer(&['c']), Action::Start(2, 'c'));
        assert_eq!(work.ended(1, |_| true), None);
        assert_eq!(work.ended(2, |_| true), Some('c'));
        assert_eq!(work.steer(&[]), Action::Leave);
    }

    #[test]
    fn jobs_of_a_lost_device_are_not_taken_for_new_ones() {
        let mut lost = Work::default();
        assert_eq!(lost.steer(&['a']), Action::Start(1, 'a'));
        let mut work = Work::after(&lost);
        assert_eq!(work.steer(&['a']), Action::Start(2, 'a'));
        assert_eq!(work.ended(1, |_| true), None);
        assert_eq!(work.running(), Some('a'));
    }

    #[test]
    fn nothing_wanted_cancels_what_runs() {
        let mut work = Work::default();
        work.steer(&[1]);
        assert_eq!(work.steer(&[]), Action::Cancel);
        work.ended(1, |_| true);
        assert!(!work.is_busy());
    }

    #[test]
    fn what_ends_after_the_document_changed_is_dropped_although_nobody_cancelled_it_yet() {
        let mut work = Work::default();
        work.steer(&[(1, "whole")]);
        let generation = 2;
        assert_eq!(work.ended(1, |&(of, _)| of == generation), None);
        assert!(!work.is_busy());
        work.steer(&[(2, "whole")]);
        assert_eq!(work.ended(2, |&(of, _)| of == generation), Some((2, "whole")));
    }
}
