// conv2d_3x3_broadcast: y[i, j, o] = act(bias[o] + sum_{dy, dx, c} w[o, c, dy, dx] * x[S i + dy, S j + dx, c] + residual[i, j, o])
// Source   torch.nn.Conv2d, kernel 3, any stride and zero padding
// Layout   as conv2d_3x3_pairs, at least 8 output quads
// Window   y(0, 0) reads x from (top, left) on, which are negative (wrapped) by the padding; what lies outside x is zero, so x is the whole plane
//          or reaches as far as y reads
// Grid     x: runs of 8 pixels, y: runs of 4 rows, z: runs of 8 pairs of output quads. A subgroup of 8 lanes takes 4 x 8 pixels by 8 pairs; a lane
//          sums for its pair, and reads the pixels of its column for all
// Memory   no workgroup storage: made for software rasterisers. Up to Mesa 25 these make a load of one load for each lane, even where all
//          lanes read the same: 50 to 170 cycles for a quad. So the 8 lanes read 8 pixels at once, and subgroupBroadcast, one shuffle a
//          component, hands them round; what is left are the weights, 16 words a lane, which serve 32 pixels
// Numerics f32 sums in the order dy, c-quad, dx, c, whatever the grid: the bits of conv2d_3x3_lanes, _pairs and conv2d_direct
override RESIDUAL: u32 = 0u;
struct Params {
    wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>,
    h: u32, w: u32, cin4: u32, cout4: u32, act: u32,
    oh: u32, ow: u32, top: u32, left: u32, rw: u32, rtop: u32, rleft: u32, stride: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read> wt: array<W8>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> residual: array<Y4>;
@group(0) @binding(5) var<storage, read_write> y: array<Y4>;

fn put(i: u32, j: u32, quad: u32, v: vec4<f32>) {
    if i >= p.oh || j >= p.ow || quad >= p.cout4 { return; }
    var r = v;
    if RESIDUAL == 1u { r += y_get(residual[((i + p.rtop) * p.rw + j + p.rleft) * p.cout4 + quad - p.b0.w]); }
    y[(i * p.ow + j) * p.cout4 + quad - p.b1.x] = y_put(activate(r, p.act));
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let g = wid + p.wg.xyz;
    let quad = (g.z * 8u + lane) * 2u;
    let j0 = g.x * 8u;
    let i0 = g.y * 4u;
    // A lane beyond the last pair reads that pair again.
    let source = min(quad, (p.cout4 - 1u) / 2u * 2u);
    let wb = source / 8u * 9u * p.cin4 * 32u + source % 8u - p.b0.y;
    let column = (j0 + lane) * p.stride + p.left;        // of x, for dx = 0; row and column -1 wrap to 2^32 - 1
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
    for (var dy = 0u; dy < 3u; dy += 1u) {
        let y0 = (i0 + 0u) * p.stride + p.top + dy; let r0 = inside(y0, p.h) * p.w; let n0 = select(0.0, 1.0, y0 < p.h);
        let y1 = (i0 + 1u) * p.stride + p.top + dy; let r1 = inside(y1, p.h) * p.w; let n1 = select(0.0, 1.0, y1 < p.h);
        let y2 = (i0 + 2u) * p.stride + p.top + dy; let r2 = inside(y2, p.h) * p.w; let n2 = select(0.0, 1.0, y2 < p.h);
        let y3 = (i0 + 3u) * p.stride + p.top + dy; let r3 = inside(y3, p.h) * p.w; let n3 = select(0.0, 1.0, y3 < p.h);
        var wi = (wb + dy * p.cin4 * 96u) / 2u;
        for (var k = 0u; k < p.cin4; k += 1u) {
            let b = k - p.b0.x;
            for (var dx = 0u; dx < 3u; dx += 1u) {
                // What lies outside of x is multiplied with 0.
                let within = column + dx < p.w;
                let c = inside(column + dx, p.w);
                let m = select(0.0, 1.0, within);
                let w0 = wt[wi]; let w1 = wt[wi + 4u]; let w2 = wt[wi + 8u]; let w3 = wt[wi + 12u];
                let u0 = w_lo(w0); let u1 = w_lo(w1); let u2 = w_lo(w2); let u3 = w_lo(w3);
                let t0 = w_hi(w0); let t1 = w_hi(w1); let t2 = w_hi(w2); let t3 = w_hi(w3);
                {
                    let v = x_get(x[(r0 + c) * p.cin4 + b]) * (m * n0);
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
                    let v = x_get(x[(r1 + c) * p.cin4 + b]) * (m * n1);
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
                    let v = x_get(x[(r2 + c) * p.cin4 + b]) * (m * n2);
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
                    let v = x_get(x[(r3 + c) * p.cin4 + b]) * (m * n3);
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
        }
    }
    let bias_a = bias[min(quad, p.cout4 - 1u) - p.b0.z];
    let bias_b = bias[min(quad + 1u, p.cout4 - 1u) - p.b0.z];
    for (var c = 0u; c < 8u; c += 1u) {
        let a0 = pick(c, a00, a01, a02, a03, a04, a05, a06, a07); let b0 = pick(c, b00, b01, b02, b03, b04, b05, b06, b07);
        let a1 = pick(c, a10, a11, a12, a13, a14, a15, a16, a17); let b1 = pick(c, b10, b11, b12, b13, b14, b15, b16, b17);
        let a2 = pick(c, a20, a21, a22, a23, a24, a25, a26, a27); let b2 = pick(c, b20, b21, b22, b23, b24, b25, b26, b27);
        let a3 = pick(c, a30, a31, a32, a33, a34, a35, a36, a37); let b3 = pick(c, b30, b31, b32, b33, b34, b35, b36, b37);
        for (var n = 0u; n < 8u; n += 1u) {
            put(i0 + n / 2u, j0 + c, quad + n % 2u, pick(n, a0, b0, a1, b1, a2, b2, a3, b3) + select(bias_a, bias_b, n % 2u == 1u));
        }
    }
}
