//! Scaled dot-product attention.

use super::{product, shares_loads};
use crate::gpu::{Bind, Binding, DeviceProfile, Dispatch, Elem, Footprint, Kernel, KernelFamily, MatrixUnits, Recorder, Tensor};

/// `attention.wgsl`
pub const ATTENTION: Kernel = Kernel {
    name: "attention",
    wgsl: concat!(
        include_str!("../../shaders/attention.wgsl"),
        "fn finished(at: u32, peak: f32, total: f32) {}\nfn biased(score: f32, query: u32, key: u32, head: u32) -> f32 { return score; }\n"
    ),
    params: &["n", "m", "heads", "causal", "scale", "span"],
    bindings: &[Bind::X, Bind::X, Bind::X, Bind::Y],
};

/// `attention.wgsl` and `attention_range.wgsl`: over ranges of keys, each with its peak and sum
pub const ATTENTION_RANGE: Kernel = Kernel {
    name: "attention_range",
    wgsl: concat!(
        include_str!("../../shaders/attention.wgsl"),
        include_str!("../../shaders/attention_range.wgsl"),
        "fn biased(score: f32, query: u32, key: u32, head: u32) -> f32 { return score; }\n"
    ),
    params: &["n", "m", "heads", "causal", "scale", "span"],
    bindings: &[Bind::X, Bind::X, Bind::X, Bind::Y, Bind::F32Write],
};

/// `attention_biased.wgsl` and `attention.wgsl`: with a bias by where the query lies from the key
pub const ATTENTION_BIASED: Kernel = Kernel {
    name: "attention_biased",
    wgsl: concat!(include_str!("../../shaders/attention_biased.wgsl"), include_str!("../../shaders/attention.wgsl")),
    params: &["n", "m", "heads", "causal", "scale", "span"],
    bindings: &[Bind::X, Bind::X, Bind::X, Bind::Y, Bind::F32],
};

/// `attention_matrix.wgsl`
pub const ATTENTION_MATRIX: Kernel = Kernel {
    name: "attention_matrix",
    wgsl: concat!(include_str!("../../shaders/attention_matrix.wgsl"), "fn finished(at: u32, peak: f32, total: f32) {}\n"),
    params: ATTENTION.params,
    bindings: ATTENTION.bindings,
};

/// `attention_matrix.wgsl` and `attention_range.wgsl`
pub const ATTENTION_MATRIX_RANGE: Kernel = Kernel {
    name: "attention_matrix+range",
    wgsl: concat!(include_str!("../../shaders/attention_matrix.wgsl"), include_str!("../../shaders/attention_range.wgsl")),
    params: ATTENTION_RANGE.params,
    bindings: ATTENTION_RANGE.bindings,
};

/// `attention_tile.wgsl`
pub const ATTENTION_TILE: Kernel = Kernel {
    name: "attention_tile",
    wgsl: concat!(include_str!("../../shaders/attention_tile.wgsl"), "fn finished(at: u32, peak: f32, total: f32) {}\n"),
    params: ATTENTION.params,
    bindings: ATTENTION.bindings,
};

/// `attention_tile.wgsl` and `attention_range.wgsl`
pub const ATTENTION_TILE_RANGE: Kernel = Kernel {
    name: "attention_tile+range",
    wgsl: concat!(include_str!("../../shaders/attention_tile.wgsl"), include_str!("../../shaders/attention_range.wgsl")),
    params: ATTENTION_RANGE.params,
    bindings: ATTENTION_RANGE.bindings,
};

/// `attention_merge.wgsl`
pub const ATTENTION_MERGE: Kernel = Kernel {
    name: "attention_merge",
    wgsl: include_str!("../../shaders/attention_merge.wgsl"),
    params: &["n", "heads", "d4", "ranges"],
    bindings: &[Bind::F32, Bind::F32, Bind::Y],
};

