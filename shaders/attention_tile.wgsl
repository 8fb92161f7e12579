// attention_tile: y[i, h] = sum_j softmax_j(scale * q[i, h] . k[j, h]) v[j, h], any number of queries and keys, n x m never stored
// Source   Dao et al. 2022 (arXiv:2205.14135), online softmax with blocks of 4 T keys as unit
// Layout   q, y [n, heads * D4]; k, v [m, heads * D4]; a head is a run of D4 quads
// Grid     x: heads, y: 64 queries, z: ranges of `span` keys; 16 T invocations: one takes 4 queries by keys t, T + t, 2 T + t, 3 T + t
//          of a block, and of the result 4 queries by quads t, T + t, 2 T + t ...; range z writes rows z * n ... of y, normalised by its
//          own sum, and tells `finished` peak and sum
// Memory   `stage` holds 16 channels of 64 queries (a quad of queries a channel) and of 4 T keys, then VK keys of values; `weights` the block's
//          exponentials; `part` what T invocations know of a query. 16 KiB at T = 8, 28 KiB at T = 16. Places are
//          turned (^) so that neither writing nor reading them meets a bank twice
// Registers 16 for scores, 16 QN for the result. Four channels take 8 quads from workgroup memory for 64 multiply-adds, a value QN + 1 for 16 QN
// Numerics f32; blocks start at absolute key indices 0, 4 T, 8 T ... (span is a multiple), and each query rescales by its own peak, so neither the
//          grid nor the queries beside it change a bit; masked scores are -1e30, never an infinity; exponentials are of 2
override D4: u32 = 16u;
override T: u32 = 8u;
override WG: u32 = 128u;                                 // 16 T
override KEYS: u32 = 32u;                                // 4 T, a block
override QN: u32 = 2u;                                   // ceil(D4 / T), at most 8
override VK: u32 = 16u;                                  // keys whose values are staged at a time: a divisor of KEYS with VK * D4 <= 256 + 16 T
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, n: u32, m: u32, heads: u32, causal: u32, scale: f32, span: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<X4>;
@group(0) @binding(2) var<storage, read> k: array<X4>;
@group(0) @binding(3) var<storage, read> v: array<X4>;
@group(0) @binding(4) var<storage, read_write> y: array<Y4>;

const LOG2_E: f32 = 1.4426950408889634;
const LN_2: f32 = 0.6931471805599453;
const K0: u32 = 256u;                                    // where keys begin in `stage`
var<workgroup> stage: array<vec4<f32>, 256u + 16u * T>;  // [16 channels][16 quads of queries], [4 quads of channels][4 T keys]; or [VK][D4]
var<workgroup> weights: array<vec4<f32>, 64u * T>;       // [4 T keys][16 quads of queries]
var<workgroup> part: array<vec4<f32>, 16u * T>;          // [T][16 quads of queries]

// Quad i of this invocation lies inside the head; a compile-time truth for all but the last.
fn has(i: u32, t: u32) -> bool { return i < QN && (D4 % T == 0u || i * T + t < D4); }

// Where it lies; for one outside, the head's last, whose sum nothing stores.
fn place(i: u32, t: u32, last: u32) -> u32 { return select(i * T + t, last, i + 1u == QN); }

