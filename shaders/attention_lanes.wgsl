// attention_lanes: y[i, h] = sum_j softmax_j(scale * q[i, h] . k[j, h]) v[j, h] for narrow heads, RUN queries an invocation
// Source   Dao et al. 2022 (arXiv:2205.14135), online softmax with blocks of 4 keys as unit
// Layout   q, y [n, heads * D4]; k, v [m, heads * D4]; a head is a run of D4 <= 16 quads
// Grid     x: heads, y: runs of RUN * WG queries
// Reads    keys and values by one of common/keys_alone.wgsl and common/keys_together.wgsl
// Memory   no workgroup storage: made for software rasterisers, where a load costs as much as eight multiply-adds, so every
//          quad of a key or value serves RUN queries. All queries' sums together are far more than a processor's registers: a query takes
//          four keys at a time, so that its 16 partial scores stay in registers and a sum is read and written once for four keys. Nothing is
//          indexed by a loop, since such an index costs a load for each lane
// Numerics f32; blocks start at absolute key indices 0, 4, 8 ..., so neither the grid nor the number of queries changes a bit;
//          masked scores are -1e30, never an infinity
override D4: u32 = 8u;
override WG: u32 = 8u;
// Queries of an invocation: 8 or 4.
override RUN: u32 = 8u;
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, n: u32, m: u32, heads: u32, causal: u32, scale: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<X4>;
@group(0) @binding(4) var<storage, read_write> y: array<Y4>;

// The first eight quads of a head, or what is beyond.
struct Head { a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>, e: vec4<f32>, f: vec4<f32>, g: vec4<f32>, h: vec4<f32> }
// A query.
struct Query { low: Head, high: Head }
// Four keys or values.
struct Block { r: Head, s: Head, t: Head, u: Head }
// Of four keys.
struct Four { r: vec4<f32>, s: vec4<f32>, t: vec4<f32>, u: vec4<f32> }
// Keys and values of four tokens.
struct Keys { low: Block, high: Block, low_values: Block, high_values: Block }
// Of one query: the sum of its weighted values, the largest score so far, the sum of weights.
struct Sums { low: Head, high: Head, peak: f32, total: f32 }

fn load_q(i: u32, query: u32, head: u32) -> vec4<f32> {
    if i >= D4 { return vec4<f32>(); }
    return x_get(q[min(query, p.n - 1u) * p.heads * D4 + head + i - p.b0.x]) * p.scale;
}

fn load_half(i: u32, query: u32, head: u32) -> Head {
    return Head(load_q(i, query, head), load_q(i + 1u, query, head), load_q(i + 2u, query, head), load_q(i + 3u, query, head),
                load_q(i + 4u, query, head), load_q(i + 5u, query, head), load_q(i + 6u, query, head), load_q(i + 7u, query, head));
}

fn load_query(query: u32, head: u32) -> Query { return Query(load_half(0u, query, head), load_half(8u, query, head)); }

fn sum4(d: vec4<f32>) -> f32 { return (d.x + d.y) + (d.z + d.w); }

// Products of the first n quads, four partial sums a key.
fn products(q: Head, k: Block, n: u32) -> Four {
    var r = q.a * k.r.a; var s = q.a * k.s.a; var t = q.a * k.t.a; var u = q.a * k.u.a;
    if 1u < n { r += q.b * k.r.b; s += q.b * k.s.b; t += q.b * k.t.b; u += q.b * k.u.b; }
    if 2u < n { r += q.c * k.r.c; s += q.c * k.s.c; t += q.c * k.t.c; u += q.c * k.u.c; }
    if 3u < n { r += q.d * k.r.d; s += q.d * k.s.d; t += q.d * k.t.d; u += q.d * k.u.d; }
    if 4u < n { r += q.e * k.r.e; s += q.e * k.s.e; t += q.e * k.t.e; u += q.e * k.u.e; }
    if 5u < n { r += q.f * k.r.f; s += q.f * k.s.f; t += q.f * k.t.f; u += q.f * k.u.f; }
    if 6u < n { r += q.g * k.r.g; s += q.g * k.s.g; t += q.g * k.t.g; u += q.g * k.u.g; }
    if 7u < n { r += q.h * k.r.h; s += q.h * k.s.h; t += q.h * k.t.h; u += q.h * k.u.h; }
    return Four(r, s, t, u);
}

