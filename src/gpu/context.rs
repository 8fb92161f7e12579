//! The device: created once, shared by everything that runs on it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::adapter::{self, AdapterFacts};
#[cfg(not(target_arch = "wasm32"))]
use super::cache::PipelineStore;
use super::execute::UPLOAD_PORTION;
use super::gate::Gate;
use super::kernel::{Bind, Kernel, Storage, Variant};
use super::loss::{Done, Loss};
use super::pace::Pace;
use super::pipelines::Pipelines;
use super::plan::align;
use super::recorder::{DeviceProfile, KernelFamily, KernelPlan, Recorder};
use super::share::Handles;
use super::tensor::{Elem, Source, Tensor};
use crate::error::{Error, Result};

/// Guard band in bytes, a multiple of every binding alignment.
const GUARD_BYTES: u64 = 256;

/// Default of [`Gpu::submission_time`]: a cancel waits for two of them.
const SUBMISSION: Duration = Duration::from_millis(16);

/// How to open a device.
#[derive(Debug, Clone, Default)]
pub struct GpuOptions {
    /// Index, a part of a name, or a backend; none: the best adapter.
    pub device: Option<String>,
    /// Ceiling on GPU memory in bytes, counted over every buffer of this device.
    pub memory_ceiling: Option<u64>,
    /// Ask for WebGPU's default limits and no optional feature but timestamps, as a browser would grant.
    pub default_limits: bool,
    /// Do not use `shader-f16` even where it is there: f16 is packed in u32 instead.
    pub packed_f16: bool,
    /// For tests: use `shader-f16` on a software device too, where packing is faster.
    #[doc(hidden)]
    pub native_f16: bool,
    /// Keep compiled pipelines in the user's cache folder, where backend and driver allow it (Vulkan).
    pub pipeline_cache: bool,
    /// Where that is, and what else is remembered; none: the user's cache folder.
    pub cache_folder: Option<PathBuf>,
    /// For tests: activations start as NaN, and every tensor gets a guard band on both sides, inside the bindings, whose
    /// change makes the run fail.
    pub guard_memory: bool,
    /// For tests: kernels of this family whatever the device.
    #[doc(hidden)]
    pub kernels: Option<KernelFamily>,
    /// For planning only: kernels and limits of a discrete GPU whose bindings and buffers may have 4 GiB less 4 bytes. What is planned
    /// then cannot be run here.
    #[doc(hidden)]
    pub as_discrete: bool,
    /// For measuring only: kernels with or without naga's checks of indices, instead of with them everywhere but on Vulkan and DX12.
    #[doc(hidden)]
    pub bounds_checks: Option<bool>,
}

/// Largest binding that drivers of discrete GPUs offer. (wgpu 30 lets bindings have 2 GiB less a byte on Vulkan and DX12, and buffers on Linux
/// other than NVIDIA's: 4 GiB are for Metal.)
const LARGE: u64 = u32::MAX as u64 - 3;

/// Bytes held now and at most so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUse {
    /// Bytes in all live buffers of this device.
    pub current: u64,
    /// Largest value of `current` since the device was opened or [`Gpu::reset_peak`].
    pub peak: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<MemoryUse>);

impl Ledger {
    pub(crate) fn add(&self, bytes: u64) {
        let mut memory = lock(&self.0);
        memory.current += bytes;
        memory.peak = memory.peak.max(memory.current);
    }

    pub(crate) fn remove(&self, bytes: u64) {
        lock(&self.0).current -= bytes;
    }
}

/// A device buffer, counted from creation to drop.
#[derive(Debug)]
pub struct Buffer {
    pub(crate) raw: wgpu::Buffer,
    pub(crate) bytes: u64,
    ledger: Arc<Ledger>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // Frees the memory as soon as the GPU is done with it, not when wgpu's last handle goes.
        self.raw.destroy();
        self.ledger.remove(self.bytes);
    }
}

