//! Weights of convolutions, packed for the kernels that read them.

use crate::gpu::{DeviceProfile, Elem, KernelFamily, Operator, Tensor};
use crate::kernels::{Packed, channel_lanes};

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

/// Whether any family has one.
pub fn winograd_exists(profile: &DeviceProfile, operator: Operator) -> bool {
    KernelFamily::ALL.iter().any(|&family| winograd_runs(profile, operator, family))
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

/// Packs torch's `[cout, cin, 3, 3]` for [`super::upsample2x_conv2d_3x3`] as `packing` says.
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

/// Packs torch's `[cout, cin, 3, 3]` for [`super::upsample2x_conv2d_3x3`]: four 2x2 kernels, summed in f64, phase-major.
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
