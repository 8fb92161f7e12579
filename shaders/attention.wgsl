// attention: y[i, h] = sum_j softmax_j(scale * q[i, h] . k[j, h]) v[j, h], any number of queries and keys, n x m never stored
// Source   Dao et al. 2022 (arXiv:2205.14135), online softmax with blocks of 8 keys as unit
// Layout   q, y [n, heads * D4]; k, v [m, heads * D4]; a head is a run of D4 quads
// Grid     x: heads, y: runs of WG / S queries, z: ranges of `span` keys; S lanes share a query, lane s holds its quads
//          s, S + s, 2 S + s ...; range z writes rows z * n ... of y, normalised by its own sum, and tells `finished` peak and sum; `biased` may change scores
// Memory   keys and values are read straight from storage, the same address in all lanes of one s;
//          for S > 1 the partial dot products go through workgroup storage, 32 B a lane
// Numerics f32; blocks start at absolute key indices 0, 8, 16 ... (span is a multiple of 8), so neither the grid nor the number of queries changes a bit;
//          masked scores are -1e30, never an infinity
// The loops over the 8 keys stay loops in the source: written out, LLVM took 180 s to compile this for a CPU.
override D4: u32 = 16u;
override S: u32 = 1u;
override WG: u32 = 64u;
override QN: u32 = 16u;                                  // ceil(D4 / S), at most 16
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, n: u32, m: u32, heads: u32, causal: u32, scale: f32, span: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<X4>;
@group(0) @binding(2) var<storage, read> k: array<X4>;
@group(0) @binding(3) var<storage, read> v: array<X4>;
@group(0) @binding(4) var<storage, read_write> y: array<Y4>;
var<workgroup> part: array<f32, 8u * WG>;

// Quad i of this lane lies inside the head; a compile-time truth for all but the last.
fn has(i: u32, s: u32) -> bool { return i < QN && (D4 % S == 0u || i * S + s < D4); }