/// Locks, also after a panic elsewhere: all guarded state stays valid between statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// An open device with its pipelines and buffers.
pub struct Gpu {
    #[cfg(not(target_arch = "wasm32"))]
    cache_folder: Option<PathBuf>,
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) handles: Handles,
    facts: AdapterFacts,
    profile: DeviceProfile,
    pub(crate) timestamps: bool,
    ceiling: Mutex<Option<u64>>,
    /// Bytes of the guard bands around each activation tensor; 0 outside tests.
    pub(crate) guard: u64,
    ledger: Arc<Ledger>,
    pub(crate) pipelines: Arc<Pipelines>,
    /// Buffers of the last run, kept for the next.
    idle: Mutex<Vec<Arc<Buffer>>>,
    pub(crate) pace: Mutex<Pace>,
    submission_nanos: AtomicU64,
    /// First error that no scope caught.
    failure: Arc<Mutex<Option<String>>>,
    /// Who submits next.
    pub(super) gate: Gate,
    pub(super) lost: Arc<Loss>,
    pub(crate) max_workgroups: u32,
    /// Limits on bytes a binding and workgroups a dispatch that tests set, see [`Gpu::force_cuts`].
    pub(crate) cuts: Mutex<Option<(u64, u32)>>,
    /// What the device is said to have, see [`Gpu::force_memory`].
    memory_limit: AtomicU64,
    poller: Poller,
}

/// Drives callbacks while the host does something else. The browser has an event loop for that.
struct Poller {
    #[cfg(not(target_arch = "wasm32"))]
    wake: Option<std::sync::mpsc::Sender<()>>,
    #[cfg(not(target_arch = "wasm32"))]
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Poller {
    #[cfg(not(target_arch = "wasm32"))]
    fn start(device: &wgpu::Device, lost: &Arc<Loss>) -> Poller {
        let (wake, woken) = std::sync::mpsc::channel();
        let (device, lost) = (device.clone(), lost.clone());
        let thread = std::thread::spawn(move || {
            while woken.recv().is_ok() && lost.reason().is_none() {
                let _ = poll(&device, &lost, wgpu::PollType::wait_indefinitely());
            }
        });
        Poller { wake: Some(wake), thread: Some(thread) }
    }

    #[cfg(target_arch = "wasm32")]
    fn start(_: &wgpu::Device, _: &Arc<Loss>) -> Poller {
        Poller {}
    }

    fn poke(&self) {
        #[cfg(not(target_arch = "wasm32"))]
        if let Some(wake) = &self.wake {
            let _ = wake.send(());
        }
    }
}

/// `device.poll`. wgpu 30 panics there when a driver reports that the device is gone.
#[cfg(not(target_arch = "wasm32"))]
pub(super) fn poll(device: &wgpu::Device, lost: &Loss, kind: wgpu::PollType) -> std::result::Result<(), wgpu::PollError> {
    // Nothing of ours is half changed by a panic inside: the device is not used again.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| device.poll(kind))) {
        Ok(result) => result.map(|_| ()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
            lost.set(text.unwrap_or("waiting for it failed").to_owned());
            Ok(())
        }
    }
}

/// Waits for the thread, so that the device is not torn down behind the back of a program that ends: drivers crash then.
#[cfg(not(target_arch = "wasm32"))]
impl Drop for Poller {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("facts", &self.facts).field("profile", &self.profile).finish_non_exhaustive()
    }
}

impl Gpu {
    /// Opens a device.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] when there is none, when `options.device` names none, or when the driver refuses.
    pub async fn new(options: &GpuOptions) -> Result<Gpu> {
        Gpu::open(options, adapter::instance(), None).await
    }

    /// What adapters and surfaces come from.
    pub fn instance() -> wgpu::Instance {
        adapter::instance()
    }

    /// Opens a device that can present on `surface`, a surface of `instance`.
    ///
    /// # Errors
    /// As [`Gpu::new`]; adapters that cannot present on it do not count.
    pub async fn for_surface(options: &GpuOptions, instance: wgpu::Instance, surface: &wgpu::Surface<'_>) -> Result<Gpu> {
        Gpu::open(options, instance, Some(surface)).await
    }

