//! One file a kernel, beside its `.wgsl` in `shaders/`: bindings, checks, packing, dispatch size.
//!
//! Each function appends to a [`Recorder`] and returns the tensor it will have written. [`ALL`] lists every kernel with
//! every variant of constants in use, for the tests that validate and translate them without a GPU.

pub mod attention;
pub mod combine;
pub mod conv2d;
pub mod gated_add;
pub mod gather_features;
pub mod glu;
pub mod group_norm;
pub mod inpe;
pub mod layer_norm;
pub mod linear;
pub mod output;
pub mod patchify;
pub mod peak;
pub mod resample;
pub mod rotary;

use crate::gpu::{Elem, Kernel, KernelFamily, MatrixUnits, Recorder, Tensor};

/// Every kernel.
pub const ALL: &[&Kernel] = &[
    &attention::ATTENTION,
    &attention::ATTENTION_BIASED,
    &attention::ATTENTION_LANES,
    &attention::ATTENTION_LANES_BROADCAST,
    &attention::ATTENTION_MERGE,
    &attention::ATTENTION_RANGE,
    &combine::BLEND,
    &combine::COMBINE,
    &combine::GUIDANCE_RESCALE,
    &combine::SPREAD_NOISE,
    &attention::ATTENTION_SCORES_BROADCAST,
    &attention::ATTENTION_SCORES_LANES,
    &attention::ATTENTION_SOFTMAX_LANES,
    &attention::ATTENTION_MATRIX,
    &attention::ATTENTION_MATRIX_RANGE,
    &attention::ATTENTION_TILE,
    &attention::ATTENTION_TILE_RANGE,
    &attention::ATTENTION_VALUES_BROADCAST,
    &attention::ATTENTION_VALUES_LANES,
    &conv2d::CONV2D_3X3_BROADCAST,
    &conv2d::CONV2D_3X3_LANES,
    &conv2d::CONV2D_3X3_LANES_BROADCAST,
    &conv2d::CONV2D_3X3_MATRIX,
    &conv2d::CONV2D_3X3_MATRIX_STATISTICS,
    &conv2d::CONV2D_3X3_PAIRS,
    &conv2d::CONV2D_3X3_TILE,
    &conv2d::CONV2D_3X3_TILE_STATISTICS,
    &conv2d::CONV2D_DIRECT,
    &conv2d::CONV2D_PHASE_BROADCAST,
    &conv2d::CONV2D_PHASE_LANES,
    &conv2d::CONV2D_PHASE_MATRIX,
    &conv2d::CONV2D_PHASE_PAIRS,
    &conv2d::CONV2D_PHASE_TILE,
    &conv2d::CONV2D_PHASE_WINOGRAD,
    &conv2d::CONV2D_PHASE_WINOGRAD_TILE,
    &conv2d::CONV2D_PHASE_WINOGRAD_TILE_STATISTICS,
    &conv2d::CONV2D_WINOGRAD,
    &conv2d::CONV2D_WINOGRAD_TILE,
    &conv2d::CONV2D_WINOGRAD_TILE_STATISTICS,
    &gated_add::GATED_ADD,
    &gather_features::GATHER_FEATURES,
    &glu::GLU,
    &group_norm::GROUP_NORM_FOLD,
    &group_norm::GROUP_NORM_ROWS,
    &group_norm::GROUP_NORM_STATS,
    &group_norm::NORM_APPLY,
    &inpe::INPE_FEATURES,
    &layer_norm::LAYER_NORM,
    &linear::LINEAR_BROADCAST,
    &linear::LINEAR_LANES,
    &linear::LINEAR_MATRIX,
    &linear::LINEAR_TILE,
    &output::COUNT_NONFINITE,
    &output::IMAGE_TO_RGBA8,
    &patchify::PATCHIFY,
    &patchify::UNPATCHIFY,
    &peak::PEAK_COPY,
    &peak::PEAK_FMA,
    &resample::RESAMPLE_BICUBIC,
    &resample::RESAMPLE_BILINEAR,
    &resample::RESAMPLE_NEAREST,
    &rotary::ROTARY,
];

/// Activation of an epilogue; the discriminant is what the shaders switch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Act {
    /// Identity.
    #[default]
    None = 0,
    /// `max(x, 0)`
    Relu = 1,
    /// `x * sigmoid(x)`
    Silu = 2,
    /// `x * Phi(x)` through erf
    GeluErf = 3,
    /// The tanh approximation of GELU
    GeluTanh = 4,
    /// `x * sigmoid(1.702 x)`, CLIP's
    QuickGelu = 5,
}

/// Weights in the order that a kernel reads, still on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Packed {
    /// Values, a multiple of 4.
    pub values: Vec<f32>,
}

