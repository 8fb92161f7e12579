//! Running a recording: cut into submissions of about 16 ms, two in flight, with progress and cancel between them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use web_time::Instant;

use super::context::{Buffer, Gpu, lock};
use super::convert;
use super::kernel::{HEADER_BYTES, PARAMS_STRIDE, Variant};
use super::loss::Done;
use super::observer::{Observer, Progress};
use super::outputs::{Outputs, Plane, Timing};
use super::pace::{Limits, Piece, cut, cut_piece};
use super::pipelines::Pipeline;
use super::plan::{Plan, STAGING_BYTES, UNIFORM_SLOTS};
use super::recorder::{Dispatch, Recording};
use super::tensor::{Elem, Source, Tensor};
use crate::error::{Error, Result};

/// What activations and guard bands hold before a run with `guard_memory`: NaN in f32 and f16.
const GUARD: u8 = 0xff;

/// A piece that is predicted to take so many times what a submission should is cut again.
const OVERLONG: f64 = 1.5;

/// Uploads go to the driver in portions of this size, so that its staging memory stays small: wgpu counts the device as lost where there is
/// none left.
pub(super) const UPLOAD_PORTION: usize = 32 << 20;

/// A submission that the GPU is working on.
struct Flight {
    done: Done,
    predicted: f64,
    parts: Vec<(usize, f64)>,
    /// Pipeline and workgroups of its only piece.
    alone: Option<(usize, f64)>,
    work: f64,
    layer: String,
}

/// Submissions on their way, the work of those that ended and of all, and when the last one ended.
struct Flights {
    flying: VecDeque<Flight>,
    finished: f64,
    total: f64,
    last_done: Instant,
}

impl Gpu {
    /// Bytes that running `recording` will need at its peak, resident buffers of this device included:
    /// exactly what [`Gpu::memory`] will show, and the smallest ceiling with which it runs.
    pub fn peak_bytes(&self, recording: &Recording) -> u64 {
        self.memory().current - self.idle_bytes() + Plan::new(recording, self.guard).bytes() + recording.picture_bytes()
    }

    /// What the buffers of `recording` take while it runs, besides resident ones.
    pub fn plan_bytes(&self, recording: &Recording) -> u64 {
        Plan::new(recording, self.guard).bytes() + recording.picture_bytes()
    }

    /// Whether the device can have every buffer and binding that `recording` needs.
    ///
    /// # Errors
    /// [`Error::BufferTooLarge`].
    pub fn check_bindings(&self, recording: &Recording) -> Result<()> {
        let plan = Plan::new(recording, self.guard);
        if let Some(&bytes) = plan.slots.iter().find(|&&bytes| bytes > self.profile().max_buffer) {
            return Err(Error::BufferTooLarge { op: "activations".into(), bytes, limit: self.profile().max_buffer });
        }
        recording.nodes.iter().try_for_each(|node| cut(&node.dispatch, &self.limits(1.0)).map(|_| ()))
    }

