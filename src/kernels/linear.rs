//! Matrix products: linear layers on tokens, and 1x1 convolutions, which are the same thing.

use super::{Act, BROADCAST_LANES, Packed, channel_lanes, in_broadcast, lanes, matrix, product, tiles};
use crate::gpu::{Bind, Binding, Dispatch, Elem, Footprint, Kernel, Recorder, Tensor};

/// `linear_lanes.wgsl`
pub const LINEAR_LANES: Kernel = Kernel {
    name: "linear_lanes",
    wgsl: concat!(include_str!("../../shaders/common/activation.wgsl"), include_str!("../../shaders/linear_lanes.wgsl")),
    params: &["rows", "k4", "n4", "act"],
    bindings: &[Bind::X, Bind::W8, Bind::F32, Bind::YRead, Bind::Y],
};

/// `linear_broadcast.wgsl`
pub const LINEAR_BROADCAST: Kernel = Kernel {
    name: "linear_broadcast",
    wgsl: concat!(
        include_str!("../../shaders/common/activation.wgsl"),
        include_str!("../../shaders/common/broadcast.wgsl"),
        include_str!("../../shaders/linear_broadcast.wgsl")
    ),
    params: LINEAR_LANES.params,
    bindings: LINEAR_LANES.bindings,
};

/// `linear_matrix.wgsl`
pub const LINEAR_MATRIX: Kernel = Kernel {
    name: "linear_matrix",
    wgsl: concat!(include_str!("../../shaders/common/activation.wgsl"), include_str!("../../shaders/linear_matrix.wgsl")),
    params: LINEAR_LANES.params,
    bindings: LINEAR_TILE.bindings,
};

/// `linear_tile.wgsl`
pub const LINEAR_TILE: Kernel = Kernel {
    name: "linear_tile",
    wgsl: concat!(include_str!("../../shaders/common/activation.wgsl"), include_str!("../../shaders/linear_tile.wgsl")),
    params: &["rows", "k4", "n4", "act"],
    bindings: &[Bind::X, Bind::W, Bind::F32, Bind::YRead, Bind::Y],
};

/// Rows of a workgroup of `linear_tile`.
const TILE_ROWS: usize = 64;

/// Rows of a workgroup of `linear_matrix`.
const MATRIX_ROWS: usize = 128;

/// Weights of a linear layer on the device.
#[derive(Debug, Clone)]
pub struct LinearWeights {
    /// Packed by [`pack_linear`].
    pub weight: Tensor,
    /// `[outputs]`, f32.
    pub bias: Tensor,
    /// Input features.
    pub inputs: usize,
    /// Output features.
    pub outputs: usize,
}

/// Output quads that lie side by side in packed weights: at least two, since `linear_lanes` reads pairs.
fn tile_quads(n4: usize) -> usize {
    channel_lanes(n4.max(2))
}

/// Packs torch's `[outputs, inputs]` as `[n4 / LC][k4][4 k][LC]` quads of outputs.
pub fn pack_linear(weight: &[f32], outputs: usize, inputs: usize) -> Packed {
    assert_eq!(weight.len(), outputs * inputs);
    let (n4, k4) = (outputs.div_ceil(4), inputs.div_ceil(4));
    let lanes = tile_quads(n4);
    let mut values = Vec::with_capacity(n4.next_multiple_of(lanes) * k4 * 16);
    for tile in 0..n4.div_ceil(lanes) {
        for k in 0..4 * k4 {
            for o in 4 * lanes * tile..4 * lanes * (tile + 1) {
                values.push(if o < outputs && k < inputs { weight[o * inputs + k] } else { 0.0 });
            }
        }
    }
    Packed { values }
}

/// `act(x W^T + bias + residual)` into a new tensor of `x`'s height and width.
pub fn linear(rec: &mut Recorder, x: &Tensor, weights: &LinearWeights, residual: Option<&Tensor>, act: Act, elem: Elem) -> Tensor {
    let y = rec.tensor(x.height, x.width, weights.outputs, elem);
    linear_into(rec, x, weights, residual, act, &y);
    y
}

/// [`linear`] into `y`, which may be some rows of a larger tensor.
pub fn linear_into(rec: &mut Recorder, x: &Tensor, weights: &LinearWeights, residual: Option<&Tensor>, act: Act, y: &Tensor) {
    assert_eq!((x.channels, y.channels, x.pixels()), (weights.inputs, weights.outputs, y.pixels()), "linear: shapes");
    if let Some(residual) = residual {
        assert_eq!((residual.pixels(), residual.channels, residual.elem), (y.pixels(), y.channels, y.elem), "linear: residual");
    }
    let rows = x.pixels();
    let residual_kind = ("RESIDUAL", residual.is_some() as u32);
    let (kernel, consts, run, groups) = match rec.profile().families(x).linear {
        family if in_broadcast(rec, family, y.quads()) => {
            (&LINEAR_BROADCAST, vec![residual_kind], 32, y.quads().div_ceil(2 * BROADCAST_LANES) as u32)
        }
        family if family.is_plain() => {
            // Lanes hold a pair of quads each.
            let pairs = y.quads().div_ceil(2);
            let (channel_lanes, row_lanes) = lanes(rec, pairs);
            let consts = vec![("LC", tile_quads(y.quads()) as u32), ("CL", channel_lanes), ("RL", row_lanes), residual_kind];
            (&LINEAR_LANES, consts, 8 * row_lanes as usize, (pairs as u32).div_ceil(channel_lanes))
        }
        family => match matrix(rec, family, x, &weights.weight, y.quads()) {
            Some((consts, groups)) => (&LINEAR_MATRIX, [consts, vec![residual_kind]].concat(), MATRIX_ROWS, groups),
            None => {
                let (channels, pair, groups) = tiles(y.quads().max(2), family);
                (&LINEAR_TILE, vec![("LC", channels), ("LT", pair), residual_kind], TILE_ROWS, groups)
            }
        },
    };
    let out = Footprint::rows(y.quads() as u64, run, 0, run);
    rec.dispatch(Dispatch {
        kernel,
        consts,
        bindings: vec![
            Binding::part(x, Footprint::rows(x.quads() as u64, run, 0, run)),
            Binding::whole(&weights.weight),
            Binding::whole(&weights.bias),
            residual.map_or(Binding::whole(&weights.bias), |r| Binding::part(r, out)),
            Binding::part(y, out),
        ],
        params: vec![rows as u32, x.quads() as u32, y.quads() as u32, act as u32],
        grid: [groups, rows.div_ceil(run) as u32, 1],
        flops: 2 * product([rows, weights.inputs, weights.outputs]),
    });
}
