//! Handles to what kernels read and write.

use std::sync::Arc;

use super::context::Buffer;

/// What one addressable unit of a buffer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Elem {
    /// Four f32 channels, 16 bytes.
    F32,
    /// Four f16 channels, 8 bytes: `vec4<f16>` where the device has `shader-f16`, two packed `u32` elsewhere.
    Half,
    /// One u32, 4 bytes: packed pixels, counters.
    Word,
}

impl Elem {
    /// Bytes of one unit.
    pub const fn bytes(self) -> u64 {
        match self {
            Elem::F32 => 16,
            Elem::Half => 8,
            Elem::Word => 4,
        }
    }
}

/// Where the units live.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// Index into the recording's tensors; memory exists only while the recording runs.
    Virtual(u32),
    /// A buffer that outlives recordings: weights, kept state.
    Resident(Arc<Buffer>),
    /// Stands for a resident buffer in a recording that is only planned, never run.
    Outside,
}

/// A channels-last plane `[height, width, channels]`, which is also a token matrix `[height * width, channels]`.
///
/// Channels are stored in quads (rounded up to a multiple of 4; pad channels are zero), row-major,
/// without gaps. A tensor may be a run of rows of a larger one ([`Tensor::rows`]). Cloning copies the handle.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub(crate) source: Source,
    /// First unit of this view inside its buffer.
    pub(crate) first: u64,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Channels, without padding.
    pub channels: usize,
    /// Storage type of a unit.
    pub elem: Elem,
}

impl Tensor {
    /// Stands for a tensor that is resident elsewhere, in a recording that is only planned. Running that recording panics.
    pub fn outside(height: usize, width: usize, channels: usize, elem: Elem) -> Tensor {
        Tensor { source: Source::Outside, first: 0, height, width, channels, elem }
    }

    /// Bytes of the buffer that [`super::Gpu::resident`] makes for such a tensor.
    pub fn resident_bytes(&self) -> u64 {
        super::plan::align(self.bytes())
    }

    /// Channel quads a pixel.
    pub fn quads(&self) -> usize {
        self.channels.div_ceil(4)
    }

    /// Pixels, or tokens.
    pub fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// Units of the whole view ([`Elem`]): quads for number planes, words for [`Elem::Word`].
    pub fn units(&self) -> u64 {
        let a_pixel = if self.elem == Elem::Word { self.channels } else { self.quads() };
        self.pixels() as u64 * a_pixel as u64
    }

    /// Bytes of the whole view.
    pub fn bytes(&self) -> u64 {
        self.units() * self.elem.bytes()
    }

    /// `(height, width, channels)`.
    pub fn shape(&self) -> (usize, usize, usize) {
        (self.height, self.width, self.channels)
    }

    /// The rows `start .. start + count` as a tensor of their own, over the same memory.
    ///
    /// # Panics
    /// If the range leaves the tensor: an engine bug, never the caller's input.
    pub fn rows(&self, start: usize, count: usize) -> Tensor {
        assert!(start + count <= self.height, "rows {start}+{count} of {}", self.height);
        let a_row = self.units() / self.height as u64;
        Tensor { first: self.first + start as u64 * a_row, height: count, ..self.clone() }
    }

    /// A part of the same memory as a tensor of its own shape, from unit `first` of this one on.
    ///
    /// # Panics
    /// If it leaves the tensor.
    pub fn view(&self, first: u64, height: usize, width: usize, channels: usize) -> Tensor {
        let view = Tensor { first: self.first + first, height, width, channels, ..self.clone() };
        assert!(first + view.units() <= self.units(), "a view beyond its tensor");
        view
    }

    /// The same memory with another `height x width` split of the same number of pixels.
    ///
    /// # Panics
    /// If the number of pixels differs.
    pub fn reshape(&self, height: usize, width: usize) -> Tensor {
        assert_eq!(height * width, self.pixels(), "reshape changes the number of pixels");
        Tensor { height, width, ..self.clone() }
    }
}
