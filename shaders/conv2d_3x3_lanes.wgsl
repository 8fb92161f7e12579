// conv2d_3x3_lanes: y[i, j, o] = act(bias[o] + sum_{dy, dx, c} w[o, c, dy, dx] * x[i + dy - 1, j + dx - 1, c] + residual[i, j, o])
// Source   torch.nn.Conv2d, kernel 3, stride 1, padding 1 (zero)
// Layout   x [h, w, cin4], y [oh, ow, cout4], residual [.., rw, cout4], bias [cout4];
//          weights [cout4 / LC][3 dy][cin4][3 dx][4 c][LC] along the output channels
// Window   y(0, 0) sits at x(top, left) and at residual(rtop, rleft); what lies outside x is zero, so x is the whole plane or
//          reaches a pixel beyond y wherever the plane goes on
// Reads    weights by one of common/taps_alone.wgsl and common/taps_together.wgsl
// Grid     x: runs of 8 * LP pixels, y: rows, z: tiles of LC output quads
// Memory   no workgroup storage: made for software rasterisers, where lanes along output channels share every
//          activation and read weights side by side
// Numerics f32 sums in the order dy, c-quad, dx, c, whatever the grid
override LC: u32 = 8u;
override LP: u32 = 1u;
override RESIDUAL: u32 = 0u;
struct Params {
    wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>,
    h: u32, w: u32, cin4: u32, cout4: u32, act: u32,
    ow: u32, top: u32, left: u32, rw: u32, rtop: u32, rleft: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read> wt: array<W4>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> residual: array<Y4>;
@group(0) @binding(5) var<storage, read_write> y: array<Y4>;

// The weights of four input channels, for three neighbours of a row.
struct Taps {
    a0: vec4<f32>, a1: vec4<f32>, a2: vec4<f32>, a3: vec4<f32>,
    b0: vec4<f32>, b1: vec4<f32>, b2: vec4<f32>, b3: vec4<f32>,
    c0: vec4<f32>, c1: vec4<f32>, c2: vec4<f32>, c3: vec4<f32>,
}

fn put(i: u32, j: u32, quad: u32, v: vec4<f32>) {
    if j >= p.ow { return; }
    var r = v;
    if RESIDUAL == 1u { r += y_get(residual[((i + p.rtop) * p.rw + j + p.rleft) * p.cout4 + quad - p.b0.w]); }
    y[(i * p.ow + j) * p.cout4 + quad - p.b1.x] = y_put(activate(r, p.act));
}

@compute @workgroup_size(LC * LP)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = wid + p.wg.xyz;
    let quad = g.z * LC + lane % LC;
    let j0 = (g.x * LP + lane / LC) * 8u;
    let i = g.y;
    // Columns f - 1 .. f + 8 of x, clamped; m is 0 where the column lies outside.
    let last = p.w - 1u;
    let f = j0 + p.left;
    let c0 = select(min(f - 1u, last), 0u, f == 0u); let m0 = select(1.0, 0.0, f == 0u || f > p.w);
    let c1 = min(f, last); let m1 = select(0.0, 1.0, f <= last);
    let c2 = min(f + 1u, last); let m2 = select(0.0, 1.0, f + 1u <= last);
    let c3 = min(f + 2u, last); let m3 = select(0.0, 1.0, f + 2u <= last);
    let c4 = min(f + 3u, last); let m4 = select(0.0, 1.0, f + 3u <= last);
    let c5 = min(f + 4u, last); let m5 = select(0.0, 1.0, f + 4u <= last);
    let c6 = min(f + 5u, last); let m6 = select(0.0, 1.0, f + 5u <= last);
    let c7 = min(f + 6u, last); let m7 = select(0.0, 1.0, f + 6u <= last);
    let c8 = min(f + 7u, last); let m8 = select(0.0, 1.0, f + 7u <= last);
    let c9 = min(f + 8u, last); let m9 = select(0.0, 1.0, f + 8u <= last);
    var a0 = vec4<f32>(); var a1 = vec4<f32>(); var a2 = vec4<f32>(); var a3 = vec4<f32>();
    var a4 = vec4<f32>(); var a5 = vec4<f32>(); var a6 = vec4<f32>(); var a7 = vec4<f32>();
    for (var dy = 0u; dy < 3u; dy += 1u) {
        let iy = i + p.top + dy - 1u;                    // row -1 wraps to 2^32 - 1
        if iy >= p.h { continue; }
        let row = iy * p.w;
        var wi = (g.z * 3u + dy) * p.cin4 * 12u * LC + lane % LC - p.b0.y;
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
            let x9 = x_get(x[(row + c9) * p.cin4 + b]) * m9;
            let taps = taps_at(wi, lane);
            {
                let w0 = taps.a0; let w1 = taps.a1; let w2 = taps.a2; let w3 = taps.a3;
                a0 += x0.x * w0 + x0.y * w1 + x0.z * w2 + x0.w * w3;
                a1 += x1.x * w0 + x1.y * w1 + x1.z * w2 + x1.w * w3;
                a2 += x2.x * w0 + x2.y * w1 + x2.z * w2 + x2.w * w3;
                a3 += x3.x * w0 + x3.y * w1 + x3.z * w2 + x3.w * w3;
                a4 += x4.x * w0 + x4.y * w1 + x4.z * w2 + x4.w * w3;
                a5 += x5.x * w0 + x5.y * w1 + x5.z * w2 + x5.w * w3;
                a6 += x6.x * w0 + x6.y * w1 + x6.z * w2 + x6.w * w3;
                a7 += x7.x * w0 + x7.y * w1 + x7.z * w2 + x7.w * w3;
            }
            {
                let w0 = taps.b0; let w1 = taps.b1; let w2 = taps.b2; let w3 = taps.b3;
                a0 += x1.x * w0 + x1.y * w1 + x1.z * w2 + x1.w * w3;
                a1 += x2.x * w0 + x2.y * w1 + x2.z * w2 + x2.w * w3;
                a2 += x3.x * w0 + x3.y * w1 + x3.z * w2 + x3.w * w3;
                a3 += x4.x * w0 + x4.y * w1 + x4.z * w2 + x4.w * w3;
                a4 += x5.x * w0 + x5.y * w1 + x5.z * w2 + x5.w * w3;
                a5 += x6.x * w0 + x6.y * w1 + x6.z * w2 + x6.w * w3;
                a6 += x7.x * w0 + x7.y * w1 + x7.z * w2 + x7.w * w3;
                a7 += x8.x * w0 + x8.y * w1 + x8.z * w2 + x8.w * w3;
            }
            {
                let w0 = taps.c0; let w1 = taps.c1; let w2 = taps.c2; let w3 = taps.c3;
                a0 += x2.x * w0 + x2.y * w1 + x2.z * w2 + x2.w * w3;
                a1 += x3.x * w0 + x3.y * w1 + x3.z * w2 + x3.w * w3;
                a2 += x4.x * w0 + x4.y * w1 + x4.z * w2 + x4.w * w3;
                a3 += x5.x * w0 + x5.y * w1 + x5.z * w2 + x5.w * w3;
                a4 += x6.x * w0 + x6.y * w1 + x6.z * w2 + x6.w * w3;
                a5 += x7.x * w0 + x7.y * w1 + x7.z * w2 + x7.w * w3;
                a6 += x8.x * w0 + x8.y * w1 + x8.z * w2 + x8.w * w3;
                a7 += x9.x * w0 + x9.y * w1 + x9.z * w2 + x9.w * w3;
            }
            wi += 12u * LC;
        }
    }
    if quad >= p.cout4 { return; }
    // Once, not for every sum: a load has its price.
    let bias_a = bias[quad - p.b0.z];
    put(i, j0, quad, a0 + bias_a); put(i, j0 + 1u, quad, a1 + bias_a); put(i, j0 + 2u, quad, a2 + bias_a); put(i, j0 + 3u, quad, a3 + bias_a);
    put(i, j0 + 4u, quad, a4 + bias_a); put(i, j0 + 5u, quad, a5 + bias_a); put(i, j0 + 6u, quad, a6 + bias_a); put(i, j0 + 7u, quad, a7 + bias_a);
}
