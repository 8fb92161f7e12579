//! Convolutions: 3x3, and nearest-2x upsampling followed by 3x3.

use super::group_norm::{Norm, norm_apply};
use super::{Act, Packed, channel_lanes, lanes, tiles};
use crate::gpu::{Bind, Binding, Dispatch, Elem, Footprint, Kernel, KernelFamily, Recorder, Tensor};

/// `conv2d_3x3_lanes.wgsl`
pub const CONV2D_3X3_LANES: Kernel = Kernel {
    name: "conv2d_3x3_lanes",
    wgsl: concat!(include_str!("../../shaders/common/activation.wgsl"), include_str!("../../shaders/conv2d_3x3_lanes.wgsl")),
    params: &["h", "w", "cin4", "cout4", "act"],
    bindings: &[Bind::X, Bind::W, Bind::F32, Bind::YRead, Bind::Y],
};

/// `conv2d_3x3_tile.wgsl`
pub const CONV2D_3X3_TILE: Kernel = Kernel {
    name: "conv2d_3x3_tile",
    wgsl: concat!(include_str!("../../shaders/common/activation.wgsl"), include_str!("../../shaders/conv2d_3x3_tile.wgsl")),
    params: &["h", "w", "cin4", "cout4", "act"],
    bindings: &[Bind::X, Bind::W, Bind::F32, Bind::F32, Bind::YRead, Bind::Y],
};

/// `conv2d_phase_lanes.wgsl`
pub const CONV2D_PHASE_LANES: Kernel = Kernel {
    name: "conv2d_phase_lanes",
    wgsl: concat!(include_str!("../../shaders/common/activation.wgsl"), include_str!("../../shaders/conv2d_phase_lanes.wgsl")),
    params: &["h", "w", "cin4", "cout4", "tiles", "act"],
    bindings: &[Bind::X, Bind::W, Bind::F32, Bind::Y],
};

/// `conv2d_phase_tile.wgsl`
pub const CONV2D_PHASE_TILE: Kernel = Kernel {
    name: "conv2d_phase_tile",
    wgsl: concat!(include_str!("../../shaders/common/activation.wgsl"), include_str!("../../shaders/conv2d_phase_tile.wgsl")),
    params: &["h", "w", "cin4", "cout4", "tiles", "act"],
    bindings: &[Bind::X, Bind::W, Bind::F32, Bind::Y],
};

/// Rows and columns of the pixel tile of a workgroup of `*_tile`.
const TILE: (usize, usize) = (8, 16);

/// `conv2d_direct.wgsl`
pub const CONV2D_DIRECT: Kernel = Kernel {
    name: "conv2d_direct",
    wgsl: concat!(include_str!("../../shaders/common/activation.wgsl"), include_str!("../../shaders/conv2d_direct.wgsl")),
    params: &["h", "w", "cin4", "ow", "cout4", "stride", "pad_top", "pad_left", "act"],
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
}

/// Packs torch's `[cout, cin, k, k]` as `[cout4 / LC][k dy][cin4][k dx][4 c][LC]` quads of output channels.
pub fn pack_square(weight: &[f32], cout: usize, cin: usize, k: usize) -> Packed {
    assert_eq!(weight.len(), cout * cin * k * k);
    pack(cout, cin, k, |o, c, dy, dx| weight[((o * cin + c) * k + dy) * k + dx])
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
    assert_eq!(x.channels, weights.cin, "conv2d_3x3: input channels");
    let y = match (rec.profile().family, norm) {
        (KernelFamily::Lanes, Some(Norm { affine, silu })) => {
            let x = norm_apply(rec, x, affine, silu, x.elem);
            conv2d_3x3_lanes(rec, &x, weights, residual, act, elem)
        }
        (KernelFamily::Lanes, None) => conv2d_3x3_lanes(rec, x, weights, residual, act, elem),
        (KernelFamily::Tile, _) => conv2d_3x3_tile(rec, x, norm, weights, residual, act, elem),
    };
    if let Some(residual) = residual {
        assert_eq!((residual.shape(), residual.elem), (y.shape(), elem), "conv2d_3x3: residual");
    }
    y
}

fn conv2d_3x3_lanes(rec: &mut Recorder, x: &Tensor, weights: &ConvWeights, residual: Option<&Tensor>, act: Act, elem: Elem) -> Tensor {
    let (h, w, cin) = x.shape();
    let y = rec.tensor(h, w, weights.cout, elem);
    let (channel_lanes, pixel_lanes) = lanes(rec, y.quads());
    let row_in = (w * x.quads()) as u64;
    let row_out = (w * y.quads()) as u64;
    let out = Footprint::rows(row_out, 1, 0, 1);
    rec.dispatch(Dispatch {
        kernel: &CONV2D_3X3_LANES,
        consts: vec![("LC", channel_lanes), ("LP", pixel_lanes), ("RESIDUAL", residual.is_some() as u32)],
        bindings: vec![
            Binding::part(x, Footprint::rows(row_in, 1, 1, 3)),
            Binding::whole(&weights.weight),
            Binding::whole(&weights.bias),
            residual.map_or(Binding::whole(&weights.bias), |r| Binding::part(r, out)),
            Binding::part(&y, out),
        ],
        params: vec![h as u32, w as u32, x.quads() as u32, y.quads() as u32, act as u32],
        grid: [(w as u32).div_ceil(8 * pixel_lanes), h as u32, (y.quads() as u32).div_ceil(channel_lanes)],
        flops: 18 * (h * w * cin * weights.cout) as u64,
    });
    y
}

