//! The gated residual of adaptive layer normalisation.

use super::product;
use crate::gpu::{Bind, Binding, Dispatch, Footprint, Kernel, Recorder, Tensor};

/// `gated_add.wgsl`
pub const GATED_ADD: Kernel = Kernel {
    name: "gated_add",
    wgsl: include_str!("../../shaders/gated_add.wgsl"),
    params: &["units", "c4"],
    bindings: &[Bind::X, Bind::F32, Bind::YRead, Bind::Y],
};

/// `residual + gate * x` into `y`, which must be neither; `gate` is one row of `x`'s channels in f32, `y` of `residual`'s type.
pub fn gated_add_into(rec: &mut Recorder, x: &Tensor, gate: &Tensor, residual: &Tensor, y: &Tensor) {
    let shapes = x.shape() == y.shape() && residual.shape() == y.shape() && residual.elem == y.elem;
    assert!(shapes && gate.pixels() == 1 && gate.channels == x.channels, "gated_add: shapes");
    let part = Footprint::rows(1, 256, 0, 256);
    rec.dispatch(Dispatch {
        kernel: &GATED_ADD,
        consts: vec![],
        bindings: vec![Binding::part(x, part), Binding::whole(gate), Binding::part(residual, part), Binding::part(y, part)],
        params: vec![y.units() as u32, y.quads() as u32],
        grid: [1, y.units().div_ceil(256) as u32, 1],
        flops: 2 * product([y.pixels(), y.channels]),
    });
}
