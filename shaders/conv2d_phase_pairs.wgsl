// conv2d_phase_pairs: nearest-2x upsampling followed by a 3x3 convolution, as four 2x2 convolutions of the small image
// y[2i + r, 2j + q, o] = act(bias[o] + sum_{d, e, c} w_rq[o, c, d, e] * x[i + d - 1 + r, j + e - 1 + q, c])
// Source   as conv2d_phase_lanes, twice the output channels an invocation, for f16 weights
// Layout   x [h, w, cin4], y [2 sh, 2 sw, cout4], bias [cout4];
//          weights [4 phases r * 2 + q][cout4 / LC][2 d][cin4][2 e][4 c][LC], LC even
// Window   y(0, 0) belongs to the small pixel x(top, left); what lies outside x is zero, see conv2d_3x3_lanes
// Grid     x: runs of 8 * PL small pixels, y: small rows, z: phase * tiles + tile of CL pairs of output quads
// Memory   no workgroup storage; a pair of quads of packed f16 is one load, see linear_lanes
// Numerics f32 sums in the order d, c-quad, e, c, whatever the grid
override LC: u32 = 8u;
override CL: u32 = 8u;
override PL: u32 = 1u;
struct Params {
    wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>,
    h: u32, w: u32, cin4: u32, cout4: u32, tiles: u32, act: u32,
    sw: u32, top: u32, left: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read> wt: array<W8>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<Y4>;

fn put(pixel: u32, j: u32, quad: u32, v: vec4<f32>) {
    if j >= p.sw || quad >= p.cout4 { return; }
    y[pixel * p.cout4 + quad - p.b0.w] = y_put(activate(v, p.act));
}

@compute @workgroup_size(CL * PL)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = wid + p.wg.xyz;
    let phase = g.z / p.tiles;
    let r = phase / 2u;
    let q = phase % 2u;
    let quad = (g.z % p.tiles * CL + lane % CL) * 2u;
    let j0 = (g.x * PL + lane / CL) * 8u;
    let i = g.y;
    // A lane beyond the last pair reads that pair again.
    let source = min(quad, (p.cout4 - 1u) / 2u * 2u);
    let tile = phase * ((p.cout4 + LC - 1u) / LC) + source / LC;
    // Columns f - 1 .. f + 7 of x, clamped; m is 0 where the column lies outside.
    let last = p.w - 1u;
    let f = j0 + p.left + q;                             // column n is f - 1 + n
    let c0 = select(min(f - 1u, last), 0u, f == 0u); let m0 = select(1.0, 0.0, f == 0u || f > p.w);
    let c1 = min(f, last); let m1 = select(0.0, 1.0, f <= last);
    let c2 = min(f + 1u, last); let m2 = select(0.0, 1.0, f + 1u <= last);
    let c3 = min(f + 2u, last); let m3 = select(0.0, 1.0, f + 2u <= last);
    let c4 = min(f + 3u, last); let m4 = select(0.0, 1.0, f + 3u <= last);
    let c5 = min(f + 4u, last); let m5 = select(0.0, 1.0, f + 4u <= last);
    let c6 = min(f + 5u, last); let m6 = select(0.0, 1.0, f + 5u <= last);
    let c7 = min(f + 6u, last); let m7 = select(0.0, 1.0, f + 6u <= last);
    let c8 = min(f + 7u, last); let m8 = select(0.0, 1.0, f + 7u <= last);
    var a0 = vec4<f32>(); var a1 = vec4<f32>(); var a2 = vec4<f32>(); var a3 = vec4<f32>();
    var a4 = vec4<f32>(); var a5 = vec4<f32>(); var a6 = vec4<f32>(); var a7 = vec4<f32>();
    var b0 = vec4<f32>(); var b1 = vec4<f32>(); var b2 = vec4<f32>(); var b3 = vec4<f32>();
    var b4 = vec4<f32>(); var b5 = vec4<f32>(); var b6 = vec4<f32>(); var b7 = vec4<f32>();
    for (var d = 0u; d < 2u; d += 1u) {
        let iy = i + p.top + d + r - 1u;                 // row -1 wraps to 2^32 - 1
        if iy >= p.h { continue; }
        let row = iy * p.w;
        var wi = ((tile * 2u + d) * p.cin4 * 8u * LC + source % LC - p.b0.y) / 2u;
        for (var k = 0u; k < p.cin4; k += 1u) {
            let b = k - p.b0.x;
            let x0 = x_get(x[(row + c0) * p.cin4 + b]) * m0;
            let x1 = x_get(x[(row + c1) * p.cin4 + b]) * m1;
            let x2 = x_get(x[(row + c2) * p.cin4 + b]) * m2;
            let x3 = x_get(x[(row + c3) * p.cin4 + b]) * m3;
            let x4 = x_get(x[(row + c4) * p.cin4 + b]) * m4;
            let x5 = x_get(x[(row + c5) * p.cin4 + b]) * m5;
            let x6 = x_get(x[(row + c6) * p.cin4 + b]) * m6;
            let x7 = x_get(x[(row + c7) * p.cin4 + b]) * m7;
            let x8 = x_get(x[(row + c8) * p.cin4 + b]) * m8;
            {
                let w0 = wt[wi]; let w1 = wt[wi + 1u * (LC / 2u)]; let w2 = wt[wi + 2u * (LC / 2u)]; let w3 = wt[wi + 3u * (LC / 2u)];
                {
                    let u0 = w_lo(w0); let u1 = w_lo(w1); let u2 = w_lo(w2); let u3 = w_lo(w3);
                    a0 += x0.x * u0 + x0.y * u1 + x0.z * u2 + x0.w * u3;
                    a1 += x1.x * u0 + x1.y * u1 + x1.z * u2 + x1.w * u3;
                    a2 += x2.x * u0 + x2.y * u1 + x2.z * u2 + x2.w * u3;
                    a3 += x3.x * u0 + x3.y * u1 + x3.z * u2 + x3.w * u3;
                    a4 += x4.x * u0 + x4.y * u1 + x4.z * u2 + x4.w * u3;
                    a5 += x5.x * u0 + x5.y * u1 + x5.z * u2 + x5.w * u3;
                    a6 += x6.x * u0 + x6.y * u1 + x6.z * u2 + x6.w * u3;
                    a7 += x7.x * u0 + x7.y * u1 + x7.z * u2 + x7.w * u3;
                }
                {
                    let u0 = w_hi(w0); let u1 = w_hi(w1); let u2 = w_hi(w2); let u3 = w_hi(w3);
                    b0 += x0.x * u0 + x0.y * u1 + x0.z * u2 + x0.w * u3;
                    b1 += x1.x * u0 + x1.y * u1 + x1.z * u2 + x1.w * u3;
                    b2 += x2.x * u0 + x2.y * u1 + x2.z * u2 + x2.w * u3;
                    b3 += x3.x * u0 + x3.y * u1 + x3.z * u2 + x3.w * u3;
                    b4 += x4.x * u0 + x4.y * u1 + x4.z * u2 + x4.w * u3;
                    b5 += x5.x * u0 + x5.y * u1 + x5.z * u2 + x5.w * u3;
                    b6 += x6.x * u0 + x6.y * u1 + x6.z * u2 + x6.w * u3;
                    b7 += x7.x * u0 + x7.y * u1 + x7.z * u2 + x7.w * u3;
                }
            }
            {
                let w0 = wt[wi + 4u * (LC / 2u)]; let w1 = wt[wi + 5u * (LC / 2u)]; let w2 = wt[wi + 6u * (LC / 2u)]; let w3 = wt[wi + 7u * (LC / 2u)];
                {
                    let u0 = w_lo(w0); let u1 = w_lo(w1); let u2 = w_lo(w2); let u3 = w_lo(w3);
                    a0 += x1.x * u0 + x1.y * u1 + x1.z * u2 + x1.w * u3;
                    a1 += x2.x * u0 + x2.y * u1 + x2.z * u2 + x2.w * u3;
                    a2 += x3.x * u0 + x3.y * u1 + x3.z * u2 + x3.w * u3;
                    a3 += x4.x * u0 + x4.y * u1 + x4.z * u2 + x4.w * u3;
                    a4 += x5.x * u0 + x5.y * u1 + x5.z * u2 + x5.w * u3;
                    a5 += x6.x * u0 + x6.y * u1 + x6.z * u2 + x6.w * u3;
                    a6 += x7.x * u0 + x7.y * u1 + x7.z * u2 + x7.w * u3;
                    a7 += x8.x * u0 + x8.y * u1 + x8.z * u2 + x8.w * u3;
                }
                {
                    let u0 = w_hi(w0); let u1 = w_hi(w1); let u2 = w_hi(w2); let u3 = w_hi(w3);
                    b0 += x1.x * u0 + x1.y * u1 + x1.z * u2 + x1.w * u3;
                    b1 += x2.x * u0 + x2.y * u1 + x2.z * u2 + x2.w * u3;
                    b2 += x3.x * u0 + x3.y * u1 + x3.z * u2 + x3.w * u3;
                    b3 += x4.x * u0 + x4.y * u1 + x4.z * u2 + x4.w * u3;
                    b4 += x5.x * u0 + x5.y * u1 + x5.z * u2 + x5.w * u3;
                    b5 += x6.x * u0 + x6.y * u1 + x6.z * u2 + x6.w * u3;
                    b6 += x7.x * u0 + x7.y * u1 + x7.z * u2 + x7.w * u3;
                    b7 += x8.x * u0 + x8.y * u1 + x8.z * u2 + x8.w * u3;
                }
            }
            wi += 4u * LC;
        }
    }
    let at = ((2u * i + r) * p.sw + j0) * 2u + q;
    // Once, not for every sum: a load has its price.
    let bias_a = bias[min(quad, p.cout4 - 1u) - p.b0.z];
    let bias_b = bias[min(quad + 1u, p.cout4 - 1u) - p.b0.z];
    put(at, j0, quad, a0 + bias_a);
    put(at + 2u, j0 + 1u, quad, a1 + bias_a);
    put(at + 4u, j0 + 2u, quad, a2 + bias_a);
    put(at + 6u, j0 + 3u, quad, a3 + bias_a);
    put(at + 8u, j0 + 4u, quad, a4 + bias_a);
    put(at + 10u, j0 + 5u, quad, a5 + bias_a);
    put(at + 12u, j0 + 6u, quad, a6 + bias_a);
    put(at + 14u, j0 + 7u, quad, a7 + bias_a);
    put(at, j0, quad + 1u, b0 + bias_b);
    put(at + 2u, j0 + 1u, quad + 1u, b1 + bias_b);
    put(at + 4u, j0 + 2u, quad + 1u, b2 + bias_b);
    put(at + 6u, j0 + 3u, quad + 1u, b3 + bias_b);
    put(at + 8u, j0 + 4u, quad + 1u, b4 + bias_b);
    put(at + 10u, j0 + 5u, quad + 1u, b5 + bias_b);
    put(at + 12u, j0 + 6u, quad + 1u, b6 + bias_b);
    put(at + 14u, j0 + 7u, quad + 1u, b7 + bias_b);
}
