//! Nearest-2x upsampling followed by a 3x3 convolution.

use super::{
    CONV2D_WINOGRAD, CONV2D_WINOGRAD_TILE, CONV2D_WINOGRAD_TILE_STATISTICS, Conv3x3Call, ConvWeights, Packing, TILE, Window, in_pairs,
    plane_params,
};
use crate::gpu::{Bind, Binding, Dispatch, Elem, Footprint, Kernel, Recorder, Tensor};
use crate::kernels::{Act, BROADCAST_LANES, in_broadcast, lanes, limit, matrix, product, tiles};

/// `conv2d_phase_winograd.wgsl`
pub const CONV2D_PHASE_WINOGRAD: Kernel = Kernel {
    name: "conv2d_phase_winograd",
    wgsl: concat!(
        include_str!("../../../shaders/common/activation.wgsl"),
        include_str!("../../../shaders/common/broadcast.wgsl"),
        include_str!("../../../shaders/conv2d_phase_winograd.wgsl"),
        include_str!("../../../shaders/common/winograd_phases.wgsl"),
        include_str!("../../../shaders/common/winograd.wgsl")
    ),
    ..CONV2D_WINOGRAD
};

/// `conv2d_phase_winograd_tile.wgsl`
pub const CONV2D_PHASE_WINOGRAD_TILE: Kernel = Kernel {
    name: "conv2d_phase_winograd_tile",
    wgsl: concat!(
        include_str!("../../../shaders/common/activation.wgsl"),
        include_str!("../../../shaders/conv2d_phase_winograd_tile.wgsl"),
        include_str!("../../../shaders/common/winograd_phases.wgsl"),
        include_str!("../../../shaders/common/winograd_tile.wgsl"),
        include_str!("../../../shaders/common/no_statistics.wgsl")
    ),
    ..CONV2D_WINOGRAD_TILE
};

/// [`CONV2D_PHASE_WINOGRAD_TILE`] with the statistics of its result
pub const CONV2D_PHASE_WINOGRAD_TILE_STATISTICS: Kernel = Kernel {
    name: "conv2d_phase_winograd_tile+statistics",
    wgsl: concat!(
        include_str!("../../../shaders/common/activation.wgsl"),
        include_str!("../../../shaders/conv2d_phase_winograd_tile.wgsl"),
        include_str!("../../../shaders/common/winograd_phases.wgsl"),
        include_str!("../../../shaders/common/winograd_tile.wgsl"),
        include_str!("../../../shaders/common/moments.wgsl"),
        include_str!("../../../shaders/common/block_statistics.wgsl")
    ),
    ..CONV2D_WINOGRAD_TILE_STATISTICS
};

/// `conv2d_phase_matrix.wgsl`
pub const CONV2D_PHASE_MATRIX: Kernel = Kernel {
    name: "conv2d_phase_matrix",
    wgsl: concat!(include_str!("../../../shaders/common/activation.wgsl"), include_str!("../../../shaders/conv2d_phase_matrix.wgsl")),
    params: &["h", "w", "cin4", "cout4", "groups", "act", "sh", "sw", "top", "left"],
    bindings: CONV2D_PHASE_TILE.bindings,
};

/// `conv2d_phase_lanes.wgsl`
pub const CONV2D_PHASE_LANES: Kernel = Kernel {
    name: "conv2d_phase_lanes",
    wgsl: concat!(include_str!("../../../shaders/common/activation.wgsl"), include_str!("../../../shaders/conv2d_phase_lanes.wgsl")),
    params: &["h", "w", "cin4", "cout4", "tiles", "act", "sw", "top", "left"],
    bindings: &[Bind::X, Bind::W, Bind::F32, Bind::Y],
};

/// `conv2d_phase_pairs.wgsl`
pub const CONV2D_PHASE_PAIRS: Kernel = Kernel {
    name: "conv2d_phase_pairs",
    wgsl: concat!(include_str!("../../../shaders/common/activation.wgsl"), include_str!("../../../shaders/conv2d_phase_pairs.wgsl")),
    params: CONV2D_PHASE_LANES.params,
    bindings: &[Bind::X, Bind::W8, Bind::F32, Bind::Y],
};

/// `conv2d_phase_broadcast.wgsl`
pub const CONV2D_PHASE_BROADCAST: Kernel = Kernel {
    name: "conv2d_phase_broadcast",
    wgsl: concat!(
        include_str!("../../../shaders/common/activation.wgsl"),
        include_str!("../../../shaders/common/broadcast.wgsl"),
        include_str!("../../../shaders/conv2d_phase_broadcast.wgsl")
    ),
    params: CONV2D_PHASE_TILE.params,
    bindings: CONV2D_PHASE_PAIRS.bindings,
};

/// `conv2d_phase_tile.wgsl`
pub const CONV2D_PHASE_TILE: Kernel = Kernel {
    name: "conv2d_phase_tile",
    wgsl: concat!(include_str!("../../../shaders/common/activation.wgsl"), include_str!("../../../shaders/conv2d_phase_tile.wgsl")),
    params: &["h", "w", "cin4", "cout4", "tiles", "act", "sh", "sw", "top", "left"],
    bindings: &[Bind::X, Bind::W, Bind::F32, Bind::Y],
};

/// `act(conv3x3(nearest2x(x)) + bias)` without ever storing the enlarged image; `weights` from [`super::pack_upsample`].
///
/// `x` is `[h, w, cin]`, the result `[2h, 2w, cout]`.
pub fn upsample2x_conv2d_3x3(rec: &mut Recorder, x: &Tensor, weights: &ConvWeights, act: Act, elem: Elem) -> Tensor {
    upsample2x_conv2d_3x3_window(rec, x, weights, act, elem, Window::whole(x))
}

