// conv2d_3x3_lanes with LC = 1, where all weights are those of every lane: each of 8 lanes reads one of the first eight and one of the last
// four for all, see conv2d_3x3_broadcast. A workgroup is one subgroup.
fn taps_at(wi: u32, lane: u32) -> Taps {
    let s = w_get(wt[wi + lane]);
    let t = w_get(wt[wi + 8u + lane % 4u]);
    return Taps(
        subgroupBroadcast(s, 0u), subgroupBroadcast(s, 1u), subgroupBroadcast(s, 2u), subgroupBroadcast(s, 3u),
        subgroupBroadcast(s, 4u), subgroupBroadcast(s, 5u), subgroupBroadcast(s, 6u), subgroupBroadcast(s, 7u),
        subgroupBroadcast(t, 0u), subgroupBroadcast(t, 1u), subgroupBroadcast(t, 2u), subgroupBroadcast(t, 3u));
}