/// `attention_lanes.wgsl`
pub const ATTENTION_LANES: Kernel = Kernel {
    name: "attention_lanes",
    wgsl: concat!(include_str!("../../shaders/attention_lanes.wgsl"), include_str!("../../shaders/common/keys_alone.wgsl")),
    params: &["n", "m", "heads", "causal", "scale"],
    bindings: &[Bind::X, Bind::X, Bind::X, Bind::Y],
};

/// [`ATTENTION_LANES`] whose lanes read keys and values for each other, in octets
pub const ATTENTION_LANES_BROADCAST: Kernel = Kernel {
    name: "attention_lanes+broadcast",
    wgsl: concat!(include_str!("../../shaders/attention_lanes.wgsl"), include_str!("../../shaders/common/keys_together.wgsl")),
    bindings: &[Bind::X, Bind::X8, Bind::X8, Bind::Y],
    ..ATTENTION_LANES
};

/// `attention_scores_broadcast.wgsl`
pub const ATTENTION_SCORES_BROADCAST: Kernel = Kernel {
    name: "attention_scores_broadcast",
    wgsl: concat!(include_str!("../../shaders/common/broadcast.wgsl"), include_str!("../../shaders/attention_scores_broadcast.wgsl")),
    ..ATTENTION_SCORES_LANES
};

/// `attention_scores_lanes.wgsl`
pub const ATTENTION_SCORES_LANES: Kernel = Kernel {
    name: "attention_scores_lanes",
    wgsl: include_str!("../../shaders/attention_scores_lanes.wgsl"),
    params: &["n", "m", "heads", "d8", "pitch", "scale"],
    bindings: &[Bind::X8, Bind::X8, Bind::F32Write],
};

/// `attention_softmax_lanes.wgsl`
pub const ATTENTION_SOFTMAX_LANES: Kernel = Kernel {
    name: "attention_softmax_lanes",
    wgsl: include_str!("../../shaders/attention_softmax_lanes.wgsl"),
    params: &["n", "m", "heads", "pitch", "first", "causal"],
    bindings: &[Bind::F32Write],
};

/// `attention_values_broadcast.wgsl`
pub const ATTENTION_VALUES_BROADCAST: Kernel = Kernel {
    name: "attention_values_broadcast",
    wgsl: concat!(include_str!("../../shaders/common/broadcast.wgsl"), include_str!("../../shaders/attention_values_broadcast.wgsl")),
    ..ATTENTION_VALUES_LANES
};

/// `attention_values_lanes.wgsl`
pub const ATTENTION_VALUES_LANES: Kernel = Kernel {
    name: "attention_values_lanes",
    wgsl: include_str!("../../shaders/attention_values_lanes.wgsl"),
    params: &["n", "m", "heads", "d8", "pitch"],
    bindings: &[Bind::F32, Bind::X8, Bind::Y],
};

/// Most bytes of scores that the three passes keep at a time, unless eight queries have more.
const SCORES_BYTES: usize = 8 << 20;

/// Most keys of the three passes: beyond, a chunk is a few queries, and recording alone takes minutes.
const THREE_PASSES_MAX_KEYS: usize = 1 << 17;

/// Widest head of [`ATTENTION_LANES`], in quads; [`ATTENTION_LANES_BROADCAST`] takes twice that.
const LANES_MAX_QUADS: usize = 8;

/// Widest head of which a lane takes 8 queries; 4 of wider ones: Mesa 25 compiles for 35 s where heads of 64 have 8 (65 instead of 53 GFLOP/s).
const LANES_MAX_QUADS_OF_8: usize = 10;

/// Largest head that the kernel takes: 16 quads a lane on 64 lanes.
pub const MAX_HEAD_DIM: usize = 4096;

/// Most bytes of results that wait for their merge, where keys are taken in ranges.
const RANGES_BYTES: usize = 32 << 20;

/// Fewest keys of a range where they are split to fill a device: below, the merge costs more than it brings.
const LEAST_KEYS: usize = 1024;

