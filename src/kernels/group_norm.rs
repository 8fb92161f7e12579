//! Group normalisation: statistics of blocks, merged in a fixed order, folded into a scale and a shift per channel.

use super::conv2d::statistics_in_store;
use super::{limit, product};
use crate::gpu::{Bind, Binding, Dispatch, Elem, Footprint, Kernel, Recorder, Tensor};

/// `group_norm_stats.wgsl`
pub const GROUP_NORM_STATS: Kernel = Kernel {
    name: "group_norm_stats",
    wgsl: concat!(include_str!("../../shaders/common/moments.wgsl"), include_str!("../../shaders/group_norm_stats.wgsl")),
    params: &["h", "w", "c4", "limit"],
    bindings: &[Bind::X, Bind::F32Write],
};

/// `group_norm_rows.wgsl`
pub const GROUP_NORM_ROWS: Kernel = Kernel {
    name: "group_norm_rows",
    wgsl: include_str!("../../shaders/group_norm_rows.wgsl"),
    params: &["h", "w", "c4"],
    bindings: &[Bind::F32, Bind::F32Write],
};

/// `group_norm_fold.wgsl`
pub const GROUP_NORM_FOLD: Kernel = Kernel {
    name: "group_norm_fold",
    wgsl: include_str!("../../shaders/group_norm_fold.wgsl"),
    params: &["h", "w", "c4", "channels", "groups", "eps", "watch", "first", "first4"],
    bindings: &[Bind::F32, Bind::F32, Bind::F32, Bind::F32, Bind::F32Write, Bind::Counter],
};

/// `norm_apply.wgsl`
pub const NORM_APPLY: Kernel = Kernel {
    name: "norm_apply",
    wgsl: concat!(include_str!("../../shaders/common/activation.wgsl"), include_str!("../../shaders/norm_apply.wgsl")),
    params: &["units", "c4"],
    bindings: &[Bind::X, Bind::F32, Bind::Y],
};

/// Rows of a statistics block; a band of an image must start at a multiple of it.
pub const BLOCK_ROWS: usize = 8;
/// Columns of a statistics block.
pub const BLOCK_COLUMNS: usize = 16;

/// Weights of a group normalisation on the device.
#[derive(Debug, Clone)]
pub struct GroupNormWeights {
    /// `[channels]`, f32.
    pub weight: Tensor,
    /// `[channels]`, f32.
    pub bias: Tensor,
    /// Number of groups; divides the channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
}

/// A normalisation that its reader applies: `x * scale + shift` per channel, then SiLU if `silu`.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// `[2, 1, c]` f32 from [`group_norm`].
    pub affine: &'a Tensor,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// Scale and shift per channel that normalise `x` (`[h, w, c]`) over each group of channels and the whole plane.
///
/// The result is `[2, 1, c]` f32. The values of `x` are watched: a NaN, an infinity or an f16 overflow among them
/// makes the run fail with the current scope's name.
pub fn group_norm(rec: &mut Recorder, x: &Tensor, weights: &GroupNormWeights) -> Tensor {
    group_norm_joined(rec, &[x], weights).remove(0)
}

/// [`group_norm`] of one or two tensors as if they were one whose channels follow each other: scale and shift of each.
pub fn group_norm_joined(rec: &mut Recorder, xs: &[&Tensor], weights: &GroupNormWeights) -> Vec<Tensor> {
    let (first, last) = (xs[0], xs[xs.len() - 1]);
    assert!(xs.len() <= 2 && (first.height, first.width) == (last.height, last.width), "group_norm: tensors");
    let rows: Vec<(Tensor, usize)> = xs.iter().map(|x| (statistics(rec, x), x.channels)).collect();
    let affine = fold_joined(rec, &rows, (first.height, first.width), weights);
    let mut start = 0;
    let mut part = |x: &&Tensor| {
        let own = 2 * x.quads() as u64;
        start += own;
        affine.view(start - own, 2, 1, 4 * x.quads())
    };
    xs.iter().map(&mut part).collect()
}

/// Scale and shift from the [`statistics`] of a whole plane of this shape (`(h, w, c)`), see [`group_norm`].
pub fn fold(rec: &mut Recorder, rows: &Tensor, (h, w, channels): (usize, usize, usize), weights: &GroupNormWeights) -> Tensor {
    fold_joined(rec, &[(rows.clone(), channels)], (h, w), weights)
}

