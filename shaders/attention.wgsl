// attention: y[i, h] = sum_j softmax_j(scale * q[i, h] . k[j, h]) v[j, h], any number of queries and keys, n x m never stored
// Source   Dao et al. 2022 (arXiv:2205.14135), online softmax with blocks of 8 keys as unit
// Layout   q, y [n, heads * D4]; k, v [m, heads * D4]; a head is a run of D4 quads
// Grid     x: heads, y: runs of WG / S queries; S lanes share a query, lane s holds its quads s, S + s, 2 S + s ...
// Memory   keys and values are read straight from storage, the same address in all lanes of one s;
//          for S > 1 the partial dot products go through workgroup storage, 32 B a lane
// Numerics f32; blocks start at absolute key indices 0, 8, 16 ..., so neither the grid nor the number of queries changes a bit;
//          masked scores are -1e30, never an infinity
override D4: u32 = 16u;
override S: u32 = 1u;
override WG: u32 = 64u;
override QN: u32 = 16u;                                  // ceil(D4 / S), at most 16
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, n: u32, m: u32, heads: u32, causal: u32, scale: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<X4>;
@group(0) @binding(2) var<storage, read> k: array<X4>;
@group(0) @binding(3) var<storage, read> v: array<X4>;
@group(0) @binding(4) var<storage, read_write> y: array<Y4>;
var<workgroup> part: array<vec4<f32>, 2u * WG>;
var<private> q0: vec4<f32>;
var<private> q1: vec4<f32>;
var<private> q2: vec4<f32>;
var<private> q3: vec4<f32>;
var<private> q4: vec4<f32>;
var<private> q5: vec4<f32>;
var<private> q6: vec4<f32>;
var<private> q7: vec4<f32>;
var<private> q8: vec4<f32>;
var<private> q9: vec4<f32>;
var<private> q10: vec4<f32>;
var<private> q11: vec4<f32>;
var<private> q12: vec4<f32>;
var<private> q13: vec4<f32>;
var<private> q14: vec4<f32>;
var<private> q15: vec4<f32>;

// Quad i of this lane lies inside the head; a compile-time truth for all but the last.
fn has(i: u32, s: u32) -> bool { return i < QN && (D4 % S == 0u || i * S + s < D4); }

fn load_q(i: u32, s: u32, at: u32) -> vec4<f32> {
    if !has(i, s) { return vec4<f32>(); }
    return x_get(q[at + i * S]) * p.scale;
}

