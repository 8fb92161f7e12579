//! Convolutions: 3x3, and nearest-2x upsampling followed by 3x3.

use super::group_norm::{Norm, norm_apply};
use super::{Act, BROADCAST_LANES, Packed, channel_lanes, in_broadcast, lanes, limit, matrix, product, shares_loads, tiles};
use crate::gpu::{Bind, Binding, DeviceProfile, Dispatch, Elem, Footprint, Kernel, KernelFamily, Operator, Recorder, Tensor};

/// `conv2d_3x3_lanes.wgsl`
pub const CONV2D_3X3_LANES: Kernel = Kernel {
    name: "conv2d_3x3_lanes",
    wgsl: concat!(
        include_str!("../../shaders/common/activation.wgsl"),
        include_str!("../../shaders/conv2d_3x3_lanes.wgsl"),
        include_str!("../../shaders/common/taps_alone.wgsl")
    ),
    params: &["h", "w", "cin4", "cout4", "act", "ow", "top", "left", "rw", "rtop", "rleft"],
    bindings: &[Bind::X, Bind::W, Bind::F32, Bind::YRead, Bind::Y],
};

/// [`CONV2D_3X3_LANES`] for one quad of output channels, whose lanes read weights for each other
pub const CONV2D_3X3_LANES_BROADCAST: Kernel = Kernel {
    name: "conv2d_3x3_lanes+broadcast",
    wgsl: concat!(
        include_str!("../../shaders/common/activation.wgsl"),
        include_str!("../../shaders/conv2d_3x3_lanes.wgsl"),
        include_str!("../../shaders/common/taps_together.wgsl")
    ),
    ..CONV2D_3X3_LANES
};

/// `conv2d_3x3_pairs.wgsl`
pub const CONV2D_3X3_PAIRS: Kernel = Kernel {
    name: "conv2d_3x3_pairs",
    wgsl: concat!(include_str!("../../shaders/common/activation.wgsl"), include_str!("../../shaders/conv2d_3x3_pairs.wgsl")),
    params: CONV2D_3X3_LANES.params,
    bindings: &[Bind::X, Bind::W8, Bind::F32, Bind::YRead, Bind::Y],
};

/// `conv2d_3x3_broadcast.wgsl`
pub const CONV2D_3X3_BROADCAST: Kernel = Kernel {
    name: "conv2d_3x3_broadcast",
    wgsl: concat!(
        include_str!("../../shaders/common/activation.wgsl"),
        include_str!("../../shaders/common/broadcast.wgsl"),
        include_str!("../../shaders/conv2d_3x3_broadcast.wgsl")
    ),
    params: &["h", "w", "cin4", "cout4", "act", "oh", "ow", "top", "left", "rw", "rtop", "rleft", "stride"],
    bindings: CONV2D_3X3_PAIRS.bindings,
};

/// `conv2d_winograd.wgsl`
pub const CONV2D_WINOGRAD: Kernel = Kernel {
    name: "conv2d_winograd",
    wgsl: concat!(
        include_str!("../../shaders/common/activation.wgsl"),
        include_str!("../../shaders/common/broadcast.wgsl"),
        include_str!("../../shaders/conv2d_winograd.wgsl"),
        include_str!("../../shaders/common/winograd_f2.wgsl"),
        include_str!("../../shaders/common/winograd.wgsl")
    ),
    params: &["h", "w", "cin4", "cout4", "act", "oh", "ow", "top", "left", "rw", "rtop", "rleft", "odd_row", "odd_column"],
    bindings: CONV2D_3X3_PAIRS.bindings,
};

/// `conv2d_phase_winograd.wgsl`
pub const CONV2D_PHASE_WINOGRAD: Kernel = Kernel {
    name: "conv2d_phase_winograd",
    wgsl: concat!(
        include_str!("../../shaders/common/activation.wgsl"),
        include_str!("../../shaders/common/broadcast.wgsl"),
        include_str!("../../shaders/conv2d_phase_winograd.wgsl"),
        include_str!("../../shaders/common/winograd_phases.wgsl"),
        include_str!("../../shaders/common/winograd.wgsl")
    ),
    ..CONV2D_WINOGRAD
};

/// `conv2d_3x3_tile.wgsl`
pub const CONV2D_3X3_TILE: Kernel = Kernel {
    name: "conv2d_3x3_tile",
    wgsl: concat!(
        include_str!("../../shaders/common/activation.wgsl"),
        include_str!("../../shaders/conv2d_3x3_tile.wgsl"),
        include_str!("../../shaders/common/no_statistics.wgsl")
    ),
    params: &["h", "w", "cin4", "cout4", "act", "oh", "ow", "top", "left", "rw", "rtop", "rleft", "limit"],
    bindings: &[Bind::X, Bind::W, Bind::F32, Bind::F32, Bind::YRead, Bind::Y],
};