/// [`upsample2x_conv2d_3x3`] of a part of a plane: `window` counts pixels of the small image, the result has twice its sides.
pub fn upsample2x_conv2d_3x3_window(rec: &mut Recorder, x: &Tensor, weights: &ConvWeights, act: Act, elem: Elem, window: Window) -> Tensor {
    assert_eq!(x.channels, weights.cin, "upsample2x_conv2d_3x3: input channels");
    let (sh, sw) = (window.height, window.width);
    let y = rec.tensor(2 * sh, 2 * sw, weights.cout, elem);
    let row_in = (x.width * x.quads()) as u64;
    let row_out = (2 * sw * y.quads()) as u64;
    let mut params = vec![x.height as u32, x.width as u32, x.quads() as u32, y.quads() as u32];
    let origin = [window.top as u32, window.left as u32];
    let (kernel, consts, rows, grid) = match rec.profile().families(x).upsample {
        _ if weights.packing == Packing::Winograd => {
            return upsample2x_winograd(rec, &Conv3x3Call { x, norm: None, weights, residual: None, act, elem, window }, y);
        }
        // Eight rows of the result a workgroup: of planes too wide for one binding the other kernels write two, with the same bits.
        family if in_broadcast(rec, family, y.quads()) && 8 * row_out * elem.bytes() <= rec.profile().max_binding => {
            let tiles = y.quads().div_ceil(2 * BROADCAST_LANES) as u32;
            params.extend([tiles, act as u32, sh as u32, sw as u32]);
            (&CONV2D_PHASE_BROADCAST, vec![], 4, [sw.div_ceil(8) as u32, sh.div_ceil(4) as u32, 4 * tiles])
        }
        family if family.is_plain() => {
            let (kernel, consts, pixel_lanes, tiles) = match in_pairs(rec, family, weights, y.quads()) {
                Some((consts, pixels, tiles)) => (&CONV2D_PHASE_PAIRS, consts, pixels, tiles),
                None => {
                    let (channels, pixels) = lanes(rec, y.quads());
                    (&CONV2D_PHASE_LANES, vec![("LC", channels), ("LP", pixels)], pixels, (y.quads() as u32).div_ceil(channels))
                }
            };
            params.extend([tiles, act as u32, sw as u32]);
            (kernel, consts, 1, [(sw as u32).div_ceil(8 * pixel_lanes), sh as u32, 4 * tiles])
        }
        family => {
            let grid = |groups: u32| [4 * groups, sh.div_ceil(TILE.0) as u32, sw.div_ceil(TILE.1) as u32];
            match matrix(rec, family, x, &weights.weight, y.quads()) {
                Some((consts, groups)) => {
                    params.extend([groups, act as u32, sh as u32, sw as u32]);
                    (&CONV2D_PHASE_MATRIX, consts, TILE.0, grid(groups))
                }
                None => {
                    let (channels, pair, groups) = tiles(y.quads(), family);
                    params.extend([groups * pair, act as u32, sh as u32, sw as u32]);
                    (&CONV2D_PHASE_TILE, vec![("LC", channels), ("LT", pair)], TILE.0, grid(groups))
                }
            }
        }
    };
    params.extend(origin);
    rec.dispatch(Dispatch {
        kernel,
        consts,
        bindings: vec![
            Binding::part(x, Footprint::rows(row_in, rows, 1 - window.top, rows + 2)),
            Binding::whole(&weights.weight),
            Binding::whole(&weights.bias),
            Binding::part(&y, Footprint::rows(row_out, 2 * rows, 0, 2 * rows)),
        ],
        params,
        grid,
        flops: 32 * product([sh, sw, weights.cin, weights.cout]),
    });
    y
}

/// By Winograd, some small rows a workgroup.
fn upsample2x_winograd(rec: &mut Recorder, call: &Conv3x3Call<'_>, y: Tensor) -> Tensor {
    let Conv3x3Call { x, weights, elem, window, .. } = *call;
    let mut params = plane_params(call, &y, 0, [0; 3]);
    let bias = || Binding::whole(&weights.bias);
    // Neither residual nor norm: what is bound in their places is not read.
    let columns = window.width.div_ceil(8);
    let (kernel, consts, rows, unread, grid) = match rec.profile().families(x).upsample.is_plain() {
        true => {
            let grid = [columns, window.height.div_ceil(2), y.quads().div_ceil(2 * BROADCAST_LANES)];
            (&CONV2D_PHASE_WINOGRAD, vec![("RESIDUAL", 0)], 2, vec![bias()], grid)
        }
        false => {
            params.push(limit(elem).to_bits());
            let grid = [y.quads().div_ceil(8), window.height.div_ceil(4), columns];
            (&CONV2D_PHASE_WINOGRAD_TILE, vec![("NORM", 0), ("RESIDUAL", 0)], 4, vec![bias(), bias()], grid)
        }
    };
    params.extend([0, 0]);
    let mut bindings = vec![
        Binding::part(x, Footprint::rows((x.width * x.quads()) as u64, rows, 1 - window.top, rows + 2)),
        Binding::whole(&weights.weight),
        bias(),
    ];
    bindings.extend(unread);
    bindings.push(Binding::part(&y, Footprint::rows((y.width * y.quads()) as u64, 2 * rows, 0, 2 * rows)));
    rec.dispatch(Dispatch {
        kernel,
        consts,
        bindings,
        params,
        grid: grid.map(|n| n as u32),
        flops: 32 * product([window.height, window.width, weights.cin, weights.cout]),
    });
    y
}
