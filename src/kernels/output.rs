//! The last steps: 8-bit pixels, and a check of values that no normalisation has seen.

use super::{limit, product};
use crate::gpu::{Bind, Binding, Dispatch, Elem, Footprint, Kernel, Recorder, Tensor, picture_pitch};

/// `image_to_rgba8.wgsl`
pub const IMAGE_TO_RGBA8: Kernel = Kernel {
    name: "image_to_rgba8",
    wgsl: include_str!("../../shaders/image_to_rgba8.wgsl"),
    params: &["stride", "width", "pitch", "top", "left"],
    bindings: &[Bind::X, Bind::WordWrite],
};

/// `count_nonfinite.wgsl`
pub const COUNT_NONFINITE: Kernel = Kernel {
    name: "count_nonfinite",
    wgsl: include_str!("../../shaders/count_nonfinite.wgsl"),
    params: &["units", "limit", "watch"],
    bindings: &[Bind::X, Bind::Counter],
};

/// `height x width` pixels of `x` (`[h, w, 3]`, -1 to 1) from row `top`, column `left` on, as packed RGBA: one word a pixel,
/// red lowest.
pub fn image_to_rgba8(rec: &mut Recorder, x: &Tensor, width: usize, height: usize, from: (usize, usize)) -> Tensor {
    rgba8(rec, x, width, height, width, from)
}

/// [`image_to_rgba8`] as the texture that the run gives back: see [`Recorder::picture`].
pub fn image_to_picture(rec: &mut Recorder, x: &Tensor, width: usize, height: usize, from: (usize, usize)) {
    let words = rgba8(rec, x, width, height, picture_pitch(width), from);
    rec.picture(&words, width);
}

fn rgba8(rec: &mut Recorder, x: &Tensor, width: usize, height: usize, pitch: usize, (top, left): (usize, usize)) -> Tensor {
    assert!(x.quads() == 1 && left + width <= x.width && top + height <= x.height, "image_to_rgba8: crop");
    let y = rec.tensor(height, pitch, 1, Elem::Word);
    rec.dispatch(Dispatch {
        kernel: &IMAGE_TO_RGBA8,
        consts: vec![],
        bindings: vec![
            Binding::part(x, Footprint::rows(x.width as u64, 1, -(top as i64), 1)),
            Binding::part(&y, Footprint::rows(pitch as u64, 1, 0, 1)),
        ],
        params: [x.width, width, pitch, top, left].map(|v| v as u32).to_vec(),
        grid: [width.div_ceil(64) as u32, height as u32, 1],
        flops: 9 * product([width, height]),
    });
    y
}

/// Makes the run fail with the current scope's name if `x` holds a NaN, an infinity or an f16 overflow.
pub fn count_nonfinite(rec: &mut Recorder, x: &Tensor) {
    let (watch, health) = rec.watch();
    rec.dispatch(Dispatch {
        kernel: &COUNT_NONFINITE,
        consts: vec![],
        bindings: vec![Binding::part(x, Footprint::rows(1, 256, 0, 256)), Binding::whole(&health)],
        params: vec![x.units() as u32, limit(x.elem).to_bits(), watch],
        grid: [1, x.units().div_ceil(256) as u32, 1],
        flops: 0,
    });
}