/// [`CONV2D_3X3_TILE`] with the statistics of its result
pub const CONV2D_3X3_TILE_STATISTICS: Kernel = Kernel {
    name: "conv2d_3x3_tile+statistics",
    wgsl: concat!(
        include_str!("../../shaders/common/activation.wgsl"),
        include_str!("../../shaders/conv2d_3x3_tile.wgsl"),
        include_str!("../../shaders/common/moments.wgsl"),
        include_str!("../../shaders/common/block_statistics.wgsl")
    ),
    bindings: &[Bind::X, Bind::W, Bind::F32, Bind::F32, Bind::YRead, Bind::Y, Bind::F32Write],
    ..CONV2D_3X3_TILE
};

/// `conv2d_winograd_tile.wgsl`
pub const CONV2D_WINOGRAD_TILE: Kernel = Kernel {
    name: "conv2d_winograd_tile",
    wgsl: concat!(
        include_str!("../../shaders/common/activation.wgsl"),
        include_str!("../../shaders/conv2d_winograd_tile.wgsl"),
        include_str!("../../shaders/common/winograd_f2.wgsl"),
        include_str!("../../shaders/common/winograd_tile.wgsl"),
        include_str!("../../shaders/common/no_statistics.wgsl")
    ),
    params: &["h", "w", "cin4", "cout4", "act", "oh", "ow", "top", "left", "rw", "rtop", "rleft", "limit", "odd_row", "odd_column"],
    ..CONV2D_3X3_TILE
};

/// [`CONV2D_WINOGRAD_TILE`] with the statistics of its result
pub const CONV2D_WINOGRAD_TILE_STATISTICS: Kernel = Kernel {
    name: "conv2d_winograd_tile+statistics",
    wgsl: concat!(
        include_str!("../../shaders/common/activation.wgsl"),
        include_str!("../../shaders/conv2d_winograd_tile.wgsl"),
        include_str!("../../shaders/common/winograd_f2.wgsl"),
        include_str!("../../shaders/common/winograd_tile.wgsl"),
        include_str!("../../shaders/common/moments.wgsl"),
        include_str!("../../shaders/common/block_statistics.wgsl")
    ),
    bindings: CONV2D_3X3_TILE_STATISTICS.bindings,
    ..CONV2D_WINOGRAD_TILE
};

/// `conv2d_phase_winograd_tile.wgsl`
pub const CONV2D_PHASE_WINOGRAD_TILE: Kernel = Kernel {
    name: "conv2d_phase_winograd_tile",
    wgsl: concat!(
        include_str!("../../shaders/common/activation.wgsl"),
        include_str!("../../shaders/conv2d_phase_winograd_tile.wgsl"),
        include_str!("../../shaders/common/winograd_phases.wgsl"),
        include_str!("../../shaders/common/winograd_tile.wgsl"),
        include_str!("../../shaders/common/no_statistics.wgsl")
    ),
    ..CONV2D_WINOGRAD_TILE
};

/// [`CONV2D_PHASE_WINOGRAD_TILE`] with the statistics of its result
pub const CONV2D_PHASE_WINOGRAD_TILE_STATISTICS: Kernel = Kernel {
    name: "conv2d_phase_winograd_tile+statistics",
    wgsl: concat!(
        include_str!("../../shaders/common/activation.wgsl"),
        include_str!("../../shaders/conv2d_phase_winograd_tile.wgsl"),
        include_str!("../../shaders/common/winograd_phases.wgsl"),
        include_str!("../../shaders/common/winograd_tile.wgsl"),
        include_str!("../../shaders/common/moments.wgsl"),
        include_str!("../../shaders/common/block_statistics.wgsl")
    ),
    ..CONV2D_WINOGRAD_TILE_STATISTICS
};

/// `conv2d_3x3_matrix.wgsl`
pub const CONV2D_3X3_MATRIX: Kernel = Kernel {
    name: "conv2d_3x3_matrix",
    wgsl: concat!(
        include_str!("../../shaders/common/activation.wgsl"),
        include_str!("../../shaders/conv2d_3x3_matrix.wgsl"),
        include_str!("../../shaders/common/no_statistics.wgsl")
    ),
    ..CONV2D_3X3_TILE
};

/// [`CONV2D_3X3_MATRIX`] with the statistics of its result
pub const CONV2D_3X3_MATRIX_STATISTICS: Kernel = Kernel {
    name: "conv2d_3x3_matrix+statistics",
    wgsl: concat!(
        include_str!("../../shaders/common/activation.wgsl"),
        include_str!("../../shaders/conv2d_3x3_matrix.wgsl"),
        include_str!("../../shaders/common/moments.wgsl"),
        include_str!("../../shaders/common/block_statistics.wgsl")
    ),
    ..CONV2D_3X3_TILE_STATISTICS
};

