//! Convolutions: 3x3, strided, and nearest-2x upsampling followed by 3x3.

mod pack;
mod upsample;

pub use pack::{
    ConvWeights, Packing, pack_3x3, pack_phases, pack_phases_winograd, pack_square, pack_upsample, pack_winograd, packing, winograd_exists,
    winograd_runs,
};
pub use upsample::{
    CONV2D_PHASE_BROADCAST, CONV2D_PHASE_LANES, CONV2D_PHASE_MATRIX, CONV2D_PHASE_PAIRS, CONV2D_PHASE_TILE, CONV2D_PHASE_WINOGRAD,
    CONV2D_PHASE_WINOGRAD_TILE, CONV2D_PHASE_WINOGRAD_TILE_STATISTICS, upsample2x_conv2d_3x3, upsample2x_conv2d_3x3_window,
};

use super::group_norm::{Norm, norm_apply};
use super::{Act, BROADCAST_LANES, channel_lanes, in_broadcast, lanes, limit, matrix, product, shares_loads, tiles};
use crate::gpu::{Bind, Binding, Dispatch, Elem, Footprint, Kernel, KernelFamily, Recorder, Tensor};

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

/// Rows and columns of the pixel tile of a workgroup of `*_tile` and `*_matrix`.
const TILE: (usize, usize) = (8, 16);

/// `conv2d_direct.wgsl`
pub const CONV2D_DIRECT: Kernel = Kernel {
    name: "conv2d_direct",
    wgsl: concat!(include_str!("../../shaders/common/activation.wgsl"), include_str!("../../shaders/conv2d_direct.wgsl")),
    params: &["h", "w", "cin4", "ow", "cout4", "stride", "top", "left", "act"],
    bindings: &[Bind::X, Bind::W, Bind::F32, Bind::Y],
};

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
    /// From [`pack_3x3`].
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

/// The sizes that kernels over tiles of a plane begin their parameters with; the window's origin is moved by `taken` padding.
fn plane_params(call: &Conv3x3Call<'_>, y: &Tensor, taken: i64, residual_at: [u32; 3]) -> Vec<u32> {
    let Conv3x3Call { x, window, .. } = *call;
    let sizes = [x.height, x.width, x.quads(), y.quads(), call.act as usize, y.height, y.width].map(|n| n as u32);
    let origin = [window.top - taken, window.left - taken].map(|n| n as u32);
    [&sizes[..], &origin, &residual_at].concat()
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
    let Conv3x3Call { x, weights, residual, elem, window, .. } = *call;
    let y = rec.tensor(window.height, window.width, weights.cout, elem);
    let (kernel, columns, (odd_row, odd_column)) = match weights.packing {
        Packing::Taps => (&CONV2D_3X3_BROADCAST, 8, (0, 0)),
        Packing::Winograd => (&CONV2D_WINOGRAD, 16, (window.odd.0 as usize, window.odd.1 as usize)),
    };
    let before = odd_row as i64;
    let (residual_part, residual_at) = residual_binding(call, ROWS, before);
    let top = window.top - pad;
    // Winograd's kernel takes the padding off itself: LLVM 15 makes code of it that is a fifth faster.
    let taken = if weights.packing == Packing::Winograd { 0 } else { pad };
    let mut params = plane_params(call, &y, taken, residual_at);
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
    let Conv3x3Call { x, norm, weights, residual, elem, window, .. } = *call;
    let y = rec.tensor(window.height, window.width, weights.cout, elem);
    let family = rec.profile().families(x).conv;
    let winograd = weights.packing == Packing::Winograd;
    let (kernel, mut consts, groups) = if winograd {
        (&CONV2D_WINOGRAD_TILE, vec![], y.quads().div_ceil(8) as u32)
    } else if let Some((consts, groups)) = matrix(rec, family, x, &weights.weight, y.quads()) {
        (&CONV2D_3X3_MATRIX, consts, groups)
    } else {
        let (channels, pair, groups) = tiles(y.quads(), family);
        (&CONV2D_3X3_TILE, vec![("LC", channels), ("LT", pair)], groups)
    };
    let (rows, columns) = TILE;
    // Winograd's squares are the plane's: its first workgroups begin a row or column before the result.
    let (odd_row, odd_column) = if winograd { (window.odd.0 as usize, window.odd.1 as usize) } else { (0, 0) };
    let before = odd_row as i64;
    let (residual_part, residual_at) = residual_binding(call, rows, before);
    if let Some(norm) = norm {
        assert_eq!(norm.affine.shape(), (2, 1, 4 * x.quads()), "conv2d_3x3: scale and shift");
    }
    consts.extend([("NORM", norm.map_or(0, |norm| 1 + norm.silu as u32)), ("RESIDUAL", residual.is_some() as u32)]);
    let mut params = plane_params(call, &y, 0, residual_at);
    params.push(limit(elem).to_bits());
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
