//! Carrying a schedule out.

use std::ops::Range;
use std::sync::Arc;

use super::schedule::{Budget, Schedule, Sweep};
use super::{BAND, Form, Have, HostPlane, Job, Purpose, Source, Store, Stored, bindable};
use crate::error::{Error, Result};
use crate::gpu::{Elem, Observer, Picture, Recording, Tensor};
use crate::kernels::group_norm::BLOCK_ROWS;
use crate::nn::chain::{Area, PlaneShape};

/// Some rows of a result.
#[derive(Debug)]
pub enum Rows {
    /// `[rows, width, channels]`
    Float(Vec<f32>),
    /// `[rows, width]`, packed RGBA.
    Rgba8(Vec<u32>),
    /// A texture.
    Picture(Picture),
}

/// All statistics and one kept plane: what any rectangle of the last plane follows from.
#[derive(Debug)]
pub struct Prepared {
    stored: Vec<Option<Stored>>,
    affines: Vec<Option<Tensor>>,
    base: Option<Arc<HostPlane>>,
}

impl Prepared {
    /// Bytes that it holds on the device and on the host.
    pub fn bytes(&self) -> (u64, u64) {
        let device = |plane: &Option<Stored>| match plane {
            Some(Stored::Device(tensor)) => tensor.bytes(),
            _ => 0,
        };
        let host = |plane: &Option<Stored>| match plane {
            Some(Stored::Host(plane)) => plane.units.len() as u64,
            _ => 0,
        };
        let affines: u64 = self.affines.iter().flatten().map(Tensor::bytes).sum();
        let base = self.base.as_ref().map_or(0, |plane| plane.units.len() as u64);
        (affines + self.stored.iter().map(device).sum::<u64>(), base + self.stored.iter().map(host).sum::<u64>())
    }

    /// The base picture, where the chain has one.
    pub fn base(&self) -> Option<Arc<HostPlane>> {
        self.base.clone()
    }
}

/// Takes the picture's rows from the top, in order.
pub type Sink<'a> = dyn FnMut(Range<usize>, Rows) -> Result<()> + Send + 'a;