/// `conv2d_phase_matrix.wgsl`
pub const CONV2D_PHASE_MATRIX: Kernel = Kernel {
    name: "conv2d_phase_matrix",
    wgsl: concat!(include_str!("../../shaders/common/activation.wgsl"), include_str!("../../shaders/conv2d_phase_matrix.wgsl")),
    params: &["h", "w", "cin4", "cout4", "groups", "act", "sh", "sw", "top", "left"],
    bindings: CONV2D_PHASE_TILE.bindings,
};

/// `conv2d_phase_lanes.wgsl`
pub const CONV2D_PHASE_LANES: Kernel = Kernel {
    name: "conv2d_phase_lanes",
    wgsl: concat!(include_str!("../../shaders/common/activation.wgsl"), include_str!("../../shaders/conv2d_phase_lanes.wgsl")),
    params: &["h", "w", "cin4", "cout4", "tiles", "act", "sw", "top", "left"],
    bindings: &[Bind::X, Bind::W, Bind::F32, Bind::Y],
};

/// `conv2d_phase_pairs.wgsl`
pub const CONV2D_PHASE_PAIRS: Kernel = Kernel {
    name: "conv2d_phase_pairs",
    wgsl: concat!(include_str!("../../shaders/common/activation.wgsl"), include_str!("../../shaders/conv2d_phase_pairs.wgsl")),
    params: CONV2D_PHASE_LANES.params,
    bindings: &[Bind::X, Bind::W8, Bind::F32, Bind::Y],
};

/// `conv2d_phase_broadcast.wgsl`
pub const CONV2D_PHASE_BROADCAST: Kernel = Kernel {
    name: "conv2d_phase_broadcast",
    wgsl: concat!(
        include_str!("../../shaders/common/activation.wgsl"),
        include_str!("../../shaders/common/broadcast.wgsl"),
        include_str!("../../shaders/conv2d_phase_broadcast.wgsl")
    ),
    params: CONV2D_PHASE_TILE.params,
    bindings: CONV2D_PHASE_PAIRS.bindings,
};

/// `conv2d_phase_tile.wgsl`
pub const CONV2D_PHASE_TILE: Kernel = Kernel {
    name: "conv2d_phase_tile",
    wgsl: concat!(include_str!("../../shaders/common/activation.wgsl"), include_str!("../../shaders/conv2d_phase_tile.wgsl")),
    params: &["h", "w", "cin4", "cout4", "tiles", "act", "sh", "sw", "top", "left"],
    bindings: &[Bind::X, Bind::W, Bind::F32, Bind::Y],
};

/// Rows and columns of the pixel tile of a workgroup of `*_tile` and `*_matrix`.
const TILE: (usize, usize) = (8, 16);

/// `conv2d_direct.wgsl`
pub const CONV2D_DIRECT: Kernel = Kernel {
    name: "conv2d_direct",
    wgsl: concat!(include_str!("../../shaders/common/activation.wgsl"), include_str!("../../shaders/conv2d_direct.wgsl")),
    params: &["h", "w", "cin4", "ow", "cout4", "stride", "top", "left", "act"],
    bindings: &[Bind::X, Bind::W, Bind::F32, Bind::Y],
};

/// Weights of a convolution on the device, packed for its kernel.
#[derive(Debug, Clone)]
pub struct ConvWeights {
    /// Packed kernel values.
    pub weight: Tensor,
    /// `[cout]`, f32.
    pub bias: Tensor,
    /// Input channels.
    pub cin: usize,
    /// Output channels.
    pub cout: usize,
    /// What `weight` is packed for.
    pub packing: Packing,
}

/// What the weights of a convolution are packed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// By taps, for every kernel family: [`pack_square`], [`pack_phases`].
    Taps,
    /// For `conv2d_winograd*` or `conv2d_phase_winograd*` alone: [`pack_winograd`], [`pack_phases_winograd`].
    Winograd,
}

/// Workgroup memory and invocations of `conv2d_winograd_tile`, which has more than its twin for upsampling.
const WINOGRAD_TILE: (u32, u32) = (16 * (180 + 1024), 256);

/// Whether `family` has a kernel for weights packed as [`Packing::Winograd`] that runs on a device.
pub fn winograd_runs(profile: &DeviceProfile, operator: Operator, family: KernelFamily) -> bool {
    let convolves = matches!(operator, Operator::Conv | Operator::Upsample);
    let room = profile.max_workgroup_storage >= WINOGRAD_TILE.0 && profile.max_invocations >= WINOGRAD_TILE.1;
    convolves && ((family == KernelFamily::Winograd && profile.broadcast) || (family == KernelFamily::WinogradTile && room))
}