    /// Runs `recording` and reads its outputs back.
    ///
    /// # Errors
    /// Before anything is dispatched: [`Error::MemoryCeiling`], [`Error::BufferTooLarge`]. Later:
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`], [`Error::Gpu`], [`Error::NonFinite`] with the first layer
    /// whose values left their range, [`Error::Cancelled`].
    pub async fn run(&self, recording: Recording, observer: &Observer) -> Result<Outputs> {
        self.run_with(recording, observer, false).await
    }

    /// [`Gpu::run`], with the GPU time of each dispatch measured by timestamps (each in a pass of its own, so the
    /// whole is slower). Without timestamps on the device, `timings` stays empty.
    pub async fn run_timed(&self, recording: Recording, observer: &Observer) -> Result<Outputs> {
        self.run_with(recording, observer, self.timestamps).await
    }

    async fn run_with(&self, mut recording: Recording, observer: &Observer, timed: bool) -> Result<Outputs> {
        if let Some(failure) = recording.failure.take() {
            return Err(failure);
        }
        self.check("starting")?;
        let plan = Plan::new(&recording, self.guard);
        let needed = self.memory().current - self.idle_bytes() + plan.bytes() + recording.picture_bytes();
        if let Some(ceiling) = self.memory_ceiling().filter(|&ceiling| needed > ceiling) {
            return Err(Error::MemoryCeiling { needed, ceiling });
        }
        self.check_bindings(&recording)?;
        if observer.is_cancelled() {
            return Err(Error::Cancelled);
        }

        use wgpu::BufferUsages as Usage;
        let mut wanted: Vec<_> = plan.slots.iter().map(|&bytes| (bytes, Usage::STORAGE | Usage::COPY_SRC | Usage::COPY_DST)).collect();
        if plan.uniforms > 0 {
            wanted.push((plan.uniforms, Usage::UNIFORM | Usage::COPY_DST));
        }
        if plan.staging > 0 {
            wanted.push((plan.staging, Usage::MAP_READ | Usage::COPY_DST));
        }
        let buffers = self.take(&wanted).await?;
        let run = Run { gpu: self, recording: &recording, plan: &plan, buffers: &buffers, observer };
        let result = run.all(timed).await;
        match &result {
            Err(Error::DeviceLost { .. } | Error::Gpu { .. }) => {}
            _ => self.give(buffers),
        }
        result
    }

    /// Waits until everything handed to the queue so far is done.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Gpu`].
    pub async fn flush(&self) -> Result<()> {
        self.submit([]).await;
        self.check("uploading")
    }

    /// The first `size` bytes of a mappable buffer.
    pub(crate) async fn map(&self, buffer: &wgpu::Buffer, size: u64) -> Result<Vec<u8>> {
        let done = self.lost.done();
        let failed = Arc::new(AtomicBool::new(false));
        let (signal, failure) = (done.clone(), failed.clone());
        buffer.slice(..size).map_async(wgpu::MapMode::Read, move |result| {
            failure.store(result.is_err(), Ordering::Relaxed);
            signal.set();
        });
        self.poke();
        done.await;
        self.check("reading results back")?;
        let range = buffer.slice(..size).get_mapped_range();
        let bytes = match range {
            Ok(view) if !failed.load(Ordering::Relaxed) => view.to_vec(),
            _ => return Err(Error::Gpu { during: "reading results back".into(), detail: "the buffer could not be mapped".into() }),
        };
        buffer.unmap();
        Ok(bytes)
    }

    fn limits(&self, max_share: f64) -> Limits {
        let (max_binding, max_groups) = lock(&self.cuts).unwrap_or((u64::MAX, u32::MAX));
        Limits {
            max_groups: self.max_workgroups.min(max_groups),
            max_binding: self.profile().max_binding.min(max_binding),
            offset_alignment: self.profile().offset_alignment,
            max_share,
        }
    }
}

/// One run in progress.
struct Run<'a> {
    gpu: &'a Gpu,
    recording: &'a Recording,
    plan: &'a Plan,
    /// Slots, then uniforms, then staging.
    buffers: &'a [Arc<Buffer>],
    observer: &'a Observer,
}

