//! The device's own limits, measured: what benchmarks are compared with.

use crate::gpu::{Bind, Binding, Dispatch, Elem, Footprint, Kernel, Recorder, Tensor};

/// `peak_fma.wgsl`
pub const PEAK_FMA: Kernel =
    Kernel { name: "peak_fma", wgsl: include_str!("../../shaders/peak_fma.wgsl"), params: &["rounds"], bindings: &[Bind::F32Write] };

/// `peak_copy.wgsl`
pub const PEAK_COPY: Kernel = Kernel {
    name: "peak_copy",
    wgsl: include_str!("../../shaders/peak_copy.wgsl"),
    params: &["units"],
    bindings: &[Bind::F32, Bind::F32Write],
};

/// Multiply-adds in registers: `workgroups * 64` invocations of `64 * rounds` each.
pub fn peak_fma(rec: &mut Recorder, workgroups: u32, rounds: u32) -> Tensor {
    let y = rec.tensor(1, workgroups as usize * 64, 4, Elem::F32);
    rec.dispatch(Dispatch {
        kernel: &PEAK_FMA,
        consts: vec![],
        bindings: vec![Binding::part(&y, Footprint { base: 0, per: [64, 0, 0], extent: 64 })],
        params: vec![rounds],
        grid: [workgroups, 1, 1],
        flops: 2 * 64 * 64 * workgroups as u64 * rounds as u64,
    });
    y
}

/// A copy of `x` (f32).
pub fn peak_copy(rec: &mut Recorder, x: &Tensor) -> Tensor {
    let y = rec.tensor(x.height, x.width, x.channels, Elem::F32);
    let part = Footprint::rows(1, 256, 0, 256);
    rec.dispatch(Dispatch {
        kernel: &PEAK_COPY,
        consts: vec![],
        bindings: vec![Binding::part(x, part), Binding::part(&y, part)],
        params: vec![x.units() as u32],
        grid: [1, x.units().div_ceil(256) as u32, 1],
        flops: 0,
    });
    y
}
