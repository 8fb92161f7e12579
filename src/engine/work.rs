//! One network applied to one input: in one recording where that fits, by a schedule where it does not.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::bounded::{Budget, DeviceSource, Form, HostPlane, HostRows, Job, Prepared, Rows, Schedule, Sink, Source, upload_rows};
use crate::error::{Error, Result, human_bytes};
use crate::gpu::{Elem, Gpu, Observer, Recorder, Recording, Tensor, align};
use crate::kernels::output::{image_to_picture, image_to_rgba8};
use crate::models::infd::{InfdDecoder, Patch};
use crate::models::infgen::{InfgenContext, InfgenDecoder};
use crate::nn::chain::{Area, Chain, Part, PlaneShape};

/// What makes plane 0 of a chain.
pub(super) enum Front<'a> {
    /// `[rows, width, channels]` values on the host.
    Host(&'a HostRows<'a>),
    /// The mask tokens of an InfGen decoder, from a latent `[h, w, channels]` in VAE units.
    Infgen { network: &'a InfgenDecoder, z: &'a [f32], latent: (usize, usize), tokens_a_chunk: usize, last: &'a LastBase },
    /// Features of that shape (none in a recording that is only planned) where the pixels of a patch of a picture of `size` lie.
    Patch { network: &'a InfdDecoder, features: Option<&'a HostPlane>, shape: PlaneShape, patch: &'a Patch, size: (usize, usize) },
}

/// What was made of the latent that was decoded last and does not depend on the size asked for: the base picture, or features.
#[derive(Debug, Default)]
pub(super) struct LastBase(Mutex<Option<(Vec<f32>, Arc<HostPlane>)>>);

impl LastBase {
    /// Larger ones are made again.
    const MOST_BYTES: u64 = 64 << 20;

    pub fn of(&self, z: &[f32], shape: PlaneShape) -> Option<Arc<HostPlane>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref().filter(|(of, plane)| of == z && plane.shape == shape).map(|(_, plane)| plane.clone())
    }

    pub fn keep(&self, z: &[f32], plane: &Arc<HostPlane>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
            (plane.shape.bytes() <= Self::MOST_BYTES).then(|| (z.to_vec(), plane.clone()));
    }
}

/// See the module.
pub(super) struct Work<'a> {
    pub gpu: &'a Gpu,
    pub chain: &'a Chain<'a>,
    pub front: Front<'a>,
    pub form: Form,
    /// What of the last plane is the result.
    pub area: Area,
    /// Bytes of host memory that planes may take.
    pub host_memory: u64,
}

/// How a network will be run, decided before anything is.
#[derive(Debug, Clone, serde::Serialize)]
pub struct WorkPlan {
    /// Largest GPU memory at any time in bytes, weights and everything else on this device included.
    pub peak_bytes: u64,
    /// Floating point operations.
    pub flops: u64,
    /// Layers in their order, if all planes are whole in memory.
    pub layers: Vec<LayerCost>,
    /// Sweeps, if not.
    pub schedule: Option<Schedule>,
}

/// What a layer costs.
#[derive(Debug, Clone, serde::Serialize)]
pub struct LayerCost {
    /// Its path in the checkpoint.
    pub layer: String,
    /// Kernel calls.
    pub passes: usize,
    /// Floating point operations.
    pub flops: u64,
    /// Bytes that its kernels read and write at least.
    pub bytes: u64,
}

impl std::fmt::Display for WorkPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use crate::error::human_bytes;
        if let Some(schedule) = &self.schedule {
            return schedule.fmt(f);
        }
        let total: usize = self.layers.iter().map(|layer| layer.passes).sum();
        writeln!(f, "in one piece: peak {}, {:.1} GFLOP, {total} passes", human_bytes(self.peak_bytes), self.flops as f64 * 1e-9)?;
        let name = self.layers.iter().map(|layer| layer.layer.len()).max().unwrap_or(0);
        for LayerCost { layer, passes, flops, bytes } in &self.layers {
            writeln!(f, "{layer:<name$}  {passes:>3} passes  {:>9.2} GFLOP  {:>9} moved", *flops as f64 * 1e-9, human_bytes(*bytes))?;
        }
        Ok(())
    }
}

