//! What a shell shares with the engine: wgpu's own handles, and results that stay on the GPU as textures.
//!
//! A window or a canvas presents on the device that decodes: one queue, whose submissions are short
//! ([`Gpu::set_submission_time`]), so frames get their turn between them.

use std::sync::Arc;
#[cfg(not(target_arch = "wasm32"))]
use std::time::Duration;

#[cfg(not(target_arch = "wasm32"))]
use super::context::poll;
use super::context::{Gpu, Ledger};
#[cfg(not(target_arch = "wasm32"))]
use super::gate::Turn;
use super::tensor::Tensor;
use crate::error::{Error, Result};

/// The handles of an open device. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Handles {
    /// What makes surfaces.
    pub instance: wgpu::Instance,
    /// What tells how a surface can be configured.
    pub adapter: wgpu::Adapter,
    /// The device.
    pub device: wgpu::Device,
    /// Its only queue.
    pub queue: wgpu::Queue,
}

/// Longest wait for submitted work: two submissions, of which a driver may compile the kernels first.
#[cfg(not(target_arch = "wasm32"))]
const IDLE: Duration = Duration::from_secs(20);

/// Words a row of what becomes a texture is padded to: copies want rows of 256 bytes.
const PITCH: usize = 64;

/// An `Rgba8Unorm` texture with the exact 8-bit values of a picture (sRGB-encoded, alpha 255), counted in
/// [`Gpu::memory`] until it is dropped. It can be sampled, copied from and copied to.
#[derive(Debug)]
pub struct Picture {
    texture: wgpu::Texture,
    bytes: u64,
    ledger: Arc<Ledger>,
}

impl Picture {
    /// The texture. It stays valid for commands that were recorded while this picture was alive.
    pub fn texture(&self) -> &wgpu::Texture {
        &self.texture
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.texture.width() as usize
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.texture.height() as usize
    }

    /// GPU memory in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Picture {
    fn drop(&mut self) {
        self.ledger.remove(self.bytes);
    }
}

/// Bytes of a picture of that size.
pub(crate) fn picture_bytes(width: usize, height: usize) -> u64 {
    4 * width as u64 * height as u64
}

/// Row length in words for a picture `width` pixels wide that is to become a texture.
pub(crate) fn pitch(width: usize) -> usize {
    width.next_multiple_of(PITCH)
}

impl Gpu {
    /// wgpu's handles of this device, for a shell that presents on it.
    pub fn handles(&self) -> Handles {
        self.handles.clone()
    }

