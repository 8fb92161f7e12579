//! Scaled dot-product attention.

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
        flops: 4 * (n * m * q.channels) as u64,
    });
    y
}
