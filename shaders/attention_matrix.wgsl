// attention_matrix: y[i, h] = sum_j softmax_j(scale * q[i, h] . k[j, h]) v[j, h] on matrix units
// Source   Dao et al. 2022 (arXiv:2205.14135), online softmax with blocks of KEYS keys as unit. Rows of a sum inside matrix units cannot be
//          scaled, so it is moved out and in again only when a query's peak has grown by more than 11 binary orders since it was last taken
// Layout   q, y [n, heads * D4]; k, v [m, heads * D4]; a head is a run of D4 quads
// Grid     x: heads, y: RS * SIDE queries, z: ranges of `span` keys, as in attention_tile; RS x CS subgroups of SG invocations: subgroup (r, c)
//          computes the scores of SIDE queries with keys c SN SIDE .. (c + 1) SN SIDE of a block, and of their result channels
//          c ON SIDE .. (c + 1) ON SIDE
// Memory   `stage` holds up to 64 channels of the queries, for good where a head has no more, and of a block's keys, then VK keys of values, rows
//          16 B longer than their values so that they meet other banks; `scores` KEYS f32 a query, likewise, through which sums leave and enter the matrix units too; `weights` the same in f16
// Numerics products of f16 are exact in f32; f32 sums in the order that the unit has; exponentials of 2 relative to a peak at most 11 too small,
//          up to 2048, rounded to f16, and it is the rounded ones that are summed. Blocks start at absolute key indices (span is a multiple) and each query decides for itself, so
//          neither the grid nor the queries beside it change a bit
override D4: u32 = 16u;
override SIDE: u32 = 16u;
override SG: u32 = 32u;
override WG: u32 = 128u;                                 // RS * CS * SG
override RS: u32 = 4u;
override CS: u32 = 1u;
override KEYS: u32 = 32u;                                // CS * SN * SIDE, a block
override SN: u32 = 2u;                                   // at most 4
override ON: u32 = 4u;                                   // at most 16
override VK: u32 = 32u;                                  // keys whose values are staged at a time: a multiple of 16 that divides KEYS
override STAGE: u32 = 1728u;                             // quads: enough for queries with keys, and for values (D4 <= CHUNK: queries with values)
override CHUNK: u32 = 16u;                               // quads of channels that are staged at a time: a multiple of 4, at most 16
override SPLIT: u32 = 0u;                                // 1: q, k and v are f32, and they and the weights are staged as the two f16 that each is the
                                                         // sum of, to 21 bits: of the four products of two such sums three count
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, n: u32, m: u32, heads: u32, causal: u32, scale: f32, span: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<X4>;
@group(0) @binding(2) var<storage, read> k: array<X4>;
@group(0) @binding(3) var<storage, read> v: array<X4>;
@group(0) @binding(4) var<storage, read_write> y: array<Y4>;

const LOG2_E: f32 = 1.4426950408889634;
const LN_2: f32 = 0.6931471805599453;
const QP: u32 = 18u;                                     // quads from row to row of queries and keys: 16, and 2 between
// [RS SIDE queries][QP], their second parts, [KEYS][QP], theirs; instead of the keys, or of all, [VK keys][CS ON SIDE / 4 + 2] and second parts
var<workgroup> stage: array<vec4<f16>, STAGE>;
var<workgroup> scores: array<vec4<f32>, RS * SIDE * (KEYS / 4u + 2u)>;
var<workgroup> weights: array<vec4<f16>, RS * SIDE * (KEYS / 4u + 2u) * (1u + SPLIT)>;
var<workgroup> part: array<f32, WG>;                     // what an invocation knows of its query
var<workgroup> keep: array<f32, RS * SIDE>;              // what a query's result so far is multiplied with
var<workgroup> grown: array<atomic<u32>, 4>;             // the first; 16 B each, so that matrices behind them stay aligned
var<workgroup> again: vec4<u32>;                        // `grown` as all see it

fn put_stage(at: u32, second: u32, x: X4, inside: bool) {
    if SPLIT == 0u {
        stage[at] = select(vec4<f16>(), x_half(x), inside);
    } else {
        let v = select(vec4<f32>(), x_get(x), inside);
        let high = staged(v);
        stage[at] = vec4<f16>(high);
        stage[at + second] = vec4<f16>(v - high);
    }
}

// Channels 4 c .. 4 (c + CHUNK) of the queries; zeros where a head ends, so that what stands there of the keys does not matter.
fn put_queries(c: u32, first: u32, head: u32, lane: u32) {
    for (var i = lane; i < RS * SIDE * CHUNK; i += WG) {
        let quad = c + i % CHUNK;
        let at = min(first + i / CHUNK, p.n - 1u) * p.heads * D4 + head + min(quad, D4 - 1u);
        put_stage(i / CHUNK * QP + i % CHUNK, RS * SIDE * QP, q[at - p.b0.x], quad < D4);
    }
}

