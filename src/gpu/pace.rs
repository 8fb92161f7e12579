//! How fast pipelines are, learnt while they run, and dispatches cut into pieces that keep limits of size and time.

use std::collections::HashMap;

use super::recorder::Dispatch;
use crate::error::{Error, Result};

/// A piece of a dispatch that takes longer is cut however few workgroups it has: watchdogs end what takes seconds.
const TOO_LONG: f64 = 0.3;

/// Workgroups that fill a device of this kind.
pub(super) fn fill(kind: &str) -> u32 {
    match kind {
        "discrete" => 256,
        "software" => 1,
        _ => 64,
    }
}

/// Predicted speed per pipeline, corrected by measurement. It only decides where work is cut, never the result.
#[derive(Debug)]
pub(crate) struct Pace {
    start: f64,
    seconds_a_work: HashMap<usize, (f64, u32)>,
    /// Workgroups that fill the device: fewer take as long, so that cutting for time ends here.
    width: f64,
    narrowed: HashMap<usize, Narrowed>,
}

/// A pipeline of which even pieces of [`Pace::width`] workgroups took too long.
#[derive(Debug)]
struct Narrowed {
    /// What pieces are cut to.
    groups: f64,
    /// Time of a piece of twice as many.
    seconds: f64,
    /// Fewer did not help.
    settled: bool,
}

impl Pace {
    pub fn new(kind: &str) -> Pace {
        let work_a_second = match kind {
            "discrete" => 1e12,
            // Of this, kernels of networks reach four times as much on two cores and a tenth on two that others use too.
            "software" => 1e9,
            _ => 1e11,
        };
        Pace { start: 1.0 / work_a_second, seconds_a_work: HashMap::new(), width: fill(kind) as f64, narrowed: HashMap::new() }
    }

    /// Largest share of a piece's workgroups to run at once so that it takes `target` seconds; never fewer than fill the device.
    pub fn share(&self, pipeline: usize, work: f64, groups: f64, target: f64) -> f64 {
        let least = self.narrowed.get(&pipeline).map_or(self.width, |narrowed| narrowed.groups);
        // Halves of what has fewer than twice as many would be less than that.
        (target / self.predict(pipeline, work).max(1e-9)).max((2.0 * least - 1.0) / groups)
    }

    /// A piece of so many workgroups had the device for itself for so long.
    pub fn took(&mut self, pipeline: usize, groups: f64, seconds: f64) {
        // The first time drivers compile.
        if seconds <= TOO_LONG || groups <= 1.0 || self.seconds_a_work.get(&pipeline).is_none_or(|&(_, seen)| seen < 2) {
            return;
        }
        let half = (groups / 2.0).max(1.0);
        match self.narrowed.get_mut(&pipeline) {
            None if groups < 2.0 * self.width => {
                self.narrowed.insert(pipeline, Narrowed { groups: half, seconds, settled: false });
            }
            Some(narrowed) if !narrowed.settled && groups < 2.0 * narrowed.groups => {
                *narrowed = match seconds > 0.75 * narrowed.seconds {
                    true => Narrowed { groups: 2.0 * narrowed.groups, settled: true, ..*narrowed },
                    false => Narrowed { groups: half, seconds, settled: false },
                }
            }
            _ => {}
        }
    }

    pub fn predict(&self, pipeline: usize, work: f64) -> f64 {
        work * self.seconds_a_work.get(&pipeline).map_or(self.start, |&(pace, _)| pace)
    }

    /// Scales the pace of everything in a submission by measured over predicted. The first time that a pipeline
    /// runs is not counted: drivers compile then.
    pub fn learn(&mut self, parts: &[(usize, f64)], predicted: f64, measured: f64) {
        let ratio = (measured / predicted.max(1e-9)).clamp(0.05, 20.0);
        for &(pipeline, work) in parts {
            let share = self.predict(pipeline, work) / predicted.max(1e-9);
            let start = self.start;
            let (pace, seen) = self.seconds_a_work.entry(pipeline).or_insert((start, 0));
            if *seen > 0 {
                *pace *= ratio.powf(share.clamp(0.0, 1.0) * 0.7);
            }
            *seen += 1;
        }
    }
}

/// A box of workgroups `lo .. hi` of one dispatch, with the units of each binding that it touches.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub lo: [u32; 3],
    pub hi: [u32; 3],
}

impl Piece {
    pub fn groups(&self) -> f64 {
        (0..3).map(|a| (self.hi[a] - self.lo[a]) as f64).product()
    }
}

/// Limits that a piece must keep.
pub(super) struct Limits {
    pub max_groups: u32,
    pub max_binding: u64,
    pub offset_alignment: u64,
    /// Largest share of the dispatch's workgroups.
    pub max_share: f64,
}