/// Name of the result among the outputs of a whole recording.
pub(super) const IMAGE: &str = "image";

impl<'a> Work<'a> {
    /// A chain behind values on the host, all of its last plane in f32.
    pub fn whole_of(gpu: &'a Gpu, chain: &'a Chain<'a>, rows: &'a HostRows<'a>, host_memory: u64) -> Work<'a> {
        Work { gpu, chain, front: Front::Host(rows), form: Form::Float, area: chain.planes[chain.last()].area(), host_memory }
    }
}

impl Work<'_> {
    /// The whole network in one recording, to be looked at only: without the input's values and the base picture.
    pub fn planned(&self) -> Recorder {
        self.recorded(true, false, None)
    }

    /// The whole network in one recording; `base` is what [`Work::make_base`] gave.
    pub fn whole(&self, taps: bool, base: Option<&HostPlane>) -> Recorder {
        self.recorded(false, taps, base)
    }

    fn recorded(&self, planned: bool, taps: bool, base: Option<&HostPlane>) -> Recorder {
        let mut rec = self.gpu.recorder();
        rec.keep_taps(taps);
        let plane = self.chain.planes[0];
        let x = match &self.front {
            Front::Host(_) if planned => rec.upload_later(plane.height, plane.width, plane.channels, plane.elem),
            Front::Host(values) => upload_rows(&mut rec, values, &(0..plane.height), (plane.width, plane.channels, plane.elem)),
            Front::Infgen { network, tokens_a_chunk, .. } => {
                let context = self.context(&mut rec).expect("an InfGen decoder has a context");
                network.tokens(&mut rec, &context, (plane.height, plane.width), 0..plane.height, *tokens_a_chunk)
            }
            Front::Patch { .. } => self.gathered(&mut rec, 0..plane.height).expect("a patch has features"),
        };
        let base = self.chain.base.map(|plane| match base {
            Some(base) => base.upload(&mut rec, &plane.area()),
            None if planned => rec.upload_later(plane.height, plane.width, plane.channels, plane.elem),
            None => unreachable!("the base picture comes first"),
        });
        if let Some(base) = &base {
            rec.tap("base", base);
        }
        let image = self.chain.forward(&mut rec, &x, base.as_ref());
        let Area { rows, columns } = &self.area;
        let from = (rows.start, columns.start);
        match self.form {
            Form::Rgba8 => {
                let words = image_to_rgba8(&mut rec, &image, columns.len(), rows.len(), from);
                rec.output(IMAGE, &words);
            }
            Form::Picture => image_to_picture(&mut rec, &image, columns.len(), rows.len(), from),
            Form::Float => rec.output(IMAGE, &image.rows(rows.start, rows.len())),
        }
        rec
    }

    fn context(&self, rec: &mut Recorder) -> Option<InfgenContext> {
        let Front::Infgen { network, z, latent: (height, width), .. } = &self.front else { return None };
        let z = rec.upload(z, *height, *width, z.len() / (height * width), Elem::F32);
        Some(network.context(rec, &z))
    }

    /// Rows of a patch's first plane.
    fn gathered(&self, rec: &mut Recorder, rows: Range<usize>) -> Option<Tensor> {
        let Front::Patch { network, features, shape, patch, size } = &self.front else { return None };
        let part = |rec: &mut Recorder, area: &Area| {
            let (rows, columns) = (&area.rows, &area.columns);
            let tensor = match features {
                Some(plane) => plane.upload(rec, area),
                None => rec.upload_later(rows.len(), columns.len(), shape.channels, shape.elem),
            };
            Part { tensor, top: rows.start, left: columns.start }
        };
        Some(network.gathered(rec, *shape, part, (patch, rows), *size))
    }

