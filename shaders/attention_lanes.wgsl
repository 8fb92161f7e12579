// attention_lanes: y[i, h] = sum_j softmax_j(scale * q[i, h] . k[j, h]) v[j, h] for narrow heads, eight queries an invocation
// Source   Dao et al. 2022 (arXiv:2205.14135), online softmax with blocks of 8 keys as unit
// Layout   q, y [n, heads * D4]; k, v [m, heads * D4]; a head is a run of D4 <= 8 quads
// Grid     x: heads, y: runs of 8 * WG queries
// Reads    one of common/keys_alone.wgsl and common/keys_together.wgsl
// Memory   no workgroup storage: made for software rasterisers, where a load costs as much as eight multiply-adds, so every
//          quad of a key or value serves eight queries (heads of 32 on lavapipe: 29 GFLOP/s against 22 with four; sixteen gain nothing more on
//          Mesa 25 and compile for a minute; so much for registers: loads cost more than sums that do not fit them)
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
    let query = (g.y * WG + lane) * 8u;
    let q00 = load_q(0u, query, head); let q01 = load_q(1u, query, head); let q02 = load_q(2u, query, head); let q03 = load_q(3u, query, head);
    let q04 = load_q(4u, query, head); let q05 = load_q(5u, query, head); let q06 = load_q(6u, query, head); let q07 = load_q(7u, query, head);
    let q10 = load_q(0u, query + 1u, head); let q11 = load_q(1u, query + 1u, head); let q12 = load_q(2u, query + 1u, head); let q13 = load_q(3u, query + 1u, head);
    let q14 = load_q(4u, query + 1u, head); let q15 = load_q(5u, query + 1u, head); let q16 = load_q(6u, query + 1u, head); let q17 = load_q(7u, query + 1u, head);
    let q20 = load_q(0u, query + 2u, head); let q21 = load_q(1u, query + 2u, head); let q22 = load_q(2u, query + 2u, head); let q23 = load_q(3u, query + 2u, head);
    let q24 = load_q(4u, query + 2u, head); let q25 = load_q(5u, query + 2u, head); let q26 = load_q(6u, query + 2u, head); let q27 = load_q(7u, query + 2u, head);
    let q30 = load_q(0u, query + 3u, head); let q31 = load_q(1u, query + 3u, head); let q32 = load_q(2u, query + 3u, head); let q33 = load_q(3u, query + 3u, head);
    let q34 = load_q(4u, query + 3u, head); let q35 = load_q(5u, query + 3u, head); let q36 = load_q(6u, query + 3u, head); let q37 = load_q(7u, query + 3u, head);
    let q40 = load_q(0u, query + 4u, head); let q41 = load_q(1u, query + 4u, head); let q42 = load_q(2u, query + 4u, head); let q43 = load_q(3u, query + 4u, head);
    let q44 = load_q(4u, query + 4u, head); let q45 = load_q(5u, query + 4u, head); let q46 = load_q(6u, query + 4u, head); let q47 = load_q(7u, query + 4u, head);
    let q50 = load_q(0u, query + 5u, head); let q51 = load_q(1u, query + 5u, head); let q52 = load_q(2u, query + 5u, head); let q53 = load_q(3u, query + 5u, head);
    let q54 = load_q(4u, query + 5u, head); let q55 = load_q(5u, query + 5u, head); let q56 = load_q(6u, query + 5u, head); let q57 = load_q(7u, query + 5u, head);
    let q60 = load_q(0u, query + 6u, head); let q61 = load_q(1u, query + 6u, head); let q62 = load_q(2u, query + 6u, head); let q63 = load_q(3u, query + 6u, head);
    let q64 = load_q(4u, query + 6u, head); let q65 = load_q(5u, query + 6u, head); let q66 = load_q(6u, query + 6u, head); let q67 = load_q(7u, query + 6u, head);
    let q70 = load_q(0u, query + 7u, head); let q71 = load_q(1u, query + 7u, head); let q72 = load_q(2u, query + 7u, head); let q73 = load_q(3u, query + 7u, head);
    let q74 = load_q(4u, query + 7u, head); let q75 = load_q(5u, query + 7u, head); let q76 = load_q(6u, query + 7u, head); let q77 = load_q(7u, query + 7u, head);
    var a00 = vec4<f32>(); var a01 = vec4<f32>(); var a02 = vec4<f32>(); var a03 = vec4<f32>(); var a04 = vec4<f32>(); var a05 = vec4<f32>(); var a06 = vec4<f32>(); var a07 = vec4<f32>();
    var a10 = vec4<f32>(); var a11 = vec4<f32>(); var a12 = vec4<f32>(); var a13 = vec4<f32>(); var a14 = vec4<f32>(); var a15 = vec4<f32>(); var a16 = vec4<f32>(); var a17 = vec4<f32>();
    var a20 = vec4<f32>(); var a21 = vec4<f32>(); var a22 = vec4<f32>(); var a23 = vec4<f32>(); var a24 = vec4<f32>(); var a25 = vec4<f32>(); var a26 = vec4<f32>(); var a27 = vec4<f32>();
    var a30 = vec4<f32>(); var a31 = vec4<f32>(); var a32 = vec4<f32>(); var a33 = vec4<f32>(); var a34 = vec4<f32>(); var a35 = vec4<f32>(); var a36 = vec4<f32>(); var a37 = vec4<f32>();
    var a40 = vec4<f32>(); var a41 = vec4<f32>(); var a42 = vec4<f32>(); var a43 = vec4<f32>(); var a44 = vec4<f32>(); var a45 = vec4<f32>(); var a46 = vec4<f32>(); var a47 = vec4<f32>();
    var a50 = vec4<f32>(); var a51 = vec4<f32>(); var a52 = vec4<f32>(); var a53 = vec4<f32>(); var a54 = vec4<f32>(); var a55 = vec4<f32>(); var a56 = vec4<f32>(); var a57 = vec4<f32>();
    var a60 = vec4<f32>(); var a61 = vec4<f32>(); var a62 = vec4<f32>(); var a63 = vec4<f32>(); var a64 = vec4<f32>(); var a65 = vec4<f32>(); var a66 = vec4<f32>(); var a67 = vec4<f32>();
    var a70 = vec4<f32>(); var a71 = vec4<f32>(); var a72 = vec4<f32>(); var a73 = vec4<f32>(); var a74 = vec4<f32>(); var a75 = vec4<f32>(); var a76 = vec4<f32>(); var a77 = vec4<f32>();
    var peak0 = vec4(-1e30); var total0 = vec4<f32>(); var score0: array<vec4<f32>, 8>;
    // Query a sees keys below end0[a], query 4 + a below end1[a].
    let end0 = select(vec4(p.m), min(vec4(p.m), vec4(query) + vec4(1u, 2u, 3u, 4u)), p.causal == 1u);
    var peak1 = vec4(-1e30); var total1 = vec4<f32>(); var score1: array<vec4<f32>, 8>;
    let end1 = select(vec4(p.m), min(vec4(p.m), vec4(query) + vec4(5u, 6u, 7u, 8u)), p.causal == 1u);
    for (var first = 0u; first < p.m; first += 8u) {
        let own = min(first + lane, p.m - 1u) * pitch + head;
        let o0 = own_key(own, 0u); let o1 = own_key(own, 1u); let o2 = own_key(own, 2u); let o3 = own_key(own, 3u);
        let o4 = own_key(own, 4u); let o5 = own_key(own, 5u); let o6 = own_key(own, 6u); let o7 = own_key(own, 7u);
        for (var j = 0u; j < 8u; j += 1u) {
            let at = min(first + j, p.m - 1u) * pitch + head;
            let k0 = key(o0, j, at, 0u);
            var d0 = q00 * k0; var d1 = q10 * k0; var d2 = q20 * k0; var d3 = q30 * k0; var d4 = q40 * k0; var d5 = q50 * k0; var d6 = q60 * k0; var d7 = q70 * k0;
            if 1u < D4 { let k1 = key(o1, j, at, 1u); d0 += q01 * k1; d1 += q11 * k1; d2 += q21 * k1; d3 += q31 * k1; d4 += q41 * k1; d5 += q51 * k1; d6 += q61 * k1; d7 += q71 * k1; }
            if 2u < D4 { let k2 = key(o2, j, at, 2u); d0 += q02 * k2; d1 += q12 * k2; d2 += q22 * k2; d3 += q32 * k2; d4 += q42 * k2; d5 += q52 * k2; d6 += q62 * k2; d7 += q72 * k2; }
            if 3u < D4 { let k3 = key(o3, j, at, 3u); d0 += q03 * k3; d1 += q13 * k3; d2 += q23 * k3; d3 += q33 * k3; d4 += q43 * k3; d5 += q53 * k3; d6 += q63 * k3; d7 += q73 * k3; }
            if 4u < D4 { let k4 = key(o4, j, at, 4u); d0 += q04 * k4; d1 += q14 * k4; d2 += q24 * k4; d3 += q34 * k4; d4 += q44 * k4; d5 += q54 * k4; d6 += q64 * k4; d7 += q74 * k4; }
            if 5u < D4 { let k5 = key(o5, j, at, 5u); d0 += q05 * k5; d1 += q15 * k5; d2 += q25 * k5; d3 += q35 * k5; d4 += q45 * k5; d5 += q55 * k5; d6 += q65 * k5; d7 += q75 * k5; }
            if 6u < D4 { let k6 = key(o6, j, at, 6u); d0 += q06 * k6; d1 += q16 * k6; d2 += q26 * k6; d3 += q36 * k6; d4 += q46 * k6; d5 += q56 * k6; d6 += q66 * k6; d7 += q76 * k6; }
            if 7u < D4 { let k7 = key(o7, j, at, 7u); d0 += q07 * k7; d1 += q17 * k7; d2 += q27 * k7; d3 += q37 * k7; d4 += q47 * k7; d5 += q57 * k7; d6 += q67 * k7; d7 += q77 * k7; }
            score0[j] = vec4(sum4(d0), sum4(d1), sum4(d2), sum4(d3));
            score1[j] = vec4(sum4(d4), sum4(d5), sum4(d6), sum4(d7));
        }
        var next0 = peak0;
        var next1 = peak1;
        for (var j = 0u; j < 8u; j += 1u) {
            score0[j] = select(vec4(-1e30), score0[j], vec4(first + j) < end0); next0 = max(next0, score0[j]);
            score1[j] = select(vec4(-1e30), score1[j], vec4(first + j) < end1); next1 = max(next1, score1[j]);
        }
        let keep0 = exp(peak0 - next0); peak0 = next0; total0 *= keep0;
        let keep1 = exp(peak1 - next1); peak1 = next1; total1 *= keep1;
        a00 *= keep0.x; a01 *= keep0.x; a02 *= keep0.x; a03 *= keep0.x; a04 *= keep0.x; a05 *= keep0.x; a06 *= keep0.x; a07 *= keep0.x;
        a10 *= keep0.y; a11 *= keep0.y; a12 *= keep0.y; a13 *= keep0.y; a14 *= keep0.y; a15 *= keep0.y; a16 *= keep0.y; a17 *= keep0.y;
        a20 *= keep0.z; a21 *= keep0.z; a22 *= keep0.z; a23 *= keep0.z; a24 *= keep0.z; a25 *= keep0.z; a26 *= keep0.z; a27 *= keep0.z;
        a30 *= keep0.w; a31 *= keep0.w; a32 *= keep0.w; a33 *= keep0.w; a34 *= keep0.w; a35 *= keep0.w; a36 *= keep0.w; a37 *= keep0.w;
        a40 *= keep1.x; a41 *= keep1.x; a42 *= keep1.x; a43 *= keep1.x; a44 *= keep1.x; a45 *= keep1.x; a46 *= keep1.x; a47 *= keep1.x;
        a50 *= keep1.y; a51 *= keep1.y; a52 *= keep1.y; a53 *= keep1.y; a54 *= keep1.y; a55 *= keep1.y; a56 *= keep1.y; a57 *= keep1.y;
        a60 *= keep1.z; a61 *= keep1.z; a62 *= keep1.z; a63 *= keep1.z; a64 *= keep1.z; a65 *= keep1.z; a66 *= keep1.z; a67 *= keep1.z;
        a70 *= keep1.w; a71 *= keep1.w; a72 *= keep1.w; a73 *= keep1.w; a74 *= keep1.w; a75 *= keep1.w; a76 *= keep1.w; a77 *= keep1.w;
        let u0 = own_value(own, 0u); let u1 = own_value(own, 1u); let u2 = own_value(own, 2u); let u3 = own_value(own, 3u);
        let u4 = own_value(own, 4u); let u5 = own_value(own, 5u); let u6 = own_value(own, 6u); let u7 = own_value(own, 7u);
        for (var j = 0u; j < 8u; j += 1u) {
            let e0 = exp(score0[j] - next0); total0 += e0;
            let e1 = exp(score1[j] - next1); total1 += e1;
            let at = min(first + j, p.m - 1u) * pitch + head;
            { let v0 = value(u0, j, at, 0u); a00 += e0.x * v0; a10 += e0.y * v0; a20 += e0.z * v0; a30 += e0.w * v0; a40 += e1.x * v0; a50 += e1.y * v0; a60 += e1.z * v0; a70 += e1.w * v0; }
            if 1u < D4 { let v1 = value(u1, j, at, 1u); a01 += e0.x * v1; a11 += e0.y * v1; a21 += e0.z * v1; a31 += e0.w * v1; a41 += e1.x * v1; a51 += e1.y * v1; a61 += e1.z * v1; a71 += e1.w * v1; }
            if 2u < D4 { let v2 = value(u2, j, at, 2u); a02 += e0.x * v2; a12 += e0.y * v2; a22 += e0.z * v2; a32 += e0.w * v2; a42 += e1.x * v2; a52 += e1.y * v2; a62 += e1.z * v2; a72 += e1.w * v2; }
            if 3u < D4 { let v3 = value(u3, j, at, 3u); a03 += e0.x * v3; a13 += e0.y * v3; a23 += e0.z * v3; a33 += e0.w * v3; a43 += e1.x * v3; a53 += e1.y * v3; a63 += e1.z * v3; a73 += e1.w * v3; }
            if 4u < D4 { let v4 = value(u4, j, at, 4u); a04 += e0.x * v4; a14 += e0.y * v4; a24 += e0.z * v4; a34 += e0.w * v4; a44 += e1.x * v4; a54 += e1.y * v4; a64 += e1.z * v4; a74 += e1.w * v4; }
            if 5u < D4 { let v5 = value(u5, j, at, 5u); a05 += e0.x * v5; a15 += e0.y * v5; a25 += e0.z * v5; a35 += e0.w * v5; a45 += e1.x * v5; a55 += e1.y * v5; a65 += e1.z * v5; a75 += e1.w * v5; }
            if 6u < D4 { let v6 = value(u6, j, at, 6u); a06 += e0.x * v6; a16 += e0.y * v6; a26 += e0.z * v6; a36 += e0.w * v6; a46 += e1.x * v6; a56 += e1.y * v6; a66 += e1.z * v6; a76 += e1.w * v6; }
            if 7u < D4 { let v7 = value(u7, j, at, 7u); a07 += e0.x * v7; a17 += e0.y * v7; a27 += e0.z * v7; a37 += e0.w * v7; a47 += e1.x * v7; a57 += e1.y * v7; a67 += e1.z * v7; a77 += e1.w * v7; }
        }
    }
    let norm0 = 1.0 / total0;
    let norm1 = 1.0 / total1;
    put(0u, query, head, a00 * norm0.x); put(1u, query, head, a01 * norm0.x); put(2u, query, head, a02 * norm0.x); put(3u, query, head, a03 * norm0.x);
    put(4u, query, head, a04 * norm0.x); put(5u, query, head, a05 * norm0.x); put(6u, query, head, a06 * norm0.x); put(7u, query, head, a07 * norm0.x);
    put(0u, query + 1u, head, a10 * norm0.y); put(1u, query + 1u, head, a11 * norm0.y); put(2u, query + 1u, head, a12 * norm0.y); put(3u, query + 1u, head, a13 * norm0.y);
    put(4u, query + 1u, head, a14 * norm0.y); put(5u, query + 1u, head, a15 * norm0.y); put(6u, query + 1u, head, a16 * norm0.y); put(7u, query + 1u, head, a17 * norm0.y);
    put(0u, query + 2u, head, a20 * norm0.z); put(1u, query + 2u, head, a21 * norm0.z); put(2u, query + 2u, head, a22 * norm0.z); put(3u, query + 2u, head, a23 * norm0.z);
    put(4u, query + 2u, head, a24 * norm0.z); put(5u, query + 2u, head, a25 * norm0.z); put(6u, query + 2u, head, a26 * norm0.z); put(7u, query + 2u, head, a27 * norm0.z);
    put(0u, query + 3u, head, a30 * norm0.w); put(1u, query + 3u, head, a31 * norm0.w); put(2u, query + 3u, head, a32 * norm0.w); put(3u, query + 3u, head, a33 * norm0.w);
    put(4u, query + 3u, head, a34 * norm0.w); put(5u, query + 3u, head, a35 * norm0.w); put(6u, query + 3u, head, a36 * norm0.w); put(7u, query + 3u, head, a37 * norm0.w);
    put(0u, query + 4u, head, a40 * norm1.x); put(1u, query + 4u, head, a41 * norm1.x); put(2u, query + 4u, head, a42 * norm1.x); put(3u, query + 4u, head, a43 * norm1.x);
    put(4u, query + 4u, head, a44 * norm1.x); put(5u, query + 4u, head, a45 * norm1.x); put(6u, query + 4u, head, a46 * norm1.x); put(7u, query + 4u, head, a47 * norm1.x);
    put(0u, query + 5u, head, a50 * norm1.y); put(1u, query + 5u, head, a51 * norm1.y); put(2u, query + 5u, head, a52 * norm1.y); put(3u, query + 5u, head, a53 * norm1.y);
    put(4u, query + 5u, head, a54 * norm1.y); put(5u, query + 5u, head, a55 * norm1.y); put(6u, query + 5u, head, a56 * norm1.y); put(7u, query + 5u, head, a57 * norm1.y);
    put(0u, query + 6u, head, a60 * norm1.z); put(1u, query + 6u, head, a61 * norm1.z); put(2u, query + 6u, head, a62 * norm1.z); put(3u, query + 6u, head, a63 * norm1.z);
    put(4u, query + 6u, head, a64 * norm1.z); put(5u, query + 6u, head, a65 * norm1.z); put(6u, query + 6u, head, a66 * norm1.z); put(7u, query + 6u, head, a67 * norm1.z);
    put(0u, query + 7u, head, a70 * norm1.w); put(1u, query + 7u, head, a71 * norm1.w); put(2u, query + 7u, head, a72 * norm1.w); put(3u, query + 7u, head, a73 * norm1.w);
    put(4u, query + 7u, head, a74 * norm1.w); put(5u, query + 7u, head, a75 * norm1.w); put(6u, query + 7u, head, a76 * norm1.w); put(7u, query + 7u, head, a77 * norm1.w);
}