fn load_q(i: u32, s: u32, at: u32) -> vec4<f32> {
    if !has(i, s) { return vec4<f32>(); }
    return x_get(q[at + i * S]) * p.scale;
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = wid + p.wg.xyz;
    let s = lane % S;
    let pitch = p.heads * D4;
    let head = g.x * D4 + s;
    let query = g.y * (WG / S) + lane / S;
    let qat = min(query, p.n - 1u) * pitch + head - p.b0.x;
    let q0 = load_q(0u, s, qat); let q1 = load_q(1u, s, qat);
    let q2 = load_q(2u, s, qat); let q3 = load_q(3u, s, qat);
    let q4 = load_q(4u, s, qat); let q5 = load_q(5u, s, qat);
    let q6 = load_q(6u, s, qat); let q7 = load_q(7u, s, qat);
    let q8 = load_q(8u, s, qat); let q9 = load_q(9u, s, qat);
    let q10 = load_q(10u, s, qat); let q11 = load_q(11u, s, qat);
    let q12 = load_q(12u, s, qat); let q13 = load_q(13u, s, qat);
    let q14 = load_q(14u, s, qat); let q15 = load_q(15u, s, qat);
    var a0 = vec4<f32>(); var a1 = vec4<f32>(); var a2 = vec4<f32>(); var a3 = vec4<f32>();
    var a4 = vec4<f32>(); var a5 = vec4<f32>(); var a6 = vec4<f32>(); var a7 = vec4<f32>();
    var a8 = vec4<f32>(); var a9 = vec4<f32>(); var a10 = vec4<f32>(); var a11 = vec4<f32>();
    var a12 = vec4<f32>(); var a13 = vec4<f32>(); var a14 = vec4<f32>(); var a15 = vec4<f32>();
    var peak = -1e30;
    var total = 0.0;
    var score: array<f32, 8>;
    let end = select(p.m, min(p.m, query + 1u), p.causal == 1u);
    let stop = min(p.m, (g.z + 1u) * p.span);
    for (var first = g.z * p.span; first < stop; first += 8u) {
        for (var j = 0u; j < 8u; j += 1u) {
            let at = min(first + j, p.m - 1u) * pitch + head - p.b0.y;
            var dots = q0 * x_get(k[at]);
            if has(1u, s) { dots += q1 * x_get(k[at + 1u * S]); }
            if has(2u, s) { dots += q2 * x_get(k[at + 2u * S]); }
            if has(3u, s) { dots += q3 * x_get(k[at + 3u * S]); }
            if has(4u, s) { dots += q4 * x_get(k[at + 4u * S]); }
            if has(5u, s) { dots += q5 * x_get(k[at + 5u * S]); }
            if has(6u, s) { dots += q6 * x_get(k[at + 6u * S]); }
            if has(7u, s) { dots += q7 * x_get(k[at + 7u * S]); }
            if has(8u, s) { dots += q8 * x_get(k[at + 8u * S]); }
            if has(9u, s) { dots += q9 * x_get(k[at + 9u * S]); }
            if has(10u, s) { dots += q10 * x_get(k[at + 10u * S]); }
            if has(11u, s) { dots += q11 * x_get(k[at + 11u * S]); }
            if has(12u, s) { dots += q12 * x_get(k[at + 12u * S]); }
            if has(13u, s) { dots += q13 * x_get(k[at + 13u * S]); }
            if has(14u, s) { dots += q14 * x_get(k[at + 14u * S]); }
            if has(15u, s) { dots += q15 * x_get(k[at + 15u * S]); }
            let sum = (dots.x + dots.y) + (dots.z + dots.w);
            if S > 1u { part[lane * 8u + j] = sum; } else { score[j] = sum; }
        }
        if S > 1u {
            workgroupBarrier();
            for (var j = 0u; j < 8u; j += 1u) {
                var sum = 0.0;
                for (var t = 0u; t < S; t += 1u) { sum += part[(lane - s + t) * 8u + j]; }
                score[j] = sum;
            }
            workgroupBarrier();
        }
        var next = peak;
        for (var j = 0u; j < 8u; j += 1u) {
            score[j] = select(-1e30, biased(score[j], query, first + j, g.x), first + j < end);
            next = max(next, score[j]);
        }
        let keep = exp(peak - next);
        peak = next;
        total *= keep;
        a0 *= keep; a1 *= keep; a2 *= keep; a3 *= keep;
        a4 *= keep; a5 *= keep; a6 *= keep; a7 *= keep;
        a8 *= keep; a9 *= keep; a10 *= keep; a11 *= keep;
        a12 *= keep; a13 *= keep; a14 *= keep; a15 *= keep;
        for (var j = 0u; j < 8u; j += 1u) {
            let e = exp(score[j] - next);
            total += e;
            let at = min(first + j, p.m - 1u) * pitch + head - p.b0.z;
            a0 += e * x_get(v[at]);
            if has(1u, s) { a1 += e * x_get(v[at + 1u * S]); }
            if has(2u, s) { a2 += e * x_get(v[at + 2u * S]); }
            if has(3u, s) { a3 += e * x_get(v[at + 3u * S]); }
            if has(4u, s) { a4 += e * x_get(v[at + 4u * S]); }
            if has(5u, s) { a5 += e * x_get(v[at + 5u * S]); }
            if has(6u, s) { a6 += e * x_get(v[at + 6u * S]); }
            if has(7u, s) { a7 += e * x_get(v[at + 7u * S]); }
            if has(8u, s) { a8 += e * x_get(v[at + 8u * S]); }
            if has(9u, s) { a9 += e * x_get(v[at + 9u * S]); }
            if has(10u, s) { a10 += e * x_get(v[at + 10u * S]); }
            if has(11u, s) { a11 += e * x_get(v[at + 11u * S]); }
            if has(12u, s) { a12 += e * x_get(v[at + 12u * S]); }
            if has(13u, s) { a13 += e * x_get(v[at + 13u * S]); }
            if has(14u, s) { a14 += e * x_get(v[at + 14u * S]); }
            if has(15u, s) { a15 += e * x_get(v[at + 15u * S]); }
        }
    }
    if query >= p.n { return; }
    if s == 0u { finished((g.z * p.n + query) * p.heads + g.x, peak, total); }
    let to = (g.z * p.n + query) * pitch + head - p.b0.w;
    let norm = 1.0 / total;
    y[to] = y_put(a0 * norm);
    if has(1u, s) { y[to + 1u * S] = y_put(a1 * norm); }
    if has(2u, s) { y[to + 2u * S] = y_put(a2 * norm); }
    if has(3u, s) { y[to + 3u * S] = y_put(a3 * norm); }
    if has(4u, s) { y[to + 4u * S] = y_put(a4 * norm); }
    if has(5u, s) { y[to + 5u * S] = y_put(a5 * norm); }
    if has(6u, s) { y[to + 6u * S] = y_put(a6 * norm); }
    if has(7u, s) { y[to + 7u * S] = y_put(a7 * norm); }
    if has(8u, s) { y[to + 8u * S] = y_put(a8 * norm); }
    if has(9u, s) { y[to + 9u * S] = y_put(a9 * norm); }
    if has(10u, s) { y[to + 10u * S] = y_put(a10 * norm); }
    if has(11u, s) { y[to + 11u * S] = y_put(a11 * norm); }
    if has(12u, s) { y[to + 12u * S] = y_put(a12 * norm); }
    if has(13u, s) { y[to + 13u * S] = y_put(a13 * norm); }
    if has(14u, s) { y[to + 14u * S] = y_put(a14 * norm); }
    if has(15u, s) { y[to + 15u * S] = y_put(a15 * norm); }
}