    /// What makes the base picture, if there is one.
    fn base(&self) -> Option<Base<'_>> {
        let Front::Infgen { network, z, latent, .. } = &self.front else { return None };
        let chain = network.base_chain(*latent)?;
        Some(Base { chain, values: network.base_input(z) })
    }

    /// Making the base picture as work of its own, if there is one.
    pub fn base_work<T>(&self, body: impl FnOnce(&Work<'_>) -> T) -> Option<T> {
        let base = self.base()?;
        Some(body(&self.of_base(&base, &|rows| base.rows(rows))))
    }

    /// The base picture, if it has been made.
    fn kept_base(&self) -> Option<Arc<HostPlane>> {
        let Front::Infgen { z, last, .. } = &self.front else { return None };
        last.of(z, self.chain.base?)
    }

    /// GPU memory that it takes to make the base picture, by `needs`; 0 where there is none to make.
    fn base_bytes(&self, needs: impl FnOnce(&Work<'_>) -> Result<u64>) -> Result<u64> {
        if self.kept_base().is_some() { Ok(0) } else { self.base_work(needs).unwrap_or(Ok(0)) }
    }

    /// Progress of the base picture, and of everything after it.
    pub fn shares(&self, observer: &Observer) -> (Observer, Observer) {
        let flops = |work: &Work<'_>| work.planned().finish().flops() as f64;
        let base = if self.kept_base().is_some() { None } else { self.base_work(flops) };
        let share = base.map_or(0.0, |base| base / (base + flops(self)));
        (observer.part(0.0, share), observer.part(share, 1.0 - share))
    }

    fn of_base<'a>(&'a self, base: &'a Base<'a>, rows: &'a HostRows<'a>) -> Work<'a> {
        Work::whole_of(self.gpu, &base.chain, rows, self.host_memory)
    }

    /// Makes the base picture, if there is one. It lies on the host, from where bands and regions take what they need.
    pub async fn make_base(&self, observer: &Observer) -> Result<Option<Arc<HostPlane>>> {
        if let Some(kept) = self.kept_base() {
            return Ok(Some(kept));
        }
        let (Some(base), Front::Infgen { z, last, .. }) = (self.base(), &self.front) else { return Ok(None) };
        let rows = |rows| base.rows(rows);
        let plane = Arc::new(Box::pin(self.of_base(&base, &rows).plane(observer)).await?);
        last.keep(z, &plane);
        Ok(Some(plane))
    }

    /// Runs the network and keeps its last plane on the host.
    pub async fn plane(&self, observer: &Observer) -> Result<HostPlane> {
        let mut all = Vec::new();
        self.run(observer, &mut joined(&mut all)).await?;
        // What comes next has buffers of other sizes.
        self.gpu.trim();
        Ok(HostPlane::new(self.chain.planes[self.chain.last()], &all))
    }

    /// The chain behind its source, which is `front` where that is on the device; `base` is missing where it is only planned.
    fn job<'a>(&'a self, front: &'a OnDevice<'a>, base: Option<Arc<HostPlane>>) -> Job<'a> {
        let source = match &self.front {
            Front::Host(values) => Source::Host(values),
            Front::Infgen { .. } | Front::Patch { .. } => Source::Device(front),
        };
        Job { gpu: self.gpu, chain: self.chain, source, base, form: self.form, area: self.area.clone() }
    }

    fn on_device(&self, context: Option<InfgenContext>) -> OnDevice<'_> {
        OnDevice { work: self, context: Mutex::new(context) }
    }

    fn budget(&self, device: Option<u64>) -> Budget {
        let base = self.chain.base.map_or(0, |plane| plane.bytes());
        Budget { device, held: self.gpu.held_bytes(), source: 0, host: self.host_memory.saturating_sub(base) }
    }

    /// Whether one recording does, and what it needs.
    fn fits_whole(&self, recording: &Recording) -> bool {
        let peak = self.gpu.peak_bytes(recording);
        self.gpu.memory_ceiling().is_none_or(|ceiling| peak <= ceiling) && self.gpu.check_bindings(recording).is_ok()
    }

    /// A schedule within `device` bytes, for a whole result or with plane `keep` kept for regions.
    fn schedule(&self, keep: Option<usize>, device: Option<u64>) -> Result<Schedule> {
        // The context is recorded to see what it takes; its tensors stand for those that will be resident.
        let mut rec = self.gpu.recorder();
        let context = self.context(&mut rec);
        let outside = context.as_ref().map(|context| {
            context.map(|tensor| {
                let resident = Tensor::outside(tensor.height, tensor.width, tensor.channels, tensor.elem);
                rec.place(tensor, &resident);
                resident
            })
        });
        let source = outside.iter().flat_map(InfgenContext::tensors).map(|tensor| align(tensor.bytes())).sum();
        let budget = Budget { source, ..self.budget(device) };
        let before = budget.held;
        let context = before + source + if outside.is_some() { self.gpu.plan_bytes(&rec.finish()) } else { 0 };
        let first = context.max(self.base_bytes(|base| base.least(None))?);
        let refused = |needed| Error::MemoryCeiling { needed, ceiling: budget.device.unwrap_or(needed) };
        let result = self.job(&self.on_device(outside), None).schedule(&budget, keep);
        match result {
            Ok(_) if budget.device.is_some_and(|ceiling| first > ceiling) => Err(refused(first)),
            Ok(schedule) => {
                let peak = self.base_bytes(|base| Ok(base.plan()?.peak_bytes))?;
                let flops = self.base_work(|base| base.planned().finish().flops()).unwrap_or(0);
                Ok(Schedule {
                    peak_bytes: schedule.peak_bytes.max(context).max(before).max(peak),
                    flops: schedule.flops + flops,
                    flops_once: schedule.flops_once + flops,
                    ..schedule
                })
            }
            Err(Error::MemoryCeiling { needed, .. }) => Err(refused(needed.max(first))),
            Err(other) => Err(other),
        }
    }

    /// How it will be run.
    ///
    /// # Errors
    /// [`Error::MemoryCeiling`] with the smallest ceiling that would do, [`Error::BufferTooLarge`], [`Error::HostMemory`].
    pub fn plan(&self) -> Result<WorkPlan> {
        let recording = self.planned().finish();
        if self.fits_whole(&recording) {
            let first = self.base_bytes(|base| Ok(base.plan()?.peak_bytes)).map_err(|error| self.named(error))?;
            let whole = self.in_one_piece(&recording);
            return Ok(WorkPlan { peak_bytes: whole.peak_bytes.max(first), ..whole });
        }
        let schedule = self.schedule(None, self.gpu.memory_ceiling()).map_err(|error| self.or_whole(error, &recording))?;
        Ok(WorkPlan { peak_bytes: schedule.peak_bytes, flops: schedule.flops, layers: vec![], schedule: Some(schedule) })
    }

    /// How it is run where that fits ([`Work::planned`]), without the memory that it takes to make the base picture.
    pub fn in_one_piece(&self, recording: &Recording) -> WorkPlan {
        let base = self.base_work(|base| base.planned().finish());
        let all = || base.iter().chain([recording]);
        let layers = all().flat_map(Recording::layers).map(|(layer, passes, flops, bytes)| LayerCost { layer, passes, flops, bytes });
        let (peak_bytes, flops) = (self.gpu.peak_bytes(recording), all().map(Recording::flops).sum());
        WorkPlan { peak_bytes, flops, layers: layers.collect(), schedule: None }
    }

    /// A refusal of the base picture, with what everything needs.
    fn named(&self, error: Error) -> Error {
        match error {
            Error::MemoryCeiling { needed, ceiling } => Error::MemoryCeiling { needed: self.least(None).unwrap_or(needed), ceiling },
            other => other,
        }
    }

    /// The smallest ceiling that would do for a whole result, or with plane `keep` kept for regions.
    pub fn least(&self, keep: Option<usize>) -> Result<u64> {
        let refused = match self.schedule(keep, Some(0)) {
            // Nothing needs nothing.
            Ok(schedule) => return Ok(schedule.peak_bytes),
            Err(error) if keep.is_none() => self.or_whole(error, &self.planned().finish()),
            Err(error) => error,
        };
        match refused {
            Error::MemoryCeiling { needed, .. } => Ok(needed),
            other => Err(other),
        }
    }

    /// A refusal of every schedule, where one recording would do with less: of tiny planes, bands take more than they save.
    fn or_whole(&self, error: Error, recording: &Recording) -> Error {
        match error {
            Error::MemoryCeiling { needed, ceiling } if self.gpu.check_bindings(recording).is_ok() => {
                let whole = self.gpu.peak_bytes(recording).max(self.base_bytes(|base| base.least(None)).unwrap_or(u64::MAX));
                Error::MemoryCeiling { needed: needed.min(whole), ceiling }
            }
            other => other,
        }
    }

    /// Computes what tokens share and keeps it on the device.
    async fn keep_context(&self, observer: &Observer) -> Result<Option<InfgenContext>> {
        let mut rec = self.gpu.recorder();
        let Some(context) = self.context(&mut rec) else { return Ok(None) };
        let mut resident = Vec::new();
        for tensor in context.tensors() {
            let kept = self.gpu.reserve("latent context", tensor.height, tensor.width, tensor.channels, tensor.elem).await?;
            rec.place(tensor, &kept);
            resident.push(kept);
        }
        self.gpu.run(rec.finish(), observer).await?;
        let mut resident = resident.into_iter();
        Ok(Some(context.map(|_| resident.next().expect("one for each"))))
    }

    /// Runs the network; the result's rows go to `sink` from the top.
    pub async fn run(&self, observer: &Observer, sink: &mut Sink<'_>) -> Result<()> {
        let planned = self.planned().finish();
        if self.fits_whole(&planned) {
            let (of_base, observer) = &self.shares(observer);
            let base = self.make_base(of_base).await.map_err(|error| self.named(error))?;
            let result = self.gpu.run(self.whole(false, base.as_deref()).finish(), observer).await;
            let mut outputs = match result {
                Err(error @ Error::OutOfMemory { .. }) => {
                    let short = Some((self.gpu.peak_bytes(&planned), error));
                    return self.scheduled(None, short, observer, sink).await.map(|_| ());
                }
                result => result?,
            };
            let rows = match self.form {
                Form::Rgba8 => Rows::Rgba8(outputs.words(IMAGE)),
                Form::Picture => Rows::Picture(outputs.picture.expect("a recording in this form makes a picture")),
                Form::Float => {
                    let last = self.chain.planes[self.chain.last()];
                    let Range { start, end } = self.area.columns;
                    Rows::Float(columns(outputs.numbers(IMAGE), last.width * last.channels, start * last.channels..end * last.channels))
                }
            };
            return sink(0..self.area.rows.len(), rows);
        }
        self.scheduled(None, None, observer, sink).await.map(|_| ()).map_err(|error| self.or_whole(error, &planned))
    }

    /// Computes everything that regions share: all statistics and plane `keep`.
    pub async fn prepare(&self, keep: usize, observer: &Observer) -> Result<Prepared> {
        self.scheduled(Some(keep), None, observer, &mut |_, _| Ok(())).await
    }

    /// Runs a schedule within the ceiling, and where the device turns out to have less memory than that, one that needs less, as long as there
    /// is one and no row was handed out. `short`: a peak that the device could not provide, with its error.
    async fn scheduled(
        &self,
        keep: Option<usize>,
        mut short: Option<(u64, Error)>,
        observer: &Observer,
        sink: &mut Sink<'_>,
    ) -> Result<Prepared> {
        let (of_base, observer) = &self.shares(observer);
        let mut base = None;
        loop {
            let mut device = self.gpu.memory_ceiling();
            if let Some((peak, error)) = &short {
                self.gpu.trim();
                let held = self.gpu.held_bytes();
                device = Some(held + peak.saturating_sub(held) / 10 * 7);
                log::info!("{error}; trying with {}", human_bytes(device.unwrap_or(0)));
            }
            let schedule = match (self.schedule(keep, device), short.take()) {
                (Err(_), Some((_, error))) => return Err(error),
                (schedule, _) => schedule?,
            };
            // After the refusal of a schedule, which counts it.
            if base.is_none() {
                base = self.make_base(of_base).await?;
            }
            let mut begun = false;
            let attempt = async {
                // A share of the work for the context, which no plan counts.
                let context = self.keep_context(&observer.part(0.0, 0.01)).await?;
                let mut sink = |range, rows| {
                    begun = true;
                    sink(range, rows)
                };
                self.job(&self.on_device(context), base.clone()).run(&schedule, &observer.part(0.01, 0.99), &mut sink).await
            };
            match attempt.await {
                Err(error @ Error::OutOfMemory { .. }) if !begun => short = Some((schedule.peak_bytes, error)),
                result => return result,
            }
        }
    }

    /// `area` of the result, in pieces.
    pub async fn region(
        &self,
        prepared: &Prepared,
        area: &Area,
        observer: &Observer,
        sink: &mut (dyn FnMut(&Area, Rows) -> Result<()> + Send),
    ) -> Result<()> {
        let budget = self.budget(self.gpu.memory_ceiling());
        self.job(&self.on_device(None), prepared.base()).region(prepared, area, &budget, observer, sink).await
    }
}