impl Job<'_> {
    /// Runs `schedule`; the picture's rows, if it gives them, go to `sink` in order.
    ///
    /// # Errors
    /// As [`crate::gpu::Gpu::run`], and what `sink` returns.
    pub async fn run(&self, schedule: &Schedule, observer: &Observer, sink: &mut Sink<'_>) -> Result<Prepared> {
        let planes = self.chain.planes.len();
        let mut prepared = Prepared { stored: (0..planes).map(|_| None).collect(), affines: vec![None; planes], base: self.base.clone() };
        let all: f64 = schedule.seconds.max(1e-9);
        let mut done = 0.0;
        for sweep in &schedule.sweeps {
            let part = observer.part(done / all, sweep.seconds / all);
            self.sweep(sweep, &mut prepared, &part, sink).await?;
            done += sweep.seconds;
            for &plane in &sweep.drops {
                prepared.stored[plane] = None;
            }
            if let (true, Source::Device(source)) = (sweep.drops_source, &self.source) {
                source.release();
            }
        }
        // The buffers of the last band; regions have other sizes.
        self.gpu.trim();
        Ok(prepared)
    }

    async fn sweep(&self, sweep: &Sweep, prepared: &mut Prepared, observer: &Observer, sink: &mut Sink<'_>) -> Result<()> {
        let shape = self.chain.planes[sweep.target];
        let PlaneShape { height, width, channels, elem } = shape;
        self.gpu.trim();
        let mut host = HostPlane { shape, units: Vec::new() };
        let mut device = None;
        match sweep.store {
            Store::Device => device = Some(self.gpu.reserve(&sweep.layer, height, width, channels, elem).await?),
            Store::Host => {
                let bytes = shape.bytes();
                let refused = |_| Error::HostMemory { ceiling: bytes };
                host.units.try_reserve_exact(bytes as usize).map_err(refused)?;
            }
            Store::Recompute | Store::Source => {}
        }
        let mut statistics = None;
        if self.wants_statistics(sweep.target) {
            let block_rows = height.div_ceil(BLOCK_ROWS);
            statistics = Some(self.gpu.reserve("statistics", block_rows, 2, channels.next_multiple_of(4), Elem::F32).await?);
        }
        let rows_in_all = self.height_of(sweep.target);
        for band in 0..sweep.bands {
            let rows = band * sweep.band_rows..((band + 1) * sweep.band_rows).min(rows_in_all);
            let have = Have { job: self, stored: &prepared.stored, affines: Some(&prepared.affines) };
            let observer = observer.part(band as f64 / sweep.bands as f64, 1.0 / sweep.bands as f64);
            if sweep.target == self.chain.last() {
                let picture = self.picture(&have, &self.rows_of_area(&rows)).finish();
                sink(rows, self.rows(picture, &observer).await?)?;
                continue;
            }
            let purpose = Purpose { statistics: statistics.as_ref(), device: device.as_ref(), host: sweep.store == Store::Host };
            let recording = self.band(&have, sweep.target, rows, &purpose).finish();
            let mut outputs = self.gpu.run(recording, &observer).await?;
            if purpose.host {
                host.units.extend(outputs.units(BAND));
            }
        }
        prepared.stored[sweep.target] = match device {
            Some(tensor) => Some(Stored::Device(tensor)),
            None if sweep.store == Store::Host => Some(Stored::Host(host)),
            None => None,
        };
        if let Some(rows) = statistics {
            self.gpu.trim();
            let affine = self.gpu.reserve("scale and shift", 2, 1, channels.next_multiple_of(4), Elem::F32).await?;
            let (norm, path) = self.chain.units[sweep.target].norm().expect("statistics are for a norm");
            let mut rec = self.gpu.recorder();
            let folded = rec.scoped(path, |rec| norm.fold(rec, &rows, (height, width, channels)));
            rec.place(&folded, &affine);
            self.gpu.run(rec.finish(), &Observer::default()).await?;
            prepared.affines[sweep.target] = Some(affine);
        }
        Ok(())
    }

    async fn rows(&self, recording: Recording, observer: &Observer) -> Result<Rows> {
        let mut outputs = self.gpu.run(recording, observer).await?;
        Ok(match self.form {
            Form::Rgba8 => Rows::Rgba8(outputs.words(BAND)),
            Form::Picture => Rows::Picture(outputs.picture.expect("a recording in this form makes a picture")),
            Form::Float => Rows::Float(outputs.numbers(BAND)),
        })
    }

    /// Bytes that a single pixel of `area` takes at most: of the one in the middle, which has most around it, and of those behind it on the
    /// diagonal, since what upsampling computes besides depends on where they lie.
    pub(super) fn pixel_bytes(&self, have: &Have<'_>, area: &Area) -> Result<u64> {
        const PHASES: usize = 16;
        let middle = |range: &Range<usize>| (range.start + range.len() / 2) / PHASES * PHASES;
        let (row, column) = (middle(&area.rows), middle(&area.columns));
        let pixel = |at: usize, range: &Range<usize>| at.clamp(range.start, range.end - 1);
        let mut each = (0..PHASES).map(|n| {
            let (y, x) = (pixel(row + n, &area.rows), pixel(column + n, &area.columns));
            bindable(self.gpu, self.picture(have, &Area { rows: y..y + 1, columns: x..x + 1 }))
        });
        each.try_fold(0, |most, bytes| Ok(most.max(bytes?)))
    }

    /// `area` of the picture from what was prepared, in as few pieces as `budget` allows; piece by piece to `sink`, which may keep them.
    ///
    /// # Errors
    /// As [`crate::gpu::Gpu::run`]; [`Error::MemoryCeiling`] if even a single pixel takes too much.
    pub async fn region(
        &self,
        prepared: &Prepared,
        area: &Area,
        budget: &Budget,
        observer: &Observer,
        sink: &mut (dyn FnMut(&Area, Rows) -> Result<()> + Send),
    ) -> Result<()> {
        let have = Have { job: self, stored: &prepared.stored, affines: Some(&prepared.affines) };
        let mut pieces = vec![area.clone()];
        let mut open = Vec::new();
        // Textures stay, so later pieces have that much less.
        let kept = |piece: &Area| match self.form {
            Form::Picture => 4 * (piece.rows.len() * piece.columns.len()) as u64,
            Form::Float | Form::Rgba8 => 0,
        };
        let mut held = budget.held;
        while let Some(piece) = pieces.pop() {
            let bytes = bindable(self.gpu, self.picture(&have, &piece));
            let needed = match &bytes {
                Ok(bytes) => held + bytes,
                Err(_) => u64::MAX,
            };
            let (rows, columns) = (piece.rows.len(), piece.columns.len());
            if bytes.is_ok() && budget.device.is_none_or(|ceiling| needed <= ceiling) {
                held += kept(&piece);
                open.push(piece);
            } else if rows == 1 && columns == 1 {
                let needed = budget.held + self.pixel_bytes(&have, area)?.max(bytes?) + kept(area) - kept(&piece);
                return Err(Error::MemoryCeiling { needed, ceiling: budget.device.unwrap_or(0) });
            } else if rows >= columns {
                let middle = piece.rows.start + rows / 2;
                pieces.push(Area { rows: middle..piece.rows.end, ..piece.clone() });
                pieces.push(Area { rows: piece.rows.start..middle, ..piece });
            } else {
                let middle = piece.columns.start + columns / 2;
                pieces.push(Area { columns: middle..piece.columns.end, ..piece.clone() });
                pieces.push(Area { columns: piece.columns.start..middle, ..piece });
            }
        }
        let all = (area.rows.len() * area.columns.len()) as f64;
        let mut done = 0.0;
        for piece in open {
            let share = (piece.rows.len() * piece.columns.len()) as f64 / all;
            let recording = self.picture(&have, &piece).finish();
            let rows = self.rows(recording, &observer.part(done, share)).await?;
            sink(&piece, rows)?;
            done += share;
        }
        Ok(())
    }
}