    async fn open(options: &GpuOptions, instance: wgpu::Instance, surface: Option<&wgpu::Surface<'_>>) -> Result<Gpu> {
        let (facts, adapter) = adapter::choose(&instance, options.device.as_deref(), surface).await?;
        let offered = adapter.features();
        let mut features = wgpu::Features::TIMESTAMP_QUERY & offered;
        if options.pipeline_cache {
            features |= wgpu::Features::PIPELINE_CACHE & offered;
        }
        let mut limits = wgpu::Limits::default();
        if !options.default_limits {
            limits = adapter.limits();
            if !options.packed_f16 && (facts.kind != "software" || options.native_f16) {
                features |= wgpu::Features::SHADER_F16 & offered;
            }
        }
        let software = facts.kind == "software";
        // Browsers want `enable subgroups;`, which naga does not know.
        let broadcast = software && !options.default_limits && facts.subgroups == (8, 8) && !cfg!(target_arch = "wasm32");
        if broadcast {
            features |= wgpu::Features::SUBGROUP;
        }
        let matrix = adapter::matrix_units(&adapter).filter(|_| features.contains(wgpu::Features::SHADER_F16));
        let mut experimental = wgpu::ExperimentalFeatures::disabled();
        if matrix.is_some() {
            features |= wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
            // SAFETY: an experimental feature may have bugs that lead to undefined behaviour where it is used. This one is used by the
            // `*_matrix` kernels alone, constants of this crate that load from and store to workgroup memory only, inside its bounds,
            // in control flow that is uniform; they run where `engine::tune` found that their results agree with other kernels', or where a
            // test or benchmark asks for them by name. Formally naga 30 does not make their workgroup memory visible across its barriers under
            // Vulkan's memory model (gfx-rs/wgpu#8805); drivers do, and the comparison of results is what is relied on.
            experimental = unsafe { wgpu::ExperimentalFeatures::enabled() };
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("infgen"),
            required_features: features,
            required_limits: limits.clone(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            experimental_features: experimental,
            ..Default::default()
        };
        let (device, queue) = match adapter.request_device(&descriptor).await {
            Ok(opened) => opened,
            Err(error) => return Err(adapter::refusal(&adapter::adapters().await, facts.index, &error.to_string())),
        };

        let failure = Arc::new(Mutex::new(None));
        let lost = Arc::new(Loss::default());
        let (first, reason) = (failure.clone(), lost.clone());
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            log::error!("{error}");
            lock(&first).get_or_insert_with(|| error.to_string());
        }));
        device.set_device_lost_callback(move |kind, message| {
            reason.set(if message.is_empty() { format!("{kind:?}") } else { message });
        });

        let profile = DeviceProfile {
            software,
            kernels: options.kernels.map_or(KernelPlan::fixed(software, broadcast, facts.has_few_registers()), KernelPlan::uniform),
            native_f16: features.contains(wgpu::Features::SHADER_F16),
            matrix,
            broadcast,
            max_binding: limits.max_storage_buffer_binding_size,
            max_buffer: limits.max_buffer_size,
            // Kernels for GPUs that are asked for on software split their work as on one.
            fill: match options.kernels {
                Some(family) if software && !family.is_plain() => super::pace::fill("discrete"),
                _ => super::pace::fill(&facts.kind),
            },
            max_workgroup_storage: limits.max_compute_workgroup_storage_size,
            max_invocations: limits.max_compute_invocations_per_workgroup,
            offset_alignment: limits.min_storage_buffer_offset_alignment as u64,
        };
        let (facts, profile) = match options.as_discrete {
            true => (
                AdapterFacts { kind: "discrete".into(), ..facts },
                DeviceProfile {
                    software: false,
                    kernels: KernelPlan::fixed(false, false, false),
                    broadcast: false,
                    native_f16: true,
                    fill: super::pace::fill("discrete"),
                    max_binding: LARGE,
                    max_buffer: LARGE,
                    ..profile
                },
            ),
            false => (facts, profile),
        };
        #[cfg(not(target_arch = "wasm32"))]
        let cache_folder = options.cache_folder.clone().or_else(super::cache::folder);
        #[cfg(not(target_arch = "wasm32"))]
        let store = match &cache_folder {
            Some(folder) if features.contains(wgpu::Features::PIPELINE_CACHE) => PipelineStore::open(&device, &facts, folder),
            _ => PipelineStore::none(),
        };
        Ok(Gpu {
            #[cfg(not(target_arch = "wasm32"))]
            cache_folder,
            pipelines: Arc::new(Pipelines::new(
                device.clone(),
                options.bounds_checks.unwrap_or(!matches!(facts.backend.as_str(), "vulkan" | "dx12")),
                #[cfg(not(target_arch = "wasm32"))]
                store,
            )),
            poller: Poller::start(&device, &lost),
            handles: Handles { instance, adapter, device: device.clone(), queue: queue.clone() },
            device,
            queue,
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            pace: Mutex::new(Pace::new(&facts.kind)),
            submission_nanos: AtomicU64::new(SUBMISSION.as_nanos() as u64),
            facts,
            profile,
            ceiling: Mutex::new(options.memory_ceiling),
            guard: if options.guard_memory { GUARD_BYTES } else { 0 },
            ledger: Arc::default(),
            idle: Mutex::default(),
            failure,
            gate: Gate::default(),
            lost,
            max_workgroups: limits.max_compute_workgroups_per_dimension,
            cuts: Mutex::default(),
            memory_limit: AtomicU64::new(u64::MAX),
        })
    }

    /// What was opened.
    pub fn facts(&self) -> &AdapterFacts {
        &self.facts
    }

    /// Whether kernels have naga's checks of indices.
    #[doc(hidden)]
    pub fn bounds_checks(&self) -> bool {
        self.pipelines.bounds_checks
    }

    /// What chooses kernels on this device.
    pub fn profile(&self) -> &DeviceProfile {
        &self.profile
    }

    /// Another choice of kernels, for what is recorded from now on.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn set_kernels(&mut self, kernels: KernelPlan) {
        self.profile.kernels = kernels;
    }

    /// Pipelines made so far, and the time that took, summed over threads.
    pub fn compiled(&self) -> (usize, Duration) {
        self.pipelines.made()
    }

    /// What [`Gpu::remember`] keeps under `key`.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn recall(&self, key: &str) -> Option<Vec<u8>> {
        super::cache::recall(self.cache_folder.as_deref()?, &self.facts, key)
    }

    /// Keeps `data` for this adapter, driver and version under `key`, and gives back what is kept: what was there before, if anything was.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn remember(&self, key: &str, data: &[u8]) -> Vec<u8> {
        match &self.cache_folder {
            Some(folder) => super::cache::remember(folder, &self.facts, key, data),
            None => data.to_vec(),
        }
    }

    /// An empty recording for this device.
    pub fn recorder(&self) -> Recorder {
        Recorder::new(self.profile)
    }

    /// Bytes held now and at most.
    pub fn memory(&self) -> MemoryUse {
        *lock(&self.ledger.0)
    }

    /// Starts counting the peak anew from what is held now.
    pub fn reset_peak(&self) {
        let mut memory = lock(&self.ledger.0);
        memory.peak = memory.current;
    }

    /// Time that one submission should take, 16 ms unless set. Two are in flight, so a cancel takes effect, and a frame
    /// that shares the queue is drawn, within about twice this.
    pub fn submission_time(&self) -> Duration {
        Duration::from_nanos(self.submission_nanos.load(Ordering::Relaxed))
    }

    /// Sets [`Gpu::submission_time`], at least 1 ms. It only decides where work is cut, never the result.
    pub fn set_submission_time(&self, time: Duration) {
        self.submission_nanos.store(time.max(Duration::from_millis(1)).as_nanos() as u64, Ordering::Relaxed);
    }

    pub(crate) fn ledger(&self) -> Arc<Ledger> {
        self.ledger.clone()
    }

    /// The ceiling in force, in bytes.
    pub fn memory_ceiling(&self) -> Option<u64> {
        *lock(&self.ceiling)
    }

    /// Sets the ceiling for what is planned and allocated from now on.
    pub fn set_memory_ceiling(&self, bytes: Option<u64>) {
        *lock(&self.ceiling) = bytes;
    }

    /// Destroys the device as a driver reset would: every later call fails with [`Error::DeviceLost`]. For tests.
    #[doc(hidden)]
    pub fn lose(&self) {
        // wgpu reports a real loss when it meets it, but one asked for only once the queue is empty: errors that follow
        // from it may come first.
        self.lost.set("it was destroyed on request".into());
        self.device.destroy();
    }

    /// Cuts dispatches as if a binding could have no more than `max_binding` bytes and a dispatch no more than
    /// `max_groups` workgroups an axis. For tests: results must not change by a bit.
    #[doc(hidden)]
    pub fn force_cuts(&self, max_binding: u64, max_groups: u32) {
        *lock(&self.cuts) = Some((max_binding, max_groups));
    }

    /// Fails allocations as if the device had no more than `bytes`. For tests.
    #[doc(hidden)]
    pub fn force_memory(&self, bytes: u64) {
        self.memory_limit.store(bytes, Ordering::Relaxed);
    }

    /// A tensor that outlives recordings, filled with `bytes` (units of `elem`, see [`Tensor`]).
    ///
    /// # Errors
    /// [`Error::MemoryCeiling`], [`Error::BufferTooLarge`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn resident(&self, label: &str, bytes: &[u8], height: usize, width: usize, channels: usize, elem: Elem) -> Result<Tensor> {
        let buffer = self
            .buffer(label, bytes.len() as u64, wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST)
            .await?;
        for (i, portion) in bytes.chunks(UPLOAD_PORTION).enumerate() {
            if i > 0 {
                self.flush().await?;
            }
            self.queue.write_buffer(&buffer.raw, (i * UPLOAD_PORTION) as u64, portion);
        }
        let tensor = Tensor { source: Source::Resident(Arc::new(buffer)), first: 0, height, width, channels, elem };
        debug_assert_eq!(tensor.bytes(), bytes.len() as u64, "{label}");
        Ok(tensor)
    }

    /// A tensor that outlives recordings, to be written by one ([`Recorder::place`]). Buffers kept from the last run make way for it.
    ///
    /// # Errors
    /// As [`Gpu::resident`].
    pub async fn reserve(&self, label: &str, height: usize, width: usize, channels: usize, elem: Elem) -> Result<Tensor> {
        self.trim();
        let shape = Tensor::outside(height, width, channels, elem);
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let buffer = self.buffer(label, shape.bytes(), usage).await?;
        Ok(Tensor { source: Source::Resident(Arc::new(buffer)), ..shape })
    }

    /// Overwrites a tensor from [`Gpu::resident`] from its start.
    ///
    /// # Panics
    /// If it is none, or shorter than `bytes`: an engine bug.
    pub fn write(&self, tensor: &Tensor, bytes: &[u8]) {
        let Source::Resident(buffer) = &tensor.source else { panic!("only resident tensors can be written") };
        assert!(bytes.len() as u64 <= tensor.bytes(), "{} bytes into a tensor of {}", bytes.len(), tensor.bytes());
        self.queue.write_buffer(&buffer.raw, tensor.first * tensor.elem.bytes(), bytes);
    }

    /// A counted buffer of at least `bytes`.
    pub(crate) async fn buffer(&self, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<Buffer> {
        let bytes = align(bytes);
        if bytes > self.profile.max_buffer {
            return Err(Error::BufferTooLarge { op: label.to_owned(), bytes, limit: self.profile.max_buffer });
        }
        if let Some(ceiling) = self.memory_ceiling() {
            if self.memory().current + bytes > ceiling {
                // What the last run left behind is only kept while there is room.
                self.trim();
            }
            let needed = self.memory().current + bytes;
            if needed > ceiling {
                return Err(Error::MemoryCeiling { needed, ceiling });
            }
        }
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let raw = self.device.create_buffer(&wgpu::BufferDescriptor { label: Some(label), size: bytes, usage, mapped_at_creation: false });
        let error = scope.pop().await;
        self.check("allocating memory")?;
        if error.is_some() || self.memory().current + bytes > self.memory_limit.load(Ordering::Relaxed) {
            return Err(Error::OutOfMemory { during: format!("allocating {label}"), bytes });
        }
        self.ledger.add(bytes);
        Ok(Buffer { raw, bytes, ledger: self.ledger.clone() })
    }

    /// Buffers of exactly these sizes for one run. Fitting ones of the last run are taken, the others freed first.
    pub(crate) async fn take(&self, wanted: &[(u64, wgpu::BufferUsages)]) -> Result<Vec<Arc<Buffer>>> {
        let mut idle = std::mem::take(&mut *lock(&self.idle));
        let mut taken: Vec<Option<Arc<Buffer>>> = wanted
            .iter()
            .map(|&(bytes, usage)| {
                let fits = |b: &Arc<Buffer>| b.bytes == bytes && b.raw.usage() == usage;
                idle.iter().position(fits).map(|i| idle.swap_remove(i))
            })
            .collect();
        drop(idle);
        for (buffer, &(bytes, usage)) in taken.iter_mut().zip(wanted) {
            if buffer.is_none() {
                *buffer = Some(Arc::new(self.buffer("activations", bytes, usage).await?));
            }
        }
        Ok(taken.into_iter().flatten().collect())
    }

    /// Bytes that a new run cannot have: all live buffers but idle ones.
    pub fn held_bytes(&self) -> u64 {
        self.memory().current - self.idle_bytes()
    }

    /// Bytes of idle buffers, which a new run may take or free.
    pub(crate) fn idle_bytes(&self) -> u64 {
        lock(&self.idle).iter().map(|b| b.bytes).sum()
    }

    /// Keeps the buffers of a finished run for the next one of the same shape.
    pub(crate) fn give(&self, slots: Vec<Arc<Buffer>>) {
        lock(&self.idle).extend(slots);
    }

    /// Frees the buffers kept from the last run.
    pub fn trim(&self) {
        lock(&self.idle).clear();
    }

    /// Fails if the device is lost or an earlier call was rejected; `during` says what was going on.
    pub(crate) fn check(&self, during: &str) -> Result<()> {
        if let Some(loss) = self.loss(during) {
            return Err(loss);
        }
        match lock(&self.failure).take() {
            Some(detail) => Err(Error::Gpu { during: during.to_owned(), detail }),
            None => Ok(()),
        }
    }

    /// The loss of the device, if it was lost; `during` says what was going on.
    pub fn loss(&self, during: &str) -> Option<Error> {
        self.lost.reason().map(|reason| Error::DeviceLost { during: during.to_owned(), reason: reason.clone() })
    }

    /// Hands commands to the queue. What comes back resolves when the GPU has finished them.
    pub(crate) fn submit(&self, commands: impl IntoIterator<Item = wgpu::CommandBuffer>) -> Done {
        let turn = self.gate.work();
        let done = self.lost.done();
        let signal = done.clone();
        self.queue.submit(commands);
        // Inside the turn: wgpu submits once more here, if another thread has written to a buffer in the meantime.
        self.queue.on_submitted_work_done(move || signal.set());
        drop(turn);
        self.poke();
        done
    }

    /// Makes sure that callbacks of what was submitted get called.
    pub(crate) fn poke(&self) {
        self.poller.poke();
    }

    /// Variant of `kernel` for what its bindings hold.
    pub(crate) fn variant(&self, kernel: &Kernel, elems: impl Iterator<Item = Elem>, consts: &[(&'static str, u32)]) -> Variant {
        let mut variant = Variant { x: Storage::F32, w: Storage::F32, y: Storage::F32, consts: consts.to_vec() };
        for (kind, elem) in kernel.bindings.iter().zip(elems) {
            let storage = super::kernel::storage_of(elem, self.profile.native_f16);
            match kind {
                Bind::X | Bind::X8 => variant.x = storage,
                Bind::W | Bind::W8 => variant.w = storage,
                Bind::Y | Bind::YRead => variant.y = storage,
                Bind::F32 | Bind::F32Write | Bind::WordWrite | Bind::Counter => {}
            }
        }
        variant
    }
}
