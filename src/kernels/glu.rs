//! Gated linear units of transformer blocks.

use super::{Act, product};
use crate::gpu::{Bind, Binding, Dispatch, Elem, Footprint, Kernel, Recorder, Tensor};

/// `glu.wgsl`
pub const GLU: Kernel = Kernel {
    name: "glu",
    wgsl: concat!(include_str!("../../shaders/common/activation.wgsl"), include_str!("../../shaders/glu.wgsl")),
    params: &["units", "c4"],
    bindings: &[Bind::X, Bind::Y],
};

/// `a * act(b)` where `x` is `[tokens, a | b]`; each half a multiple of 4 channels. GEGLU with [`Act::GeluErf`], SwiGLU with [`Act::Silu`].
pub fn glu(rec: &mut Recorder, x: &Tensor, act: Act, elem: Elem) -> Tensor {
    assert!(x.channels.is_multiple_of(8), "glu: each half must be whole quads");
    let y = rec.tensor(x.height, x.width, x.channels / 2, elem);
    // Units n .. n + 256 of y lie in rows that begin up to a row before 2 n, with their gates half a row on.
    let half = y.quads() as i64;
    let both = Footprint { base: -half, per: [0, 512, 0], extent: 512 + 2 * half };
    rec.dispatch(Dispatch {
        kernel: &GLU,
        consts: vec![("ACT", act as u32)],
        bindings: vec![Binding::part(x, both), Binding::part(&y, Footprint::rows(1, 256, 0, 256))],
        params: vec![y.units() as u32, y.quads() as u32],
        grid: [1, y.units().div_ceil(256) as u32, 1],
        flops: 12 * product([y.pixels(), y.channels]),
    });
    y
}
