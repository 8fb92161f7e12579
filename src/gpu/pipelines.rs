//! Compiled pipelines: made once, on first use or ahead of it on other threads.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

#[cfg(not(target_arch = "wasm32"))]
use super::cache::PipelineStore;
use super::context::lock;
use super::kernel::{Kernel, Variant};

pub(crate) struct Pipeline {
    pub raw: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
    /// Index for the pace table.
    pub id: usize,
}

/// Widest heads, in quads, for which `tests/shader_bounds.rs` goes through the variants of attention: kernels for wider ones keep their checks.
pub const PROVEN_HEADS: u32 = 256;

type Key = (&'static str, Variant);

/// The pipelines of an open device.
pub(crate) struct Pipelines {
    device: wgpu::Device,
    pub bounds_checks: bool,
    #[cfg(not(target_arch = "wasm32"))]
    store: PipelineStore,
    /// A cell is filled once; who comes while another thread fills it waits.
    cells: Mutex<HashMap<Key, Arc<OnceLock<Arc<Pipeline>>>>>,
    made: AtomicUsize,
    nanos: AtomicU64,
}

impl Pipelines {
    pub fn new(device: wgpu::Device, bounds_checks: bool, #[cfg(not(target_arch = "wasm32"))] store: PipelineStore) -> Pipelines {
        Pipelines {
            device,
            bounds_checks,
            #[cfg(not(target_arch = "wasm32"))]
            store,
            cells: Mutex::default(),
            made: AtomicUsize::new(0),
            nanos: AtomicU64::new(0),
        }
    }

    /// Pipelines made so far, and the time that took, summed over threads.
    pub fn made(&self) -> (usize, Duration) {
        (self.made.load(Ordering::Relaxed), Duration::from_nanos(self.nanos.load(Ordering::Relaxed)))
    }

    /// The pipeline for `kernel` in `variant`, compiled on first use.
    pub fn get(&self, kernel: &'static Kernel, variant: Variant) -> Arc<Pipeline> {
        let cell = lock(&self.cells).entry((kernel.name, variant.clone())).or_default().clone();
        cell.get_or_init(|| Arc::new(self.make(kernel, &variant))).clone()
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn is_made(&self, kernel: &'static Kernel, variant: &Variant) -> bool {
        lock(&self.cells).get(&(kernel.name, variant.clone())).is_some_and(|cell| cell.get().is_some())
    }

    fn make(&self, kernel: &'static Kernel, variant: &Variant) -> Pipeline {
        let began = web_time::Instant::now();
        #[cfg(not(target_arch = "wasm32"))]
        let cache = self.store.cache();
        #[cfg(target_arch = "wasm32")]
        let cache = None;
        let source = kernel.source(variant);
        let bounds_checks = self.bounds_checks || variant.consts.iter().any(|&(name, value)| name == "D4" && value > PROVEN_HEADS);
        let checks = wgpu::ShaderRuntimeChecks { bounds_checks, force_loop_bounding: false, ..wgpu::ShaderRuntimeChecks::checked() };
        let descriptor = wgpu::ShaderModuleDescriptor { label: Some(kernel.name), source: wgpu::ShaderSource::Wgsl(source.into()) };
        // SAFETY: `force_loop_bounding: false` requires that no shader loops forever. Every module here is one of the
        // crate's own kernels (`Kernel` values are `'static` constants of `src/kernels`), and each of their loops counts
        // up by a positive constant, some by the size of a workgroup or subgroup, to a bound that does not change inside it (`tests/shaders.rs`).
        // `bounds_checks: false` requires that no index leaves its array. On Vulkan and DX12, where that is the default, the device keeps accesses inside the
        // buffer, whatever is said here: on Vulkan wgpu asks for robustBufferAccess, and for robustBufferAccess2 where there is that, which keeps them inside the
        // binding; on DX12 it binds storage as raw views of the binding's extent, outside of which reads give zero and writes go nowhere, and naga
        // never checks these accesses itself. Indices into workgroup memory and all else are proven to be inside for every variant by `tests/shader_bounds.rs`. Other backends keep the checks, unless a
        // benchmark leaves them out: the kernels compute no index outside a buffer that reaches memory, as guard bands around every tensor in the tests see.
        let module = unsafe { self.device.create_shader_module_trusted(descriptor, checks) };
        let uniform = wgpu::BindGroupLayoutEntry {
            binding: 0,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty: wgpu::BufferBindingType::Uniform, has_dynamic_offset: true, min_binding_size: None },
            count: None,
        };
        let storage = kernel.bindings.iter().enumerate().map(|(i, kind)| wgpu::BindGroupLayoutEntry {
            binding: i as u32 + 1,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only: !kind.writes() },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            ..uniform
        });
        let entries: Vec<_> = std::iter::once(uniform).chain(storage).collect();
        let layout = self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(kernel.name), entries: &entries });
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(kernel.name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let constants: Vec<(&str, f64)> = variant.consts.iter().map(|&(name, value)| (name, value as f64)).collect();
        let raw = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions { constants: &constants, zero_initialize_workgroup_memory: false },
            cache,
        });
        #[cfg(not(target_arch = "wasm32"))]
        self.store.grew();
        let took = began.elapsed();
        self.nanos.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
        log::debug!("pipeline {} {:?}: {:.1} ms", kernel.name, variant.consts, took.as_secs_f64() * 1e3);
        Pipeline { raw, layout, id: self.made.fetch_add(1, Ordering::Relaxed) }
    }
}

/// Threads that make pipelines in the order of their use while the first ones run. Dropping it stops them after what they are at.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) struct Ahead {
    stop: Arc<std::sync::atomic::AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

#[cfg(not(target_arch = "wasm32"))]
impl Ahead {
    /// Starts on those of `wanted` that are missing; the caller makes the first of them itself.
    pub fn start(pipelines: &Arc<Pipelines>, wanted: Vec<(&'static Kernel, Variant)>) -> Ahead {
        let mut missing = Vec::new();
        for (kernel, variant) in wanted {
            let known = |(k, v): &(&'static Kernel, Variant)| k.name == kernel.name && *v == variant;
            if !pipelines.is_made(kernel, &variant) && !missing.iter().any(known) {
                missing.push((kernel, variant));
            }
        }
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let count = missing.len().saturating_sub(1).min(cores - 1).min(8);
        let (stop, next, missing) = (Arc::new(std::sync::atomic::AtomicBool::new(false)), Arc::new(AtomicUsize::new(1)), Arc::new(missing));
        let thread = |_| {
            let (stop, next, missing, pipelines) = (stop.clone(), next.clone(), missing.clone(), pipelines.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let Some((kernel, variant)) = missing.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                    pipelines.get(kernel, variant.clone());
                }
            })
        };
        let threads = (0..count).map(thread).collect();
        Ahead { stop, threads }
    }
}

#[cfg(not(target_arch = "wasm32"))]
impl Drop for Ahead {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic there left its cell empty: whoever needs that pipeline meets it again.
            let _ = thread.join();
        }
    }
}
