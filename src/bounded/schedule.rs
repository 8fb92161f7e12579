//! Which planes are kept where, and how high bands are: the shortest predicted time under the ceilings.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

use super::{Have, Job, Purpose, Source, Store, Stored, bindable};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Plan, Tensor, align};
use crate::kernels::group_norm::BLOCK_ROWS;
use crate::nn::chain::{Area, Op, PlaneShape};

/// One pass over a plane.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Sweep {
    /// Index of the plane in its chain.
    #[serde(skip)]
    pub target: usize,
    /// The layer that makes it.
    pub layer: String,
    /// `[height, width, channels]` of the plane.
    pub shape: [usize; 3],
    /// Whether its group statistics are taken.
    pub statistics: bool,
    /// Where it is kept.
    pub store: Store,
    /// Rows a band.
    pub band_rows: usize,
    /// Number of bands.
    pub bands: usize,
    /// Floating point operations, recomputed ones included.
    pub flops: u64,
    /// Bytes from and to the host.
    pub host_traffic_bytes: u64,
    /// GPU memory while it runs, everything on the device included.
    pub peak_bytes: u64,
    /// Predicted seconds; a guess that only compares plans with each other.
    pub seconds: f64,
    /// GPU memory besides that of the bands' recordings, and what folding its statistics takes.
    #[serde(skip)]
    resident: u64,
    #[serde(skip)]
    fold: u64,
    /// Planes that are dropped afterwards.
    #[serde(skip)]
    pub(super) drops: Vec<usize>,
    /// Whether the source is needed no more afterwards.
    #[serde(skip)]
    pub(super) drops_source: bool,
}

/// Sweeps in their order. The last one gives the picture, unless a plane is kept for regions instead.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Schedule {
    /// In order.
    pub sweeps: Vec<Sweep>,
    /// Largest GPU memory at any time, in bytes: exactly what the pool will hold.
    pub peak_bytes: u64,
    /// Largest host memory for planes at any time, in bytes.
    pub host_peak_bytes: u64,
    /// Floating point operations of all sweeps.
    pub flops: u64,
    /// The same if nothing were computed twice.
    pub flops_once: u64,
    /// Predicted seconds, see [`Sweep::seconds`].
    pub seconds: f64,
}

/// What a schedule may use.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Ceiling on GPU memory, if there is one.
    pub device: Option<u64>,
    /// Bytes on the device that are not this job's: weights, latents, other work.
    pub held: u64,
    /// Bytes on the device that the source takes until plane 0 is no longer computed.
    pub source: u64,
    /// Ceiling on host memory for planes.
    pub host: u64,
}

/// Best plans so far that are followed on from each plane. The optimum was among the first 12 in all cases tried.
const BEAM: usize = 32;

/// Planes that are kept, in order.
type Kept = Vec<(usize, Store)>;

#[derive(Clone)]
struct Candidate {
    kept: Kept,
    seconds: f64,
    peak: u64,
    host_peak: u64,
    /// Whether the source will be asked again.
    source: bool,
    sweeps: Vec<Sweep>,
}

/// Speed assumed of a class of device: operations a second, bytes a second to the host, seconds a submission round.
fn speed(gpu: &Gpu) -> (f64, f64, f64) {
    match gpu.facts().kind.as_str() {
        "discrete" => (1e13, 1e10, 5e-4),
        "software" => (1e10, 1.5e9, 1e-3),
        _ => (1e12, 8e9, 5e-4),
    }
}