/// Cuts the grid of `dispatch` until each piece keeps `limits`. The cuts do not change results: a workgroup
/// computes the same whatever box it is in.
pub(super) fn cut(dispatch: &Dispatch, limits: &Limits) -> Result<Vec<Piece>> {
    cut_piece(dispatch, Piece { lo: [0; 3], hi: dispatch.grid }, limits)
}

/// [`cut`] for a part of the grid; the share is of the part.
pub(super) fn cut_piece(dispatch: &Dispatch, part: Piece, limits: &Limits) -> Result<Vec<Piece>> {
    let total = part.groups();
    let mut pieces = Vec::new();
    let mut open = vec![part];
    while let Some(piece) = open.pop() {
        let size = |axis: usize| piece.hi[axis] - piece.lo[axis];
        let mut axis = None;
        for (binding, at) in dispatch.bindings.iter().zip(0..) {
            let range = binding.footprint.range(piece.lo, piece.hi, binding.tensor.units());
            let unit = binding.tensor.elem.bytes();
            let bytes = (range.end - range.start) * unit + limits.offset_alignment;
            if bytes > limits.max_binding && binding.tensor.bytes() > limits.max_binding {
                let movable = (0..3)
                    .filter(|&a| binding.footprint.per[a] != 0 && size(a) > 1)
                    .max_by_key(|&a| binding.footprint.per[a].unsigned_abs() * size(a) as u64);
                axis = Some(movable.ok_or_else(|| Error::BufferTooLarge {
                    op: format!("{} (binding {at})", dispatch.kernel.name),
                    bytes,
                    limit: limits.max_binding,
                })?);
                break;
            }
        }
        let axis = axis
            .or_else(|| (0..3).find(|&a| size(a) > limits.max_groups))
            .or_else(|| (piece.groups() / total > limits.max_share).then(|| [1, 2, 0].into_iter().find(|&a| size(a) > 1)).flatten());
        match axis {
            None => pieces.push(piece),
            Some(axis) => {
                let middle = piece.lo[axis] + size(axis) / 2;
                let (mut first, mut second) = (piece.clone(), piece.clone());
                first.hi[axis] = middle;
                second.lo[axis] = middle;
                open.push(second);
                open.push(first);
            }
        }
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds that a dispatch takes on a device of `width` workgroups of `a_wave` seconds, cut by what was learnt, and its pieces.
    fn dispatch(pace: &mut Pace, groups: f64, (width, a_wave): (f64, f64)) -> (f64, usize) {
        let (work, target) = (groups * 1e9, 0.016);
        let share = pace.share(0, work, groups, target);
        let mut open = vec![groups];
        let (mut seconds, mut pieces) = (0.0, 0);
        while let Some(piece) = open.pop() {
            if piece / groups > share && piece > 1.0 {
                open.extend([piece - (piece / 2.0).floor(), (piece / 2.0).floor()]);
                continue;
            }
            let took = (piece / width).ceil() * a_wave;
            let predicted = pace.predict(0, work * piece / groups);
            pace.learn(&[(0, work * piece / groups)], predicted, took);
            pace.took(0, piece, took);
            (seconds, pieces) = (seconds + took, pieces + 1);
        }
        (seconds, pieces)
    }

    #[test]
    fn cutting_for_time_leaves_the_device_filled() {
        let mut pace = Pace::new("discrete");
        for _ in 0..50 {
            let (seconds, _) = dispatch(&mut pace, 4096.0, (128.0, 0.029));
            assert!(seconds < 1.05 * 32.0 * 0.029, "{seconds}");
        }
        // What fits a submission is still cut to about one.
        let mut pace = Pace::new("discrete");
        (0..50).for_each(|_| {
            dispatch(&mut pace, 65536.0, (128.0, 0.001));
        });
        let (seconds, pieces) = dispatch(&mut pace, 65536.0, (128.0, 0.001));
        assert!((seconds / pieces as f64) < 0.033 && pieces < 128, "{seconds} in {pieces}");
        // Software computes one workgroup after another: any cut helps.
        let mut pace = Pace::new("software");
        (0..50).for_each(|_| {
            dispatch(&mut pace, 64.0, (1.0, 0.015));
        });
        assert_eq!(dispatch(&mut pace, 64.0, (1.0, 0.015)).1, 64);
    }

    #[test]
    fn what_a_watchdog_would_end_is_cut_further_while_that_helps() {
        let mut narrow = Pace::new("other");
        (0..9).for_each(|_| {
            dispatch(&mut narrow, 640.0, (8.0, 0.2));
        });
        let (seconds, pieces) = dispatch(&mut narrow, 640.0, (8.0, 0.2));
        assert!(seconds / pieces as f64 <= TOO_LONG && seconds < 2.0 * 80.0 * 0.2, "{seconds} in {pieces}");
        let mut wide = Pace::new("discrete");
        (0..9).for_each(|_| {
            dispatch(&mut wide, 640.0, (512.0, 0.5));
        });
        assert!(dispatch(&mut wide, 640.0, (512.0, 0.5)).1 <= 8, "fewer workgroups take as long");
    }
}
