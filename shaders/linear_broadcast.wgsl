// linear_broadcast: y[m, o] = act(bias[o] + sum_k w[o, k] * x[m, k] + residual[m, o]); a 1x1 convolution is the same on pixels
// Source   torch.nn.Linear, torch.nn.Conv2d with kernel 1
// Layout   as linear_lanes, at least 8 output quads
// Grid     x: runs of 8 pairs of output quads, y: runs of 32 rows. A subgroup of 8 lanes takes 32 rows by 8 pairs; a lane sums for its pair, and
//          reads 4 of the rows for all
// Memory   no workgroup storage; lanes share what they read, see conv2d_3x3_broadcast
// Numerics f32 sums from the bias on in the order of k, whatever the grid: the bits of linear_lanes
override RESIDUAL: u32 = 0u;
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, rows: u32, k4: u32, n4: u32, act: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read> wt: array<W8>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> residual: array<Y4>;
@group(0) @binding(5) var<storage, read_write> y: array<Y4>;

fn put(row: u32, quad: u32, v: vec4<f32>) {
    if row >= p.rows || quad >= p.n4 { return; }
    let at = row * p.n4 + quad;
    var r = v;
    if RESIDUAL == 1u { r += y_get(residual[at - p.b0.w]); }
    y[at - p.b1.x] = y_put(activate(r, p.act));
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let g = wid + p.wg.xyz;
    let quad = (g.x * 8u + lane) * 2u;
    let m0 = g.y * 32u;
    let last = p.rows - 1u;
    let r0 = min(m0 + 0u + lane, last) * p.k4 - p.b0.x;
    let r1 = min(m0 + 8u + lane, last) * p.k4 - p.b0.x;
    let r2 = min(m0 + 16u + lane, last) * p.k4 - p.b0.x;
    let r3 = min(m0 + 24u + lane, last) * p.k4 - p.b0.x;
    let bias_a = bias[min(quad, p.n4 - 1u) - p.b0.z];
    let bias_b = bias[min(quad + 1u, p.n4 - 1u) - p.b0.z];
    var a00 = bias_a; var a01 = bias_a; var a02 = bias_a; var a03 = bias_a; var a04 = bias_a; var a05 = bias_a; var a06 = bias_a; var a07 = bias_a;
    var a10 = bias_a; var a11 = bias_a; var a12 = bias_a; var a13 = bias_a; var a14 = bias_a; var a15 = bias_a; var a16 = bias_a; var a17 = bias_a;
    var a20 = bias_a; var a21 = bias_a; var a22 = bias_a; var a23 = bias_a; var a24 = bias_a; var a25 = bias_a; var a26 = bias_a; var a27 = bias_a;
    var a30 = bias_a; var a31 = bias_a; var a32 = bias_a; var a33 = bias_a; var a34 = bias_a; var a35 = bias_a; var a36 = bias_a; var a37 = bias_a;
    var b00 = bias_b; var b01 = bias_b; var b02 = bias_b; var b03 = bias_b; var b04 = bias_b; var b05 = bias_b; var b06 = bias_b; var b07 = bias_b;
    var b10 = bias_b; var b11 = bias_b; var b12 = bias_b; var b13 = bias_b; var b14 = bias_b; var b15 = bias_b; var b16 = bias_b; var b17 = bias_b;
    var b20 = bias_b; var b21 = bias_b; var b22 = bias_b; var b23 = bias_b; var b24 = bias_b; var b25 = bias_b; var b26 = bias_b; var b27 = bias_b;
    var b30 = bias_b; var b31 = bias_b; var b32 = bias_b; var b33 = bias_b; var b34 = bias_b; var b35 = bias_b; var b36 = bias_b; var b37 = bias_b;
    // A lane beyond the last pair reads that pair again.
    let source = min(quad, (p.n4 - 1u) / 2u * 2u);
    var wi = (source / 8u * p.k4 * 32u + source % 8u - p.b0.y) / 2u;
    for (var k = 0u; k < p.k4; k += 1u) {
        let w0 = wt[wi]; let w1 = wt[wi + 4u]; let w2 = wt[wi + 8u]; let w3 = wt[wi + 12u];
        let u0 = w_lo(w0); let u1 = w_lo(w1); let u2 = w_lo(w2); let u3 = w_lo(w3);
        let t0 = w_hi(w0); let t1 = w_hi(w1); let t2 = w_hi(w2); let t3 = w_hi(w3);
        {
            let v = x_get(x[r0 + k]);
            { let s = subgroupBroadcast(v, 0u); a00 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b00 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 1u); a01 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b01 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 2u); a02 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b02 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 3u); a03 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b03 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 4u); a04 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b04 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 5u); a05 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b05 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 6u); a06 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b06 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 7u); a07 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b07 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
        }
        {
            let v = x_get(x[r1 + k]);
            { let s = subgroupBroadcast(v, 0u); a10 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b10 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 1u); a11 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b11 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 2u); a12 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b12 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 3u); a13 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b13 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 4u); a14 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b14 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 5u); a15 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b15 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 6u); a16 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b16 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 7u); a17 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b17 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
        }
        {
            let v = x_get(x[r2 + k]);
            { let s = subgroupBroadcast(v, 0u); a20 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b20 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 1u); a21 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b21 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 2u); a22 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b22 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 3u); a23 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b23 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 4u); a24 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b24 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 5u); a25 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b25 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 6u); a26 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b26 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 7u); a27 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b27 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
        }
        {
            let v = x_get(x[r3 + k]);
            { let s = subgroupBroadcast(v, 0u); a30 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b30 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 1u); a31 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b31 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 2u); a32 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b32 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 3u); a33 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b33 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 4u); a34 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b34 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 5u); a35 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b35 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 6u); a36 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b36 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            { let s = subgroupBroadcast(v, 7u); a37 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b37 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
        }
        wi += 16u;
    }
    for (var c = 0u; c < 8u; c += 1u) {
        let a0 = pick(c, a00, a01, a02, a03, a04, a05, a06, a07); let b0 = pick(c, b00, b01, b02, b03, b04, b05, b06, b07);
        let a1 = pick(c, a10, a11, a12, a13, a14, a15, a16, a17); let b1 = pick(c, b10, b11, b12, b13, b14, b15, b16, b17);
        let a2 = pick(c, a20, a21, a22, a23, a24, a25, a26, a27); let b2 = pick(c, b20, b21, b22, b23, b24, b25, b26, b27);
        let a3 = pick(c, a30, a31, a32, a33, a34, a35, a36, a37); let b3 = pick(c, b30, b31, b32, b33, b34, b35, b36, b37);
        for (var n = 0u; n < 8u; n += 1u) {
            put(m0 + n / 2u * 8u + c, quad + n % 2u, pick(n, a0, b0, a1, b1, a2, b2, a3, b3));
        }
    }
}