/// `softmax(scale * q k^T) v` per head.
///
/// `q` is `[n tokens, heads * d]`, `k` and `v` `[m tokens, heads * d]` with `d` a multiple of 4 and at most
/// [`MAX_HEAD_DIM`]; the head is the slow index of the channels. `causal`: query `i` sees keys `0 ..= i`. Keys of more bytes than a
/// binding may have, and many keys of few queries on a device that has room for more workgroups, are taken in ranges, which are merged.
#[expect(clippy::too_many_arguments, reason = "the operands of one formula")]
pub fn attention(rec: &mut Recorder, q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, scale: f32, causal: bool, elem: Elem) -> Tensor {
    let y = rec.tensor(q.height, q.width, q.channels, elem);
    attention_into(rec, [q, k, v], heads, scale, causal, &y, q.pixels());
    y
}

/// [`attention`] into `y`, which may be some rows of a larger tensor. `whole`: how many queries there are in all, if `q` is some of them:
/// how keys are split follows from it, so that every part has the bits that it has in the whole.
pub fn attention_into(rec: &mut Recorder, [q, k, v]: [&Tensor; 3], heads: usize, scale: f32, causal: bool, y: &Tensor, whole: usize) {
    // Masked scores are far below all others only if they are multiplied with something of ordinary size.
    assert!((1e-6..1e6).contains(&scale), "attention: scale {scale}");
    let d4 = q.channels / heads / 4;
    assert_eq!(d4 * 4 * heads, q.channels, "attention: head dim must be a multiple of 4");
    assert!(k.shape() == v.shape() && k.channels == q.channels && y.shape() == q.shape(), "attention: shapes");
    assert!((1..=whole).contains(&q.pixels()) && k.pixels() > 0, "attention: no queries, more than there are, or no keys");
    let m = k.pixels();
    let profile = *rec.profile();
    // Keys that a binding holds, if it does not hold all.
    let fit = (k.bytes() > profile.max_binding)
        .then(|| (profile.max_binding.saturating_sub(profile.offset_alignment) / (k.bytes() / m as u64)) as usize);
    assert!(fit.is_none() || !causal, "attention: causal, over more keys than one binding holds");
    let family = profile.families(q).attention;
    let (lanes, octets) = (fit.is_none() && family.is_plain() && profile.software, d4.is_multiple_of(2));
    let together = octets && shares_loads(rec, family);
    let narrow = d4 <= if together { 2 * LANES_MAX_QUADS } else { LANES_MAX_QUADS };
    if lanes && !narrow && octets && m <= THREE_PASSES_MAX_KEYS {
        return three_passes(rec, [q, k, v, y], heads, scale, causal);
    }
    let flash = if lanes && narrow {
        let run = if d4 > LANES_MAX_QUADS_OF_8 { 4 } else { 8 };
        let consts = vec![("D4", d4 as u32), ("WG", 8), ("RUN", run)];
        let kernel = if together { &ATTENTION_LANES_BROADCAST } else { &ATTENTION_LANES };
        Flash { kernel, range: None, consts, queries: (8 * run) as usize, keys: 4 }
    } else {
        let fits = |flash: &Flash| fit.is_none_or(|fit| flash.keys <= fit);
        let matrix = Flash::matrix(&profile, family, d4, q.elem).filter(fits);
        let tile = || Some(Flash::new(&profile, family, d4)).filter(fits);
        matrix.or_else(tile).unwrap_or_else(|| Flash::shared(profile.software, d4))
    };
    let block = flash.keys;
    let most = fit.map_or(m.next_multiple_of(block), |fit| (fit / block * block).max(block));
    let workgroups = heads * whole.div_ceil(flash.queries);
    let fill = match flash.range {
        Some(_) if !causal => (profile.fill as usize / workgroups).min(m / LEAST_KEYS),
        _ => 1,
    };
    let span = m.div_ceil(m.div_ceil(most).max(fill)).next_multiple_of(block).min(most);
    if span < m || fit.is_some() {
        return ranges(rec, &flash, span, [q, k, v, y], heads, scale);
    }
    let n = q.pixels();
    let mut params = vec![n as u32, m as u32, heads as u32, causal as u32, scale.to_bits()];
    if flash.range.is_some() {
        // A kernel that can take ranges takes all keys as one.
        params.push(span as u32);
    }
    let part = Footprint::rows(q.quads() as u64, flash.queries, 0, flash.queries);
    rec.dispatch(Dispatch {
        kernel: flash.kernel,
        consts: flash.consts,
        bindings: vec![Binding::part(q, part), Binding::whole(k), Binding::whole(v), Binding::part(y, part)],
        params,
        grid: [heads as u32, n.div_ceil(flash.queries) as u32, 1],
        flops: 4 * product([n, m, q.channels]),
    });
}

