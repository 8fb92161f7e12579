//! Running a recording: cut into submissions of about 16 ms, two in flight, with progress and cancel between them.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::task::{Context, Poll, Waker};

use web_time::Instant;

use super::context::{Buffer, Gpu, lock};
use super::convert;
use super::kernel::{HEADER_BYTES, PARAMS_STRIDE, Variant};
use super::pipelines::Pipeline;
use super::plan::{Plan, STAGING_BYTES, UNIFORM_SLOTS};
use super::recorder::{Dispatch, Recording};
use super::share::Picture;
use super::tensor::{Elem, Source, Tensor};
use crate::error::{Error, Result};

/// What activations and guard bands hold before a run with `guard_memory`: NaN in f32 and f16.
const GUARD: u8 = 0xff;

/// A piece that is predicted to take so many times what a submission should is cut again.
const OVERLONG: f64 = 1.5;

/// Uploads go to the driver in portions of this size, so that its staging memory stays small: wgpu counts the device as lost where there is
/// none left.
pub(super) const UPLOAD_PORTION: usize = 32 << 20;

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

    /// Asks the run to stop; it ends with [`Error::Cancelled`] once what is in flight is done.
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

/// What a run gives back.
#[derive(Debug, Default)]
pub struct Outputs {
    planes: Vec<(String, Plane)>,
    /// Seconds and operations per kernel, if timing was asked for.
    pub timings: Vec<Timing>,
    /// What [`super::Recorder::picture`] marked: a texture, never read back.
    pub picture: Option<Picture>,
}

/// One result on the host.
#[derive(Debug)]
pub enum Plane {
    /// `[height, width, channels]`, row-major, pad channels dropped.
    Numbers(Vec<f32>),
    /// Raw words.
    Words(Vec<u32>),
    /// Units as stored on the device.
    Units(Vec<u8>),
}

impl Outputs {
    /// Takes the numbers recorded under `name`.
    ///
    /// # Panics
    /// If the recording has no such output: an engine bug.
    pub fn numbers(&mut self, name: &str) -> Vec<f32> {
        match self.take(name) {
            Plane::Numbers(values) => values,
            _ => panic!("output `{name}` holds no numbers"),
        }
    }

    /// Takes the words recorded under `name`.
    ///
    /// # Panics
    /// If the recording has no such output: an engine bug.
    pub fn words(&mut self, name: &str) -> Vec<u32> {
        match self.take(name) {
            Plane::Words(values) => values,
            _ => panic!("output `{name}` holds no words"),
        }
    }

    /// Takes the units recorded under `name` by [`super::Recorder::output_units`].
    ///
    /// # Panics
    /// If the recording has no such output: an engine bug.
    pub fn units(&mut self, name: &str) -> Vec<u8> {
        match self.take(name) {
            Plane::Units(bytes) => bytes,
            _ => panic!("output `{name}` holds no units"),
        }
    }

    /// Names of the outputs that were not taken yet.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.planes.iter().map(|(name, _)| name.as_str())
    }

    fn take(&mut self, name: &str) -> Plane {
        let index = self.planes.iter().position(|(n, _)| n == name).unwrap_or_else(|| panic!("no output `{name}`"));
        self.planes.swap_remove(index).1
    }
}

/// GPU time of one dispatch of the recording.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Timing {
    /// Kernel name.
    pub kernel: &'static str,
    /// Layer.
    pub layer: String,
    /// Seconds on the GPU.
    pub seconds: f64,
    /// Operations, see [`Dispatch::flops`].
    pub flops: u64,
    /// Bytes moved at least.
    pub bytes: u64,
}

/// A piece of a dispatch that takes longer is cut however few workgroups it has: watchdogs end what takes seconds.
const TOO_LONG: f64 = 0.3;

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
        let width = match kind {
            "discrete" => 256.0,
            "software" => 1.0,
            _ => 64.0,
        };
        Pace { start: 1.0 / work_a_second, seconds_a_work: HashMap::new(), width, narrowed: HashMap::new() }
    }

    /// Largest share of a piece's workgroups to run at once so that it takes `target` seconds; never fewer than fill the device.
    fn share(&self, pipeline: usize, work: f64, groups: f64, target: f64) -> f64 {
        let least = self.narrowed.get(&pipeline).map_or(self.width, |narrowed| narrowed.groups);
        // Halves of what has fewer than twice as many would be less than that.
        (target / self.predict(pipeline, work).max(1e-9)).max((2.0 * least - 1.0) / groups)
    }

    /// A piece of so many workgroups had the device for itself for so long.
    fn took(&mut self, pipeline: usize, groups: f64, seconds: f64) {
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

    fn predict(&self, pipeline: usize, work: f64) -> f64 {
        work * self.seconds_a_work.get(&pipeline).map_or(self.start, |&(pace, _)| pace)
    }

    /// Scales the pace of everything in a submission by measured over predicted. The first time that a pipeline
    /// runs is not counted: drivers compile then.
    fn learn(&mut self, parts: &[(usize, f64)], predicted: f64, measured: f64) {
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
struct Piece {
    lo: [u32; 3],
    hi: [u32; 3],
}

impl Piece {
    fn groups(&self) -> f64 {
        (0..3).map(|a| (self.hi[a] - self.lo[a]) as f64).product()
    }
}

/// Limits that a piece must keep.
struct Limits {
    max_groups: u32,
    max_binding: u64,
    offset_alignment: u64,
    /// Largest share of the dispatch's workgroups.
    max_share: f64,
}

/// Cuts the grid of `dispatch` until each piece keeps `limits`. The cuts do not change results: a workgroup
/// computes the same whatever box it is in.
fn cut(dispatch: &Dispatch, limits: &Limits) -> Result<Vec<Piece>> {
    cut_piece(dispatch, Piece { lo: [0; 3], hi: dispatch.grid }, limits)
}

/// [`cut`] for a part of the grid; the share is of the part.
fn cut_piece(dispatch: &Dispatch, part: Piece, limits: &Limits) -> Result<Vec<Piece>> {
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
    started: Instant,
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
