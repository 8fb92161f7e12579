//! Resampling: bilinear of a token grid, nearest of a plane, bicubic of a picture.

use std::ops::Range;

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

/// `resample_bicubic.wgsl`
pub const RESAMPLE_BICUBIC: Kernel = Kernel {
    name: "resample_bicubic",
    wgsl: include_str!("../../shaders/resample_bicubic.wgsl"),
    params: &["h", "w", "grid_h", "grid_w", "x_top", "x_left", "stride", "top", "left", "width"],
    bindings: &[Bind::X, Bind::Y],
};

/// Half of the width of the cubic kernel where it does not reduce.
const CUBIC_REACH: f64 = 2.0;

/// Where a picture is enlarged or reduced to.
#[derive(Debug, Clone, Copy)]
pub struct Bicubic {
    /// Height and width of the whole picture.
    pub from: (usize, usize),
    /// Height and width that it is brought to.
    pub to: (usize, usize),
}

impl Bicubic {
    /// Which rows of the picture some rows of the result read (or columns, `axis` 1), one more than enough on either side.
    pub fn reads(&self, axis: usize, range: &Range<usize>) -> Range<usize> {
        let (from, to) = if axis == 0 { (self.from.0, self.to.0) } else { (self.from.1, self.to.1) };
        let scale = from as f64 / to as f64;
        let reach = CUBIC_REACH * scale.max(1.0) + 1.0;
        let start = ((range.start as f64 + 0.5) * scale - reach).floor().max(0.0) as usize;
        let end = ((range.end as f64 - 0.5) * scale + reach).ceil() as usize;
        start..end.clamp(start + 1, from)
    }
}

/// `rows` and `columns` of the picture at `sizes.to`, `[rows, columns, 3]`. `x` is the part of it, `[.., .., 3]`, that begins at pixel `at` (row, column) and holds
/// [`Bicubic::reads`] of both. As Pillow's BICUBIC without its rounding.
pub fn resample_bicubic(
    rec: &mut Recorder,
    (x, at): (&Tensor, (usize, usize)),
    sizes: Bicubic,
    rows: &Range<usize>,
    columns: &Range<usize>,
    elem: Elem,
) -> Tensor {
    assert_eq!(x.quads(), 1, "resample_bicubic: one quad of channels");
    let y = rec.tensor(rows.len(), columns.len(), x.channels, elem);
    let taps = |from: usize, to: usize| (2.0 * CUBIC_REACH * (from as f64 / to as f64).max(1.0)).ceil() as usize;
    let Bicubic { from, to } = sizes;
    let params = [from.0, from.1, to.0, to.1, at.0, at.1, x.width, rows.start, columns.start, columns.len()];
    rec.dispatch(Dispatch {
        kernel: &RESAMPLE_BICUBIC,
        consts: vec![],
        bindings: vec![Binding::whole(x), Binding::part(&y, Footprint::rows(columns.len() as u64, 1, 0, 1))],
        params: params.map(|v| v as u32).to_vec(),
        grid: [columns.len().div_ceil(64) as u32, rows.len() as u32, 1],
        flops: product([y.pixels(), taps(from.0, to.0), taps(from.1, to.1), 8]),
    });
    y
}
