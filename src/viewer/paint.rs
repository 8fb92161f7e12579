//! Pictures on the screen: rectangles filled from textures, without egui and without a readback.

use std::sync::Arc;

use crate::gpu::{Handles, Picture};

/// How texels become pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// The texel that the pixel's middle lies in: exact at one texel a pixel.
    Nearest = 0,
    /// Bilinear, or the mean where the picture shrinks.
    Smooth = 1,
    /// Lanczos with three lobes.
    Lanczos = 2,
    /// Catmull-Rom.
    Bicubic = 3,
}

/// A picture, where it goes, and how much of it is seen. Pixels of the target.
#[derive(Debug, Clone)]
pub struct Quad {
    /// What is drawn.
    pub picture: Arc<Picture>,
    /// Where the whole of it would go: x, y, w, h.
    pub dest: [f64; 4],
    /// What may be touched: x, y, w, h, whole pixels.
    pub clip: [u32; 4],
    /// How.
    pub filter: Filter,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Uniform {
    rect: [f32; 4],
    start: [f32; 2],
    step: [f32; 2],
    screen: [f32; 2],
    kind: u32,
    pad: u32,
}

/// The pixels to draw, and the texel coordinates at their corner and a pixel.
type Mapped = ([u32; 4], [f64; 2], [f64; 2]);

impl Quad {
    /// The pixels to draw, and the texel coordinates at their corner and a pixel; nothing if none are seen.
    fn mapped(&self) -> Option<Mapped> {
        let [x, y, w, h] = self.dest;
        let axis = |start: f64, length: f64, clip: u32, extent: u32, texels: usize| {
            // A pixel is drawn if its middle lies inside, so neighbouring tiles neither overlap nor leave a gap.
            let from = (start - 0.5).ceil().max(f64::from(clip));
            let to = (start + length - 0.5).ceil().min(f64::from(clip + extent));
            let step = texels as f64 / length;
            (to > from && length > 0.0).then_some((from as u32, (to - from) as u32, (from - start) * step, step))
        };
        let (left, wide, u, du) = axis(x, w, self.clip[0], self.clip[2], self.picture.width())?;
        let (top, high, v, dv) = axis(y, h, self.clip[1], self.clip[3], self.picture.height())?;
        Some(([left, top, wide, high], [u, v], [du, dv]))
    }
}

/// Bytes from one quad's uniform to the next: the largest alignment a device may ask for.
const STRIDE: u64 = 256;

/// Draws quads into targets of one format.
pub struct Painter {
    handles: Handles,
    format: wgpu::TextureFormat,
    pipeline: wgpu::RenderPipeline,
    uniform_layout: wgpu::BindGroupLayout,
    picture_layout: wgpu::BindGroupLayout,
    sampler: wgpu::Sampler,
    layer: Option<Layer>,
}

/// What was drawn last, for frames in which only the controls change: filters are not evaluated again then.
struct Layer {
    texture: wgpu::Texture,
    background: [f64; 3],
    quads: Vec<Quad>,
}

impl PartialEq for Quad {
    fn eq(&self, other: &Quad) -> bool {
        Arc::ptr_eq(&self.picture, &other.picture) && (self.dest, self.clip, self.filter) == (other.dest, other.clip, other.filter)
    }
}

impl Painter {
    /// A painter for targets of `format`, which must hold bytes as they are (`*Unorm`, not `*UnormSrgb`).
    pub fn new(handles: &Handles, format: wgpu::TextureFormat) -> Painter {
        let device = &handles.device;
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("quad"),
            source: wgpu::ShaderSource::Wgsl(include_str!("quad.wgsl").into()),
        });
        let entry = |binding, visibility, ty| wgpu::BindGroupLayoutEntry { binding, visibility, ty, count: None };
        let layout = |entries: &[wgpu::BindGroupLayoutEntry]| {
            device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some("quad"), entries })
        };
        let uniform_layout = layout(&[entry(
            0,
            wgpu::ShaderStages::VERTEX_FRAGMENT,
            wgpu::BindingType::Buffer { ty: wgpu::BufferBindingType::Uniform, has_dynamic_offset: true, min_binding_size: None },
        )]);
        let texture = wgpu::BindingType::Texture {
            sample_type: wgpu::TextureSampleType::Float { filterable: true },
            view_dimension: wgpu::TextureViewDimension::D2,
            multisampled: false,
        };
        let picture_layout = layout(&[
            entry(0, wgpu::ShaderStages::FRAGMENT, texture),
            entry(1, wgpu::ShaderStages::FRAGMENT, wgpu::BindingType::Sampler(wgpu::SamplerBindingType::Filtering)),
        ]);
        let sampler = device.create_sampler(&wgpu::SamplerDescriptor {
            label: Some("smooth"),
            mag_filter: wgpu::FilterMode::Linear,
            min_filter: wgpu::FilterMode::Linear,
            ..Default::default()
        });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some("quad"),
            bind_group_layouts: &[Some(&uniform_layout), Some(&picture_layout)],
            immediate_size: 0,
        });
        let pipeline = device.create_render_pipeline(&wgpu::RenderPipelineDescriptor {
            label: Some("quad"),
            layout: Some(&pipeline_layout),
            vertex: wgpu::VertexState {
                module: &module,
                entry_point: Some("vertex"),
                compilation_options: Default::default(),
                buffers: &[],
            },
            primitive: wgpu::PrimitiveState { topology: wgpu::PrimitiveTopology::TriangleStrip, ..Default::default() },
            depth_stencil: None,
            multisample: Default::default(),
            fragment: Some(wgpu::FragmentState {
                module: &module,
                entry_point: Some("fragment"),
                compilation_options: Default::default(),
                targets: &[Some(format.into())],
            }),
            multiview_mask: None,
            cache: None,
        });
        Painter { handles: handles.clone(), format, pipeline, uniform_layout, picture_layout, sampler, layer: None }
    }

    /// Draws `quads`, first to last, over `background`.
    pub fn paint(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        target: &wgpu::TextureView,
        size: (u32, u32),
        background: [f64; 3],
        quads: &[Quad],
    ) {
        if quads.iter().all(|quad| quad.filter == Filter::Nearest) {
            self.layer = None;
            return self.draw(encoder, target, size, background, quads);
        }
        let layer = match self.layer.take() {
            Some(layer) if (layer.texture.width(), layer.texture.height()) == size => {
                if layer.background != background || layer.quads != quads {
                    self.draw(encoder, &layer.texture.create_view(&Default::default()), size, background, quads);
                }
                Layer { background, quads: quads.to_vec(), ..layer }
            }
            _ => {
                let texture = self.handles.device.create_texture(&wgpu::TextureDescriptor {
                    label: Some("layer"),
                    size: wgpu::Extent3d { width: size.0, height: size.1, depth_or_array_layers: 1 },
                    mip_level_count: 1,
                    sample_count: 1,
                    dimension: wgpu::TextureDimension::D2,
                    format: self.format,
                    usage: wgpu::TextureUsages::RENDER_ATTACHMENT | wgpu::TextureUsages::TEXTURE_BINDING,
                    view_formats: &[],
                });
                self.draw(encoder, &texture.create_view(&Default::default()), size, background, quads);
                Layer { texture, background, quads: quads.to_vec() }
            }
        };
        let rect = [0, 0, size.0, size.1];
        self.draw_mapped(encoder, target, size, background, &[(&layer.texture, Filter::Nearest, (rect, [0.0; 2], [1.0; 2]))]);
        self.layer = Some(layer);
    }

    fn draw(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        target: &wgpu::TextureView,
        size: (u32, u32),
        background: [f64; 3],
        quads: &[Quad],
    ) {
        let mapped: Vec<_> =
            quads.iter().filter_map(|quad| quad.mapped().map(|mapped| (quad.picture.texture(), quad.filter, mapped))).collect();
        self.draw_mapped(encoder, target, size, background, &mapped);
    }

    fn draw_mapped(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        target: &wgpu::TextureView,
        size: (u32, u32),
        background: [f64; 3],
        mapped: &[(&wgpu::Texture, Filter, Mapped)],
    ) {
        let device = &self.handles.device;
        let mut bytes = vec![0u8; mapped.len() * STRIDE as usize];
        for (slot, (_, filter, (rect, start, step))) in bytes.chunks_exact_mut(STRIDE as usize).zip(mapped) {
            let uniform = Uniform {
                rect: rect.map(|v| v as f32),
                start: start.map(|v| v as f32),
                step: step.map(|v| v as f32),
                screen: [size.0 as f32, size.1 as f32],
                kind: *filter as u32,
                pad: 0,
            };
            slot[..size_of::<Uniform>()].copy_from_slice(bytemuck::bytes_of(&uniform));
        }
        // One buffer a pass: writes to it take effect before all commands of a submission.
        let uniforms = uniforms(device, (mapped.len() as u64).max(1));
        self.handles.queue.write_buffer(&uniforms, 0, &bytes);
        let binding = wgpu::BufferBinding { buffer: &uniforms, offset: 0, size: std::num::NonZeroU64::new(STRIDE) };
        let uniform_group = group(device, &self.uniform_layout, &[wgpu::BindingResource::Buffer(binding)]);
        let [r, g, b] = background;
        let mut pass = encoder.begin_render_pass(&wgpu::RenderPassDescriptor {
            label: Some("pictures"),
            color_attachments: &[Some(wgpu::RenderPassColorAttachment {
                view: target,
                depth_slice: None,
                resolve_target: None,
                ops: wgpu::Operations { load: wgpu::LoadOp::Clear(wgpu::Color { r, g, b, a: 1.0 }), store: wgpu::StoreOp::Store },
            })],
            ..Default::default()
        });
        pass.set_pipeline(&self.pipeline);
        for (index, (texture, ..)) in mapped.iter().enumerate() {
            let view = texture.create_view(&Default::default());
            let resources = [wgpu::BindingResource::TextureView(&view), wgpu::BindingResource::Sampler(&self.sampler)];
            pass.set_bind_group(0, &uniform_group, &[(index as u64 * STRIDE) as u32]);
            pass.set_bind_group(1, &group(device, &self.picture_layout, &resources), &[]);
            pass.draw(0..4, 0..1);
        }
    }
}

fn group(device: &wgpu::Device, layout: &wgpu::BindGroupLayout, resources: &[wgpu::BindingResource<'_>]) -> wgpu::BindGroup {
    let entries: Vec<_> =
        resources.iter().zip(0..).map(|(resource, binding)| wgpu::BindGroupEntry { binding, resource: resource.clone() }).collect();
    device.create_bind_group(&wgpu::BindGroupDescriptor { label: Some("quad"), layout, entries: &entries })
}

fn uniforms(device: &wgpu::Device, quads: u64) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("quads"),
        size: quads * STRIDE,
        usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}