/// Biases of scores on a plane of tokens.
#[derive(Debug, Clone)]
pub struct RelativeBias {
    /// `[heads, 1, (2 rows - 1)(2 columns - 1)]` in f32, by where the query lies from the key: rows slow, columns fast, from furthest up and left on.
    pub table: Tensor,
    /// Rows of tokens.
    pub rows: usize,
    /// Columns of tokens.
    pub columns: usize,
}

/// Self-attention of the `rows * columns` tokens of a plane, as [`attention_into`], with a bias added to the scaled scores.
pub fn attention_biased_into(rec: &mut Recorder, [q, k, v]: [&Tensor; 3], heads: usize, scale: f32, bias: &RelativeBias, y: &Tensor) {
    let RelativeBias { table, rows, columns } = bias;
    let (n, d4) = (q.pixels(), q.channels / heads / 4);
    assert!(d4 * 4 * heads == q.channels && [k, v, y].iter().all(|t| t.shape() == q.shape()) && n == rows * columns, "attention: shapes");
    assert_eq!(table.shape(), (heads, 1, (2 * rows - 1) * (2 * columns - 1)), "attention: table of biases");
    let flash = Flash::shared(rec.profile().software, d4);
    let part = Footprint::rows((heads * d4) as u64, flash.queries, 0, flash.queries);
    let counts = [n, n, heads, 0].map(|n| n as u32);
    rec.dispatch(Dispatch {
        kernel: &ATTENTION_BIASED,
        consts: [flash.consts, vec![("ROWS", *rows as u32), ("COLUMNS", *columns as u32)]].concat(),
        bindings: vec![Binding::part(q, part), Binding::whole(k), Binding::whole(v), Binding::part(y, part), Binding::whole(table)],
        params: [&counts[..], &[scale.to_bits(), n.next_multiple_of(8) as u32]].concat(),
        grid: [heads as u32, n.div_ceil(flash.queries) as u32, 1],
        flops: 4 * product([n, n, q.channels]),
    });
}

/// For tests: the kernels that go through the keys once, with the constants that heads of `d4` quads give them on a device, whatever it prefers.
#[doc(hidden)]
pub fn flash_kernels(profile: &DeviceProfile, d4: usize) -> Vec<(&'static Kernel, Vec<(&'static str, u32)>)> {
    let families = [KernelFamily::Matrix, KernelFamily::NarrowMatrix];
    let matrix = families.into_iter().flat_map(|family| [Elem::Half, Elem::F32].map(|elem| Flash::matrix(profile, family, d4, elem)));
    let others = [Flash::tile(profile, d4), Some(Flash::shared(false, d4)), Some(Flash::shared(true, d4))];
    let kernels = |flash: Flash| std::iter::once(flash.kernel).chain(flash.range).map(move |kernel| (kernel, flash.consts.clone()));
    matrix.chain(others).flatten().flat_map(kernels).collect()
}