impl Job<'_> {
    /// Plans the job. `keep`: instead of giving the picture, keep this plane and all statistics for regions, with room for the least of them.
    ///
    /// # Errors
    /// [`Error::MemoryCeiling`] with the smallest ceiling that would do; [`Error::BufferTooLarge`] where the device
    /// cannot do it with any.
    pub fn schedule(&self, budget: &Budget, keep: Option<usize>) -> Result<Schedule> {
        let search = |look| Search::new(self, budget, keep, look);
        let fits = |best: &Candidate| budget.device.is_none_or(|ceiling| best.peak <= ceiling);
        let mut best = search(Look::Quick).best().map(|best| self.counted(&search(Look::Exact), best)).transpose()?;
        if best.as_ref().is_some_and(|best| !fits(best)) {
            best = search(Look::Exact).best().map(|best| self.counted(&search(Look::Exact), best)).transpose()?;
        }
        let Some(best) = best else {
            let needed = search(Look::Quick).smallest().ok_or_else(|| self.too_large())?;
            return match budget.device {
                Some(ceiling) if ceiling < needed => Err(Error::MemoryCeiling { needed, ceiling }),
                // Device memory would do, but a plane must go to the host, where there is no room for it.
                _ => Err(Error::HostMemory { ceiling: budget.host }),
            };
        };
        let flops_once = self.chain_flops(keep);
        let flops = best.sweeps.iter().map(|s| s.flops).sum();
        Ok(Schedule {
            peak_bytes: best.peak,
            host_peak_bytes: best.host_peak,
            flops,
            flops_once,
            seconds: best.seconds,
            sweeps: best.sweeps,
        })
    }

    fn too_large(&self) -> Error {
        let op = self.chain.units.iter().position(|unit| matches!(unit.op, Op::Attention(_)));
        let bytes = self.chain.planes[op.unwrap_or(0)].bytes();
        let op = op.map_or("activations".into(), |unit| self.chain.units[unit].path.clone());
        Error::BufferTooLarge { op, bytes, limit: self.gpu.profile().max_buffer }
    }

    /// Operations of one pass over everything.
    fn chain_flops(&self, keep: Option<usize>) -> u64 {
        let stored: Vec<Option<Stored>> = (0..self.chain.planes.len()).map(|_| None).collect();
        let have = Have { job: self, stored: &stored, affines: None };
        let target = match keep {
            Some(plane) => (plane..=self.chain.last()).rev().find(|&p| self.wants_statistics(p)).unwrap_or(plane),
            None => self.chain.last(),
        };
        let mut rec = self.gpu.recorder();
        self.chain.record(&mut rec, &have, target, &self.chain.planes[target].area());
        rec.finish().flops()
    }

    /// `best` with what all of its bands take, each of whose bindings the device can have.
    fn counted(&self, exact: &Search<'_>, mut best: Candidate) -> Result<Candidate> {
        let mut kept = Kept::new();
        for sweep in &mut best.sweeps {
            let stored = exact.planned(&kept);
            for (rows, _) in exact.bands(&stored, sweep.target, sweep.band_rows) {
                bindable(self.gpu, exact.recording(&stored, sweep.target, rows, sweep.store))?;
            }
            let fit = exact.measure(&stored, sweep.target, sweep.store, sweep.band_rows);
            sweep.peak_bytes = sweep.resident + fit.bytes.max(sweep.fold);
            (sweep.flops, sweep.host_traffic_bytes) = (fit.flops, fit.traffic);
            best.peak = best.peak.max(sweep.peak_bytes);
            kept.push((sweep.target, sweep.store));
        }
        Ok(best)
    }

    /// Rows of a plane that are needed: of the last one, only the picture's.
    pub(super) fn height_of(&self, plane: usize) -> usize {
        if plane == self.chain.last() { self.area.rows.len() } else { self.chain.planes[plane].height }
    }

    /// Some rows of what is asked for, counted from its first.
    pub(super) fn rows_of_area(&self, rows: &Range<usize>) -> Area {
        let Area { rows: of, columns } = &self.area;
        Area { rows: of.start + rows.start..of.start + rows.end, columns: columns.clone() }
    }
}

/// How closely a search looks at the bands of a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// At the first, the one in the middle, which has most above and below it to compute again, and the last.
    Quick,
    /// At all that differ: a band with less to compute can take more memory, since that depends on how its tensors share buffers.
    Exact,
    /// At all that differ, for bands that need the least memory instead of those that fit.
    Least,
}

/// Target, where it goes, what is kept, and the bytes left.
type Question = (usize, Store, Kept, u64);

struct Search<'a> {
    job: &'a Job<'a>,
    budget: &'a Budget,
    keep: Option<usize>,
    look: Look,
    fits: RefCell<HashMap<Question, Option<Fit>>>,
    /// What the smallest piece of a picture takes, by what is kept.
    pieces: RefCell<HashMap<Kept, Option<u64>>>,
}

#[derive(Clone, Copy)]
struct Fit {
    rows: usize,
    bytes: u64,
    /// Largest buffer.
    slot: u64,
    flops: u64,
    traffic: u64,
}