/// How to pack a 3x3 convolution of stride 1, or an upsampling one, for a device, for activations and weights of these types.
///
/// Winograd's weights for the former are 16/9 of the memory and are rounded once more; for the latter they are 9/16 of the phases', sums of more taps, and
/// their products are of differences. Where only weights are in f16 that would be most of the error, and they most of the memory (text to image), so these
/// stay as they are. Of few channels the transforms are too large a part. Nor may they need more than one binding.
pub fn packing(profile: &DeviceProfile, operator: Operator, activations: Elem, weights: Elem, cin: usize, cout: usize) -> Packing {
    let families = profile.kernels.of(activations);
    let family = if operator == Operator::Upsample { families.upsample } else { families.conv };
    let wanted = winograd_runs(profile, operator, family) && activations == weights;
    let fits = (4 * cin.next_multiple_of(4) * cout.next_multiple_of(32)) as u64 * weights.bytes() <= profile.max_binding;
    if wanted && fits && cin >= 32 && cout >= 32 { Packing::Winograd } else { Packing::Taps }
}

/// Packs torch's `[cout, cin, 3, 3]` as `packing` says.
pub fn pack_3x3(weight: &[f32], cout: usize, cin: usize, packing: Packing) -> Packed {
    match packing {
        Packing::Taps => pack_square(weight, cout, cin, 3),
        Packing::Winograd => pack_winograd(weight, cout, cin),
    }
}

/// Packs torch's `[cout, cin, k, k]` as `[cout4 / LC][k dy][cin4][k dx][4 c][LC]` quads of output channels.
pub fn pack_square(weight: &[f32], cout: usize, cin: usize, k: usize) -> Packed {
    assert_eq!(weight.len(), cout * cin * k * k);
    pack(cout, cin, k, |o, c, dy, dx| weight[((o * cin + c) * k + dy) * k + dx])
}

/// Packs torch's `[cout, cin, 3, 3]` for [`upsample2x_conv2d_3x3`] as `packing` says.
pub fn pack_upsample(weight: &[f32], cout: usize, cin: usize, packing: Packing) -> Packed {
    match packing {
        Packing::Taps => pack_phases(weight, cout, cin),
        Packing::Winograd => pack_phases_winograd(weight, cout, cin),
    }
}

/// Winograd's G for F(2, 3).
const G: [[f64; 3]; 4] = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];

/// Packs `G w G^T` of torch's `[cout, cin, 3, 3]`, summed in f64, as `[cout4 / 8][4 r][4 q][cin4][4 c][8]` quads of output channels.
pub fn pack_winograd(weight: &[f32], cout: usize, cin: usize) -> Packed {
    pack_transformed(weight, cout, cin, &G)
}

/// The same for an upsampling convolution: the sum of a row's taps, its first, its last.
const G_PHASES: [[f64; 3]; 3] = [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]];

/// [`pack_winograd`] for `conv2d_phase_winograd`: `[cout4 / 8][3 r][3 q][cin4][4 c][8]` quads of output channels.
pub fn pack_phases_winograd(weight: &[f32], cout: usize, cin: usize) -> Packed {
    pack_transformed(weight, cout, cin, &G_PHASES)
}

fn pack_transformed(weight: &[f32], cout: usize, cin: usize, g: &[[f64; 3]]) -> Packed {
    assert_eq!(weight.len(), cout * cin * 9);
    let (cout4, cin4) = (cout.div_ceil(4), cin.div_ceil(4));
    let mut values = Vec::with_capacity(cout4.next_multiple_of(8) * cin4 * 16 * g.len() * g.len());
    for tile in 0..cout4.div_ceil(8) {
        for (r, q) in (0..g.len() * g.len()).map(|n| (n / g.len(), n % g.len())) {
            for c in 0..4 * cin4 {
                for o in 32 * tile..32 * (tile + 1) {
                    let tap = |dy: usize, dx: usize| g[r][dy] * g[q][dx] * weight[((o * cin + c) * 3 + dy) * 3 + dx] as f64;
                    let sum = || (0..9).map(|n| tap(n / 3, n % 3)).sum::<f64>() as f32;
                    values.push(if o < cout && c < cin { sum() } else { 0.0 });
                }
            }
        }
    }
    Packed { values }
}

/// Packs torch's `[cout, cin, 3, 3]` for [`upsample2x_conv2d_3x3`]: four 2x2 kernels, summed in f64, phase-major.
pub fn pack_phases(weight: &[f32], cout: usize, cin: usize) -> Packed {
    assert_eq!(weight.len(), cout * cin * 9);
    // Taps of the 3x3 kernel that meet small pixel d of phase r.
    let taps = |phase: usize, d: usize| match (phase, d) {
        (0, 0) => 0..1,
        (0, _) => 1..3,
        (_, 0) => 0..2,
        (_, _) => 2..3,
    };
    let mut values = Vec::new();
    for phase in 0..4 {
        let packed = pack(cout, cin, 2, |o, c, d, e| {
            let mut sum = 0.0f64;
            for a in taps(phase / 2, d) {
                for b in taps(phase % 2, e) {
                    sum += weight[((o * cin + c) * 3 + a) * 3 + b] as f64;
                }
            }
            sum as f32
        });
        values.extend(packed.values);
    }
    Packed { values }
}