/// A kernel that goes through the keys once.
struct Flash {
    kernel: &'static Kernel,
    /// The same over a range of keys, if there is one.
    range: Option<&'static Kernel>,
    consts: Vec<(&'static str, u32)>,
    /// Queries of a workgroup.
    queries: usize,
    /// Keys of a block; ranges are whole blocks.
    keys: usize,
}

impl Flash {
    /// For heads of `d4` quads, without matrix units.
    fn new(profile: &DeviceProfile, family: KernelFamily, d4: usize) -> Flash {
        match family {
            family if family.is_plain() => Flash::shared(profile.software, d4),
            _ => Flash::tile(profile, d4).unwrap_or_else(|| Flash::shared(profile.software, d4)),
        }
    }

    /// `attention_matrix.wgsl` for operands of type `elem`, or nothing where another family is asked for, or heads or the device do not suit it.
    fn matrix(profile: &DeviceProfile, family: KernelFamily, d4: usize, elem: Elem) -> Option<Flash> {
        let asked = matches!(family, KernelFamily::Matrix | KernelFamily::NarrowMatrix);
        let MatrixUnits { side, subgroup } = profile.matrix.filter(|_| asked && profile.native_f16)?;
        let (side, subgroup) = (side as usize, subgroup as usize);
        let split = (elem == Elem::F32) as usize;
        // Sums that a subgroup holds of a head's channels. Where they are many, subgroups share the head, and then divide the keys among them too.
        let sums = |across: usize| (4 * d4).div_ceil(across * side);
        // More keys a block, fewer barriers, but fewer workgroups at a time.
        let narrow = (family == KernelFamily::NarrowMatrix) as usize;
        let shapes: &[(usize, usize, usize)] = if sums(1) <= 10 { &[(4, 1, 64), (4, 1, 32)][narrow..] } else { &[(2, 4, 64)] };
        shapes.iter().find_map(|&(down, across, block)| {
            Flash::on_subgroups(profile, d4, split, [side, subgroup], [down, across, block], sums(across))
        })
    }

    /// `attention_matrix.wgsl` with `down * across` subgroups of `side`-wide products, blocks of `block` keys and `sums` products of a head's channels
    /// a subgroup, or nothing where it does not fit. `split`: 1 for operands in f32, which are staged twice.
    fn on_subgroups(
        profile: &DeviceProfile,
        d4: usize,
        split: usize,
        [side, subgroup]: [usize; 2],
        [down, across, block]: [usize; 3],
        sums: usize,
    ) -> Option<Flash> {
        let scores = block / (across * side);
        let (rows, channels) = (down * side, sums * across * side);
        let invocations = down * across * subgroup;
        let queries_and_keys = (rows + block) * (16 + 2);
        // As many values at a time as fit where queries and keys were, but at least 16; a power of two, as blocks are.
        let staged = 1 << (queries_and_keys / (channels / 4 + 2)).clamp(16, block).ilog2();
        let stage = (1 + split) * queries_and_keys.max(staged * (channels / 4 + 2));
        let bytes = 8 * stage + (4 + 2 * (1 + split)) * rows * (block + 8) + 4 * invocations + 4 * rows + 32;
        let room = profile.max_workgroup_storage as usize >= bytes && profile.max_invocations as usize >= invocations;
        // In the softmax several invocations share the quads of a query's keys.
        let shared = invocations.is_multiple_of(rows) && (block / 4).is_multiple_of((invocations / rows).max(1));
        if !room || !shared || scores > 4 || sums > 16 {
            return None;
        }
        let consts = [
            ("D4", d4),
            ("SIDE", side),
            ("SG", subgroup),
            ("WG", invocations),
            ("RS", down),
            ("CS", across),
            ("KEYS", block),
            ("SN", scores),
            ("ON", sums),
            ("VK", staged),
            ("STAGE", stage),
            ("CHUNK", d4.div_ceil(d4.div_ceil(16)).next_multiple_of(4)),
            ("SPLIT", split),
        ];
        let consts = consts.map(|(name, value)| (name, value as u32)).to_vec();
        Some(Flash { kernel: &ATTENTION_MATRIX, range: Some(&ATTENTION_MATRIX_RANGE), consts, queries: rows, keys: block })
    }

