//! Features where the pixels of a picture lie.

use crate::gpu::{Bind, Binding, Dispatch, Elem, Footprint, Kernel, Recorder, Tensor};

/// `gather_features.wgsl`
pub const GATHER_FEATURES: Kernel = Kernel {
    name: "gather_features",
    wgsl: include_str!("../../shaders/gather_features.wgsl"),
    params: &["units", "c4", "w", "rows", "columns"],
    bindings: &[Bind::X, Bind::F32, Bind::Y],
};

/// A row, or a column, of pixels among rows of features.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    /// The nearest row of features.
    pub index: usize,
    /// How far the pixel's centre lies from that row's, in half rows: -1 to 1.
    pub offset: f32,
    /// How large the pixel is, in half rows.
    pub size: f32,
}

/// The features `x` (`[h, w, c]`, the channels a multiple of 4) nearest to each pixel, `[rows, columns, c + 4]`; the last four channels are offset by row and
/// by column, size by row and by column.
///
/// # Panics
/// If an index lies outside of `x`: an engine bug.
pub fn gather_features(rec: &mut Recorder, x: &Tensor, rows: &[Place], columns: &[Place], elem: Elem) -> Tensor {
    assert!(x.channels.is_multiple_of(4), "gather_features: whole quads");
    assert!(rows.iter().all(|p| p.index < x.height) && columns.iter().all(|p| p.index < x.width), "gather_features: inside");
    let table: Vec<f32> = rows.iter().chain(columns).flat_map(|p| [p.index as f32, p.offset, p.size, 0.0]).collect();
    let table = rec.upload(&table, rows.len() + columns.len(), 1, 4, Elem::F32);
    let y = rec.tensor(rows.len(), columns.len(), x.channels + 4, elem);
    rec.dispatch(Dispatch {
        kernel: &GATHER_FEATURES,
        consts: vec![],
        bindings: vec![Binding::whole(x), Binding::whole(&table), Binding::part(&y, Footprint::rows(1, 64, 0, 64))],
        params: [y.units() as usize, x.quads(), x.width, rows.len(), columns.len()].map(|n| n as u32).to_vec(),
        grid: [1, y.units().div_ceil(64) as u32, 1],
        flops: 0,
    });
    y
}
