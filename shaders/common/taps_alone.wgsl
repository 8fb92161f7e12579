// conv2d_3x3_lanes: every lane reads its own weights.
fn taps_at(wi: u32, lane: u32) -> Taps {
    return Taps(
        w_get(wt[wi]), w_get(wt[wi + LC]), w_get(wt[wi + 2u * LC]), w_get(wt[wi + 3u * LC]),
        w_get(wt[wi + 4u * LC]), w_get(wt[wi + 5u * LC]), w_get(wt[wi + 6u * LC]), w_get(wt[wi + 7u * LC]),
        w_get(wt[wi + 8u * LC]), w_get(wt[wi + 9u * LC]), w_get(wt[wi + 10u * LC]), w_get(wt[wi + 11u * LC]));
}