/// `[cout4 / LC][k dy][cin4][k dx][4 c][LC]` quads, zero where `o` or `c` is padding.
fn pack(cout: usize, cin: usize, k: usize, at: impl Fn(usize, usize, usize, usize) -> f32) -> Packed {
    let (cout4, cin4) = (cout.div_ceil(4), cin.div_ceil(4));
    let lanes = channel_lanes(cout4);
    let mut values = Vec::with_capacity(cout4.next_multiple_of(lanes) * cin4 * 16 * k * k);
    for tile in 0..cout4.div_ceil(lanes) {
        for dy in 0..k {
            for c4 in 0..cin4 {
                for dx in 0..k {
                    for c in 4 * c4..4 * c4 + 4 {
                        for o in 4 * lanes * tile..4 * lanes * (tile + 1) {
                            values.push(if o < cout && c < cin { at(o, c, dy, dx) } else { 0.0 });
                        }
                    }
                }
            }
        }
    }
    Packed { values }
}

/// Which part of a plane a convolution computes from which part of its input.
///
/// Outside of the tensor that it reads a convolution sees zeros, so that tensor must be the whole plane or go on for
/// a pixel wherever the plane does. Every pixel then gets the same sum in the same order, whatever the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Rows of the result; of the small image for an upsampling convolution.
    pub height: usize,
    /// Columns of the result, likewise.
    pub width: usize,
    /// Row of the input tensor at the result's first row (times the stride). Negative only below a negative padding.
    pub top: i64,
    /// Column of the input tensor at the result's first column, likewise.
    pub left: i64,
    /// Whether the result's first row and column are odd ones of its plane: Winograd's squares are the plane's. Other kernels need not know.
    pub odd: (bool, bool),
}

impl Window {
    /// All of `x`, stride 1.
    pub fn whole(x: &Tensor) -> Window {
        Window { height: x.height, width: x.width, top: 0, left: 0, odd: (false, false) }
    }
}

/// A tensor that is added to a result: result (0, 0) sits at its row `top`, column `left`.
#[derive(Debug, Clone, Copy)]
pub struct Residual<'a> {
    /// `[.., .., cout]`, covers the result.
    pub tensor: &'a Tensor,
    /// Row of the tensor at the result's first row.
    pub top: usize,
    /// Column of the tensor at the result's first column.
    pub left: usize,
}

/// Operands of [`conv2d_3x3_window`].
#[derive(Debug, Clone, Copy)]
pub struct Conv3x3Call<'a> {
    /// `[.., .., cin]`
    pub x: &'a Tensor,
    /// Applied to `x` as it is read.
    pub norm: Option<Norm<'a>>,
    /// From [`pack_square`].
    pub weights: &'a ConvWeights,
    /// Added before the activation.
    pub residual: Option<Residual<'a>>,
    /// Applied last.
    pub act: Act,
    /// Storage of the result, and of the residual.
    pub elem: Elem,
    /// What is computed.
    pub window: Window,
}

/// `act(conv3x3(norm(x)) + bias + residual)`, stride 1, zero padding 1 around the normalised plane.
///
/// `x` is `[h, w, cin]`, `residual` and the result `[h, w, cout]`. Where the kernel cannot apply `norm` itself, that is a
/// pass of its own before it, whose result has the type of `x`.
pub fn conv2d_3x3(
    rec: &mut Recorder,
    x: &Tensor,
    norm: Option<Norm<'_>>,
    weights: &ConvWeights,
    residual: Option<&Tensor>,
    act: Act,
    elem: Elem,
) -> Tensor {
    let residual = residual.map(|tensor| Residual { tensor, top: 0, left: 0 });
    conv2d_3x3_window(rec, &Conv3x3Call { x, norm, weights, residual, act, elem, window: Window::whole(x) })
}

/// [`conv2d_3x3`] of a part of a plane.
pub fn conv2d_3x3_window(rec: &mut Recorder, call: &Conv3x3Call<'_>) -> Tensor {
    let Conv3x3Call { x, weights, window, .. } = *call;
    assert_eq!(x.channels, weights.cin, "conv2d_3x3: input channels");
    if let Some(Residual { tensor, top, left }) = call.residual {
        assert!(top + window.height <= tensor.height && left + window.width <= tensor.width, "conv2d_3x3: residual");
        assert_eq!((tensor.channels, tensor.elem), (weights.cout, call.elem), "conv2d_3x3: residual");
    }
    if !rec.profile().families(x).conv.is_plain() {
        return conv2d_3x3_tile(rec, call);
    }
    match call.norm {
        Some(Norm { affine, silu }) => {
            let x = norm_apply(rec, x, affine, silu, x.elem);
            conv2d_3x3_plain(rec, &Conv3x3Call { x: &x, norm: None, ..*call })
        }
        None => conv2d_3x3_plain(rec, call),
    }
}