// y * keep + the values by their weights e, the first n quads.
fn weighted(y: Head, keep: f32, e: vec4<f32>, v: Block, n: u32) -> Head {
    var z: Head;
    z.a = y.a * keep + e.x * v.r.a + e.y * v.s.a + e.z * v.t.a + e.w * v.u.a;
    if 1u < n { z.b = y.b * keep + e.x * v.r.b + e.y * v.s.b + e.z * v.t.b + e.w * v.u.b; }
    if 2u < n { z.c = y.c * keep + e.x * v.r.c + e.y * v.s.c + e.z * v.t.c + e.w * v.u.c; }
    if 3u < n { z.d = y.d * keep + e.x * v.r.d + e.y * v.s.d + e.z * v.t.d + e.w * v.u.d; }
    if 4u < n { z.e = y.e * keep + e.x * v.r.e + e.y * v.s.e + e.z * v.t.e + e.w * v.u.e; }
    if 5u < n { z.f = y.f * keep + e.x * v.r.f + e.y * v.s.f + e.z * v.t.f + e.w * v.u.f; }
    if 6u < n { z.g = y.g * keep + e.x * v.r.g + e.y * v.s.g + e.z * v.t.g + e.w * v.u.g; }
    if 7u < n { z.h = y.h * keep + e.x * v.r.h + e.y * v.s.h + e.z * v.t.h + e.w * v.u.h; }
    return z;
}

// A query's sums after four more keys: those of `first`, ..., of which it sees the ones below `end`.
fn step(old: Sums, q: Query, k: Keys, first: u32, end: u32) -> Sums {
    var d = products(q.low, k.low, D4);
    if D4 > 8u {
        let more = products(q.high, k.high, max(D4, 8u) - 8u);
        d.r += more.r; d.s += more.s; d.t += more.t; d.u += more.u;
    }
    let score = select(vec4(-1e30), vec4(sum4(d.r), sum4(d.s), sum4(d.t), sum4(d.u)), vec4(first) + vec4(0u, 1u, 2u, 3u) < vec4(end));
    let peak = max(old.peak, max(max(score.x, score.y), max(score.z, score.w)));
    let keep = exp(old.peak - peak);
    let e = exp(score - peak);
    var high: Head;
    if D4 > 8u { high = weighted(old.high, keep, e, k.high_values, max(D4, 8u) - 8u); }
    return Sums(weighted(old.low, keep, e, k.low_values, D4), high, peak, old.total * keep + sum4(e));
}

fn put(i: u32, query: u32, head: u32, value: vec4<f32>) {
    if i < D4 && query < p.n { y[query * p.heads * D4 + head + i - p.b0.w] = y_put(value); }
}

fn put_half(i: u32, query: u32, head: u32, y: Head, norm: f32) {
    put(i, query, head, y.a * norm); put(i + 1u, query, head, y.b * norm); put(i + 2u, query, head, y.c * norm); put(i + 3u, query, head, y.d * norm);
    put(i + 4u, query, head, y.e * norm); put(i + 5u, query, head, y.f * norm); put(i + 6u, query, head, y.g * norm); put(i + 7u, query, head, y.h * norm);
}

fn put_sums(query: u32, head: u32, s: Sums) {
    let norm = 1.0 / s.total;
    put_half(0u, query, head, s.low, norm);
    put_half(8u, query, head, s.high, norm);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = wid + p.wg.xyz;
    let head = g.x * D4;
    let query = (g.y * WG + lane) * RUN;
    let q0 = load_query(query, head); let q1 = load_query(query + 1u, head);
    let q2 = load_query(query + 2u, head); let q3 = load_query(query + 3u, head);
    let q4 = load_query(query + 4u, head); let q5 = load_query(query + 5u, head);
    let q6 = load_query(query + 6u, head); let q7 = load_query(query + 7u, head);
    let none = Sums(Head(), Head(), -1e30, 0.0);
    var s0 = none; var s1 = none; var s2 = none; var s3 = none;
    var s4 = none; var s5 = none; var s6 = none; var s7 = none;
    // Query a sees keys below end0[a], query 4 + a below end1[a].
    let end0 = select(vec4(p.m), min(vec4(p.m), vec4(query) + vec4(1u, 2u, 3u, 4u)), p.causal == 1u);
    let end1 = select(vec4(p.m), min(vec4(p.m), vec4(query) + vec4(5u, 6u, 7u, 8u)), p.causal == 1u);
    for (var first = 0u; first < p.m; first += 4u) {
        let keys = four(first, lane, head);
        s0 = step(s0, q0, keys, first, end0.x); s1 = step(s1, q1, keys, first, end0.y);
        s2 = step(s2, q2, keys, first, end0.z); s3 = step(s3, q3, keys, first, end0.w);
        if RUN > 4u {
            s4 = step(s4, q4, keys, first, end1.x); s5 = step(s5, q5, keys, first, end1.y);
            s6 = step(s6, q6, keys, first, end1.z); s7 = step(s7, q7, keys, first, end1.w);
        }
    }
    put_sums(query, head, s0); put_sums(query + 1u, head, s1); put_sums(query + 2u, head, s2); put_sums(query + 3u, head, s3);
    if RUN > 4u {
        put_sums(query + 4u, head, s4); put_sums(query + 5u, head, s5); put_sums(query + 6u, head, s6); put_sums(query + 7u, head, s7);
    }
}
