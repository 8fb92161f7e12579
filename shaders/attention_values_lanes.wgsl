// attention_values_lanes: y[i, h] = sum_j s[i, h, j] v[j, h] / sum_j s[i, h, j], last of the three passes of attention
// Layout   s [n, heads, pitch] from attention_softmax_lanes; v [m, heads * d8] in octets; y [n, heads * d8]
// Grid     x: runs of 8 octets of a head, y: 8 queries; 8 invocations of one octet by 8 queries
// Memory   no workgroup storage, see linear_lanes
// Numerics f32 sums in the order of the keys, whatever the grid
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, n: u32, m: u32, heads: u32, d8: u32, pitch: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> s: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> v: array<X8>;
@group(0) @binding(3) var<storage, read_write> y: array<Y4>;

fn put(i: u32, octet: u32, norm: f32, lo: vec4<f32>, hi: vec4<f32>) {
    if i >= p.n { return; }
    let at = (i * p.heads * p.d8 + octet) * 2u - p.b0.z;
    y[at] = y_put(lo * norm);
    y[at + 1u] = y_put(hi * norm);
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = wid + p.wg.xyz;
    let pitch = p.heads * p.d8;
    let tiles = (p.d8 + 7u) / 8u;
    let head = g.x / tiles;
    let inside = g.x % tiles * 8u + lane;
    let octet = head * p.d8 + min(inside, p.d8 - 1u);
    let i = g.y * 8u;
    let vb = octet - u32(i32(p.b0.y) / 2);
    let r0 = (min(i + 0u, p.n - 1u) * p.heads + head) * p.pitch - p.b0.x;
    let r1 = (min(i + 1u, p.n - 1u) * p.heads + head) * p.pitch - p.b0.x;
    let r2 = (min(i + 2u, p.n - 1u) * p.heads + head) * p.pitch - p.b0.x;
    let r3 = (min(i + 3u, p.n - 1u) * p.heads + head) * p.pitch - p.b0.x;
    let r4 = (min(i + 4u, p.n - 1u) * p.heads + head) * p.pitch - p.b0.x;
    let r5 = (min(i + 5u, p.n - 1u) * p.heads + head) * p.pitch - p.b0.x;
    let r6 = (min(i + 6u, p.n - 1u) * p.heads + head) * p.pitch - p.b0.x;
    let r7 = (min(i + 7u, p.n - 1u) * p.heads + head) * p.pitch - p.b0.x;
    var a0 = vec4<f32>(); var a1 = vec4<f32>(); var a2 = vec4<f32>(); var a3 = vec4<f32>();
    var a4 = vec4<f32>(); var a5 = vec4<f32>(); var a6 = vec4<f32>(); var a7 = vec4<f32>();
    var b0 = vec4<f32>(); var b1 = vec4<f32>(); var b2 = vec4<f32>(); var b3 = vec4<f32>();
    var b4 = vec4<f32>(); var b5 = vec4<f32>(); var b6 = vec4<f32>(); var b7 = vec4<f32>();
    for (var t = 0u; t < p.pitch - 1u; t += 1u) {
        let w0 = v[min(t * 4u + 0u, p.m - 1u) * pitch + vb];
        let w1 = v[min(t * 4u + 1u, p.m - 1u) * pitch + vb];
        let w2 = v[min(t * 4u + 2u, p.m - 1u) * pitch + vb];
        let w3 = v[min(t * 4u + 3u, p.m - 1u) * pitch + vb];
        let e0 = s[r0 + t];
        let e1 = s[r1 + t];
        let e2 = s[r2 + t];
        let e3 = s[r3 + t];
        let e4 = s[r4 + t];
        let e5 = s[r5 + t];
        let e6 = s[r6 + t];
        let e7 = s[r7 + t];
        {
            let u0 = x_lo(w0); let u1 = x_lo(w1); let u2 = x_lo(w2); let u3 = x_lo(w3);
            a0 += e0.x * u0 + e0.y * u1 + e0.z * u2 + e0.w * u3;
            a1 += e1.x * u0 + e1.y * u1 + e1.z * u2 + e1.w * u3;
            a2 += e2.x * u0 + e2.y * u1 + e2.z * u2 + e2.w * u3;
            a3 += e3.x * u0 + e3.y * u1 + e3.z * u2 + e3.w * u3;
            a4 += e4.x * u0 + e4.y * u1 + e4.z * u2 + e4.w * u3;
            a5 += e5.x * u0 + e5.y * u1 + e5.z * u2 + e5.w * u3;
            a6 += e6.x * u0 + e6.y * u1 + e6.z * u2 + e6.w * u3;
            a7 += e7.x * u0 + e7.y * u1 + e7.z * u2 + e7.w * u3;
        }
        {
            let u0 = x_hi(w0); let u1 = x_hi(w1); let u2 = x_hi(w2); let u3 = x_hi(w3);
            b0 += e0.x * u0 + e0.y * u1 + e0.z * u2 + e0.w * u3;
            b1 += e1.x * u0 + e1.y * u1 + e1.z * u2 + e1.w * u3;
            b2 += e2.x * u0 + e2.y * u1 + e2.z * u2 + e2.w * u3;
            b3 += e3.x * u0 + e3.y * u1 + e3.z * u2 + e3.w * u3;
            b4 += e4.x * u0 + e4.y * u1 + e4.z * u2 + e4.w * u3;
            b5 += e5.x * u0 + e5.y * u1 + e5.z * u2 + e5.w * u3;
            b6 += e6.x * u0 + e6.y * u1 + e6.z * u2 + e6.w * u3;
            b7 += e7.x * u0 + e7.y * u1 + e7.z * u2 + e7.w * u3;
        }
    }
    if inside >= p.d8 { return; }
    let norm = p.pitch - 1u;
    put(i + 0u, octet, s[r0 + norm].x, a0, b0);
    put(i + 1u, octet, s[r1 + norm].x, a1, b1);
    put(i + 2u, octet, s[r2 + norm].x, a2, b2);
    put(i + 3u, octet, s[r3 + norm].x, a3, b3);
    put(i + 4u, octet, s[r4 + norm].x, a4, b4);
    put(i + 5u, octet, s[r5 + norm].x, a5, b5);
    put(i + 6u, octet, s[r6 + norm].x, a6, b6);
    put(i + 7u, octet, s[r7 + norm].x, a7, b7);
}