/// The network of a base picture, and the values that it starts from.
struct Base<'a> {
    chain: Chain<'a>,
    values: Vec<f32>,
}

impl Base<'_> {
    fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        some_rows(&self.values, self.chain.planes[0].height, rows)
    }
}

/// An InfGen decoder's mask tokens behind its transformer blocks, or the features of a patch.
struct OnDevice<'a> {
    work: &'a Work<'a>,
    /// What tokens share; `None` where none are asked for any more.
    context: Mutex<Option<InfgenContext>>,
}

impl DeviceSource for OnDevice<'_> {
    fn record(&self, rec: &mut Recorder, rows: Range<usize>) -> Tensor {
        let Front::Infgen { network, tokens_a_chunk, .. } = &self.work.front else {
            return self.work.gathered(rec, rows).expect("what begins on the device is an InfGen decoder or a patch");
        };
        let context = self.context.lock().unwrap_or_else(PoisonError::into_inner);
        let context = context.as_ref().expect("tokens are asked for while their context lives");
        let plane = self.work.chain.planes[0];
        network.tokens(rec, context, (plane.height, plane.width), rows, *tokens_a_chunk)
    }

    fn release(&self) {
        *self.context.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A sink that joins the rows of a result in f32.
pub(super) fn joined(all: &mut Vec<f32>) -> impl FnMut(Range<usize>, Rows) -> Result<()> + Send {
    |_, rows| {
        match rows {
            Rows::Float(values) if all.is_empty() => *all = values,
            Rows::Float(values) => all.extend(values),
            _ => unreachable!("rows come in the form asked for"),
        }
        Ok(())
    }
}

/// Some of the `height` rows that lie in `values`.
pub(super) fn some_rows(values: &[f32], height: usize, rows: Range<usize>) -> Result<Vec<f32>> {
    let row = values.len() / height;
    Ok(values[rows.start * row..rows.end * row].to_vec())
}

/// Those `columns` of each row of `width` values.
fn columns(mut values: Vec<f32>, width: usize, columns: Range<usize>) -> Vec<f32> {
    if columns.len() < width {
        let rows = values.len() / width;
        for row in 0..rows {
            values.copy_within(row * width + columns.start..row * width + columns.end, row * columns.len());
        }
        values.truncate(rows * columns.len());
    }
    values
}
