// attention_scores_broadcast: s[i, h, j] = scale * q[i, h] . k[j, h], first of the three passes of attention on software rasterisers
// Layout   q [n, heads * d8], k [m, heads * d8] in octets, a head is a run of d8; s [n, heads, pitch] in quads of keys, f32,
//          pitch = ceil(m / 4) + 1
// Grid     x: 32 keys, y: 32 queries, z: heads. A subgroup of 8 lanes; a lane sums for 4 keys, and reads 4 of the queries for all
// Memory   no workgroup storage; lanes share what they read, see conv2d_3x3_broadcast
// Numerics f32 sums over the channels in an order of their own, whatever the grid: the bits of attention_scores_lanes
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, n: u32, m: u32, heads: u32, d8: u32, pitch: u32, scale: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<X8>;
@group(0) @binding(2) var<storage, read> k: array<X8>;
@group(0) @binding(3) var<storage, read_write> s: array<vec4<f32>>;

fn dot4(a: vec4<f32>, b: vec4<f32>) -> f32 { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

fn put(i: u32, h: u32, quad: u32, v: vec4<f32>) {
    if i < p.n && quad * 4u < p.m { s[(i * p.heads + h) * p.pitch + quad - p.b0.z] = v * p.scale; }
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let g = wid + p.wg.xyz;
    let pitch = p.heads * p.d8;
    let i0 = g.y * 32u;
    let quad = g.x * 8u + lane;
    // Bases count quads and are even; they may be negative.
    let qb = g.z * p.d8 - u32(i32(p.b0.x) / 2);
    let kb = g.z * p.d8 - u32(i32(p.b0.y) / 2);
    let q0 = min(i0 + 0u + lane, p.n - 1u) * pitch + qb;
    let q1 = min(i0 + 8u + lane, p.n - 1u) * pitch + qb;
    let q2 = min(i0 + 16u + lane, p.n - 1u) * pitch + qb;
    let q3 = min(i0 + 24u + lane, p.n - 1u) * pitch + qb;
    let k0 = min(quad * 4u + 0u, p.m - 1u) * pitch + kb;
    let k1 = min(quad * 4u + 1u, p.m - 1u) * pitch + kb;
    let k2 = min(quad * 4u + 2u, p.m - 1u) * pitch + kb;
    let k3 = min(quad * 4u + 3u, p.m - 1u) * pitch + kb;
    var s00 = vec4<f32>(); var s01 = vec4<f32>(); var s02 = vec4<f32>(); var s03 = vec4<f32>();
    var s04 = vec4<f32>(); var s05 = vec4<f32>(); var s06 = vec4<f32>(); var s07 = vec4<f32>();
    var s10 = vec4<f32>(); var s11 = vec4<f32>(); var s12 = vec4<f32>(); var s13 = vec4<f32>();
    var s14 = vec4<f32>(); var s15 = vec4<f32>(); var s16 = vec4<f32>(); var s17 = vec4<f32>();
    var s20 = vec4<f32>(); var s21 = vec4<f32>(); var s22 = vec4<f32>(); var s23 = vec4<f32>();
    var s24 = vec4<f32>(); var s25 = vec4<f32>(); var s26 = vec4<f32>(); var s27 = vec4<f32>();
    var s30 = vec4<f32>(); var s31 = vec4<f32>(); var s32 = vec4<f32>(); var s33 = vec4<f32>();
    var s34 = vec4<f32>(); var s35 = vec4<f32>(); var s36 = vec4<f32>(); var s37 = vec4<f32>();
    for (var d = 0u; d < p.d8; d += 1u) {
        let w0 = k[k0 + d]; let w1 = k[k1 + d]; let w2 = k[k2 + d]; let w3 = k[k3 + d];
        let u0 = x_lo(w0); let u1 = x_lo(w1); let u2 = x_lo(w2); let u3 = x_lo(w3);
        let t0 = x_hi(w0); let t1 = x_hi(w1); let t2 = x_hi(w2); let t3 = x_hi(w3);
        {
            let x = q[q0 + d];
            let lo = x_lo(x);
            let hi = x_hi(x);
            { let v = subgroupBroadcast(lo, 0u); s00 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 0u); s00 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 1u); s01 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 1u); s01 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 2u); s02 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 2u); s02 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 3u); s03 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 3u); s03 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 4u); s04 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 4u); s04 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 5u); s05 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 5u); s05 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 6u); s06 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 6u); s06 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 7u); s07 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 7u); s07 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
        }
        {
            let x = q[q1 + d];
            let lo = x_lo(x);
            let hi = x_hi(x);
            { let v = subgroupBroadcast(lo, 0u); s10 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 0u); s10 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 1u); s11 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 1u); s11 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 2u); s12 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 2u); s12 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 3u); s13 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 3u); s13 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 4u); s14 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 4u); s14 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 5u); s15 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 5u); s15 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 6u); s16 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 6u); s16 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 7u); s17 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 7u); s17 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
        }
        {
            let x = q[q2 + d];
            let lo = x_lo(x);
            let hi = x_hi(x);
            { let v = subgroupBroadcast(lo, 0u); s20 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 0u); s20 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 1u); s21 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 1u); s21 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 2u); s22 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 2u); s22 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 3u); s23 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 3u); s23 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 4u); s24 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 4u); s24 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 5u); s25 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 5u); s25 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 6u); s26 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 6u); s26 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 7u); s27 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 7u); s27 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
        }
        {
            let x = q[q3 + d];
            let lo = x_lo(x);
            let hi = x_hi(x);
            { let v = subgroupBroadcast(lo, 0u); s30 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 0u); s30 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 1u); s31 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 1u); s31 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 2u); s32 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 2u); s32 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 3u); s33 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 3u); s33 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 4u); s34 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 4u); s34 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 5u); s35 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 5u); s35 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 6u); s36 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 6u); s36 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
            { let v = subgroupBroadcast(lo, 7u); s37 += vec4(dot4(v, u0), dot4(v, u1), dot4(v, u2), dot4(v, u3)); }
            { let v = subgroupBroadcast(hi, 7u); s37 += vec4(dot4(v, t0), dot4(v, t1), dot4(v, t2), dot4(v, t3)); }
        }
    }
    for (var c = 0u; c < 8u; c += 1u) {
        put(i0 + 0u + c, g.z, quad, pick(c, s00, s01, s02, s03, s04, s05, s06, s07));
        put(i0 + 8u + c, g.z, quad, pick(c, s10, s11, s12, s13, s14, s15, s16, s17));
        put(i0 + 16u + c, g.z, quad, pick(c, s20, s21, s22, s23, s24, s25, s26, s27));
        put(i0 + 24u + c, g.z, quad, pick(c, s30, s31, s32, s33, s34, s35, s36, s37));
    }
}