fn dot_k(s: u32, at: u32) -> f32 {
    var sum = 0.0;
    if has(0u, s) { sum += dot(q0, x_get(k[at])); }
    if has(1u, s) { sum += dot(q1, x_get(k[at + 1u * S])); }
    if has(2u, s) { sum += dot(q2, x_get(k[at + 2u * S])); }
    if has(3u, s) { sum += dot(q3, x_get(k[at + 3u * S])); }
    if has(4u, s) { sum += dot(q4, x_get(k[at + 4u * S])); }
    if has(5u, s) { sum += dot(q5, x_get(k[at + 5u * S])); }
    if has(6u, s) { sum += dot(q6, x_get(k[at + 6u * S])); }
    if has(7u, s) { sum += dot(q7, x_get(k[at + 7u * S])); }
    if has(8u, s) { sum += dot(q8, x_get(k[at + 8u * S])); }
    if has(9u, s) { sum += dot(q9, x_get(k[at + 9u * S])); }
    if has(10u, s) { sum += dot(q10, x_get(k[at + 10u * S])); }
    if has(11u, s) { sum += dot(q11, x_get(k[at + 11u * S])); }
    if has(12u, s) { sum += dot(q12, x_get(k[at + 12u * S])); }
    if has(13u, s) { sum += dot(q13, x_get(k[at + 13u * S])); }
    if has(14u, s) { sum += dot(q14, x_get(k[at + 14u * S])); }
    if has(15u, s) { sum += dot(q15, x_get(k[at + 15u * S])); }
    return sum;
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = wid + p.wg.xyz;
    let s = lane % S;
    let pitch = p.heads * D4;
    let head = g.x * D4 + s;
    let query = g.y * (WG / S) + lane / S;
    let qat = min(query, p.n - 1u) * pitch + head;
    q0 = load_q(0u, s, qat - p.b0.x);
    q1 = load_q(1u, s, qat - p.b0.x);
    q2 = load_q(2u, s, qat - p.b0.x);
    q3 = load_q(3u, s, qat - p.b0.x);
    q4 = load_q(4u, s, qat - p.b0.x);
    q5 = load_q(5u, s, qat - p.b0.x);
    q6 = load_q(6u, s, qat - p.b0.x);
    q7 = load_q(7u, s, qat - p.b0.x);
    q8 = load_q(8u, s, qat - p.b0.x);
    q9 = load_q(9u, s, qat - p.b0.x);
    q10 = load_q(10u, s, qat - p.b0.x);
    q11 = load_q(11u, s, qat - p.b0.x);
    q12 = load_q(12u, s, qat - p.b0.x);
    q13 = load_q(13u, s, qat - p.b0.x);
    q14 = load_q(14u, s, qat - p.b0.x);
    q15 = load_q(15u, s, qat - p.b0.x);
    var a0 = vec4<f32>(); var a1 = vec4<f32>(); var a2 = vec4<f32>(); var a3 = vec4<f32>();
    var a4 = vec4<f32>(); var a5 = vec4<f32>(); var a6 = vec4<f32>(); var a7 = vec4<f32>();
    var a8 = vec4<f32>(); var a9 = vec4<f32>(); var a10 = vec4<f32>(); var a11 = vec4<f32>();
    var a12 = vec4<f32>(); var a13 = vec4<f32>(); var a14 = vec4<f32>(); var a15 = vec4<f32>();
    var peak = -1e30;
    var total = 0.0;
    let last = p.m - 1u;
    for (var first = 0u; first < p.m; first += 8u) {
        let j0 = first; let j1 = min(first + 1u, last); let j2 = min(first + 2u, last); let j3 = min(first + 3u, last);
        let j4 = min(first + 4u, last); let j5 = min(first + 5u, last); let j6 = min(first + 6u, last); let j7 = min(first + 7u, last);
        let kb = head - p.b0.y;
        var lo = vec4(dot_k(s, j0 * pitch + kb), dot_k(s, j1 * pitch + kb), dot_k(s, j2 * pitch + kb), dot_k(s, j3 * pitch + kb));
        var hi = vec4(dot_k(s, j4 * pitch + kb), dot_k(s, j5 * pitch + kb), dot_k(s, j6 * pitch + kb), dot_k(s, j7 * pitch + kb));
        if S > 1u {
            part[2u * lane] = lo;
            part[2u * lane + 1u] = hi;
            workgroupBarrier();
            let base = 2u * (lane - s);
            lo = vec4<f32>();
            hi = vec4<f32>();
            for (var t = 0u; t < 2u * S; t += 2u) { lo += part[base + t]; hi += part[base + t + 1u]; }
            workgroupBarrier();
        }
        let end = select(p.m, min(p.m, query + 1u), p.causal == 1u);
        lo = select(vec4(-1e30), lo, vec4(first) + vec4(0u, 1u, 2u, 3u) < vec4(end));
        hi = select(vec4(-1e30), hi, vec4(first) + vec4(4u, 5u, 6u, 7u) < vec4(end));
        let both = max(lo, hi);
        let next = max(peak, max(max(both.x, both.y), max(both.z, both.w)));
        let keep = exp(peak - next);
        let e0 = exp(lo - next);
        let e1 = exp(hi - next);
        peak = next;
        total = total * keep + (((e0.x + e0.y) + (e0.z + e0.w)) + ((e1.x + e1.y) + (e1.z + e1.w)));
        let vb = head - p.b0.z;
        let v0 = j0 * pitch + vb; let v1 = j1 * pitch + vb; let v2 = j2 * pitch + vb; let v3 = j3 * pitch + vb;
        let v4 = j4 * pitch + vb; let v5 = j5 * pitch + vb; let v6 = j6 * pitch + vb; let v7 = j7 * pitch + vb;
        if has(0u, s) {
            a0 = a0 * keep + e0.x * x_get(v[v0]) + e0.y * x_get(v[v1]) + e0.z * x_get(v[v2]) + e0.w * x_get(v[v3])
                + e1.x * x_get(v[v4]) + e1.y * x_get(v[v5]) + e1.z * x_get(v[v6]) + e1.w * x_get(v[v7]);
        }
        if has(1u, s) {
            a1 = a1 * keep + e0.x * x_get(v[v0 + 1u * S]) + e0.y * x_get(v[v1 + 1u * S]) + e0.z * x_get(v[v2 + 1u * S]) + e0.w * x_get(v[v3 + 1u * S])
                + e1.x * x_get(v[v4 + 1u * S]) + e1.y * x_get(v[v5 + 1u * S]) + e1.z * x_get(v[v6 + 1u * S]) + e1.w * x_get(v[v7 + 1u * S]);
        }
        if has(2u, s) {
            a2 = a2 * keep + e0.x * x_get(v[v0 + 2u * S]) + e0.y * x_get(v[v1 + 2u * S]) + e0.z * x_get(v[v2 + 2u * S]) + e0.w * x_get(v[v3 + 2u * S])
                + e1.x * x_get(v[v4 + 2u * S]) + e1.y * x_get(v[v5 + 2u * S]) + e1.z * x_get(v[v6 + 2u * S]) + e1.w * x_get(v[v7 + 2u * S]);
        }
        if has(3u, s) {
            a3 = a3 * keep + e0.x * x_get(v[v0 + 3u * S]) + e0.y * x_get(v[v1 + 3u * S]) + e0.z * x_get(v[v2 + 3u * S]) + e0.w * x_get(v[v3 + 3u * S])
                + e1.x * x_get(v[v4 + 3u * S]) + e1.y * x_get(v[v5 + 3u * S]) + e1.z * x_get(v[v6 + 3u * S]) + e1.w * x_get(v[v7 + 3u * S]);
        }
        if has(4u, s) {
            a4 = a4 * keep + e0.x * x_get(v[v0 + 4u * S]) + e0.y * x_get(v[v1 + 4u * S]) + e0.z * x_get(v[v2 + 4u * S]) + e0.w * x_get(v[v3 + 4u * S])
                + e1.x * x_get(v[v4 + 4u * S]) + e1.y * x_get(v[v5 + 4u * S]) + e1.z * x_get(v[v6 + 4u * S]) + e1.w * x_get(v[v7 + 4u * S]);
        }
        if has(5u, s) {
            a5 = a5 * keep + e0.x * x_get(v[v0 + 5u * S]) + e0.y * x_get(v[v1 + 5u * S]) + e0.z * x_get(v[v2 + 5u * S]) + e0.w * x_get(v[v3 + 5u * S])
                + e1.x * x_get(v[v4 + 5u * S]) + e1.y * x_get(v[v5 + 5u * S]) + e1.z * x_get(v[v6 + 5u * S]) + e1.w * x_get(v[v7 + 5u * S]);
        }
        if has(6u, s) {
            a6 = a6 * keep + e0.x * x_get(v[v0 + 6u * S]) + e0.y * x_get(v[v1 + 6u * S]) + e0.z * x_get(v[v2 + 6u * S]) + e0.w * x_get(v[v3 + 6u * S])
                + e1.x * x_get(v[v4 + 6u * S]) + e1.y * x_get(v[v5 + 6u * S]) + e1.z * x_get(v[v6 + 6u * S]) + e1.w * x_get(v[v7 + 6u * S]);
        }
        if has(7u, s) {
            a7 = a7 * keep + e0.x * x_get(v[v0 + 7u * S]) + e0.y * x_get(v[v1 + 7u * S]) + e0.z * x_get(v[v2 + 7u * S]) + e0.w * x_get(v[v3 + 7u * S])
                + e1.x * x_get(v[v4 + 7u * S]) + e1.y * x_get(v[v5 + 7u * S]) + e1.z * x_get(v[v6 + 7u * S]) + e1.w * x_get(v[v7 + 7u * S]);
        }
        if has(8u, s) {
            a8 = a8 * keep + e0.x * x_get(v[v0 + 8u * S]) + e0.y * x_get(v[v1 + 8u * S]) + e0.z * x_get(v[v2 + 8u * S]) + e0.w * x_get(v[v3 + 8u * S])
                + e1.x * x_get(v[v4 + 8u * S]) + e1.y * x_get(v[v5 + 8u * S]) + e1.z * x_get(v[v6 + 8u * S]) + e1.w * x_get(v[v7 + 8u * S]);
        }
        if has(9u, s) {
            a9 = a9 * keep + e0.x * x_get(v[v0 + 9u * S]) + e0.y * x_get(v[v1 + 9u * S]) + e0.z * x_get(v[v2 + 9u * S]) + e0.w * x_get(v[v3 + 9u * S])
                + e1.x * x_get(v[v4 + 9u * S]) + e1.y * x_get(v[v5 + 9u * S]) + e1.z * x_get(v[v6 + 9u * S]) + e1.w * x_get(v[v7 + 9u * S]);
        }
        if has(10u, s) {
            a10 = a10 * keep + e0.x * x_get(v[v0 + 10u * S]) + e0.y * x_get(v[v1 + 10u * S]) + e0.z * x_get(v[v2 + 10u * S]) + e0.w * x_get(v[v3 + 10u * S])
                + e1.x * x_get(v[v4 + 10u * S]) + e1.y * x_get(v[v5 + 10u * S]) + e1.z * x_get(v[v6 + 10u * S]) + e1.w * x_get(v[v7 + 10u * S]);
        }
        if has(11u, s) {
            a11 = a11 * keep + e0.x * x_get(v[v0 + 11u * S]) + e0.y * x_get(v[v1 + 11u * S]) + e0.z * x_get(v[v2 + 11u * S]) + e0.w * x_get(v[v3 + 11u * S])
                + e1.x * x_get(v[v4 + 11u * S]) + e1.y * x_get(v[v5 + 11u * S]) + e1.z * x_get(v[v6 + 11u * S]) + e1.w * x_get(v[v7 + 11u * S]);
        }
        if has(12u, s) {
            a12 = a12 * keep + e0.x * x_get(v[v0 + 12u * S]) + e0.y * x_get(v[v1 + 12u * S]) + e0.z * x_get(v[v2 + 12u * S]) + e0.w * x_get(v[v3 + 12u * S])
                + e1.x * x_get(v[v4 + 12u * S]) + e1.y * x_get(v[v5 + 12u * S]) + e1.z * x_get(v[v6 + 12u * S]) + e1.w * x_get(v[v7 + 12u * S]);
        }
        if has(13u, s) {
            a13 = a13 * keep + e0.x * x_get(v[v0 + 13u * S]) + e0.y * x_get(v[v1 + 13u * S]) + e0.z * x_get(v[v2 + 13u * S]) + e0.w * x_get(v[v3 + 13u * S])
                + e1.x * x_get(v[v4 + 13u * S]) + e1.y * x_get(v[v5 + 13u * S]) + e1.z * x_get(v[v6 + 13u * S]) + e1.w * x_get(v[v7 + 13u * S]);
        }
        if has(14u, s) {
            a14 = a14 * keep + e0.x * x_get(v[v0 + 14u * S]) + e0.y * x_get(v[v1 + 14u * S]) + e0.z * x_get(v[v2 + 14u * S]) + e0.w * x_get(v[v3 + 14u * S])
                + e1.x * x_get(v[v4 + 14u * S]) + e1.y * x_get(v[v5 + 14u * S]) + e1.z * x_get(v[v6 + 14u * S]) + e1.w * x_get(v[v7 + 14u * S]);
        }
        if has(15u, s) {
            a15 = a15 * keep + e0.x * x_get(v[v0 + 15u * S]) + e0.y * x_get(v[v1 + 15u * S]) + e0.z * x_get(v[v2 + 15u * S]) + e0.w * x_get(v[v3 + 15u * S])
                + e1.x * x_get(v[v4 + 15u * S]) + e1.y * x_get(v[v5 + 15u * S]) + e1.z * x_get(v[v6 + 15u * S]) + e1.w * x_get(v[v7 + 15u * S]);
        }
    }
    if query >= p.n { return; }
    let to = query * pitch + head - p.b0.w;
    let norm = 1.0 / total;
    if has(0u, s) { y[to] = y_put(a0 * norm); }
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
