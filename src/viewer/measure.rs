//! What is measured while the window is open, and the log that tests read.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Error, Result};

/// Durations in classes of 1 ms up to a second.
#[derive(Debug, Clone)]
pub struct Durations {
    counts: Vec<u32>,
    worst: Duration,
}

impl Default for Durations {
    fn default() -> Self {
        Durations { counts: vec![0; 1001], worst: Duration::ZERO }
    }
}

impl Durations {
    /// Counts one.
    pub fn add(&mut self, duration: Duration) {
        self.counts[(duration.as_millis() as usize).min(1000)] += 1;
        self.worst = self.worst.max(duration);
    }

    /// Count, median, 99th percentile, worst, and how many took more than 100 ms. Milliseconds.
    pub fn report(&self) -> Value {
        let total: u32 = self.counts.iter().sum();
        let share = |part: f64| {
            let rank = (f64::from(total) * part).ceil() as u32;
            let mut seen = 0;
            self.counts.iter().position(|&count| {
                seen += count;
                seen >= rank.max(1)
            })
        };
        let long: u32 = self.counts[100..].iter().sum();
        json!({
            "count": total, "median_ms": share(0.5), "p99_ms": share(0.99), "over_100_ms": long,
            "worst_ms": (self.worst.as_secs_f64() * 1e4).round() / 10.0,
        })
    }
}

/// Everything that is measured.
pub struct Measure {
    started: Instant,
    first_frame: Option<Duration>,
    first_picture: Option<Duration>,
    /// Frames while a decode runs.
    pub busy: Durations,
    /// Of these, the time in which the decode had the queue.
    pub waits: Durations,
    /// Other frames.
    pub idle: Durations,
    /// From a cancel to its effect.
    pub cancels: Durations,
    /// Pieces decoded.
    pub decoded: u64,
    log: Option<File>,
}

impl Measure {
    /// Starts the clock; `log` gets one JSON object a line.
    ///
    /// # Errors
    /// [`Error::Io`] if the log cannot be created.
    pub fn start(log: Option<&Path>) -> Result<Measure> {
        let create = |path: &Path| File::create(path).map_err(|source| Error::Io { path: path.to_owned(), source });
        Ok(Measure {
            started: Instant::now(),
            first_frame: None,
            first_picture: None,
            busy: Durations::default(),
            waits: Durations::default(),
            idle: Durations::default(),
            cancels: Durations::default(),
            decoded: 0,
            log: log.map(create).transpose()?,
        })
    }

    /// A frame was presented, `took` long and `waited` for the queue in it; `complete`: with a picture at full resolution.
    pub fn presented(&mut self, took: Duration, waited: Duration, busy: bool, complete: bool) {
        if busy {
            self.busy.add(took);
            self.waits.add(waited);
        } else {
            self.idle.add(took)
        }
        let now = self.started.elapsed();
        self.first_frame.get_or_insert(now);
        if complete {
            self.first_picture.get_or_insert(now);
        }
    }

    /// Writes a line of the log.
    pub fn log(&mut self, mut event: Value) {
        if let (Some(log), Value::Object(object)) = (&mut self.log, &mut event) {
            object.insert("at".into(), json!(self.started.elapsed().as_secs_f64()));
            let _ = writeln!(log, "{event}");
        }
    }

    /// The summary at the end.
    pub fn report(&self) -> Value {
        json!({
            "first_frame_seconds": self.first_frame.map(|d| d.as_secs_f64()),
            "first_picture_seconds": self.first_picture.map(|d| d.as_secs_f64()),
            "frames_while_decoding": self.busy.report(),
            "frames_waited_for_decodes": self.waits.report(),
            "other_frames": self.idle.report(),
            "cancels": self.cancels.report(),
            "decoded": self.decoded,
            "total_seconds": self.started.elapsed().as_secs_f64(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_durations() {
        let mut durations = Durations::default();
        for ms in 1..=100 {
            durations.add(Duration::from_millis(ms));
        }
        durations.add(Duration::from_secs(5));
        let report = durations.report();
        assert_eq!(report["count"], 101);
        assert_eq!(report["median_ms"], 51);
        assert_eq!(report["p99_ms"], 100);
        assert_eq!(report["over_100_ms"], 2);
        assert_eq!(report["worst_ms"], 5000.0);
        assert_eq!(Durations::default().report()["count"], 0);
    }
}
