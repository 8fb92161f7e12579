//! Fourier features of InfGen's implicit neural positional embedding.

use super::product;
use crate::gpu::{Bind, Binding, Dispatch, Elem, Footprint, Kernel, Recorder, Tensor};

/// `inpe_features.wgsl`
pub const INPE_FEATURES: Kernel = Kernel {
    name: "inpe_features",
    wgsl: include_str!("../../shaders/inpe_features.wgsl"),
    params: &["units", "quads", "features", "grid_h", "grid_w", "row0", "lon_span", "lat_span"],
    bindings: &[Bind::F32, Bind::F32Write],
};

/// Rows of a grid whose cells are to be embedded.
#[derive(Debug, Clone, Copy)]
pub struct GridRows {
    /// Height and width of the whole grid in cells.
    pub grid: (usize, usize),
    /// First row.
    pub row0: usize,
    /// Number of rows.
    pub rows: usize,
}

/// `[cos(B p), sin(B p)]` for each cell: `[rows, grid_w, 2 m]` f32. `b` holds `B` (`[m, 3]`, f32, row-major);
/// spans in radians.
pub fn inpe_features(rec: &mut Recorder, b: &Tensor, features: usize, at: GridRows, lon_span: f32, lat_span: f32) -> Tensor {
    let y = rec.tensor(at.rows, at.grid.1, 2 * features, Elem::F32);
    rec.dispatch(Dispatch {
        kernel: &INPE_FEATURES,
        consts: vec![],
        bindings: vec![Binding::whole(b), Binding::part(&y, Footprint::rows(1, 64, 0, 64))],
        params: vec![
            y.units() as u32,
            y.quads() as u32,
            features as u32,
            at.grid.0 as u32,
            at.grid.1 as u32,
            at.row0 as u32,
            lon_span.to_bits(),
            lat_span.to_bits(),
        ],
        grid: [1, y.units().div_ceil(64) as u32, 1],
        flops: 30 * product([y.pixels(), y.channels]),
    });
    y
}