    /// Waits for the turn of a frame: until it is dropped, nothing else is submitted, and running work waits for one frame
    /// at most. What takes longer than drawing (a surface's next texture) is asked for before.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn frame(&self) -> Turn<'_> {
        self.gate.frame()
    }

    /// Configures a surface to present on, between two submissions of running work: wgpu wants the queue empty for that and
    /// waits for it, but gives up where it meets work that came later. Takes a turn of a frame itself.
    ///
    /// # Errors
    /// [`Error::DeviceLost`]. [`Error::Display`] with wgpu's reason: where that passes (a queue that did not come idle, a
    /// window between two states) the surface is as it was and a later call may succeed.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn configure(&self, surface: &wgpu::Surface<'_>, config: &wgpu::SurfaceConfiguration) -> Result<()> {
        const TRIES: usize = 3;
        let during = "fitting the window";
        let _turn = self.gate.frame();
        let mut reason = String::new();
        for _ in 0..TRIES {
            let idle = poll(&self.device, &self.lost, wgpu::PollType::Wait { submission_index: None, timeout: Some(IDLE) });
            self.loss(during).map_or(Ok(()), Err)?;
            if let Err(error) = idle {
                return Err(Error::Display { detail: error.to_string() });
            }
            let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
            surface.configure(&self.device, config);
            let error = pollster::block_on(scope.pop());
            self.loss(during).map_or(Ok(()), Err)?;
            match error {
                None => return Ok(()),
                Some(error) => reason = error.to_string(),
            }
        }
        Err(Error::Display { detail: reason })
    }

    /// An empty picture of `width x height` pixels.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a side of 0 or beyond the device's largest texture; [`Error::MemoryCeiling`],
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn picture(&self, width: usize, height: usize) -> Result<Picture> {
        let most = self.device.limits().max_texture_dimension_2d as usize;
        if width == 0 || height == 0 || width > most || height > most {
            let detail = format!("{width}x{height}: textures of this device have 1 to {most} pixels a side");
            return Err(Error::Invalid { what: "size", detail });
        }
        let bytes = picture_bytes(width, height);
        if let Some(ceiling) = self.memory_ceiling() {
            let needed = self.memory().current + bytes;
            if needed > ceiling {
                return Err(Error::MemoryCeiling { needed, ceiling });
            }
        }
        use wgpu::TextureUsages as Usage;
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let texture = self.device.create_texture(&wgpu::TextureDescriptor {
            label: Some("picture"),
            size: wgpu::Extent3d { width: width as u32, height: height as u32, depth_or_array_layers: 1 },
            mip_level_count: 1,
            sample_count: 1,
            dimension: wgpu::TextureDimension::D2,
            format: wgpu::TextureFormat::Rgba8Unorm,
            usage: Usage::TEXTURE_BINDING | Usage::COPY_DST | Usage::COPY_SRC,
            view_formats: &[],
        });
        let error = scope.pop().await;
        self.check("allocating memory")?;
        if error.is_some() {
            return Err(Error::OutOfMemory { during: "allocating a picture".into(), bytes });
        }
        let ledger = self.ledger();
        ledger.add(bytes);
        Ok(Picture { texture, bytes, ledger })
    }

    /// A picture from 8-bit RGB, `[height, width, 3]`, row-major.
    ///
    /// # Errors
    /// As [`Gpu::picture`]; [`Error::Invalid`] for another number of values.
    pub async fn picture_from_rgb8(&self, width: usize, height: usize, rgb: &[u8]) -> Result<Picture> {
        if Some(rgb.len()) != width.checked_mul(height).and_then(|n| n.checked_mul(3)) {
            return Err(Error::Invalid { what: "image", detail: format!("{} values for {width}x{height} RGB", rgb.len()) });
        }
        let picture = self.picture(width, height).await?;
        let texels: Vec<u8> = rgb.chunks_exact(3).flat_map(|c| [c[0], c[1], c[2], 255]).collect();
        let layout = wgpu::TexelCopyBufferLayout { offset: 0, bytes_per_row: Some(4 * width as u32), rows_per_image: None };
        self.queue.write_texture(picture.texture.as_image_copy(), &texels, layout, picture.texture.size());
        Ok(picture)
    }

    /// The pixels of a rectangle of an `Rgba8Unorm` texture, row-major RGBA: for a pixel readout or the clipboard.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a rectangle that is empty or leaves the texture; [`Error::MemoryCeiling`],
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`], [`Error::Gpu`].
    pub async fn read_texture(&self, texture: &wgpu::Texture, [x, y, w, h]: [u32; 4]) -> Result<Vec<u8>> {
        let inside = |start: u32, length: u32, all: u32| length > 0 && start.checked_add(length).is_some_and(|end| end <= all);
        if !inside(x, w, texture.width()) || !inside(y, h, texture.height()) {
            let detail = format!("{x},{y},{w}x{h} does not lie inside the {}x{} texture", texture.width(), texture.height());
            return Err(Error::Invalid { what: "region", detail });
        }
        let row = 4 * pitch(w as usize) as u64;
        let staging = self.buffer("readback", row * u64::from(h), wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST).await?;
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_texture_to_buffer(
            wgpu::TexelCopyTextureInfo { origin: wgpu::Origin3d { x, y, z: 0 }, ..texture.as_image_copy() },
            wgpu::TexelCopyBufferInfo {
                buffer: &staging.raw,
                layout: wgpu::TexelCopyBufferLayout { offset: 0, bytes_per_row: Some(row as u32), rows_per_image: None },
            },
            wgpu::Extent3d { width: w, height: h, depth_or_array_layers: 1 },
        );
        self.submit([encoder.finish()]);
        let bytes = self.map(&staging.raw, row * u64::from(h)).await?;
        Ok(bytes.chunks_exact(row as usize).flat_map(|line| &line[..4 * w as usize]).copied().collect())
    }

    /// Queues the copy of `words`, rows of [`pitch`] words, that starts at byte `start` of `buffer`.
    pub(crate) fn copy_to_picture(&self, buffer: &wgpu::Buffer, start: u64, words: &Tensor, picture: &Picture) {
        let layout = wgpu::TexelCopyBufferLayout { offset: start, bytes_per_row: Some(4 * words.width as u32), rows_per_image: None };
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_texture(
            wgpu::TexelCopyBufferInfo { buffer, layout },
            picture.texture.as_image_copy(),
            picture.texture.size(),
        );
        self.submit([encoder.finish()]);
    }
}
