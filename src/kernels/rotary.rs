//! Rotary positions of the heads of tokens that lie on a plane.

use super::product;
use crate::gpu::{Bind, Binding, Dispatch, Footprint, Kernel, Recorder, Tensor};

/// `rotary.wgsl`
pub const ROTARY: Kernel = Kernel {
    name: "rotary",
    wgsl: include_str!("../../shaders/rotary.wgsl"),
    params: &["count", "heads", "d4", "h", "w", "norm", "eps"],
    bindings: &[Bind::X, Bind::F32, Bind::Y],
};

/// Positions of planes of tokens.
#[derive(Debug, Clone)]
pub struct Rotary {
    /// `[rows + columns, 1, head_dim / 2]` in f32: for each row, then each column, cosine and sine of the angle of each pair of channels.
    pub table: Tensor,
    /// Rows of tokens of one plane.
    pub rows: usize,
    /// Columns of tokens.
    pub columns: usize,
    /// Layer norm without weights of each head before it turns, with this epsilon.
    pub norm: Option<f32>,
}

/// `x` (`[n * rows, columns, heads * head_dim]`, the head dimension a multiple of 8) with every head turned: the first half of its channels, pair by
/// adjacent pair, by its row, the second by its column.
pub fn rotary(rec: &mut Recorder, x: &Tensor, heads: usize, positions: &Rotary) -> Tensor {
    let Rotary { table, rows, columns, norm } = positions;
    let d = x.channels / heads;
    assert!(d * heads == x.channels && d.is_multiple_of(8), "rotary: {heads} heads of {} channels", x.channels);
    assert!(x.height.is_multiple_of(*rows) && x.width == *columns, "rotary: {:?} on {rows} x {columns}", x.shape());
    assert_eq!(table.shape(), (rows + columns, 1, d / 2), "rotary: table");
    let y = rec.tensor(x.height, x.width, x.channels, x.elem);
    let part = Footprint::rows(d as u64 / 4, 64, 0, 64);
    let count = x.pixels() * heads;
    rec.dispatch(Dispatch {
        kernel: &ROTARY,
        consts: vec![],
        bindings: vec![Binding::part(x, part), Binding::whole(table), Binding::part(&y, part)],
        params: [count, heads, d / 4, *rows, *columns, norm.is_some() as usize]
            .map(|n| n as u32)
            .into_iter()
            .chain([norm.unwrap_or(0.0).to_bits()])
            .collect(),
        grid: [1, count.div_ceil(64) as u32, 1],
        flops: 10 * product([x.pixels(), x.channels]),
    });
    y
}