    /// `attention_tile.wgsl`, or nothing for heads too wide for its registers, or for the workgroup memory there is.
    fn tile(profile: &DeviceProfile, d4: usize) -> Option<Flash> {
        let columns = if d4 <= 40 { 8 } else { 16 };
        let stage = 256 + 16 * columns;
        let bytes = 16 * (stage + 64 * columns + 16 * columns) as u32;
        let queries = 64;
        if d4 > 8 * columns || profile.max_workgroup_storage < bytes || profile.max_invocations < 16 * columns as u32 {
            return None;
        }
        let keys = 4 * columns;
        // The largest power of two that fits: keys are one.
        let staged = 1 << (stage / d4).min(keys).ilog2();
        let consts = [("D4", d4), ("T", columns), ("WG", 16 * columns), ("KEYS", keys), ("QN", d4.div_ceil(columns)), ("VK", staged)];
        let consts = consts.map(|(name, value)| (name, value as u32)).to_vec();
        Some(Flash { kernel: &ATTENTION_TILE, range: Some(&ATTENTION_TILE_RANGE), consts, queries, keys })
    }

    /// `attention.wgsl`: any head.
    fn shared(software: bool, d4: usize) -> Flash {
        // Registers a lane: 16 quads of q and of the sum on a CPU, 8 where registers are what limits occupancy.
        let lanes_a_query = d4.div_ceil(if software { 16 } else { 8 }).next_power_of_two() as u32;
        let lanes = if software { 8.max(lanes_a_query) } else { 64.max(lanes_a_query) };
        let quads_a_lane = (d4 as u32).div_ceil(lanes_a_query);
        let consts = vec![("D4", d4 as u32), ("S", lanes_a_query), ("WG", lanes), ("QN", quads_a_lane)];
        Flash { kernel: &ATTENTION, range: Some(&ATTENTION_RANGE), consts, queries: (lanes / lanes_a_query) as usize, keys: 8 }
    }
}

/// Attention into `y` over ranges of `span` keys, some queries at a time: results of each range, then their merge.
fn ranges(rec: &mut Recorder, flash: &Flash, span: usize, [q, k, v, y]: [&Tensor; 4], heads: usize, scale: f32) {
    let (n, m, channels) = (q.pixels(), k.pixels(), q.channels);
    let (d4, queries, count) = (channels / heads / 4, flash.queries, m.div_ceil(span));
    let chunk = (RANGES_BYTES / (count * channels * 4) / queries * queries).max(queries);
    let (q, y) = (q.reshape(n, 1), y.reshape(n, 1));
    for first in (0..n).step_by(chunk) {
        let n = chunk.min(n - first);
        let (q, y) = (q.rows(first, n), y.rows(first, n));
        let parts = rec.tensor(count * n, 1, channels, Elem::F32);
        let state = rec.tensor(count * n, 1, 4 * heads, Elem::F32);
        let rows = |tensor: &Tensor, ranges: usize| {
            let row = tensor.quads() as i64;
            let per = [0, queries as i64 * row, if ranges > 1 { n as i64 * row } else { 0 }];
            Binding::part(tensor, Footprint { base: 0, per, extent: queries as i64 * row })
        };
        let keys = Footprint { base: 0, per: [0, 0, (span * k.quads()) as i64], extent: (span * k.quads()) as i64 };
        rec.dispatch(Dispatch {
            kernel: flash.range.expect("chosen for it"),
            consts: flash.consts.clone(),
            bindings: vec![rows(&q, 1), Binding::part(k, keys), Binding::part(v, keys), rows(&parts, count), rows(&state, count)],
            params: vec![n as u32, m as u32, heads as u32, 0, scale.to_bits(), span as u32],
            grid: [heads as u32, n.div_ceil(queries) as u32, count as u32],
            flops: 4 * product([n, m, channels]),
        });
        let quads = n * heads * d4;
        rec.dispatch(Dispatch {
            kernel: &ATTENTION_MERGE,
            consts: vec![],
            bindings: vec![Binding::whole(&parts), Binding::whole(&state), Binding::whole(&y)],
            params: vec![n as u32, heads as u32, d4 as u32, count as u32],
            grid: [quads.div_ceil(64) as u32, 1, 1],
            flops: 0,
        });
    }
}

/// Attention into `y` as scores, softmax and weighted values, some queries at a time. On a software rasteriser both products then run
/// as fast as a linear layer, compile in half a second, and serve any head of whole octets with the same pipelines.
fn three_passes(rec: &mut Recorder, [q, k, v, y]: [&Tensor; 4], heads: usize, scale: f32, causal: bool) {
    let (n, m, d8) = (q.pixels(), k.pixels(), q.channels / heads / 8);
    // Quads of scores a query and head, and one for the sum.
    let pitch = m.div_ceil(4) + 1;
    let asked = shares_loads(rec, rec.profile().families(q).attention);
    // Both have the same bits, so how many keys there are may decide.
    let together = asked && 32 * heads * (pitch - 1) * 16 <= SCORES_BYTES;
    let (scores_kernel, values_kernel, queries) = match together {
        true => (&ATTENTION_SCORES_BROADCAST, &ATTENTION_VALUES_BROADCAST, 32),
        false => (&ATTENTION_SCORES_LANES, &ATTENTION_VALUES_LANES, 8),
    };
    let chunk = (SCORES_BYTES / (heads * pitch * 16) / queries * queries).max(queries);
    let (q, y) = (q.reshape(n, 1), y.reshape(n, 1));
    for first in (0..n).step_by(chunk) {
        let count = chunk.min(n - first);
        let (q, y) = (q.rows(first, count), y.rows(first, count));
        let scores = rec.tensor(count, heads, 4 * pitch, Elem::F32);
        let runs = count.div_ceil(queries) as u32;
        let rows = |tensor: &Tensor| Footprint::rows(tensor.units() / count as u64, queries, 0, queries);
        let keys = 32 * k.quads() as i64;
        let flops = 2 * (count * m * heads * d8 * 8) as u64;
        let shape = [count as u32, m as u32, heads as u32];
        rec.dispatch(Dispatch {
            kernel: scores_kernel,
            consts: vec![],
            bindings: vec![
                Binding::part(&q, rows(&q)),
                Binding::part(k, Footprint { base: 0, per: [keys, 0, 0], extent: keys }),
                Binding::part(&scores, rows(&scores)),
            ],
            params: [&shape[..], &[d8 as u32, pitch as u32, scale.to_bits()]].concat(),
            grid: [m.div_ceil(32) as u32, runs, heads as u32],
            flops,
        });
        let eight = 8 * pitch as i64;
        rec.dispatch(Dispatch {
            kernel: &ATTENTION_SOFTMAX_LANES,
            consts: vec![],
            bindings: vec![Binding::part(&scores, Footprint { base: 0, per: [eight, 0, 0], extent: eight })],
            params: [&shape[..], &[pitch as u32, first as u32, causal as u32]].concat(),
            grid: [(count * heads).div_ceil(8) as u32, 1, 1],
            flops: 0,
        });
        rec.dispatch(Dispatch {
            kernel: values_kernel,
            consts: vec![],
            bindings: vec![Binding::part(&scores, rows(&scores)), Binding::whole(v), Binding::part(&y, rows(&y))],
            params: [&shape[..], &[d8 as u32, pitch as u32]].concat(),
            grid: [(heads * d8.div_ceil(8)) as u32, runs, 1],
            flops,
        });
    }
}