impl Run<'_> {
    /// Where a tensor lives: its buffer, the bytes of the guard band before it, and its first unit behind that.
    fn home<'t>(&'t self, tensor: &'t Tensor) -> (&'t wgpu::Buffer, u64, u64) {
        match &tensor.source {
            Source::Resident(buffer) => (&buffer.raw, 0, tensor.first),
            Source::Virtual(id) => match &self.recording.tensors[*id as usize].placed {
                Some(resident) => {
                    let (buffer, guard, first) = self.home(resident);
                    (buffer, guard, first + tensor.first)
                }
                None => {
                    let slot = self.plan.slot_of[*id as usize].expect("every tensor that is used has a slot");
                    (&self.buffers[slot].raw, self.gpu.guard, tensor.first)
                }
            },
            Source::Outside => panic!("a recording that was only to be planned is run"),
        }
    }

    /// Byte of its buffer at which a tensor starts.
    fn start_of(&self, tensor: &Tensor) -> u64 {
        let (_, guard, first) = self.home(tensor);
        guard + first * tensor.elem.bytes()
    }

    async fn all(&self, timed: bool) -> Result<Outputs> {
        if self.gpu.guard > 0 {
            for slot in &self.buffers[..self.plan.slots.len()] {
                self.gpu.queue.write_buffer(&slot.raw, 0, &vec![GUARD; slot.bytes as usize]);
            }
        }
        let mut pending = 0;
        for (tensor, bytes) in &self.recording.uploads {
            assert_eq!(bytes.len() as u64, tensor.bytes(), "a recording that was only to be planned is run");
            let start = self.start_of(tensor);
            for (i, portion) in bytes.chunks(UPLOAD_PORTION).enumerate() {
                self.gpu.queue.write_buffer(self.home(tensor).0, start + (i * UPLOAD_PORTION) as u64, portion);
                pending += portion.len();
                if pending > UPLOAD_PORTION {
                    pending = 0;
                    self.gpu.flush().await?;
                }
            }
        }
        #[cfg(not(target_arch = "wasm32"))]
        let _ahead = {
            let wanted = self.recording.nodes.iter().map(|node| (node.dispatch.kernel, self.variant(&node.dispatch)));
            super::pipelines::Ahead::start(&self.gpu.pipelines, wanted.collect())
        };
        let mut outputs = Outputs::default();
        if timed {
            outputs.timings = self.timed().await?;
        } else {
            self.submit_all().await?;
        }
        if self.gpu.guard > 0 {
            self.check_guards().await?;
        }
        self.read_health().await?;
        if let Some((words, width)) = &self.recording.picture {
            let picture = self.gpu.picture(*width, words.height).await?;
            self.gpu.copy_to_picture(self.home(words).0, self.start_of(words), words, &picture);
            outputs.picture = Some(picture);
        }
        for (name, tensor) in &self.recording.outputs {
            if self.observer.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let plane = self.read(tensor, false).await?;
            outputs.planes.push((name.clone(), plane));
        }
        for (name, tensor) in &self.recording.raw_outputs {
            if self.observer.is_cancelled() {
                return Err(Error::Cancelled);
            }
            outputs.planes.push((name.clone(), self.read(tensor, true).await?));
        }
        Ok(outputs)
    }

    async fn submit_all(&self) -> Result<()> {
        let target = self.gpu.submission_time().as_secs_f64();
        let mut flights =
            Flights { flying: VecDeque::new(), finished: 0.0, total: self.recording.work().max(1.0), last_done: Instant::now() };
        let mut batch = Batch::new(self);
        let mut waiting = "";
        for node in &self.recording.nodes {
            let dispatch = &node.dispatch;
            let layer = if node.scope.is_empty() { dispatch.kernel.name } else { &node.scope };
            let pipeline = self.pipeline(dispatch);
            let work = dispatch.work();
            let share = lock(&self.gpu.pace).share(pipeline.id, work, dispatch.groups(), target);
            let mut pieces = VecDeque::from(cut(dispatch, &self.gpu.limits(share))?);
            let groups: f64 = pieces.iter().map(Piece::groups).sum();
            while let Some(piece) = pieces.pop_front() {
                let part = work * piece.groups() / groups;
                let predicted = lock(&self.gpu.pace).predict(pipeline.id, part);
                if predicted > OVERLONG * target && piece.groups() > 1.0 {
                    // What was learnt since the dispatch was cut, for instance from its first pieces.
                    let share = lock(&self.gpu.pace).share(pipeline.id, part, piece.groups(), target);
                    let again = cut_piece(dispatch, piece.clone(), &self.gpu.limits(share))?;
                    if again.len() > 1 {
                        again.into_iter().rev().for_each(|piece| pieces.push_front(piece));
                        continue;
                    }
                }
                if batch.pieces > 0 && (batch.pieces == UNIFORM_SLOTS || batch.predicted + predicted > 1.2 * target) {
                    self.depart(&mut flights, std::mem::replace(&mut batch, Batch::new(self)), waiting).await?;
                }
                batch.add(dispatch, &pipeline, &piece, part, predicted);
                waiting = layer;
            }
        }
        if batch.pieces > 0 {
            self.depart(&mut flights, batch, waiting).await?;
        }
        self.arrive(&mut flights, 0).await
    }

    /// Submits `batch`, whose last layer is `layer`, behind at most one other.
    async fn depart(&self, flights: &mut Flights, batch: Batch<'_>, layer: &str) -> Result<()> {
        if !self.observer.is_cancelled() {
            flights.flying.push_back(batch.submit(layer.to_owned()));
            self.arrive(flights, 1).await?;
        }
        if self.observer.is_cancelled() {
            self.arrive(flights, 0).await?;
            return Err(Error::Cancelled);
        }
        Ok(())
    }

    /// Waits until at most `left` submissions are on their way.
    async fn arrive(&self, flights: &mut Flights, left: usize) -> Result<()> {
        while flights.flying.len() > left {
            let flight = flights.flying.pop_front().expect("not empty");
            let layer = flight.layer.clone();
            flights.finished += self.land(flight, &mut flights.last_done).await?;
            if !self.observer.is_cancelled() {
                let done = (flights.finished / flights.total).min(1.0);
                self.observer.report(Progress { done, layer: &layer });
            }
        }
        Ok(())
    }

    /// Waits for a submission, learns from how long it took, and returns its work.
    async fn land(&self, flight: Flight, last_done: &mut Instant) -> Result<f64> {
        let Flight { done, predicted, parts, alone, work, layer } = flight;
        let submitted = done.started;
        let at = done.await;
        self.gpu.check(&layer)?;
        let began = submitted.max(*last_done);
        let took = at.saturating_duration_since(began);
        if took > 4 * self.gpu.submission_time() {
            log::debug!(
                "a submission of {layer} took {:.0} ms, {:.0} predicted, {} pipelines",
                took.as_secs_f64() * 1e3,
                predicted * 1e3,
                parts.len()
            );
        }
        let mut pace = lock(&self.gpu.pace);
        pace.learn(&parts, predicted, took.as_secs_f64());
        if let Some((pipeline, groups)) = alone {
            pace.took(pipeline, groups, took.as_secs_f64());
        }
        *last_done = at;
        Ok(work)
    }

    fn variant(&self, dispatch: &Dispatch) -> Variant {
        let elems = dispatch.bindings.iter().map(|binding| binding.tensor.elem);
        self.gpu.variant(dispatch.kernel, elems, &dispatch.consts)
    }

    fn pipeline(&self, dispatch: &Dispatch) -> Arc<Pipeline> {
        self.gpu.pipelines.get(dispatch.kernel, self.variant(dispatch))
    }

    /// Runs each dispatch in a pass of its own between two timestamps.
    async fn timed(&self) -> Result<Vec<Timing>> {
        let device = &self.gpu.device;
        let query = device.create_query_set(&wgpu::QuerySetDescriptor { label: Some("timing"), ty: wgpu::QueryType::Timestamp, count: 2 });
        let resolved = self.gpu.buffer("timestamps", 256, wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC).await?;
        let staging = self.gpu.buffer("timestamps", 256, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST).await?;
        let period = self.gpu.queue.get_timestamp_period() as f64 * 1e-9;
        let mut timings = Vec::new();
        for node in &self.recording.nodes {
            let dispatch = &node.dispatch;
            let pipeline = self.pipeline(dispatch);
            let mut seconds = 0.0;
            let target = self.gpu.submission_time().as_secs_f64();
            let share = lock(&self.gpu.pace).share(pipeline.id, dispatch.work(), dispatch.groups(), target);
            for piece in cut(dispatch, &self.gpu.limits(share))? {
                let mut batch = Batch::new(self);
                batch.add(dispatch, &pipeline, &piece, 0.0, 0.0);
                batch.timing = Some((query.clone(), resolved.raw.clone(), staging.raw.clone()));
                let flight = batch.submit(node.scope.clone());
                flight.done.await;
                let bytes = self.gpu.map(&staging.raw, 16).await?;
                let stamp = |i: usize| u64::from_le_bytes(bytes[8 * i..8 * i + 8].try_into().expect("8 bytes"));
                seconds += stamp(1).saturating_sub(stamp(0)) as f64 * period;
                if self.observer.is_cancelled() {
                    return Err(Error::Cancelled);
                }
            }
            timings.push(Timing {
                kernel: dispatch.kernel.name,
                layer: node.scope.clone(),
                seconds,
                flops: dispatch.flops,
                bytes: dispatch.bytes(),
            });
        }
        Ok(timings)
    }

    async fn check_guards(&self) -> Result<()> {
        let (guard, staging) = (self.gpu.guard, &self.buffers.last().expect("guards need staging").raw);
        for (slot, buffer) in self.buffers[..self.plan.slots.len()].iter().enumerate() {
            // The band starts right behind the slot's largest tensor; rounding up the buffer leaves slack behind it.
            let tensors = self.recording.tensors.iter().zip(&self.plan.slot_of).filter(|(_, of)| **of == Some(slot));
            let largest = tensors.map(|(tensor, _)| tensor.bytes).max().unwrap_or(0);
            for offset in [0, guard + largest] {
                let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
                encoder.copy_buffer_to_buffer(&buffer.raw, offset, staging, 0, guard);
                self.gpu.submit([encoder.finish()]);
                if self.gpu.map(staging, guard).await?.iter().any(|&byte| byte != GUARD) {
                    let detail = format!("a kernel wrote outside a tensor: guard band at byte {offset} of slot {slot}");
                    return Err(Error::Gpu { during: "checking guard bands".into(), detail });
                }
            }
        }
        Ok(())
    }

    async fn read_health(&self) -> Result<()> {
        let Some(health) = &self.recording.health else { return Ok(()) };
        let Plane::Words(counts) = self.read(health, false).await? else { unreachable!("health is words") };
        match self.recording.watched.iter().zip(&counts).find(|&(_, &count)| count > 0) {
            Some((layer, _)) => Err(Error::NonFinite { layer: layer.clone(), hint: "" }),
            None => Ok(()),
        }
    }

    /// Copies `tensor` to the host, in pieces of the staging buffer's size.
    async fn read(&self, tensor: &Tensor, raw: bool) -> Result<Plane> {
        let staging = &self.buffers.last().expect("a recording with outputs has a staging buffer").raw;
        let source = self.home(tensor).0;
        let start = self.start_of(tensor);
        let pixel = tensor.bytes() / tensor.pixels().max(1) as u64;
        let step = if tensor.elem == Elem::Word { STAGING_BYTES } else { STAGING_BYTES / pixel * pixel };
        let mut numbers = Vec::new();
        let mut words = Vec::new();
        let mut units = Vec::with_capacity(if raw { tensor.bytes() as usize } else { 0 });
        let mut offset = 0;
        while offset < tensor.bytes() {
            let size = step.min(tensor.bytes() - offset);
            let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(source, start + offset, staging, 0, size);
            self.gpu.submit([encoder.finish()]);
            let bytes = self.gpu.map(staging, size).await?;
            match tensor.elem {
                _ if raw => units.extend_from_slice(&bytes),
                Elem::Word => words.extend(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
                elem => numbers.extend(convert::from_units(&bytes, tensor.channels, elem)),
            }
            offset += size;
        }
        Ok(match tensor.elem {
            _ if raw => Plane::Units(units),
            Elem::Word => Plane::Words(words),
            _ => Plane::Numbers(numbers),
        })
    }
}

