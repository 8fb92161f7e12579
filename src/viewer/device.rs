//! The device behind the window.

use std::sync::Arc;
use std::time::Duration;

use winit::dpi::PhysicalSize;

use super::app::ViewerOptions;
use crate::engine::{Engine, EngineOptions};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, GpuOptions, Handles, Observer};

/// Time one submission should take while a window shares the queue: two in flight and a frame stay below 50 ms.
const SUBMISSION: Duration = Duration::from_millis(12);

/// How `surface` is presented on, `size` pixels large.
///
/// # Errors
/// [`Error::Display`] where the device cannot draw into it.
pub fn surface_config(surface: &wgpu::Surface<'_>, handles: &Handles, size: PhysicalSize<u32>) -> Result<wgpu::SurfaceConfiguration> {
    let unusable = || Error::Display { detail: "the device cannot draw into this window".into() };
    let mut config = surface.get_default_config(&handles.adapter, size.width.max(1), size.height.max(1)).ok_or_else(unusable)?;
    // Pictures are sRGB-encoded bytes and must reach the screen as they are, so no format that encodes once more.
    let formats = surface.get_capabilities(&handles.adapter).formats;
    let plain = [wgpu::TextureFormat::Bgra8Unorm, wgpu::TextureFormat::Rgba8Unorm];
    config.format = plain.into_iter().find(|format| formats.contains(format)).ok_or_else(unusable)?;
    config.view_formats.clear();
    config.present_mode = wgpu::PresentMode::AutoVsync;
    config.desired_maximum_frame_latency = 1;
    Ok(config)
}

/// Opens the device for a window.
///
/// # Errors
/// As [`Gpu::for_surface`] and [`Engine::on_async`].
pub fn open_engine(options: &ViewerOptions, instance: wgpu::Instance, surface: &wgpu::Surface<'_>) -> Result<Arc<Engine>> {
    let wanted =
        GpuOptions { device: options.device.clone(), memory_ceiling: options.memory, pipeline_cache: true, ..GpuOptions::default() };
    let gpu = pollster::block_on(Gpu::for_surface(&wanted, instance, surface))?;
    gpu.set_submission_time(SUBMISSION);
    // Before the first picture although it takes a second on a GPU that is met for the first time: which kernels run is part of
    // the bits, so a picture decoded before would have to be decoded again.
    let engine =
        EngineOptions { dtype: options.dtype, host_memory: options.host_memory, tuning: options.tuning, ..EngineOptions::default() };
    Ok(Arc::new(pollster::block_on(Engine::on_async(gpu, &engine, &Observer::default()))?))
}

/// Controls are laid out once a frame: what is pressed there must not count twice.
pub fn context() -> egui::Context {
    let egui = egui::Context::default();
    egui.options_mut(|options| options.max_passes = std::num::NonZeroUsize::MIN);
    egui
}

/// Bytes of decoded pictures kept: a quarter of the ceiling, else 512 MiB.
pub fn budget(options: &ViewerOptions) -> u64 {
    options.memory.map_or(512 << 20, |ceiling| ceiling / 4)
}