/// The residual's binding, where `rows` result rows move with a workgroup, the first of them `before` above the result; its pitch and origin.
fn residual_binding(call: &Conv3x3Call<'_>, rows: usize, before: i64) -> (Binding, [u32; 3]) {
    match call.residual {
        None => (Binding::whole(&call.weights.bias), [0; 3]),
        Some(Residual { tensor, top, left }) => {
            let part = Footprint::rows((tensor.width * tensor.quads()) as u64, rows, before - top as i64, rows);
            (Binding::part(tensor, part), [tensor.width as u32, top as u32, left as u32])
        }
    }
}

/// Values of a kernel's `override` constants.
type Consts = Vec<(&'static str, u32)>;

/// Constants of a `*_pairs` kernel, its lanes along the pixels and workgroups along the output channels, where it is asked for and worth it: a pair
/// needs two quads, and is one load in f16 only.
fn in_pairs(rec: &Recorder, family: KernelFamily, weights: &ConvWeights, cout4: usize) -> Option<(Consts, u32, u32)> {
    if family == KernelFamily::Lanes || cout4 < 2 || weights.weight.elem != Elem::Half {
        return None;
    }
    let pairs = cout4.div_ceil(2);
    let (channels, pixels) = lanes(rec, pairs);
    let consts = vec![("LC", channel_lanes(cout4) as u32), ("CL", channels), ("PL", pixels)];
    Some((consts, pixels, (pairs as u32).div_ceil(channels)))
}

/// Without workgroup memory, and without a norm.
fn conv2d_3x3_plain(rec: &mut Recorder, call: &Conv3x3Call<'_>) -> Tensor {
    let Conv3x3Call { x, weights, residual, act, elem, window, .. } = *call;
    if weights.packing == Packing::Winograd || in_broadcast(rec, rec.profile().families(x).conv, weights.cout.div_ceil(4)) {
        return conv2d_3x3_broadcast(rec, call, 1, 1);
    }
    let y = rec.tensor(window.height, window.width, weights.cout, elem);
    let (residual_part, [rw, rtop, rleft]) = residual_binding(call, 1, 0);
    let residual_kind = ("RESIDUAL", residual.is_some() as u32);
    let (kernel, mut consts, pixel_lanes, tiles) = match in_pairs(rec, rec.profile().families(x).conv, weights, y.quads()) {
        Some((consts, pixels, tiles)) => (&CONV2D_3X3_PAIRS, consts, pixels, tiles),
        None => {
            let (channels, pixels) = lanes(rec, y.quads());
            let together = channels == 1 && shares_loads(rec, rec.profile().families(x).conv);
            let kernel = if together { &CONV2D_3X3_LANES_BROADCAST } else { &CONV2D_3X3_LANES };
            (kernel, vec![("LC", channels), ("LP", pixels)], pixels, (y.quads() as u32).div_ceil(channels))
        }
    };
    consts.push(residual_kind);
    rec.dispatch(Dispatch {
        kernel,
        consts,
        bindings: vec![
            Binding::part(x, Footprint::rows((x.width * x.quads()) as u64, 1, 1 - window.top, 3)),
            Binding::whole(&weights.weight),
            Binding::whole(&weights.bias),
            residual_part,
            Binding::part(&y, Footprint::rows((y.width * y.quads()) as u64, 1, 0, 1)),
        ],
        params: vec![
            x.height as u32,
            x.width as u32,
            x.quads() as u32,
            y.quads() as u32,
            act as u32,
            y.width as u32,
            window.top as u32,
            window.left as u32,
            rw,
            rtop,
            rleft,
        ],
        grid: [(y.width as u32).div_ceil(8 * pixel_lanes), y.height as u32, tiles],
        flops: 18 * product([y.pixels(), weights.cin, weights.cout]),
    });
    y
}

/// By the lanes of a subgroup together, 4 rows a workgroup: of any stride, with `pad` zero rows above and zero columns to the left, by taps; with 1
/// and 1 by Winograd.
fn conv2d_3x3_broadcast(rec: &mut Recorder, call: &Conv3x3Call<'_>, stride: usize, pad: i64) -> Tensor {
    const ROWS: usize = 4;
    let Conv3x3Call { x, weights, residual, act, elem, window, .. } = *call;
    let y = rec.tensor(window.height, window.width, weights.cout, elem);
    let (kernel, columns, (odd_row, odd_column)) = match weights.packing {
        Packing::Taps => (&CONV2D_3X3_BROADCAST, 8, (0, 0)),
        Packing::Winograd => (&CONV2D_WINOGRAD, 16, (window.odd.0 as usize, window.odd.1 as usize)),
    };
    let before = odd_row as i64;
    let (residual_part, [rw, rtop, rleft]) = residual_binding(call, ROWS, before);
    let top = window.top - pad;
    // Winograd's kernel takes the padding off itself: LLVM 15 makes code of it that is a fifth faster.
    let taken = if weights.packing == Packing::Winograd { 0 } else { pad };
    let mut params = vec![
        x.height as u32,
        x.width as u32,
        x.quads() as u32,
        y.quads() as u32,
        act as u32,
        y.height as u32,
        y.width as u32,
        (window.top - taken) as u32,
        (window.left - taken) as u32,
        rw,
        rtop,
        rleft,
    ];
    match weights.packing {
        Packing::Taps => params.push(stride as u32),
        Packing::Winograd => params.extend([odd_row as u32, odd_column as u32]),
    }
    rec.dispatch(Dispatch {
        kernel,
        consts: vec![("RESIDUAL", residual.is_some() as u32)],
        bindings: vec![
            Binding::part(x, Footprint::rows((x.width * x.quads()) as u64, stride * ROWS, before - top, stride * (ROWS - 1) + 3)),
            Binding::whole(&weights.weight),
            Binding::whole(&weights.bias),
            residual_part,
            Binding::part(&y, Footprint::rows((y.width * y.quads()) as u64, ROWS, before, ROWS)),
        ],
        params,
        grid: [
            (y.width + odd_column).div_ceil(columns) as u32,
            (y.height + odd_row).div_ceil(ROWS) as u32,
            y.quads().div_ceil(2 * BROADCAST_LANES) as u32,
        ],
        flops: 18 * product([y.pixels(), weights.cin, weights.cout]),
    });
    y
}

fn conv2d_3x3_tile(rec: &mut Recorder, call: &Conv3x3Call<'_>) -> Tensor {
    let Conv3x3Call { x, norm, weights, residual, act, elem, window } = *call;
    let y = rec.tensor(window.height, window.width, weights.cout, elem);
    let family = rec.profile().families(x).conv;
    let winograd = weights.packing == Packing::Winograd;
    let (kernel, mut consts, groups) = match matrix(rec, family, x, &weights.weight, y.quads()) {
        _ if winograd => (&CONV2D_WINOGRAD_TILE, vec![], y.quads().div_ceil(8) as u32),
        Some((consts, groups)) => (&CONV2D_3X3_MATRIX, consts, groups),
        None => {
            let (channels, pair, groups) = tiles(y.quads(), family);
            (&CONV2D_3X3_TILE, vec![("LC", channels), ("LT", pair)], groups)
        }
    };
    let (rows, columns) = TILE;
    // Winograd's squares are the plane's: its first workgroups begin a row or column before the result.
    let (odd_row, odd_column) = if winograd { (window.odd.0 as usize, window.odd.1 as usize) } else { (0, 0) };
    let before = odd_row as i64;
    let (residual_part, [rw, rtop, rleft]) = residual_binding(call, rows, before);
    if let Some(norm) = norm {
        assert_eq!(norm.affine.shape(), (2, 1, 4 * x.quads()), "conv2d_3x3: scale and shift");
    }
    consts.extend([("NORM", norm.map_or(0, |norm| 1 + norm.silu as u32)), ("RESIDUAL", residual.is_some() as u32)]);
    let mut params = vec![
        x.height as u32,
        x.width as u32,
        x.quads() as u32,
        y.quads() as u32,
        act as u32,
        y.height as u32,
        y.width as u32,
        window.top as u32,
        window.left as u32,
        rw,
        rtop,
        rleft,
        limit(elem).to_bits(),
    ];
    if winograd {
        params.extend([odd_row as u32, odd_column as u32]);
    }
    rec.dispatch(Dispatch {
        kernel,
        consts,
        bindings: vec![
            Binding::part(x, Footprint::rows((x.width * x.quads()) as u64, rows, before + 1 - window.top, rows + 2)),
            Binding::whole(&weights.weight),
            Binding::whole(&weights.bias),
            Binding::whole(norm.map_or(&weights.bias, |norm| norm.affine)),
            residual_part,
            Binding::part(&y, Footprint::rows((y.width * y.quads()) as u64, rows, before, rows)),
        ],
        params,
        grid: [groups, (y.height + odd_row).div_ceil(rows) as u32, (y.width + odd_column).div_ceil(columns) as u32],
        flops: 18 * product([y.pixels(), weights.cin, weights.cout]),
    });
    y
}

/// Has the convolution that made `x` give the statistics of its blocks as it stores them, if its workgroups store such blocks
/// ([`super::group_norm::statistics`]); `blocks` is where they go, a row of blocks a row of workgroups. The plane is then not read again; the bits
/// are the same. Whether it could.
pub(crate) fn statistics_in_store(rec: &mut Recorder, x: &Tensor, blocks: &Binding) -> bool {
    let twins = [
        (&CONV2D_3X3_TILE, &CONV2D_3X3_TILE_STATISTICS),
        (&CONV2D_WINOGRAD_TILE, &CONV2D_WINOGRAD_TILE_STATISTICS),
        (&CONV2D_PHASE_WINOGRAD_TILE, &CONV2D_PHASE_WINOGRAD_TILE_STATISTICS),
        (&CONV2D_3X3_MATRIX, &CONV2D_3X3_MATRIX_STATISTICS),
    ];
    let Some(dispatch) = rec.producer(x) else { return false };
    let Some((plain, twin)) = twins.into_iter().find(|(plain, _)| plain.name == dispatch.kernel.name) else { return false };
    // Its blocks begin where its squares do.
    if plain.params.iter().zip(&dispatch.params).any(|(name, &value)| name.starts_with("odd") && value != 0) {
        return false;
    }
    dispatch.kernel = twin;
    dispatch.bindings.push(blocks.clone());
    true
}

/// `act(conv3x3(nearest2x(x)) + bias)` without ever storing the enlarged image; `weights` from [`pack_upsample`].
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
        _ if weights.packing == Packing::Winograd => return upsample2x_winograd(rec, x, weights, act, y, window),
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
fn upsample2x_winograd(rec: &mut Recorder, x: &Tensor, weights: &ConvWeights, act: Act, y: Tensor, window: Window) -> Tensor {
    let mut params: Vec<u32> = [x.height, x.width, x.quads(), y.quads(), act as usize, y.height, y.width].map(|n| n as u32).into();
    params.extend([window.top as u32, window.left as u32, 0, 0, 0]);
    let bias = || Binding::whole(&weights.bias);
    // Neither residual nor norm: what is bound in their places is not read.
    let columns = window.width.div_ceil(8);
    let (kernel, consts, rows, unread, grid) = match rec.profile().families(x).upsample.is_plain() {
        true => {
            let grid = [columns, window.height.div_ceil(2), y.quads().div_ceil(2 * BROADCAST_LANES)];
            (&CONV2D_PHASE_WINOGRAD, vec![("RESIDUAL", 0)], 2, vec![bias()], grid)
        }
        false => {
            params.push(limit(y.elem).to_bits());
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

/// Stride and zero padding of [`conv2d_strided`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Side of the square kernel.
    pub kernel: usize,
    /// Step in both directions.
    pub stride: usize,
    /// Zero rows above, zero columns to the left.
    pub pad_before: usize,
    /// Zero rows below, zero columns to the right.
    pub pad_after: usize,
}

impl Geometry {
    /// Output length for an input of `length`.
    pub fn output(&self, length: usize) -> usize {
        (length + self.pad_before + self.pad_after - self.kernel) / self.stride + 1
    }
}

/// `act(conv(x) + bias)` of any geometry, plainly; `weights` from [`pack_square`].
pub fn conv2d_strided(rec: &mut Recorder, x: &Tensor, weights: &ConvWeights, geometry: Geometry, act: Act, elem: Elem) -> Tensor {
    let window = Window { height: geometry.output(x.height), width: geometry.output(x.width), ..Window::whole(x) };
    conv2d_strided_window(rec, x, weights, geometry, act, elem, window)
}

/// [`conv2d_strided`] of a part of a plane: output pixel (0, 0) without padding would read `x` from `(top, left)` on.
pub fn conv2d_strided_window(
    rec: &mut Recorder,
    x: &Tensor,
    weights: &ConvWeights,
    geometry: Geometry,
    act: Act,
    elem: Elem,
    window: Window,
) -> Tensor {
    assert_eq!(x.channels, weights.cin, "conv2d_strided: input channels");
    let Geometry { kernel, stride, pad_before, .. } = geometry;
    if kernel == 3 && in_broadcast(rec, rec.profile().families(x).conv, weights.cout.div_ceil(4)) {
        let call = Conv3x3Call { x, norm: None, weights, residual: None, act, elem, window };
        return conv2d_3x3_broadcast(rec, &call, stride, pad_before as i64);
    }
    let y = rec.tensor(window.height, window.width, weights.cout, elem);
    let (channel_lanes, pixel_lanes) = lanes(rec, y.quads());
    let (top, left) = (pad_before as i64 - window.top, pad_before as i64 - window.left);
    rec.dispatch(Dispatch {
        kernel: &CONV2D_DIRECT,
        consts: vec![("LC", channel_lanes), ("LP", pixel_lanes), ("K", kernel as u32)],
        bindings: vec![
            Binding::part(x, Footprint::rows((x.width * x.quads()) as u64, stride, top, kernel)),
            Binding::whole(&weights.weight),
            Binding::whole(&weights.bias),
            Binding::part(&y, Footprint::rows((y.width * y.quads()) as u64, 1, 0, 1)),
        ],
        params: vec![
            x.height as u32,
            x.width as u32,
            x.quads() as u32,
            y.width as u32,
            y.quads() as u32,
            stride as u32,
            top as u32,
            left as u32,
            act as u32,
        ],
        grid: [(y.width as u32).div_ceil(4 * pixel_lanes), y.height as u32, (y.quads() as u32).div_ceil(channel_lanes)],
        flops: 2 * product([kernel, kernel, y.pixels(), weights.cin, weights.cout]),
    });
    y
}
