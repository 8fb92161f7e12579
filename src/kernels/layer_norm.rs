//! Layer normalisation of tokens.

use super::product;
use crate::gpu::{Bind, Binding, Dispatch, Elem, Footprint, Kernel, Recorder, Tensor};

/// `layer_norm.wgsl`
pub const LAYER_NORM: Kernel = Kernel {
    name: "layer_norm",
    wgsl: include_str!("../../shaders/layer_norm.wgsl"),
    params: &["rows", "channels", "c4", "eps"],
    bindings: &[Bind::X, Bind::F32, Bind::Y],
};

/// Weights of a layer normalisation on the device.
#[derive(Debug, Clone)]
pub struct LayerNormWeights {
    /// `[2, 1, channels]`: weight, then bias, f32.
    pub affine: Tensor,
    /// Added to the variance.
    pub eps: f32,
}

/// Normalises each token of `x` over its channels: a new tensor of the same shape.
pub fn layer_norm(rec: &mut Recorder, x: &Tensor, weights: &LayerNormWeights, elem: Elem) -> Tensor {
    let y = rec.tensor(x.height, x.width, x.channels, elem);
    layer_norm_into(rec, x, weights, &y);
    y
}

/// [`layer_norm`] into `y`, which may be some rows of a larger tensor.
pub fn layer_norm_into(rec: &mut Recorder, x: &Tensor, weights: &LayerNormWeights, y: &Tensor) {
    assert_eq!((weights.affine.channels, y.shape()), (x.channels, x.shape()), "layer_norm: shapes");
    let part = Footprint::rows(x.quads() as u64, 8, 0, 8);
    rec.dispatch(Dispatch {
        kernel: &LAYER_NORM,
        consts: vec![],
        bindings: vec![Binding::part(x, part), Binding::whole(&weights.affine), Binding::part(y, part)],
        params: vec![x.pixels() as u32, x.channels as u32, x.quads() as u32, weights.eps.to_bits()],
        grid: [1, x.pixels().div_ceil(8) as u32, 1],
        flops: 7 * product([x.pixels(), x.channels]),
    });
}
