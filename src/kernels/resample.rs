//! Resampling: bilinear of a token grid, nearest of a plane.

use super::inpe::GridRows;
use super::product;
use crate::gpu::{Bind, Binding, Dispatch, Elem, Footprint, Kernel, Recorder, Tensor};

/// `resample_bilinear.wgsl`
pub const RESAMPLE_BILINEAR: Kernel = Kernel {
    name: "resample_bilinear",
    wgsl: include_str!("../../shaders/resample_bilinear.wgsl"),
    params: &["units", "c4", "h", "w", "grid_h", "grid_w", "row0"],
    bindings: &[Bind::X, Bind::Y],
};

/// `x` (`[h, w, c]`) at the cell centres of `at`: `[rows, grid_w, c]`. Half-pixel centres, clamped edges, no antialias.
pub fn resample_bilinear(rec: &mut Recorder, x: &Tensor, at: GridRows, elem: Elem) -> Tensor {
    let y = rec.tensor(at.rows, at.grid.1, x.channels, elem);
    rec.dispatch(Dispatch {
        kernel: &RESAMPLE_BILINEAR,
        consts: vec![],
        bindings: vec![Binding::whole(x), Binding::part(&y, Footprint::rows(1, 64, 0, 64))],
        params: vec![
            y.units() as u32,
            x.quads() as u32,
            x.height as u32,
            x.width as u32,
            at.grid.0 as u32,
            at.grid.1 as u32,
            at.row0 as u32,
        ],
        grid: [1, y.units().div_ceil(64) as u32, 1],
        flops: 9 * product([y.pixels(), y.channels]),
    });
    y
}

/// `resample_nearest.wgsl`
pub const RESAMPLE_NEAREST: Kernel = Kernel {
    name: "resample_nearest",
    wgsl: include_str!("../../shaders/resample_nearest.wgsl"),
    params: &["units", "c4", "h", "w", "oh", "ow"],
    bindings: &[Bind::X, Bind::Y],
};

/// `x` (`[h, w, c]`) at `height x width`: pixel `(i, j)` is `x[i h / height, j w / width]`, rounded down.
pub fn resample_nearest(rec: &mut Recorder, x: &Tensor, height: usize, width: usize, elem: Elem) -> Tensor {
    let y = rec.tensor(height, width, x.channels, elem);
    rec.dispatch(Dispatch {
        kernel: &RESAMPLE_NEAREST,
        consts: vec![],
        bindings: vec![Binding::whole(x), Binding::part(&y, Footprint::rows(1, 64, 0, 64))],
        params: vec![y.units() as u32, x.quads() as u32, x.height as u32, x.width as u32, height as u32, width as u32],
        grid: [1, y.units().div_ceil(64) as u32, 1],
        flops: 0,
    });
    y
}
