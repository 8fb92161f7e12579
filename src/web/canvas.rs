//! A canvas: the texture that the last kernel made is drawn on it, pixel for pixel, without leaving the GPU.

use std::cell::Cell;
use std::rc::Rc;

use crate::gpu::{Handles, Picture};
use crate::{Engine, Error, Rect, Result};

pub(super) struct Screen {
    engine: Rc<Engine>,
    surface: wgpu::Surface<'static>,
    pipeline: wgpu::RenderPipeline,
    format: wgpu::TextureFormat,
    size: Cell<(usize, usize)>,
}

impl Screen {
    /// Takes over `canvas`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a canvas that has another context.
    pub fn new(engine: Rc<Engine>, canvas: web_sys::OffscreenCanvas) -> Result<Screen> {
        let handles = engine.gpu().handles();
        let surface = handles
            .instance
            .create_surface(wgpu::SurfaceTarget::OffscreenCanvas(canvas))
            .map_err(|error| Error::Invalid { what: "canvas", detail: error.to_string() })?;
        // The first is the one that this browser shows without a conversion.
        let format = surface.get_capabilities(&handles.adapter).formats[0];
        let module = handles.device.create_shader_module(wgpu::include_wgsl!("screen.wgsl"));
        let stage = wgpu::PipelineCompilationOptions::default;
        let pipeline = handles.device.create_render_pipeline(&wgpu::RenderPipelineDescriptor {
            label: Some("screen"),
            layout: None,
            vertex: wgpu::VertexState { module: &module, entry_point: Some("cover"), compilation_options: stage(), buffers: &[] },
            primitive: Default::default(),
            depth_stencil: None,
            multisample: Default::default(),
            fragment: Some(wgpu::FragmentState {
                module: &module,
                entry_point: Some("show"),
                compilation_options: stage(),
                targets: &[Some(format.into())],
            }),
            multiview_mask: None,
            cache: None,
        });
        Ok(Screen { engine, surface, pipeline, format, size: Cell::default() })
    }

    /// Whether a canvas can have that size.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn check(&self, width: usize, height: usize) -> Result<()> {
        let largest = self.engine.gpu().handles().device.limits().max_texture_dimension_2d as usize;
        if width > largest || height > largest {
            let detail = format!("{width}x{height}: canvases of this device have at most {largest} pixels a side");
            return Err(Error::Invalid { what: "canvas", detail });
        }
        Ok(())
    }

    /// An empty picture that is put together from bands.
    ///
    /// # Errors
    /// As [`crate::gpu::Gpu::picture`].
    pub async fn collect(&self, width: usize, height: usize) -> Result<Collected> {
        let gpu = self.engine.gpu();
        let Handles { device, queue, .. } = gpu.handles();
        Ok(Collected { picture: gpu.picture(width, height).await?, device, queue })
    }

    /// Gives the canvas the size of `whole`, shows its pieces and frees them: JavaScript would not until it collects garbage.
    /// Each piece comes with the rectangle that it fills, in the same coordinates as `whole`.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Gpu`], and as [`Screen::check`].
    pub async fn draw(&self, whole: Rect, pieces: Vec<(Rect, Picture)>) -> Result<()> {
        let gpu = self.engine.gpu();
        let handles = gpu.handles();
        let size = (whole.w, whole.h);
        self.check(whole.w, whole.h)?;
        if self.size.replace(size) != size {
            let configuration = wgpu::SurfaceConfiguration {
                usage: wgpu::TextureUsages::RENDER_ATTACHMENT,
                format: self.format,
                width: size.0 as u32,
                height: size.1 as u32,
                present_mode: wgpu::PresentMode::Fifo,
                desired_maximum_frame_latency: 2,
                alpha_mode: wgpu::CompositeAlphaMode::Opaque,
                color_space: Default::default(),
                view_formats: vec![],
            };
            self.surface.configure(&handles.device, &configuration);
        }
        use wgpu::CurrentSurfaceTexture as Current;
        let (Current::Success(frame) | Current::Suboptimal(frame)) = self.surface.get_current_texture() else {
            return Err(Error::Gpu { during: "drawing".into(), detail: "the canvas gave no texture".into() });
        };
        let view = frame.texture.create_view(&Default::default());
        let mut encoder = handles.device.create_command_encoder(&Default::default());
        let mut pass = encoder.begin_render_pass(&wgpu::RenderPassDescriptor {
            label: Some("screen"),
            color_attachments: &[Some(wgpu::RenderPassColorAttachment {
                view: &view,
                depth_slice: None,
                resolve_target: None,
                ops: wgpu::Operations { load: wgpu::LoadOp::Clear(wgpu::Color::BLACK), store: wgpu::StoreOp::Store },
            })],
            ..Default::default()
        });
        pass.set_pipeline(&self.pipeline);
        for (rect, picture) in &pieces {
            let (x, y) = ((rect.x - whole.x) as u32, (rect.y - whole.y) as u32);
            let origin = handles.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("screen"),
                size: 16,
                usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            handles.queue.write_buffer(&origin, 0, bytemuck::cast_slice(&[x, y, 0, 0]));
            let texture = picture.texture().create_view(&Default::default());
            let group = handles.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("screen"),
                layout: &self.pipeline.get_bind_group_layout(0),
                entries: &[
                    wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::TextureView(&texture) },
                    wgpu::BindGroupEntry { binding: 1, resource: origin.as_entire_binding() },
                ],
            });
            pass.set_bind_group(0, &group, &[]);
            pass.set_scissor_rect(x, y, rect.w as u32, rect.h as u32);
            pass.draw(0..3, 0..1);
        }
        drop(pass);
        handles.queue.submit([encoder.finish()]);
        handles.queue.present(frame);
        let done = gpu.flush().await;
        pieces.iter().for_each(|(_, picture)| picture.texture().destroy());
        done
    }
}

/// See [`Screen::collect`].
pub(super) struct Collected {
    pub picture: Picture,
    device: wgpu::Device,
    queue: wgpu::Queue,
}

impl Collected {
    /// Copies `band`, as wide as the picture, to row `top` and on, and frees it.
    pub fn put(&self, top: usize, band: Picture) {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        let mut target = self.picture.texture().as_image_copy();
        target.origin.y = top as u32;
        encoder.copy_texture_to_texture(band.texture().as_image_copy(), target, band.texture().size());
        self.queue.submit([encoder.finish()]);
        band.texture().destroy();
    }
}