fn conv2d_3x3_tile(
    rec: &mut Recorder,
    x: &Tensor,
    norm: Option<Norm<'_>>,
    weights: &ConvWeights,
    residual: Option<&Tensor>,
    act: Act,
    elem: Elem,
) -> Tensor {
    let (h, w, cin) = x.shape();
    let y = rec.tensor(h, w, weights.cout, elem);
    let (channels, pair, groups) = tiles(y.quads());
    let (rows, columns) = TILE;
    let out = Footprint::rows((w * y.quads()) as u64, rows, 0, rows);
    if let Some(norm) = norm {
        assert_eq!(norm.affine.shape(), (2, 1, 4 * x.quads()), "conv2d_3x3: scale and shift");
    }
    let norm_kind = norm.map_or(0, |norm| 1 + norm.silu as u32);
    rec.dispatch(Dispatch {
        kernel: &CONV2D_3X3_TILE,
        consts: vec![("LC", channels), ("LT", pair), ("NORM", norm_kind), ("RESIDUAL", residual.is_some() as u32)],
        bindings: vec![
            Binding::part(x, Footprint::rows((w * x.quads()) as u64, rows, 1, rows + 2)),
            Binding::whole(&weights.weight),
            Binding::whole(&weights.bias),
            Binding::whole(norm.map_or(&weights.bias, |norm| norm.affine)),
            residual.map_or(Binding::whole(&weights.bias), |r| Binding::part(r, out)),
            Binding::part(&y, out),
        ],
        params: vec![h as u32, w as u32, x.quads() as u32, y.quads() as u32, act as u32],
        grid: [groups, h.div_ceil(rows) as u32, w.div_ceil(columns) as u32],
        flops: 18 * (h * w * cin * weights.cout) as u64,
    });
    y
}

/// `act(conv3x3(nearest2x(x)) + bias)` without ever storing the enlarged image; `weights` from [`pack_phases`].
///
/// `x` is `[h, w, cin]`, the result `[2h, 2w, cout]`.
pub fn upsample2x_conv2d_3x3(rec: &mut Recorder, x: &Tensor, weights: &ConvWeights, act: Act, elem: Elem) -> Tensor {
    let (h, w, cin) = x.shape();
    assert_eq!(cin, weights.cin, "upsample2x_conv2d_3x3: input channels");
    let y = rec.tensor(2 * h, 2 * w, weights.cout, elem);
    let row_in = (w * x.quads()) as u64;
    let row_out = (2 * w * y.quads()) as u64;
    let (kernel, consts, rows, grid, tiles) = match rec.profile().family {
        KernelFamily::Lanes => {
            let (channel_lanes, pixel_lanes) = lanes(rec, y.quads());
            let tiles = (y.quads() as u32).div_ceil(channel_lanes);
            let grid = [(w as u32).div_ceil(8 * pixel_lanes), h as u32, 4 * tiles];
            (&CONV2D_PHASE_LANES, vec![("LC", channel_lanes), ("LP", pixel_lanes)], 1, grid, tiles)
        }
        KernelFamily::Tile => {
            let (channels, pair, groups) = tiles(y.quads());
            let grid = [4 * groups, h.div_ceil(TILE.0) as u32, w.div_ceil(TILE.1) as u32];
            (&CONV2D_PHASE_TILE, vec![("LC", channels), ("LT", pair)], TILE.0, grid, groups * pair)
        }
    };
    rec.dispatch(Dispatch {
        kernel,
        consts,
        bindings: vec![
            Binding::part(x, Footprint::rows(row_in, rows, 1, rows + 2)),
            Binding::whole(&weights.weight),
            Binding::whole(&weights.bias),
            Binding::part(&y, Footprint::rows(row_out, 2 * rows, 0, 2 * rows)),
        ],
        params: vec![h as u32, w as u32, x.quads() as u32, y.quads() as u32, tiles, act as u32],
        grid,
        flops: 32 * (h * w * cin * weights.cout) as u64,
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
    let (h, w, cin) = x.shape();
    assert_eq!(cin, weights.cin, "conv2d_strided: input channels");
    let Geometry { kernel, stride, pad_before, .. } = geometry;
    let (oh, ow) = (geometry.output(h), geometry.output(w));
    let y = rec.tensor(oh, ow, weights.cout, elem);
    let (channel_lanes, pixel_lanes) = lanes(rec, y.quads());
    rec.dispatch(Dispatch {
        kernel: &CONV2D_DIRECT,
        consts: vec![("LC", channel_lanes), ("LP", pixel_lanes), ("K", kernel as u32)],
        bindings: vec![
            Binding::part(x, Footprint::rows((w * x.quads()) as u64, stride, pad_before, kernel)),
            Binding::whole(&weights.weight),
            Binding::whole(&weights.bias),
            Binding::part(&y, Footprint::rows((ow * y.quads()) as u64, 1, 0, 1)),
        ],
        params: vec![
            h as u32,
            w as u32,
            x.quads() as u32,
            ow as u32,
            y.quads() as u32,
            stride as u32,
            pad_before as u32,
            pad_before as u32,
            act as u32,
        ],
        grid: [(ow as u32).div_ceil(4 * pixel_lanes), oh as u32, (y.quads() as u32).div_ceil(channel_lanes)],
        flops: 2 * (kernel * kernel * oh * ow * cin * weights.cout) as u64,
    });
    y
}