/// Pieces that go into one submission.
struct Batch<'a> {
    run: &'a Run<'a>,
    params: Vec<u8>,
    calls: Vec<(Arc<Pipeline>, wgpu::BindGroup, [u32; 3])>,
    pieces: usize,
    work: f64,
    predicted: f64,
    parts: Vec<(usize, f64)>,
    timing: Option<(wgpu::QuerySet, wgpu::Buffer, wgpu::Buffer)>,
}

impl<'a> Batch<'a> {
    fn new(run: &'a Run<'a>) -> Batch<'a> {
        Batch { run, params: Vec::new(), calls: Vec::new(), pieces: 0, work: 0.0, predicted: 0.0, parts: Vec::new(), timing: None }
    }

    fn uniforms(&self) -> &'a Buffer {
        &self.run.buffers[self.run.plan.slots.len()]
    }

    fn add(&mut self, dispatch: &Dispatch, pipeline: &Arc<Pipeline>, piece: &Piece, work: f64, predicted: f64) {
        let mut header = [0u32; HEADER_BYTES / 4];
        header[..3].copy_from_slice(&piece.lo);
        let alignment = self.run.gpu.profile().offset_alignment;
        let mut entries = vec![wgpu::BindGroupEntry {
            binding: 0,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: &self.uniforms().raw,
                offset: 0,
                size: std::num::NonZeroU64::new(PARAMS_STRIDE as u64),
            }),
        }];
        for (i, binding) in dispatch.bindings.iter().enumerate() {
            let tensor = &binding.tensor;
            let unit = tensor.elem.bytes();
            let range = binding.footprint.range(piece.lo, piece.hi, tensor.units());
            let (buffer, guard, first) = self.run.home(tensor);
            let offset = (first + range.start) * unit / alignment * alignment;
            let end = guard + (first + range.end.max(range.start + 1)) * unit + guard;
            // Indices inside the kernel count from the first unit of the view; wrapping arithmetic is intended.
            header[4 + i] = (offset / unit).wrapping_sub(first + guard / unit) as u32;
            entries.push(wgpu::BindGroupEntry {
                binding: i as u32 + 1,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer,
                    offset,
                    size: std::num::NonZeroU64::new((end - offset).next_multiple_of(4)),
                }),
            });
        }
        let group = self.run.gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(dispatch.kernel.name),
            layout: &pipeline.layout,
            entries: &entries,
        });
        self.params.extend_from_slice(bytemuck::bytes_of(&header));
        self.params.extend_from_slice(bytemuck::cast_slice(&dispatch.params));
        self.pieces += 1;
        self.params.resize(self.pieces * PARAMS_STRIDE, 0);
        self.calls.push((pipeline.clone(), group, std::array::from_fn(|a| piece.hi[a] - piece.lo[a])));
        self.work += work;
        self.predicted += predicted;
        match self.parts.last_mut() {
            Some((id, sum)) if *id == pipeline.id => *sum += work,
            _ => self.parts.push((pipeline.id, work)),
        }
    }

    fn submit(self, layer: String) -> Flight {
        let gpu = self.run.gpu;
        gpu.queue.write_buffer(&self.uniforms().raw, 0, &self.params);
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        let timestamp_writes = self.timing.as_ref().map(|(query_set, _, _)| wgpu::ComputePassTimestampWrites {
            query_set,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        });
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
        for (i, (pipeline, group, size)) in self.calls.iter().enumerate() {
            pass.set_pipeline(&pipeline.raw);
            pass.set_bind_group(0, group, &[(i * PARAMS_STRIDE) as u32]);
            pass.dispatch_workgroups(size[0], size[1], size[2]);
        }
        drop(pass);
        if let Some((query_set, resolved, staging)) = &self.timing {
            encoder.resolve_query_set(query_set, 0..2, resolved, 0);
            encoder.copy_buffer_to_buffer(resolved, 0, staging, 0, 16);
        }
        let done = gpu.submit([encoder.finish()]);
        let alone = match (&self.calls[..], self.parts.last()) {
            ([(_, _, size)], Some(&(id, _))) => Some((id, size.iter().map(|&groups| f64::from(groups)).product())),
            _ => None,
        };
        Flight { done, predicted: self.predicted, parts: self.parts, alone, work: self.work, layer }
    }
}
