//! Scaled dot-product attention.

use super::product;
use crate::gpu::{Bind, Binding, Dispatch, Elem, Footprint, Kernel, Recorder, Tensor};

/// `attention.wgsl`
pub const ATTENTION: Kernel = Kernel {
    name: "attention",
    wgsl: include_str!("../../shaders/attention.wgsl"),
    params: &["n", "m", "heads", "causal", "scale"],
    bindings: &[Bind::X, Bind::X, Bind::X, Bind::Y],
};

/// `attention_lanes.wgsl`
pub const ATTENTION_LANES: Kernel = Kernel {
    name: "attention_lanes",
    wgsl: include_str!("../../shaders/attention_lanes.wgsl"),
    params: &["n", "m", "heads", "causal", "scale"],
    bindings: &[Bind::X, Bind::X, Bind::X, Bind::Y],
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

/// Widest head of [`ATTENTION_LANES`], in quads, and the queries that one of its lanes takes.
const LANES_MAX_QUADS: usize = 8;
const LANES_QUERIES: u32 = 4;

/// Largest head that the kernel takes: 16 quads a lane on 64 lanes.
pub const MAX_HEAD_DIM: usize = 4096;

/// `softmax(scale * q k^T) v` per head.
///
/// `q` is `[n tokens, heads * d]`, `k` and `v` `[m tokens, heads * d]` with `d` a multiple of 4 and at most
/// [`MAX_HEAD_DIM`]; the head is the slow index of the channels. `causal`: query `i` sees keys `0 ..= i`.
#[expect(clippy::too_many_arguments, reason = "the operands of one formula")]
pub fn attention(rec: &mut Recorder, q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, scale: f32, causal: bool, elem: Elem) -> Tensor {
    let d4 = q.channels / heads / 4;
    assert_eq!(d4 * 4 * heads, q.channels, "attention: head dim must be a multiple of 4");
    assert!(k.shape() == v.shape() && k.channels == q.channels, "attention: k and v shapes");
    let software = rec.profile().software;
    if software && d4 > LANES_MAX_QUADS && d4.is_multiple_of(2) && k.pixels() <= THREE_PASSES_MAX_KEYS {
        let y = rec.tensor(q.height, q.width, q.channels, elem);
        three_passes(rec, [q, k, v, &y], heads, scale, causal);
        return y;
    }
    let (kernel, consts, queries) = if software && d4 <= LANES_MAX_QUADS {
        (&ATTENTION_LANES, vec![("D4", d4 as u32), ("WG", 8)], 8 * LANES_QUERIES)
    } else {
        // Registers a lane: 16 quads of q and of the sum on a CPU, 8 where registers are what limits occupancy.
        let lanes_a_query = d4.div_ceil(if software { 16 } else { 8 }).next_power_of_two() as u32;
        let lanes = if software { 8.max(lanes_a_query) } else { 64.max(lanes_a_query) };
        let quads_a_lane = (d4 as u32).div_ceil(lanes_a_query);
        let consts = vec![("D4", d4 as u32), ("S", lanes_a_query), ("WG", lanes), ("QN", quads_a_lane)];
        (&ATTENTION, consts, lanes / lanes_a_query)
    };
    let queries = queries as usize;
    let y = rec.tensor(q.height, q.width, q.channels, elem);
    let (n, m) = (q.pixels(), k.pixels());
    let part = Footprint::rows(q.quads() as u64, queries, 0, queries);
    rec.dispatch(Dispatch {
        kernel,
        consts,
        bindings: vec![Binding::part(q, part), Binding::whole(k), Binding::whole(v), Binding::part(&y, part)],
        params: vec![n as u32, m as u32, heads as u32, causal as u32, scale.to_bits()],
        grid: [heads as u32, n.div_ceil(queries) as u32, 1],
        flops: 4 * product([n, m, q.channels]),
    });
    y
}

/// Attention into `y` as scores, softmax and weighted values, some queries at a time. On a software rasteriser both products then run
/// as fast as a linear layer, compile in half a second, and serve any head of whole octets with the same pipelines.
fn three_passes(rec: &mut Recorder, [q, k, v, y]: [&Tensor; 4], heads: usize, scale: f32, causal: bool) {
    let (n, m, d8) = (q.pixels(), k.pixels(), q.channels / heads / 8);
    // Quads of scores a query and head, and one for the sum.
    let pitch = m.div_ceil(4) + 1;
    let chunk = (SCORES_BYTES / (heads * pitch * 16) / 8 * 8).max(8);
    let (q, y) = (q.reshape(n, 1), y.reshape(n, 1));
    for first in (0..n).step_by(chunk) {
        let count = chunk.min(n - first);
        let (q, y) = (q.rows(first, count), y.rows(first, count));
        let scores = rec.tensor(count, heads, 4 * pitch, Elem::F32);
        let runs = count.div_ceil(8) as u32;
        let rows = |tensor: &Tensor| Footprint::rows(tensor.units() / count as u64, 8, 0, 8);
        let keys = 32 * k.quads() as i64;
        let flops = 2 * (count * m * heads * d8 * 8) as u64;
        let shape = [count as u32, m as u32, heads as u32];
        rec.dispatch(Dispatch {
            kernel: &ATTENTION_SCORES_LANES,
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
            kernel: &ATTENTION_VALUES_LANES,
            consts: vec![],
            bindings: vec![Binding::part(&scores, rows(&scores)), Binding::whole(v), Binding::part(&y, rows(&y))],
            params: [&shape[..], &[d8 as u32, pitch as u32]].concat(),
            grid: [(heads * d8.div_ceil(8)) as u32, runs, 1],
            flops,
        });
    }
}