impl<'a> Search<'a> {
    fn new(job: &'a Job<'a>, budget: &'a Budget, keep: Option<usize>, look: Look) -> Search<'a> {
        Search { job, budget, keep, look, fits: Default::default(), pieces: Default::default() }
    }

    /// Bytes besides what is `kept` and the norms' scales that a pixel takes, the least of which a region is made.
    fn piece(&self, kept: &Kept) -> Option<u64> {
        if let Some(bytes) = self.pieces.borrow().get(kept) {
            return *bytes;
        }
        let (job, stored) = (self.job, self.planned(kept));
        let have = Have { job, stored: &stored, affines: None };
        let bytes = job.pixel_bytes(&have, &job.area).ok();
        self.pieces.borrow_mut().insert(kept.clone(), bytes);
        bytes
    }

    fn planned(&self, kept: &Kept) -> Vec<Option<Stored>> {
        let mut stored: Vec<Option<Stored>> = (0..self.job.chain.planes.len()).map(|_| None).collect();
        for &(plane, store) in kept {
            let shape = self.job.chain.planes[plane];
            stored[plane] = match store {
                Store::Device => Some(Stored::Device(Tensor::outside(shape.height, shape.width, shape.channels, shape.elem))),
                Store::Host => Some(Stored::Planned),
                Store::Recompute | Store::Source => None,
            };
        }
        stored
    }

    fn recording(&self, stored: &[Option<Stored>], target: usize, rows: Range<usize>, store: Store) -> crate::gpu::Recorder {
        let job = self.job;
        let have = Have { job, stored, affines: None };
        if target == job.chain.last() {
            return job.picture(&have, &job.rows_of_area(&rows));
        }
        let shape = job.chain.planes[target];
        let device = Tensor::outside(shape.height, shape.width, shape.channels, shape.elem);
        let statistics = Tensor::outside(shape.height.div_ceil(BLOCK_ROWS), 2, shape.channels.div_ceil(4) * 4, crate::gpu::Elem::F32);
        let purpose = Purpose {
            statistics: job.wants_statistics(target).then_some(&statistics),
            device: (store == Store::Device).then_some(&device),
            host: store == Store::Host,
        };
        job.band(&have, target, rows, &purpose)
    }

    /// Rows of bands that stand for all of a sweep, each with how many it stands for.
    fn bands(&self, stored: &[Option<Stored>], target: usize, rows: usize) -> Vec<(Range<usize>, u64)> {
        let (height, chain) = (self.job.height_of(target), self.job.chain);
        let count = height.div_ceil(rows);
        let range = |band: usize| band * rows..((band + 1) * rows).min(height);
        if self.look == Look::Quick {
            let mut which = vec![0, height / 2 / rows, count - 1];
            which.dedup();
            let times = |n: usize| if n == 1 && which.len() == 3 { count as u64 - 2 } else { 1 };
            return which.iter().enumerate().map(|(n, &band)| (range(band), times(n))).collect();
        }
        let needs = |band: usize| {
            let area = Area { rows: range(band), columns: 0..chain.planes[target].width };
            let needs = chain.needs(target, &area, |plane| stored[plane].is_some());
            needs.into_iter().map(|need| need.map_or(0..0, |area| area.rows)).collect::<Vec<_>>()
        };
        // As many rows of each plane are the same recording. Far from the edges bands differ at most by where they start: upsamplings by more than
        // the least height of a band give the same only after several.
        let enlarged = chain.units[..target].iter().filter(|unit| matches!(unit.op, Op::Upsample(_))).count();
        let period = ((1 << enlarged) / BLOCK_ROWS).max(1);
        let top = (0..count).find(|&band| needs(band).iter().all(|rows| rows.start > 0 || rows.is_empty())).unwrap_or(count);
        let below = |rows: &Range<usize>, plane: usize| rows.end < chain.planes[plane].height || rows.is_empty();
        let bottom =
            (0..count).rev().find(|&band| needs(band).iter().zip(0..).all(|(rows, plane)| below(rows, plane))).map_or(0, |n| n + 1);
        // The last band may have fewer rows.
        let bottom = bottom.min(count - 1);
        let edges = (0..count).filter(|&band| band < top + period || band >= bottom);
        let mut kinds: Vec<(Vec<usize>, Range<usize>, u64)> = Vec::new();
        for band in edges {
            let repeats = if (top..top + period).contains(&band) { (band..bottom.max(band + 1)).step_by(period).len() as u64 } else { 1 };
            let signature: Vec<usize> = needs(band).iter().map(Range::len).collect();
            match kinds.iter_mut().find(|(known, ..)| *known == signature) {
                Some((_, _, times)) => *times += repeats,
                None => kinds.push((signature, range(band), repeats)),
            }
        }
        kinds.into_iter().map(|(_, range, times)| (range, times)).collect()
    }

    /// Bytes of the largest of a sweep's recordings, operations of all of them, and bytes from and to the host.
    fn measure(&self, stored: &[Option<Stored>], target: usize, store: Store, rows: usize) -> Fit {
        let mut fit = Fit { rows, bytes: 0, slot: 0, flops: 0, traffic: 0 };
        for (range, times) in self.bands(stored, target, rows) {
            let recording = self.recording(stored, target, range, store).finish();
            fit.bytes = fit.bytes.max(self.job.gpu.plan_bytes(&recording));
            fit.slot = fit.slot.max(Plan::new(&recording, 0).slots.into_iter().max().unwrap_or(0));
            fit.flops += times * recording.flops();
            fit.traffic += times * recording.host_bytes();
        }
        fit
    }

    /// The highest bands that take no more than `left` bytes.
    fn fit(&self, target: usize, store: Store, kept: &Kept, left: u64) -> Option<Fit> {
        let key = (target, store, kept.clone(), left);
        if let Some(fit) = self.fits.borrow().get(&key) {
            return *fit;
        }
        let stored = self.planned(kept);
        let height = self.job.height_of(target);
        let measure = |rows| self.measure(&stored, target, store, rows);
        let (limit, mut found) = (self.job.gpu.profile().max_buffer, None);
        let fits = |fit: &Fit| fit.bytes <= left && fit.slot <= limit;
        let whole = if self.job.is_global(target) { height } else { height.next_multiple_of(BLOCK_ROWS) };
        let one = measure(whole);
        if self.look == Look::Least {
            let banded = (!self.job.is_global(target) && whole > BLOCK_ROWS).then(|| measure(BLOCK_ROWS));
            found = [Some(one), banded].into_iter().flatten().filter(fits).min_by_key(|fit| fit.bytes);
        } else if fits(&one) {
            found = Some(one);
        } else if !self.job.is_global(target) && whole > BLOCK_ROWS {
            // Bytes grow by about as much for each row, so a line through two points leads near; then down to what fits.
            let low = measure(BLOCK_ROWS);
            if fits(&low) {
                let slope = (one.bytes - low.bytes.min(one.bytes)) as f64 / (whole - BLOCK_ROWS) as f64;
                let guess = BLOCK_ROWS as f64 + left.saturating_sub(low.bytes) as f64 / slope.max(1.0);
                let mut rows = (guess as usize).min(whole - 1) / BLOCK_ROWS * BLOCK_ROWS;
                found = Some(low);
                while rows > BLOCK_ROWS {
                    let next = measure(rows);
                    if fits(&next) {
                        found = Some(next);
                        break;
                    }
                    rows = (rows * 7 / 8) / BLOCK_ROWS * BLOCK_ROWS;
                }
                // Bands of equal height, rather than a last one of a few rows.
                found = found.map(|fit| {
                    let bands = height.div_ceil(fit.rows);
                    let even = height.div_ceil(bands).next_multiple_of(BLOCK_ROWS).min(fit.rows);
                    if even < fit.rows { Some(measure(even)).filter(fits).unwrap_or(fit) } else { fit }
                });
            }
        }
        self.fits.borrow_mut().insert(key, found);
        found
    }

    /// What folding the statistics of a plane takes.
    fn fold_bytes(&self, plane: usize) -> u64 {
        let job = self.job;
        let PlaneShape { height, width, channels, .. } = job.chain.planes[plane];
        let Some((norm, _)) = job.chain.units[plane].norm() else { return 0 };
        let mut rec = job.gpu.recorder();
        let rows = Tensor::outside(height.div_ceil(BLOCK_ROWS), 2, channels.next_multiple_of(4), crate::gpu::Elem::F32);
        let affine = norm.fold(&mut rec, &rows, (height, width, channels));
        rec.place(&affine, &Tensor::outside(2, 1, channels.next_multiple_of(4), crate::gpu::Elem::F32));
        job.gpu.plan_bytes(&rec.finish())
    }

    fn device_bytes(&self, kept: &Kept) -> u64 {
        kept.iter().filter(|(_, store)| *store == Store::Device).map(|&(plane, _)| align(self.job.chain.planes[plane].bytes())).sum()
    }

    fn host_bytes(&self, kept: &Kept) -> u64 {
        kept.iter().filter(|(_, store)| *store == Store::Host).map(|&(plane, _)| self.job.chain.planes[plane].bytes()).sum()
    }

    fn stores(&self, plane: usize) -> Vec<Store> {
        let job = self.job;
        let global = job.is_global(plane) || plane < job.chain.last() && job.is_global(plane + 1);
        match plane {
            0 if matches!(job.source, Source::Host(_)) => vec![Store::Source],
            _ if plane == job.chain.last() => vec![Store::Recompute],
            _ if global => vec![Store::Device],
            _ if self.keep == Some(plane) => vec![Store::Device, Store::Host],
            _ => vec![Store::Device, Store::Host, Store::Recompute],
        }
    }

    /// Extends `from` by plane `plane`, kept in `store`; `None` if that does not fit.
    fn extend(&self, from: &Candidate, plane: usize, store: Store) -> Option<Candidate> {
        let job = self.job;
        let shape = job.chain.planes[plane];
        let last = plane == job.chain.last();
        let mut next = from.clone();
        let swept = store != Store::Source && (store != Store::Recompute || job.wants_statistics(plane) || last);
        let mut kept = from.kept.clone();
        if matches!(store, Store::Device | Store::Host) {
            kept.push((plane, store));
        }
        if swept {
            let affines: u64 = (0..plane).map(|p| job.affine_bytes(p)).sum();
            let source = if from.source { self.budget.source } else { 0 };
            let resident = self.budget.held + source + affines + self.device_bytes(&kept) + job.statistics_bytes(plane);
            let left = match self.budget.device {
                Some(ceiling) => ceiling.checked_sub(resident)?,
                None => u64::MAX,
            };
            if store == Store::Device && shape.bytes() > job.gpu.profile().max_buffer {
                return None;
            }
            if self.host_bytes(&kept) > self.budget.host {
                return None;
            }
            let fit = self.fit(plane, store, &from.kept, left)?;
            let (pace, link, round) = speed(job.gpu);
            let bands = job.height_of(plane).div_ceil(fit.rows);
            // The picture itself goes to the host in any plan.
            let traffic = if last { 0 } else { fit.traffic };
            let seconds = fit.flops as f64 / pace + traffic as f64 / link + bands as f64 * round;
            let fold = if job.wants_statistics(plane) { job.affine_bytes(plane) + self.fold_bytes(plane) } else { 0 };
            let peak = resident + fit.bytes.max(fold);
            if self.budget.device.is_some_and(|ceiling| peak > ceiling) {
                return None;
            }
            next.peak = next.peak.max(peak);
            next.seconds += seconds;
            next.host_peak = next.host_peak.max(self.host_bytes(&kept));
            next.sweeps.push(Sweep {
                target: plane,
                layer: plane.checked_sub(1).map_or("tokens".into(), |unit| job.chain.units[unit].path.clone()),
                shape: [shape.height, shape.width, shape.channels],
                statistics: job.wants_statistics(plane),
                store,
                band_rows: fit.rows,
                bands,
                flops: fit.flops,
                host_traffic_bytes: fit.traffic,
                peak_bytes: peak,
                seconds,
                resident,
                fold,
                drops: vec![],
                drops_source: false,
            });
        }
        let (live, source) = job.live(plane, |p| kept.iter().any(|&(k, _)| k == p));
        let dropped = |p: usize| !live.contains(&p) && self.keep != Some(p);
        if let Some(sweep) = next.sweeps.last_mut() {
            sweep.drops.extend(kept.iter().map(|&(p, _)| p).filter(|&p| dropped(p)));
            sweep.drops_source |= !source;
        }
        next.source = source;
        kept.retain(|&(p, _)| !dropped(p));
        next.kept = kept;
        if self.keep.is_some() && plane == self.last_plane() {
            let affines: u64 = (0..=plane).map(|p| job.affine_bytes(p)).sum();
            let peak = self.budget.held + affines + self.device_bytes(&next.kept) + self.piece(&next.kept)?;
            if self.budget.device.is_some_and(|ceiling| peak > ceiling) {
                return None;
            }
            next.peak = next.peak.max(peak);
        }
        Some(next)
    }

    fn last_plane(&self) -> usize {
        let job = self.job;
        match self.keep {
            // Statistics of later planes still have to be taken.
            Some(keep) => (keep..job.chain.last()).rev().find(|&p| p == keep || job.wants_statistics(p)).unwrap_or(keep),
            None => job.chain.last(),
        }
    }

    /// The fastest plan found. Under a tight ceiling the fast beginnings that fill the beam may all end in planes that do not fit.
    fn best(&self) -> Option<Candidate> {
        self.search(BEAM, |plane| self.stores(plane)).or_else(|| self.search(1, |plane| self.spilled(plane)))
    }

    /// To the host, where that is allowed.
    fn spilled(&self, plane: usize) -> Vec<Store> {
        let stores = self.stores(plane);
        if stores.contains(&Store::Host) { vec![Store::Host] } else { stores }
    }

    /// The least GPU memory: everything that may go to the host does, in bands of the least height.
    fn smallest(&self) -> Option<u64> {
        let budget = Budget { device: None, host: u64::MAX, ..*self.budget };
        let least = Search::new(self.job, &budget, self.keep, Look::Least);
        Some(least.search(1, |plane| least.spilled(plane))?.peak)
    }

    fn search(&self, beam: usize, stores: impl Fn(usize) -> Vec<Store>) -> Option<Candidate> {
        let mut front = vec![Candidate { kept: vec![], seconds: 0.0, peak: 0, host_peak: 0, source: true, sweeps: vec![] }];
        for plane in 0..=self.last_plane() {
            let mut next: HashMap<Kept, Candidate> = HashMap::new();
            for from in &front {
                for store in stores(plane) {
                    let Some(candidate) = self.extend(from, plane, store) else { continue };
                    let slot = next.entry(candidate.kept.clone()).or_insert_with(|| candidate.clone());
                    if candidate.seconds < slot.seconds {
                        *slot = candidate;
                    }
                }
            }
            front = next.into_values().collect();
            front.sort_by(|a, b| a.seconds.total_cmp(&b.seconds).then_with(|| a.kept.cmp(&b.kept)));
            front.truncate(beam);
        }
        front.into_iter().next()
    }
}

impl std::fmt::Display for Schedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use crate::error::human_bytes;
        writeln!(
            f,
            "peak {} on the device, {} on the host; {:.1} GFLOP, of which {:.1} are computed again",
            human_bytes(self.peak_bytes),
            human_bytes(self.host_peak_bytes),
            self.flops as f64 * 1e-9,
            self.flops.saturating_sub(self.flops_once) as f64 * 1e-9
        )?;
        let header = ["layer", "plane", "statistics", "kept", "bands", "GFLOP", "host traffic", "peak"];
        let rows = self.sweeps.iter().map(|s| {
            [
                s.layer.clone(),
                format!("{}x{}x{}", s.shape[1], s.shape[0], s.shape[2]),
                if s.statistics { "yes" } else { "" }.into(),
                match s.store {
                    Store::Recompute => "",
                    Store::Device => "device",
                    Store::Host => "host",
                    Store::Source => "source",
                }
                .into(),
                format!("{} of {}", s.bands, s.band_rows),
                format!("{:.1}", s.flops as f64 * 1e-9),
                human_bytes(s.host_traffic_bytes),
                human_bytes(s.peak_bytes),
            ]
        });
        let table: Vec<[String; 8]> = std::iter::once(header.map(String::from)).chain(rows).collect();
        let width = |column: usize| table.iter().map(|row| row[column].len()).max().unwrap_or(0);
        for row in &table {
            let cells: Vec<String> = row.iter().enumerate().map(|(c, cell)| format!("{cell:<0$}", width(c))).collect();
            writeln!(f, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}