// A sum leaves the matrix units, its rows are multiplied with `keep`, and it comes back. Called by all alike, since it waits.
fn rescaled(c: MatC, sub: u32, lane: u32) -> MatC {
    let region = sub * SIDE * SIDE / 4u;
    coopStoreT(c, &scores[region], SIDE / 4u);
    workgroupBarrier();
    for (var i = lane; i < SIDE * SIDE / 4u; i += SG) {
        scores[region + i] *= keep[sub / CS * SIDE + i / (SIDE / 4u)];
    }
    workgroupBarrier();
    let back = coopLoadT<MatC>(&scores[region], SIDE / 4u);
    workgroupBarrier();
    return back;
}

// The same, but into y.
fn put(c: MatC, sub: u32, lane: u32, first: u32, g: vec3<u32>, f: u32) {
    let region = sub * SIDE * SIDE / 4u;
    coopStoreT(c, &scores[region], SIDE / 4u);
    workgroupBarrier();
    for (var i = lane; i < SIDE * SIDE / 4u; i += SG) {
        let row = sub / CS * SIDE + i / (SIDE / 4u);
        let quad = (sub % CS * ON + f) * SIDE / 4u + i % (SIDE / 4u);
        if first + row < p.n && quad < D4 {
            y[((g.z * p.n + first + row) * p.heads + g.x) * D4 + quad - p.b0.w] = y_put(scores[region + i] * keep[row]);
        }
    }
    workgroupBarrier();
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = wid + p.wg.xyz;
    let sub = lane / SG;
    let own = lane % SG;
    let r0 = sub / CS * SIDE;                            // the subgroup's first query of the workgroup's
    let rows = RS * SIDE;
    let pitch = p.heads * D4;
    let first = g.y * rows;
    let head = g.x * D4;
    let vp = CS * ON * SIDE / 4u + 2u;                   // quads from row to row of values
    let wp = KEYS / 4u + 2u;                             // of scores, and of weights
    let keys = rows * QP * (1u + SPLIT);                 // where they begin in `stage`
    let values = select(0u, keys, D4 <= CHUNK);
    // How far behind second parts are.
    let low_e = rows * wp;
    let low_v = VK * vp;
    // In the softmax an invocation has every `parts`-th quad of keys of one query.
    let parts = WG / rows;
    let row = lane / parts;
    let end = select(p.m, min(p.m, first + row + 1u), p.causal == 1u);
    let whole = select(p.m, min(p.m, first + 1u), p.causal == 1u);   // keys that every query sees
    let stop = min(select(p.m, min(p.m, first + rows), p.causal == 1u), (g.z + 1u) * p.span);
    var o0 = MatC(); var o1 = MatC(); var o2 = MatC(); var o3 = MatC(); var o4 = MatC(); var o5 = MatC(); var o6 = MatC(); var o7 = MatC();
    var o8 = MatC(); var o9 = MatC(); var o10 = MatC(); var o11 = MatC(); var o12 = MatC(); var o13 = MatC(); var o14 = MatC(); var o15 = MatC();
    let scale = p.scale * LOG2_E;
    var peak = -1e30;                                    // of the query, as last taken, in binary orders as all exponents here
    var total = 0.0;                                     // of this invocation's keys
    if lane == 0u { atomicStore(&grown[0], 0u); }
    if D4 <= CHUNK { put_queries(0u, first, head, lane); }
    for (var key = g.z * p.span; key < stop; key += KEYS) {
        var s0 = MatC(); var s1 = MatC(); var s2 = MatC(); var s3 = MatC();
        for (var c = 0u; c < D4; c += CHUNK) {
            if D4 > CHUNK { put_queries(c, first, head, lane); }
            for (var i = lane; i < KEYS * CHUNK; i += WG) {
                let at = min(key + i / CHUNK, p.m - 1u) * pitch + head + min(c + i % CHUNK, D4 - 1u);
                put_stage(keys + i / CHUNK * QP + i % CHUNK, KEYS * QP, k[at - p.b0.y], true);
            }
            workgroupBarrier();
            for (var s = 0u; s < 4u * min(CHUNK, D4 - c); s += SIDE) {
                for (var both = 0u; both < 1u + 2u * SPLIT; both += 1u) {
                    let x = coopLoadT<MatA>(&stage[both % 2u * rows * QP + r0 * QP + s / 4u], QP);
                    let at = keys + both / 2u * KEYS * QP + sub % CS * SN * SIDE * QP + s / 4u;
                    // Keys lie in rows, so columns of this operand.
                    s0 = coopMultiplyAdd(x, coopLoad<MatB>(&stage[at], QP), s0);
                    if SN > 1u { s1 = coopMultiplyAdd(x, coopLoad<MatB>(&stage[at + SIDE * QP], QP), s1); }
                    if SN > 2u { s2 = coopMultiplyAdd(x, coopLoad<MatB>(&stage[at + 2u * SIDE * QP], QP), s2); }
                    if SN > 3u { s3 = coopMultiplyAdd(x, coopLoad<MatB>(&stage[at + 3u * SIDE * QP], QP), s3); }
                }
            }
            workgroupBarrier();
        }
        // naga 30 panics if these strides are `wp`.
        let to = r0 * wp + sub % CS * SN * SIDE / 4u;
        coopStoreT(s0, &scores[to], KEYS / 4u + 2u);
        if SN > 1u { coopStoreT(s1, &scores[to + SIDE / 4u], KEYS / 4u + 2u); }
        if SN > 2u { coopStoreT(s2, &scores[to + SIDE / 2u], KEYS / 4u + 2u); }
        if SN > 3u { coopStoreT(s3, &scores[to + 3u * SIDE / 4u], KEYS / 4u + 2u); }
        workgroupBarrier();
        // An invocation reads and writes its own quads from here to the weights.
        if key + KEYS > whole {
            for (var i = 0u; i < KEYS / 4u / parts; i += 1u) {
                let t = i * parts + lane % parts;
                let seen = vec4(key + 4u * t) + vec4(0u, 1u, 2u, 3u) < vec4(end);
                scores[row * wp + t] = select(vec4(-1e37), scores[row * wp + t], seen);
            }
        }
        var most = vec4(-1e37);
        for (var i = 0u; i < KEYS / 4u / parts; i += 1u) { most = max(most, scores[row * wp + i * parts + lane % parts]); }
        part[lane] = max(max(most.x, most.y), max(most.z, most.w)) * scale;
        workgroupBarrier();
        var next = -1e30;
        for (var t = 0u; t < parts; t += 1u) { next = max(next, part[row * parts + t]); }
        next = select(peak, next, next - peak > 11.0);       // not next > peak + 11: that rounds from 2^27 on
        let shrink = exp2(peak - next);                  // 1 unless the peak is taken anew
        if next > peak { atomicStore(&grown[0], 1u); }
        if lane % parts == 0u { keep[row] = shrink; }
        peak = next;
        total *= shrink;
        for (var i = 0u; i < KEYS / 4u / parts; i += 1u) {
            let at = row * wp + i * parts + lane % parts;
            let e = exp2(fma(scores[at], vec4(scale), vec4(-peak)));
            let high = staged(e);
            weights[at] = vec4<f16>(high);
            if SPLIT == 1u { weights[low_e + at] = vec4<f16>(e - high); }
            let f = select(vec4<f32>(vec4<f16>(e)), e, SPLIT == 1u);
            total += (f.x + f.y) + (f.z + f.w);
        }
        workgroupBarrier();
        if lane == 0u { again = vec4(atomicExchange(&grown[0], 0u)); }
        // The first block has nothing to scale yet.
        if workgroupUniformLoad(&again).x == 1u && key > g.z * p.span {
            o0 = rescaled(o0, sub, own);
            if ON > 1u { o1 = rescaled(o1, sub, own); }
            if ON > 2u { o2 = rescaled(o2, sub, own); }
            if ON > 3u { o3 = rescaled(o3, sub, own); }
            if ON > 4u { o4 = rescaled(o4, sub, own); }
            if ON > 5u { o5 = rescaled(o5, sub, own); }
            if ON > 6u { o6 = rescaled(o6, sub, own); }
            if ON > 7u { o7 = rescaled(o7, sub, own); }
            if ON > 8u { o8 = rescaled(o8, sub, own); }
            if ON > 9u { o9 = rescaled(o9, sub, own); }
            if ON > 10u { o10 = rescaled(o10, sub, own); }
            if ON > 11u { o11 = rescaled(o11, sub, own); }
            if ON > 12u { o12 = rescaled(o12, sub, own); }
            if ON > 13u { o13 = rescaled(o13, sub, own); }
            if ON > 14u { o14 = rescaled(o14, sub, own); }
            if ON > 15u { o15 = rescaled(o15, sub, own); }
        }
        for (var j0 = 0u; j0 < min(KEYS, stop - key); j0 += VK) {
            for (var i = lane; i < VK * (vp - 2u); i += WG) {
                let quad = i % (vp - 2u);                // those behind the head's are not stored
                let at = min(key + j0 + i / (vp - 2u), p.m - 1u) * pitch + head + min(quad, D4 - 1u);
                put_stage(values + i / (vp - 2u) * vp + quad, low_v, v[at - p.b0.z], true);
            }
            workgroupBarrier();
            for (var j = 0u; j < min(VK, stop - key - j0); j += SIDE) {
                for (var both = 0u; both < 1u + 2u * SPLIT; both += 1u) {
                    let e = coopLoadT<MatA>(&weights[both % 2u * low_e + r0 * wp + (j0 + j) / 4u], wp);
                    let at = values + both / 2u * low_v + j * vp + sub % CS * ON * SIDE / 4u;
                    o0 = coopMultiplyAdd(e, coopLoadT<MatB>(&stage[at], vp), o0);
                    if ON > 1u { o1 = coopMultiplyAdd(e, coopLoadT<MatB>(&stage[at + SIDE / 4u], vp), o1); }
                    if ON > 2u { o2 = coopMultiplyAdd(e, coopLoadT<MatB>(&stage[at + 2u * SIDE / 4u], vp), o2); }
                    if ON > 3u { o3 = coopMultiplyAdd(e, coopLoadT<MatB>(&stage[at + 3u * SIDE / 4u], vp), o3); }
                    if ON > 4u { o4 = coopMultiplyAdd(e, coopLoadT<MatB>(&stage[at + 4u * SIDE / 4u], vp), o4); }
                    if ON > 5u { o5 = coopMultiplyAdd(e, coopLoadT<MatB>(&stage[at + 5u * SIDE / 4u], vp), o5); }
                    if ON > 6u { o6 = coopMultiplyAdd(e, coopLoadT<MatB>(&stage[at + 6u * SIDE / 4u], vp), o6); }
                    if ON > 7u { o7 = coopMultiplyAdd(e, coopLoadT<MatB>(&stage[at + 7u * SIDE / 4u], vp), o7); }
                    if ON > 8u { o8 = coopMultiplyAdd(e, coopLoadT<MatB>(&stage[at + 8u * SIDE / 4u], vp), o8); }
                    if ON > 9u { o9 = coopMultiplyAdd(e, coopLoadT<MatB>(&stage[at + 9u * SIDE / 4u], vp), o9); }
                    if ON > 10u { o10 = coopMultiplyAdd(e, coopLoadT<MatB>(&stage[at + 10u * SIDE / 4u], vp), o10); }
                    if ON > 11u { o11 = coopMultiplyAdd(e, coopLoadT<MatB>(&stage[at + 11u * SIDE / 4u], vp), o11); }
                    if ON > 12u { o12 = coopMultiplyAdd(e, coopLoadT<MatB>(&stage[at + 12u * SIDE / 4u], vp), o12); }
                    if ON > 13u { o13 = coopMultiplyAdd(e, coopLoadT<MatB>(&stage[at + 13u * SIDE / 4u], vp), o13); }
                    if ON > 14u { o14 = coopMultiplyAdd(e, coopLoadT<MatB>(&stage[at + 14u * SIDE / 4u], vp), o14); }
                    if ON > 15u { o15 = coopMultiplyAdd(e, coopLoadT<MatB>(&stage[at + 15u * SIDE / 4u], vp), o15); }
                }
            }
            workgroupBarrier();
        }
    }
    part[lane] = total;
    workgroupBarrier();
    if lane % parts == 0u {
        total = 0.0;
        for (var t = 0u; t < parts; t += 1u) { total += part[lane + t]; }
        keep[row] = 1.0 / total;
        if first + row < p.n { finished((g.z * p.n + first + row) * p.heads + g.x, peak * LN_2, total); }
    }
    workgroupBarrier();
    put(o0, sub, own, first, g, 0u);
    if ON > 1u { put(o1, sub, own, first, g, 1u); }
    if ON > 2u { put(o2, sub, own, first, g, 2u); }
    if ON > 3u { put(o3, sub, own, first, g, 3u); }
    if ON > 4u { put(o4, sub, own, first, g, 4u); }
    if ON > 5u { put(o5, sub, own, first, g, 5u); }
    if ON > 6u { put(o6, sub, own, first, g, 6u); }
    if ON > 7u { put(o7, sub, own, first, g, 7u); }
    if ON > 8u { put(o8, sub, own, first, g, 8u); }
    if ON > 9u { put(o9, sub, own, first, g, 9u); }
    if ON > 10u { put(o10, sub, own, first, g, 10u); }
    if ON > 11u { put(o11, sub, own, first, g, 11u); }
    if ON > 12u { put(o12, sub, own, first, g, 12u); }
    if ON > 13u { put(o13, sub, own, first, g, 13u); }
    if ON > 14u { put(o14, sub, own, first, g, 14u); }
    if ON > 15u { put(o15, sub, own, first, g, 15u); }
}