/// Output quads that lie side by side in packed weights: as many as there are lanes, and no more than needed.
pub(crate) fn channel_lanes(cout4: usize) -> usize {
    cout4.next_power_of_two().min(8)
}

/// Lanes of a `*_lanes` kernel along channels and along pixels. The first belongs to the weights' packing; both are
/// part of the pipeline, neither changes a sum's order.
pub(crate) fn lanes(rec: &Recorder, cout4: usize) -> (u32, u32) {
    let channels = channel_lanes(cout4) as u32;
    let total = if rec.profile().software { 8 } else { 64 };
    (channels, total / channels)
}

/// Whether lanes that read for each other are asked for, and there.
pub(crate) fn shares_loads(rec: &Recorder, family: KernelFamily) -> bool {
    matches!(family, KernelFamily::Broadcast | KernelFamily::Winograd) && rec.profile().broadcast
}

/// Whether a `*_broadcast` kernel is asked for, can run, and has work for all lanes of a subgroup.
pub(crate) fn in_broadcast(rec: &Recorder, family: KernelFamily, cout4: usize) -> bool {
    shares_loads(rec, family) && cout4 >= BROADCAST_LANES
}

/// Lanes of a subgroup that `*_broadcast` kernels are written for; each takes a pair of output quads.
pub(crate) const BROADCAST_LANES: usize = 8;

/// Of a `*_tile` kernel: output quads of a tile of packed weights, tiles a workgroup takes (two only where that leaves none
/// over and the family is not the narrow one), and workgroups along the output channels. The last two change no sum's order.
pub(crate) fn tiles(cout4: usize, family: KernelFamily) -> (u32, u32, u32) {
    let channels = channel_lanes(cout4);
    let tiles = cout4.div_ceil(channels);
    let pair = if family != KernelFamily::NarrowTile && channels == 8 && tiles.is_multiple_of(2) { 2 } else { 1 };
    (channels as u32, pair as u32, (tiles / pair) as u32)
}

/// Constants of a `*_matrix` kernel and workgroups along the output channels, or nothing where it cannot run: without matrix units, with weights
/// that are not native f16, in less workgroup memory than it takes, with fewer invocations, or where weights are packed for fewer lanes
/// than it reads. How wide a workgroup is changes no sum's order.
pub(crate) fn matrix(
    rec: &Recorder,
    family: KernelFamily,
    x: &Tensor,
    weight: &Tensor,
    cout4: usize,
) -> Option<(Vec<(&'static str, u32)>, u32)> {
    let profile = rec.profile();
    let asked = matches!(family, KernelFamily::Matrix | KernelFamily::NarrowMatrix);
    let MatrixUnits { side, subgroup } = profile.matrix.filter(|_| asked)?;
    // A subgroup takes 4 x 2 products of the 128 rows by 64 columns of a workgroup, or 4 x 4 of 128.
    let invocations = 128 / (4 * side) * (64 / (2 * side)) * subgroup;
    let half = weight.elem == Elem::Half && profile.native_f16;
    // Activations in f32 are staged twice.
    let split = x.elem == Elem::F32;
    let more = if split { MATRIX_STAGED_BYTES } else { 0 };
    let room = profile.max_workgroup_storage >= MATRIX_WORKGROUP_BYTES + more && profile.max_invocations >= invocations;
    // Loops stage 512 quads or more, in rows of 32 at most, in steps of a workgroup.
    if !half || !room || !invocations.is_power_of_two() || !(64..=512).contains(&invocations) || channel_lanes(cout4) < 8 {
        return None;
    }
    let wide =
        family == KernelFamily::Matrix && cout4.is_multiple_of(32) && profile.max_workgroup_storage >= WIDE_MATRIX_WORKGROUP_BYTES + more;
    let width = 1 + wide as usize;
    let consts = vec![("SIDE", side), ("SG", subgroup), ("WG", invocations), ("WIDE", width as u32), ("SPLIT", split as u32)];
    Some((consts, cout4.div_ceil(16 * width) as u32))
}

/// Workgroup memory of the largest `*_matrix` kernel with 64 output channels, and with 128.
const MATRIX_WORKGROUP_BYTES: u32 = 20 << 10;
const WIDE_MATRIX_WORKGROUP_BYTES: u32 = 26 << 10;

/// Most activations that any of them stages.
const MATRIX_STAGED_BYTES: u32 = 10 << 10;

/// Sizes multiplied in 64 bits: operations are counted where `usize` has 32, in the browser.
pub(crate) fn product<const N: usize>(sizes: [usize; N]) -> u64 {
    sizes.iter().map(|&n| n as u64).product()
}

/// Size of a value from which on it counts as an overflow: the largest f16 where stores saturate, infinity in f32.
pub(crate) fn limit(elem: Elem) -> f32 {
    if elem == Elem::Half { 65504.0 } else { f32::INFINITY }
}