/// Scale and shift of planes whose channels follow each other, from the statistics of each and its number of channels.
fn fold_joined(rec: &mut Recorder, rows: &[(Tensor, usize)], (h, w): (usize, usize), weights: &GroupNormWeights) -> Tensor {
    let channels: usize = rows.iter().map(|(_, channels)| channels).sum();
    assert!(channels.is_multiple_of(weights.groups) && weights.weight.channels == channels, "group_norm: groups");
    assert!(rows.iter().all(|(rows, c)| rows.shape() == (h.div_ceil(BLOCK_ROWS), 2, c.next_multiple_of(4))), "group_norm: statistics");
    let c4: usize = rows.iter().map(|(_, channels)| channels.div_ceil(4)).sum();
    let affine = rec.tensor(2, 1, c4 * 4, Elem::F32);
    let (watch, health) = rec.watch();
    rec.dispatch(Dispatch {
        kernel: &GROUP_NORM_FOLD,
        consts: vec![],
        bindings: vec![
            Binding::whole(&rows[0].0),
            Binding::whole(&rows[rows.len() - 1].0),
            Binding::whole(&weights.weight),
            Binding::whole(&weights.bias),
            Binding::whole(&affine),
            Binding::whole(&health),
        ],
        params: vec![
            h as u32,
            w as u32,
            c4 as u32,
            channels as u32,
            weights.groups as u32,
            weights.eps.to_bits(),
            watch,
            rows[0].1 as u32,
            rows[0].1.div_ceil(4) as u32,
        ],
        grid: [1, 1, 1],
        flops: 8 * product([h.div_ceil(BLOCK_ROWS), channels]),
    });
    affine
}

/// Statistics of the block rows of `x` (`[h, w, c]`): `[h / 8, 2, c]` f32, mean and sum of squared deviations. A band of a
/// plane's rows that starts at a multiple of [`BLOCK_ROWS`] gives that part of the plane's statistics, bit for bit.
pub fn statistics(rec: &mut Recorder, x: &Tensor) -> Tensor {
    let (h, w, channels) = x.shape();
    let c4 = x.quads();
    let (block_rows, columns) = (h.div_ceil(BLOCK_ROWS), w.div_ceil(BLOCK_COLUMNS));
    let blocks = rec.tensor(block_rows, columns * 2, c4 * 4, Elem::F32);
    let block_row = Binding::part(&blocks, Footprint::rows((columns * c4 * 2) as u64, 1, 0, 1));
    if !statistics_in_store(rec, x, &block_row) {
        rec.dispatch(Dispatch {
            kernel: &GROUP_NORM_STATS,
            consts: vec![],
            bindings: vec![Binding::part(x, Footprint::rows((w * c4) as u64, BLOCK_ROWS, 0, BLOCK_ROWS)), block_row],
            params: vec![h as u32, w as u32, c4 as u32, limit(x.elem).to_bits()],
            grid: [(columns * c4).div_ceil(64) as u32, block_rows as u32, 1],
            flops: 4 * product([h, w, channels]),
        });
    }
    let rows = rec.tensor(block_rows, 2, c4 * 4, Elem::F32);
    rec.dispatch(Dispatch {
        kernel: &GROUP_NORM_ROWS,
        consts: vec![],
        bindings: vec![Binding::whole(&blocks), Binding::whole(&rows)],
        params: vec![h as u32, w as u32, c4 as u32],
        grid: [(block_rows * c4).div_ceil(64) as u32, 1, 1],
        flops: 8 * product([block_rows, columns, channels]),
    });
    rows
}

/// `x * scale + shift`, then SiLU if `silu`: a new tensor of the same shape.
pub fn norm_apply(rec: &mut Recorder, x: &Tensor, affine: &Tensor, silu: bool, elem: Elem) -> Tensor {
    let y = rec.tensor(x.height, x.width, x.channels, elem);
    let (run, lanes) = if rec.profile().software { (8, 32) } else { (1, 256) };
    // A workgroup ends in the middle of a run's quads.
    let part = Footprint::rows(run as u64, lanes, x.quads() as i64, lanes + 2 * x.quads());
    rec.dispatch(Dispatch {
        kernel: &NORM_APPLY,
        consts: vec![("SILU", silu as u32), ("RUN", run as u32), ("WG", lanes as u32)],
        bindings: vec![Binding::part(x, part), Binding::whole(affine), Binding::part(&y, part)],
        params: vec![x.units() as u32, x.quads() as u32],
        grid: [1, (x.pixels().div_ceil(run) * x.quads()).div_ceil(lanes) as u32, 1],
        flops: 8 * product([x.pixels(), x.channels]),
    });
    y
}
