// attention_lanes: y[i, h] = sum_j softmax_j(scale * q[i, h] . k[j, h]) v[j, h] for narrow heads, four queries an invocation
// Source   Dao et al. 2022 (arXiv:2205.14135), online softmax with blocks of 8 keys as unit
// Layout   q, y [n, heads * D4]; k, v [m, heads * D4]; a head is a run of D4 <= 8 quads
// Grid     x: heads, y: runs of 4 * WG queries
// Memory   no workgroup storage: made for software rasterisers, where a load costs as much as eight multiply-adds, so every
//          quad of a key or value serves four queries (512x288 decode on lavapipe, two cores: 30 % of the time with one query, 12 % with four)
// Numerics f32; blocks start at absolute key indices 0, 8, 16 ..., so neither the grid nor the number of queries changes a bit;
//          masked scores are -1e30, never an infinity
override D4: u32 = 8u;
override WG: u32 = 8u;
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, n: u32, m: u32, heads: u32, causal: u32, scale: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<X4>;
@group(0) @binding(2) var<storage, read> k: array<X4>;
@group(0) @binding(3) var<storage, read> v: array<X4>;
@group(0) @binding(4) var<storage, read_write> y: array<Y4>;

fn load_q(i: u32, query: u32, head: u32) -> vec4<f32> {
    if i >= D4 { return vec4<f32>(); }
    return x_get(q[min(query, p.n - 1u) * p.heads * D4 + head + i - p.b0.x]) * p.scale;
}

fn put(i: u32, query: u32, head: u32, value: vec4<f32>) {
    if i < D4 && query < p.n { y[query * p.heads * D4 + head + i - p.b0.w] = y_put(value); }
}

