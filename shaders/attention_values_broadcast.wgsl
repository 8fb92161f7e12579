// attention_values_broadcast: y[i, h] = sum_j s[i, h, j] v[j, h] / sum_j s[i, h, j], last of the three passes of attention
// Layout   s [n, heads, pitch] from attention_softmax_lanes; v [m, heads * d8] in octets; y [n, heads * d8]
// Grid     x: runs of 8 octets of a head, y: 32 queries. A subgroup of 8 lanes takes 32 queries by 8 octets; a lane sums for its octet, and reads
//          the scores of 4 of the queries for all
// Memory   no workgroup storage; lanes share what they read, see conv2d_3x3_broadcast
// Numerics f32 sums in the order of the keys, whatever the grid: the bits of attention_values_lanes
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, n: u32, m: u32, heads: u32, d8: u32, pitch: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> s: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> v: array<X8>;
@group(0) @binding(3) var<storage, read_write> y: array<Y4>;

fn put(i: u32, head: u32, quad: u32, sum: vec4<f32>) {
    if i >= p.n { return; }
    let norm = s[(i * p.heads + head) * p.pitch + p.pitch - 1u - p.b0.x].x;
    y[i * p.heads * p.d8 * 2u + quad - p.b0.z] = y_put(sum * norm);
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let g = wid + p.wg.xyz;
    let pitch = p.heads * p.d8;
    let tiles = (p.d8 + 7u) / 8u;
    let head = g.x / tiles;
    let inside = g.x % tiles * 8u + lane;
    let octet = head * p.d8 + min(inside, p.d8 - 1u);
    let i0 = g.y * 32u;
    let vb = octet - u32(i32(p.b0.y) / 2);
    let r0 = (min(i0 + 0u + lane, p.n - 1u) * p.heads + head) * p.pitch - p.b0.x;
    let r1 = (min(i0 + 8u + lane, p.n - 1u) * p.heads + head) * p.pitch - p.b0.x;
    let r2 = (min(i0 + 16u + lane, p.n - 1u) * p.heads + head) * p.pitch - p.b0.x;
    let r3 = (min(i0 + 24u + lane, p.n - 1u) * p.heads + head) * p.pitch - p.b0.x;
    var a00 = vec4<f32>(); var a01 = vec4<f32>(); var a02 = vec4<f32>(); var a03 = vec4<f32>();
    var a04 = vec4<f32>(); var a05 = vec4<f32>(); var a06 = vec4<f32>(); var a07 = vec4<f32>();
    var a10 = vec4<f32>(); var a11 = vec4<f32>(); var a12 = vec4<f32>(); var a13 = vec4<f32>();
    var a14 = vec4<f32>(); var a15 = vec4<f32>(); var a16 = vec4<f32>(); var a17 = vec4<f32>();
    var a20 = vec4<f32>(); var a21 = vec4<f32>(); var a22 = vec4<f32>(); var a23 = vec4<f32>();
    var a24 = vec4<f32>(); var a25 = vec4<f32>(); var a26 = vec4<f32>(); var a27 = vec4<f32>();
    var a30 = vec4<f32>(); var a31 = vec4<f32>(); var a32 = vec4<f32>(); var a33 = vec4<f32>();
    var a34 = vec4<f32>(); var a35 = vec4<f32>(); var a36 = vec4<f32>(); var a37 = vec4<f32>();
    var b00 = vec4<f32>(); var b01 = vec4<f32>(); var b02 = vec4<f32>(); var b03 = vec4<f32>();
    var b04 = vec4<f32>(); var b05 = vec4<f32>(); var b06 = vec4<f32>(); var b07 = vec4<f32>();
    var b10 = vec4<f32>(); var b11 = vec4<f32>(); var b12 = vec4<f32>(); var b13 = vec4<f32>();
    var b14 = vec4<f32>(); var b15 = vec4<f32>(); var b16 = vec4<f32>(); var b17 = vec4<f32>();
    var b20 = vec4<f32>(); var b21 = vec4<f32>(); var b22 = vec4<f32>(); var b23 = vec4<f32>();
    var b24 = vec4<f32>(); var b25 = vec4<f32>(); var b26 = vec4<f32>(); var b27 = vec4<f32>();
    var b30 = vec4<f32>(); var b31 = vec4<f32>(); var b32 = vec4<f32>(); var b33 = vec4<f32>();
    var b34 = vec4<f32>(); var b35 = vec4<f32>(); var b36 = vec4<f32>(); var b37 = vec4<f32>();
    for (var t = 0u; t < p.pitch - 1u; t += 1u) {
        let w0 = v[min(t * 4u + 0u, p.m - 1u) * pitch + vb];
        let w1 = v[min(t * 4u + 1u, p.m - 1u) * pitch + vb];
        let w2 = v[min(t * 4u + 2u, p.m - 1u) * pitch + vb];
        let w3 = v[min(t * 4u + 3u, p.m - 1u) * pitch + vb];
        let u0 = x_lo(w0); let u1 = x_lo(w1); let u2 = x_lo(w2); let u3 = x_lo(w3);
        let t0 = x_hi(w0); let t1 = x_hi(w1); let t2 = x_hi(w2); let t3 = x_hi(w3);
        {
            let e = s[r0 + t];
            { let s = subgroupBroadcast(e, 0u); a00 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b00 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 1u); a01 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b01 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 2u); a02 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b02 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 3u); a03 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b03 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 4u); a04 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b04 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 5u); a05 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b05 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 6u); a06 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b06 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 7u); a07 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b07 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
        }
        {
            let e = s[r1 + t];
            { let s = subgroupBroadcast(e, 0u); a10 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b10 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 1u); a11 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b11 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 2u); a12 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b12 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 3u); a13 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b13 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 4u); a14 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b14 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 5u); a15 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b15 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 6u); a16 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b16 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 7u); a17 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b17 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
        }
        {
            let e = s[r2 + t];
            { let s = subgroupBroadcast(e, 0u); a20 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b20 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 1u); a21 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b21 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 2u); a22 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b22 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 3u); a23 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b23 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 4u); a24 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b24 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 5u); a25 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b25 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 6u); a26 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b26 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 7u); a27 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b27 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
        }
        {
            let e = s[r3 + t];
            { let s = subgroupBroadcast(e, 0u); a30 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b30 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 1u); a31 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b31 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 2u); a32 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b32 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 3u); a33 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b33 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 4u); a34 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b34 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 5u); a35 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b35 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 6u); a36 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b36 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(e, 7u); a37 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b37 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
        }
    }
    if inside >= p.d8 { return; }
    for (var c = 0u; c < 8u; c += 1u) {
        let a0 = pick(c, a00, a01, a02, a03, a04, a05, a06, a07); let b0 = pick(c, b00, b01, b02, b03, b04, b05, b06, b07);
        let a1 = pick(c, a10, a11, a12, a13, a14, a15, a16, a17); let b1 = pick(c, b10, b11, b12, b13, b14, b15, b16, b17);
        let a2 = pick(c, a20, a21, a22, a23, a24, a25, a26, a27); let b2 = pick(c, b20, b21, b22, b23, b24, b25, b26, b27);
        let a3 = pick(c, a30, a31, a32, a33, a34, a35, a36, a37); let b3 = pick(c, b30, b31, b32, b33, b34, b35, b36, b37);
        for (var n = 0u; n < 8u; n += 1u) {
            put(i0 + n / 2u * 8u + c, head, octet * 2u + n % 2u, pick(n, a0, b0, a1, b1, a2, b2, a3, b3));
        }
    }
}