fn put(query: u32, z: u32, quad: u32, v: vec4<f32>) {
    if query < p.n { y[(z * p.n + query) * p.heads * D4 + quad - p.b0.w] = y_put(v); }
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = wid + p.wg.xyz;
    let t = lane % T;
    let group = lane / T;                                // of 4 queries
    let last = min((QN - 1u) * T + t, D4 - 1u);
    let pitch = p.heads * D4;
    let head = g.x * D4;
    let first = g.y * 64u;
    let query = first + 4u * group;
    // Causal: keys after the last query of the workgroup count for none of them.
    let stop = min(select(p.m, min(p.m, first + 64u), p.causal == 1u), (g.z + 1u) * p.span);
    let end = select(vec4(p.m), min(vec4(p.m), query + vec4(1u, 2u, 3u, 4u)), p.causal == 1u);
    var a0 = vec4<f32>(); var a1 = vec4<f32>(); var a2 = vec4<f32>(); var a3 = vec4<f32>();
    var a4 = vec4<f32>(); var a5 = vec4<f32>(); var a6 = vec4<f32>(); var a7 = vec4<f32>();
    var b0 = vec4<f32>(); var b1 = vec4<f32>(); var b2 = vec4<f32>(); var b3 = vec4<f32>();
    var b4 = vec4<f32>(); var b5 = vec4<f32>(); var b6 = vec4<f32>(); var b7 = vec4<f32>();
    var c0 = vec4<f32>(); var c1 = vec4<f32>(); var c2 = vec4<f32>(); var c3 = vec4<f32>();
    var c4 = vec4<f32>(); var c5 = vec4<f32>(); var c6 = vec4<f32>(); var c7 = vec4<f32>();
    var d0 = vec4<f32>(); var d1 = vec4<f32>(); var d2 = vec4<f32>(); var d3 = vec4<f32>();
    var d4 = vec4<f32>(); var d5 = vec4<f32>(); var d6 = vec4<f32>(); var d7 = vec4<f32>();
    let whole = select(p.m, min(p.m, first + 1u), p.causal == 1u);   // keys that every query sees
    let scale = p.scale * LOG2_E;
    var peak = vec4(-1e30);                              // of each of the 4 queries, in binary orders
    var total = vec4<f32>();                             // of this invocation's keys
    for (var key = g.z * p.span; key < stop; key += KEYS) {
        var s0 = vec4<f32>(); var s1 = vec4<f32>(); var s2 = vec4<f32>(); var s3 = vec4<f32>();
        for (var c = 0u; c < D4; c += 4u) {
            let quads = select(min(4u, D4 - c), 4u, D4 % 4u == 0u);
            if lane < 64u && lane % 4u < quads {
                // Four queries by one quad of channels, turned round.
                let at = head + c + lane % 4u - p.b0.x;
                let i = first + lane / 4u * 4u;
                let q0 = x_get(q[min(i, p.n - 1u) * pitch + at]);
                let q1 = x_get(q[min(i + 1u, p.n - 1u) * pitch + at]);
                let q2 = x_get(q[min(i + 2u, p.n - 1u) * pitch + at]);
                let q3 = x_get(q[min(i + 3u, p.n - 1u) * pitch + at]);
                let to = lane % 4u * 64u + ((lane / 4u) ^ (lane % 4u * 2u));
                stage[to] = scale * vec4(q0.x, q1.x, q2.x, q3.x);
                stage[to + 16u] = scale * vec4(q0.y, q1.y, q2.y, q3.y);
                stage[to + 32u] = scale * vec4(q0.z, q1.z, q2.z, q3.z);
                stage[to + 48u] = scale * vec4(q0.w, q1.w, q2.w, q3.w);
            }
            if lane % 4u < quads {
                let at = head + c + lane % 4u - p.b0.y;
                stage[K0 + lane % 4u * KEYS + ((lane / 4u) ^ (lane % 4u * 2u))] = x_get(k[min(key + lane / 4u, p.m - 1u) * pitch + at]);
            }
            workgroupBarrier();
            for (var i = 0u; i < quads; i += 1u) {
                let at = K0 + i * KEYS + (t ^ (2u * i));
                let x0 = i * 64u + (group ^ (2u * i));
                let k0 = stage[at]; let k1 = stage[at + T]; let k2 = stage[at + 2u * T]; let k3 = stage[at + 3u * T];
                let x = stage[x0];
                s0 += x * k0.x; s1 += x * k1.x; s2 += x * k2.x; s3 += x * k3.x;
                let y = stage[x0 + 16u];
                s0 += y * k0.y; s1 += y * k1.y; s2 += y * k2.y; s3 += y * k3.y;
                let z = stage[x0 + 32u];
                s0 += z * k0.z; s1 += z * k1.z; s2 += z * k2.z; s3 += z * k3.z;
                let w = stage[x0 + 48u];
                s0 += w * k0.w; s1 += w * k1.w; s2 += w * k2.w; s3 += w * k3.w;
            }
            workgroupBarrier();
        }
        if key + KEYS > whole {
            s0 = select(vec4(-1e30), s0, vec4(key + t) < end);
            s1 = select(vec4(-1e30), s1, vec4(key + T + t) < end);
            s2 = select(vec4(-1e30), s2, vec4(key + 2u * T + t) < end);
            s3 = select(vec4(-1e30), s3, vec4(key + 3u * T + t) < end);
        }
        part[t * 16u + (group ^ (t % 8u))] = max(max(s0, s1), max(s2, s3));
        workgroupBarrier();
        var next = peak;
        for (var i = 0u; i < T; i += 1u) { next = max(next, part[i * 16u + (group ^ (i % 8u))]); }
        let keep = exp2(peak - next);
        peak = next;
        s0 = exp2(s0 - next); s1 = exp2(s1 - next); s2 = exp2(s2 - next); s3 = exp2(s3 - next);
        total = total * keep + ((s0 + s1) + (s2 + s3));
        let turned = group ^ (t % 8u);
        weights[t * 16u + turned] = s0;
        weights[(T + t) * 16u + turned] = s1;
        weights[(2u * T + t) * 16u + turned] = s2;
        weights[(3u * T + t) * 16u + turned] = s3;
        a0 *= keep.x; b0 *= keep.y; c0 *= keep.z; d0 *= keep.w;
        if QN > 1u { a1 *= keep.x; b1 *= keep.y; c1 *= keep.z; d1 *= keep.w; }
        if QN > 2u { a2 *= keep.x; b2 *= keep.y; c2 *= keep.z; d2 *= keep.w; }
        if QN > 3u { a3 *= keep.x; b3 *= keep.y; c3 *= keep.z; d3 *= keep.w; }
        if QN > 4u { a4 *= keep.x; b4 *= keep.y; c4 *= keep.z; d4 *= keep.w; }
        if QN > 5u { a5 *= keep.x; b5 *= keep.y; c5 *= keep.z; d5 *= keep.w; }
        if QN > 6u { a6 *= keep.x; b6 *= keep.y; c6 *= keep.z; d6 *= keep.w; }
        if QN > 7u { a7 *= keep.x; b7 *= keep.y; c7 *= keep.z; d7 *= keep.w; }
        for (var j0 = 0u; j0 < min(KEYS, stop - key); j0 += VK) {
            for (var i = lane; i < VK * D4; i += WG) {
                stage[i] = x_get(v[min(key + j0 + i / D4, p.m - 1u) * pitch + head + i % D4 - p.b0.z]);
            }
            workgroupBarrier();
            for (var four = 0u; four < VK; four += 4u) {
                let turn = group ^ ((j0 + four) % 8u);
                for (var u = 0u; u < 4u; u += 1u) {      // compilers unroll as many
                    let e = weights[(j0 + four + u) * 16u + (turn ^ u)];
                    let at = (four + u) * D4;
                    { let x = stage[at + place(0u, t, last)]; a0 += e.x * x; b0 += e.y * x; c0 += e.z * x; d0 += e.w * x; }
                    if QN > 1u { let x = stage[at + place(1u, t, last)]; a1 += e.x * x; b1 += e.y * x; c1 += e.z * x; d1 += e.w * x; }
                    if QN > 2u { let x = stage[at + place(2u, t, last)]; a2 += e.x * x; b2 += e.y * x; c2 += e.z * x; d2 += e.w * x; }
                    if QN > 3u { let x = stage[at + place(3u, t, last)]; a3 += e.x * x; b3 += e.y * x; c3 += e.z * x; d3 += e.w * x; }
                    if QN > 4u { let x = stage[at + place(4u, t, last)]; a4 += e.x * x; b4 += e.y * x; c4 += e.z * x; d4 += e.w * x; }
                    if QN > 5u { let x = stage[at + place(5u, t, last)]; a5 += e.x * x; b5 += e.y * x; c5 += e.z * x; d5 += e.w * x; }
                    if QN > 6u { let x = stage[at + place(6u, t, last)]; a6 += e.x * x; b6 += e.y * x; c6 += e.z * x; d6 += e.w * x; }
                    if QN > 7u { let x = stage[at + place(7u, t, last)]; a7 += e.x * x; b7 += e.y * x; c7 += e.z * x; d7 += e.w * x; }
                }
            }
            workgroupBarrier();
        }
    }
    part[t * 16u + (group ^ (t % 8u))] = total;
    workgroupBarrier();
    total = vec4<f32>();
    for (var i = 0u; i < T; i += 1u) { total += part[i * 16u + (group ^ (i % 8u))]; }
    if t == 0u {
        for (var i = 0u; i < 4u; i += 1u) {
            if query + i < p.n { finished((g.z * p.n + query + i) * p.heads + g.x, peak[i] * LN_2, total[i]); }
        }
    }
    let norm = 1.0 / total;
    let at = head + t;
    if has(0u, t) { put(query, g.z, at, a0 * norm.x); put(query + 1u, g.z, at, b0 * norm.y); put(query + 2u, g.z, at, c0 * norm.z); put(query + 3u, g.z, at, d0 * norm.w); }
    if has(1u, t) { put(query, g.z, at + T, a1 * norm.x); put(query + 1u, g.z, at + T, b1 * norm.y); put(query + 2u, g.z, at + T, c1 * norm.z); put(query + 3u, g.z, at + T, d1 * norm.w); }
    if has(2u, t) { put(query, g.z, at + 2u * T, a2 * norm.x); put(query + 1u, g.z, at + 2u * T, b2 * norm.y); put(query + 2u, g.z, at + 2u * T, c2 * norm.z); put(query + 3u, g.z, at + 2u * T, d2 * norm.w); }
    if has(3u, t) { put(query, g.z, at + 3u * T, a3 * norm.x); put(query + 1u, g.z, at + 3u * T, b3 * norm.y); put(query + 2u, g.z, at + 3u * T, c3 * norm.z); put(query + 3u, g.z, at + 3u * T, d3 * norm.w); }
    if has(4u, t) { put(query, g.z, at + 4u * T, a4 * norm.x); put(query + 1u, g.z, at + 4u * T, b4 * norm.y); put(query + 2u, g.z, at + 4u * T, c4 * norm.z); put(query + 3u, g.z, at + 4u * T, d4 * norm.w); }
    if has(5u, t) { put(query, g.z, at + 5u * T, a5 * norm.x); put(query + 1u, g.z, at + 5u * T, b5 * norm.y); put(query + 2u, g.z, at + 5u * T, c5 * norm.z); put(query + 3u, g.z, at + 5u * T, d5 * norm.w); }
    if has(6u, t) { put(query, g.z, at + 6u * T, a6 * norm.x); put(query + 1u, g.z, at + 6u * T, b6 * norm.y); put(query + 2u, g.z, at + 6u * T, c6 * norm.z); put(query + 3u, g.z, at + 6u * T, d6 * norm.w); }
    if has(7u, t) { put(query, g.z, at + 7u * T, a7 * norm.x); put(query + 1u, g.z, at + 7u * T, b7 * norm.y); put(query + 2u, g.z, at + 7u * T, c7 * norm.z); put(query + 3u, g.z, at + 7u * T, d7 * norm.w); }
}