fn sum4(d: vec4<f32>) -> f32 { return (d.x + d.y) + (d.z + d.w); }

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = wid + p.wg.xyz;
    let pitch = p.heads * D4;
    let head = g.x * D4;
    let query = (g.y * WG + lane) * 4u;
    let q00 = load_q(0u, query, head); let q01 = load_q(1u, query, head);
    let q02 = load_q(2u, query, head); let q03 = load_q(3u, query, head);
    let q04 = load_q(4u, query, head); let q05 = load_q(5u, query, head);
    let q06 = load_q(6u, query, head); let q07 = load_q(7u, query, head);
    let q10 = load_q(0u, query + 1u, head); let q11 = load_q(1u, query + 1u, head);
    let q12 = load_q(2u, query + 1u, head); let q13 = load_q(3u, query + 1u, head);
    let q14 = load_q(4u, query + 1u, head); let q15 = load_q(5u, query + 1u, head);
    let q16 = load_q(6u, query + 1u, head); let q17 = load_q(7u, query + 1u, head);
    let q20 = load_q(0u, query + 2u, head); let q21 = load_q(1u, query + 2u, head);
    let q22 = load_q(2u, query + 2u, head); let q23 = load_q(3u, query + 2u, head);
    let q24 = load_q(4u, query + 2u, head); let q25 = load_q(5u, query + 2u, head);
    let q26 = load_q(6u, query + 2u, head); let q27 = load_q(7u, query + 2u, head);
    let q30 = load_q(0u, query + 3u, head); let q31 = load_q(1u, query + 3u, head);
    let q32 = load_q(2u, query + 3u, head); let q33 = load_q(3u, query + 3u, head);
    let q34 = load_q(4u, query + 3u, head); let q35 = load_q(5u, query + 3u, head);
    let q36 = load_q(6u, query + 3u, head); let q37 = load_q(7u, query + 3u, head);
    var a00 = vec4<f32>(); var a01 = vec4<f32>(); var a02 = vec4<f32>(); var a03 = vec4<f32>(); var a04 = vec4<f32>(); var a05 = vec4<f32>(); var a06 = vec4<f32>(); var a07 = vec4<f32>();
    var a10 = vec4<f32>(); var a11 = vec4<f32>(); var a12 = vec4<f32>(); var a13 = vec4<f32>(); var a14 = vec4<f32>(); var a15 = vec4<f32>(); var a16 = vec4<f32>(); var a17 = vec4<f32>();
    var a20 = vec4<f32>(); var a21 = vec4<f32>(); var a22 = vec4<f32>(); var a23 = vec4<f32>(); var a24 = vec4<f32>(); var a25 = vec4<f32>(); var a26 = vec4<f32>(); var a27 = vec4<f32>();
    var a30 = vec4<f32>(); var a31 = vec4<f32>(); var a32 = vec4<f32>(); var a33 = vec4<f32>(); var a34 = vec4<f32>(); var a35 = vec4<f32>(); var a36 = vec4<f32>(); var a37 = vec4<f32>();
    var peak = vec4(-1e30);
    var total = vec4<f32>();
    var score: array<vec4<f32>, 8>;
    // Query a sees keys below end[a].
    let end = select(vec4(p.m), min(vec4(p.m), vec4(query) + vec4(1u, 2u, 3u, 4u)), p.causal == 1u);
    for (var first = 0u; first < p.m; first += 8u) {
        for (var j = 0u; j < 8u; j += 1u) {
            let at = min(first + j, p.m - 1u) * pitch + head - p.b0.y;
            let k0 = x_get(k[at]);
            var d0 = q00 * k0; var d1 = q10 * k0; var d2 = q20 * k0; var d3 = q30 * k0;
            if 1u < D4 { let k1 = x_get(k[at + 1u]); d0 += q01 * k1; d1 += q11 * k1; d2 += q21 * k1; d3 += q31 * k1; }
            if 2u < D4 { let k2 = x_get(k[at + 2u]); d0 += q02 * k2; d1 += q12 * k2; d2 += q22 * k2; d3 += q32 * k2; }
            if 3u < D4 { let k3 = x_get(k[at + 3u]); d0 += q03 * k3; d1 += q13 * k3; d2 += q23 * k3; d3 += q33 * k3; }
            if 4u < D4 { let k4 = x_get(k[at + 4u]); d0 += q04 * k4; d1 += q14 * k4; d2 += q24 * k4; d3 += q34 * k4; }
            if 5u < D4 { let k5 = x_get(k[at + 5u]); d0 += q05 * k5; d1 += q15 * k5; d2 += q25 * k5; d3 += q35 * k5; }
            if 6u < D4 { let k6 = x_get(k[at + 6u]); d0 += q06 * k6; d1 += q16 * k6; d2 += q26 * k6; d3 += q36 * k6; }
            if 7u < D4 { let k7 = x_get(k[at + 7u]); d0 += q07 * k7; d1 += q17 * k7; d2 += q27 * k7; d3 += q37 * k7; }
            score[j] = vec4(sum4(d0), sum4(d1), sum4(d2), sum4(d3));
        }
        var next = peak;
        for (var j = 0u; j < 8u; j += 1u) {
            score[j] = select(vec4(-1e30), score[j], vec4(first + j) < end);
            next = max(next, score[j]);
        }
        let keep = exp(peak - next);
        peak = next;
        total *= keep;
        a00 *= keep.x; a01 *= keep.x; a02 *= keep.x; a03 *= keep.x; a04 *= keep.x; a05 *= keep.x; a06 *= keep.x; a07 *= keep.x;
        a10 *= keep.y; a11 *= keep.y; a12 *= keep.y; a13 *= keep.y; a14 *= keep.y; a15 *= keep.y; a16 *= keep.y; a17 *= keep.y;
        a20 *= keep.z; a21 *= keep.z; a22 *= keep.z; a23 *= keep.z; a24 *= keep.z; a25 *= keep.z; a26 *= keep.z; a27 *= keep.z;
        a30 *= keep.w; a31 *= keep.w; a32 *= keep.w; a33 *= keep.w; a34 *= keep.w; a35 *= keep.w; a36 *= keep.w; a37 *= keep.w;
        for (var j = 0u; j < 8u; j += 1u) {
            let e = exp(score[j] - next);
            total += e;
            let at = min(first + j, p.m - 1u) * pitch + head - p.b0.z;
            let v0 = x_get(v[at]);
            a00 += e.x * v0; a10 += e.y * v0; a20 += e.z * v0; a30 += e.w * v0;
            if 1u < D4 { let v1 = x_get(v[at + 1u]); a01 += e.x * v1; a11 += e.y * v1; a21 += e.z * v1; a31 += e.w * v1; }
            if 2u < D4 { let v2 = x_get(v[at + 2u]); a02 += e.x * v2; a12 += e.y * v2; a22 += e.z * v2; a32 += e.w * v2; }
            if 3u < D4 { let v3 = x_get(v[at + 3u]); a03 += e.x * v3; a13 += e.y * v3; a23 += e.z * v3; a33 += e.w * v3; }
            if 4u < D4 { let v4 = x_get(v[at + 4u]); a04 += e.x * v4; a14 += e.y * v4; a24 += e.z * v4; a34 += e.w * v4; }
            if 5u < D4 { let v5 = x_get(v[at + 5u]); a05 += e.x * v5; a15 += e.y * v5; a25 += e.z * v5; a35 += e.w * v5; }
            if 6u < D4 { let v6 = x_get(v[at + 6u]); a06 += e.x * v6; a16 += e.y * v6; a26 += e.z * v6; a36 += e.w * v6; }
            if 7u < D4 { let v7 = x_get(v[at + 7u]); a07 += e.x * v7; a17 += e.y * v7; a27 += e.z * v7; a37 += e.w * v7; }
        }
    }
    let norm = 1.0 / total;
    put(0u, query, head, a00 * norm.x); put(1u, query, head, a01 * norm.x); put(2u, query, head, a02 * norm.x); put(3u, query, head, a03 * norm.x);
    put(4u, query, head, a04 * norm.x); put(5u, query, head, a05 * norm.x); put(6u, query, head, a06 * norm.x); put(7u, query, head, a07 * norm.x);
    put(0u, query + 1u, head, a10 * norm.y); put(1u, query + 1u, head, a11 * norm.y); put(2u, query + 1u, head, a12 * norm.y); put(3u, query + 1u, head, a13 * norm.y);
    put(4u, query + 1u, head, a14 * norm.y); put(5u, query + 1u, head, a15 * norm.y); put(6u, query + 1u, head, a16 * norm.y); put(7u, query + 1u, head, a17 * norm.y);
    put(0u, query + 2u, head, a20 * norm.z); put(1u, query + 2u, head, a21 * norm.z); put(2u, query + 2u, head, a22 * norm.z); put(3u, query + 2u, head, a23 * norm.z);
    put(4u, query + 2u, head, a24 * norm.z); put(5u, query + 2u, head, a25 * norm.z); put(6u, query + 2u, head, a26 * norm.z); put(7u, query + 2u, head, a27 * norm.z);
    put(0u, query + 3u, head, a30 * norm.w); put(1u, query + 3u, head, a31 * norm.w); put(2u, query + 3u, head, a32 * norm.w); put(3u, query + 3u, head, a33 * norm.w);
    put(4u, query + 3u, head, a34 * norm.w); put(5u, query + 3u, head, a35 * norm.w); put(6u, query + 3u, head, a36 * norm.w); put(7u, query + 3u, head, a37 * norm.w);
}
