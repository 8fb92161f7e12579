// attention_scores_lanes: s[i, h, j] = scale * q[i, h] . k[j, h], first of the three passes of attention on software rasterisers
// Layout   q [n, heads * d8], k [m, heads * d8] in octets, a head is a run of d8; s [n, heads, pitch] in quads of keys, f32,
//          pitch = ceil(m / 4) + 1
// Grid     x: 32 keys, y: 8 queries, z: heads; 8 invocations of 4 keys by 8 queries
// Memory   no workgroup storage, see linear_lanes
// Numerics f32 sums over the channels in an order of their own, whatever the grid
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
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = wid + p.wg.xyz;
    let pitch = p.heads * p.d8;
    let i = g.y * 8u;
    let quad = g.x * 8u + lane;
    // Bases count quads and are even; they may be negative.
    let qb = g.z * p.d8 - u32(i32(p.b0.x) / 2);
    let kb = g.z * p.d8 - u32(i32(p.b0.y) / 2);
    let q0 = min(i + 0u, p.n - 1u) * pitch + qb;
    let q1 = min(i + 1u, p.n - 1u) * pitch + qb;
    let q2 = min(i + 2u, p.n - 1u) * pitch + qb;
    let q3 = min(i + 3u, p.n - 1u) * pitch + qb;
    let q4 = min(i + 4u, p.n - 1u) * pitch + qb;
    let q5 = min(i + 5u, p.n - 1u) * pitch + qb;
    let q6 = min(i + 6u, p.n - 1u) * pitch + qb;
    let q7 = min(i + 7u, p.n - 1u) * pitch + qb;
    let k0 = min(quad * 4u + 0u, p.m - 1u) * pitch + kb;
    let k1 = min(quad * 4u + 1u, p.m - 1u) * pitch + kb;
    let k2 = min(quad * 4u + 2u, p.m - 1u) * pitch + kb;
    let k3 = min(quad * 4u + 3u, p.m - 1u) * pitch + kb;
    var s0 = vec4<f32>(); var s1 = vec4<f32>(); var s2 = vec4<f32>(); var s3 = vec4<f32>(); var s4 = vec4<f32>(); var s5 = vec4<f32>(); var s6 = vec4<f32>(); var s7 = vec4<f32>();
    for (var d = 0u; d < p.d8; d += 1u) {
        let x0 = q[q0 + d];
        let x1 = q[q1 + d];
        let x2 = q[q2 + d];
        let x3 = q[q3 + d];
        let x4 = q[q4 + d];
        let x5 = q[q5 + d];
        let x6 = q[q6 + d];
        let x7 = q[q7 + d];
        let w0 = k[k0 + d];
        let w1 = k[k1 + d];
        let w2 = k[k2 + d];
        let w3 = k[k3 + d];
        {
            let u0 = x_lo(w0); let u1 = x_lo(w1); let u2 = x_lo(w2); let u3 = x_lo(w3);
            let v0 = x_lo(x0); s0 += vec4(dot4(v0, u0), dot4(v0, u1), dot4(v0, u2), dot4(v0, u3));
            let v1 = x_lo(x1); s1 += vec4(dot4(v1, u0), dot4(v1, u1), dot4(v1, u2), dot4(v1, u3));
            let v2 = x_lo(x2); s2 += vec4(dot4(v2, u0), dot4(v2, u1), dot4(v2, u2), dot4(v2, u3));
            let v3 = x_lo(x3); s3 += vec4(dot4(v3, u0), dot4(v3, u1), dot4(v3, u2), dot4(v3, u3));
            let v4 = x_lo(x4); s4 += vec4(dot4(v4, u0), dot4(v4, u1), dot4(v4, u2), dot4(v4, u3));
            let v5 = x_lo(x5); s5 += vec4(dot4(v5, u0), dot4(v5, u1), dot4(v5, u2), dot4(v5, u3));
            let v6 = x_lo(x6); s6 += vec4(dot4(v6, u0), dot4(v6, u1), dot4(v6, u2), dot4(v6, u3));
            let v7 = x_lo(x7); s7 += vec4(dot4(v7, u0), dot4(v7, u1), dot4(v7, u2), dot4(v7, u3));
        }
        {
            let u0 = x_hi(w0); let u1 = x_hi(w1); let u2 = x_hi(w2); let u3 = x_hi(w3);
            let v0 = x_hi(x0); s0 += vec4(dot4(v0, u0), dot4(v0, u1), dot4(v0, u2), dot4(v0, u3));
            let v1 = x_hi(x1); s1 += vec4(dot4(v1, u0), dot4(v1, u1), dot4(v1, u2), dot4(v1, u3));
            let v2 = x_hi(x2); s2 += vec4(dot4(v2, u0), dot4(v2, u1), dot4(v2, u2), dot4(v2, u3));
            let v3 = x_hi(x3); s3 += vec4(dot4(v3, u0), dot4(v3, u1), dot4(v3, u2), dot4(v3, u3));
            let v4 = x_hi(x4); s4 += vec4(dot4(v4, u0), dot4(v4, u1), dot4(v4, u2), dot4(v4, u3));
            let v5 = x_hi(x5); s5 += vec4(dot4(v5, u0), dot4(v5, u1), dot4(v5, u2), dot4(v5, u3));
            let v6 = x_hi(x6); s6 += vec4(dot4(v6, u0), dot4(v6, u1), dot4(v6, u2), dot4(v6, u3));
            let v7 = x_hi(x7); s7 += vec4(dot4(v7, u0), dot4(v7, u1), dot4(v7, u2), dot4(v7, u3));
        }
    }
    put(i + 0u, g.z, quad, s0); put(i + 1u, g.z, quad, s1); put(i + 2u, g.z, quad, s2); put(i + 3u, g.z, quad, s3);
    put(i + 4u, g.z, quad, s4); put(i + 5u, g.z, quad, s5); put(i + 6u, g.z, quad, s6); put(i + 7u, g.z, quad, s7);
}
