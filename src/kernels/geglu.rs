//! The gated linear unit of Stable Diffusion's transformer blocks.

use super::product;
use crate::gpu::{Bind, Binding, Dispatch, Elem, Footprint, Kernel, Recorder, Tensor};

/// `geglu.wgsl`
pub const GEGLU: Kernel = Kernel {
    name: "geglu",
    wgsl: concat!(include_str!("../../shaders/common/activation.wgsl"), include_str!("../../shaders/geglu.wgsl")),
    params: &["units", "c4"],
    bindings: &[Bind::X, Bind::Y],
};

/// `a * gelu(b)` where `x` is `[tokens, a | b]`; each half a multiple of 4 channels.
pub fn geglu(rec: &mut Recorder, x: &Tensor, elem: Elem) -> Tensor {
    assert!(x.channels.is_multiple_of(8), "geglu: each half must be whole quads");
    let y = rec.tensor(x.height, x.width, x.channels / 2, elem);
    rec.dispatch(Dispatch {
        kernel: &GEGLU,
        consts: vec![],
        bindings: vec![Binding::whole(x), Binding::part(&y, Footprint::rows(1, 256, 0, 256))],
        params: vec![y.units() as u32, y.quads() as u32],
        grid: [1, y.units().div_ceil(256) as u32, 1],
        flops: 12 * product([y.pixels(), y.channels]),
    });
    y
}
