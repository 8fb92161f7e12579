// conv2d_phase_tile: nearest-2x upsampling followed by a 3x3 convolution, as four 2x2 convolutions of the small image
// y[2i + r, 2j + s, o] = act(bias[o] + sum_{d, e, c} w_rs[o, c, d, e] * x[i + d - 1 + r, j + e - 1 + s, c])
// Source   as conv2d_phase_lanes
// Layout   x [h, w, cin4], y [2 sh, 2 sw, cout4], bias [cout4];
//          weights [4 phases r * 2 + s][cout4 / LC][2 d][cin4][2 e][4 c][LC]
// Window   as conv2d_phase_lanes
// Grid     x: phase * groups + LT tiles of LC output quads, y: 8 small rows, z: 16 small columns, anchored at x(top, left);
//          128 invocations of LC small pixels in a row by LT quads
// Memory   patch of 9 x 17 pixels by 2 quads in rows of 18, 5.1 KiB, and the taps of these two quads, 8 KiB at LC = 8, LT = 2
// Registers as conv2d_3x3_tile. A row of taps takes 9 + 16 quads from workgroup memory for 512 multiply-adds
// Numerics f32 sums in the order c-quad, d, e, c, whatever the grid
override LC: u32 = 8u;
override LT: u32 = 1u;
struct Params {
    wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>,
    h: u32, w: u32, cin4: u32, cout4: u32, tiles: u32, act: u32,
    sh: u32, sw: u32, top: u32, left: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read> wt: array<W4>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<Y4>;

const SLOTS: u32 = 162u;
var<workgroup> xs: array<vec4<f32>, 324>;               // [2 quads][9 rows][18 columns]
var<workgroup> ws: array<vec4<f32>, 32u * LC * LT>;     // [LT][2 d][2 quads][2 e][4 c][LC]

fn mac(a: vec4<f32>, v: vec4<f32>, w0: vec4<f32>, w1: vec4<f32>, w2: vec4<f32>, w3: vec4<f32>) -> vec4<f32> {
    return a + v.x * w0 + v.y * w1 + v.z * w2 + v.w * w3;
}

fn put(i: u32, j: u32, phase: u32, quad: u32, v: vec4<f32>) {
    if j >= p.sw || quad >= p.cout4 { return; }
    let at = ((2u * i + phase / 2u) * 2u * p.sw + 2u * j + phase % 2u) * p.cout4 + quad;
    y[at - p.b0.w] = y_put(activate(v + bias[quad - p.b0.z], p.act));
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = wid + p.wg.xyz;
    let tile = g.x * LT;                                 // counts through the phases
    let phase = tile / p.tiles;
    let run = lane / LC;
    let row = run % 8u;
    let column = run / 8u * LC;
    let part = lane % 2u;
    let home = (g.y * 8u + p.top) * p.w + g.z * 16u + p.left;   // a pixel inside, read where zeros are wanted
    var a0 = vec4<f32>(); var a1 = vec4<f32>(); var a2 = vec4<f32>(); var a3 = vec4<f32>();
    var a4 = vec4<f32>(); var a5 = vec4<f32>(); var a6 = vec4<f32>(); var a7 = vec4<f32>();
    var b0 = vec4<f32>(); var b1 = vec4<f32>(); var b2 = vec4<f32>(); var b3 = vec4<f32>();
    var b4 = vec4<f32>(); var b5 = vec4<f32>(); var b6 = vec4<f32>(); var b7 = vec4<f32>();
    for (var k = 0u; k < p.cin4; k += 2u) {
        let quads = min(2u, p.cin4 - k);
        for (var n = 0u; n < 3u; n += 1u) {
            let slot = (n * 128u + lane) / 2u;
            if slot < SLOTS {
                let iy = g.y * 8u + p.top + slot / 18u + phase / 2u - 1u;    // -1 wraps to 2^32 - 1
                let ix = g.z * 16u + p.left + slot % 18u + phase % 2u - 1u;
                let inside = (iy < p.h) & (ix < p.w);
                let v = x_get(x[select(home, iy * p.w + ix, inside) * p.cin4 + min(k + part, p.cin4 - 1u) - p.b0.x]);
                xs[part * SLOTS + slot] = select(vec4<f32>(), v, inside);
            }
        }
        for (var n = 0u; n < 32u * LC * LT; n += 128u) {
            let s = n + lane;
            if s < 32u * LC * LT {
                let q = min(k + s / (8u * LC) % 2u, p.cin4 - 1u);
                let line = s / (16u * LC);               // tile * 2 + d
                ws[s] = w_get(wt[((tile * 2u + line) * p.cin4 + q) * 8u * LC + s % (8u * LC) - p.b0.y]);
            }
        }
        workgroupBarrier();
        for (var q = 0u; q < quads; q += 1u) {
            for (var d = 0u; d < 2u; d += 1u) {
                let xi = q * SLOTS + (row + d) * 18u + column;
                let wi = (d * 2u + q) * 8u * LC + lane % LC;
                let wb = wi + 32u * LC;                  // of the second tile
                let x0 = xs[xi]; let x1 = xs[xi + 1u];
                var x2 = vec4<f32>(); var x3 = vec4<f32>(); var x4 = vec4<f32>(); var x5 = vec4<f32>();
                var x6 = vec4<f32>(); var x7 = vec4<f32>(); var x8 = vec4<f32>();
                if LC > 1u { x2 = xs[xi + 2u]; }
                if LC > 2u { x3 = xs[xi + 3u]; x4 = xs[xi + 4u]; }
                if LC > 4u { x5 = xs[xi + 5u]; x6 = xs[xi + 6u]; x7 = xs[xi + 7u]; x8 = xs[xi + 8u]; }
                {
                    let w0 = ws[wi]; let w1 = ws[wi + LC]; let w2 = ws[wi + 2u * LC]; let w3 = ws[wi + 3u * LC];
                    a0 = mac(a0, x0, w0, w1, w2, w3);
                    if LC > 1u { a1 = mac(a1, x1, w0, w1, w2, w3); }
                    if LC > 2u { a2 = mac(a2, x2, w0, w1, w2, w3); a3 = mac(a3, x3, w0, w1, w2, w3); }
                    if LC > 4u {
                        a4 = mac(a4, x4, w0, w1, w2, w3); a5 = mac(a5, x5, w0, w1, w2, w3);
                        a6 = mac(a6, x6, w0, w1, w2, w3); a7 = mac(a7, x7, w0, w1, w2, w3);
                    }
                }
                if LT == 2u {
                    let w0 = ws[wb]; let w1 = ws[wb + LC]; let w2 = ws[wb + 2u * LC]; let w3 = ws[wb + 3u * LC];
                    b0 = mac(b0, x0, w0, w1, w2, w3); b1 = mac(b1, x1, w0, w1, w2, w3);
                    b2 = mac(b2, x2, w0, w1, w2, w3); b3 = mac(b3, x3, w0, w1, w2, w3);
                    b4 = mac(b4, x4, w0, w1, w2, w3); b5 = mac(b5, x5, w0, w1, w2, w3);
                    b6 = mac(b6, x6, w0, w1, w2, w3); b7 = mac(b7, x7, w0, w1, w2, w3);
                }
                {
                    let w0 = ws[wi + 4u * LC]; let w1 = ws[wi + 5u * LC]; let w2 = ws[wi + 6u * LC]; let w3 = ws[wi + 7u * LC];
                    a0 = mac(a0, x1, w0, w1, w2, w3);
                    if LC > 1u { a1 = mac(a1, x2, w0, w1, w2, w3); }
                    if LC > 2u { a2 = mac(a2, x3, w0, w1, w2, w3); a3 = mac(a3, x4, w0, w1, w2, w3); }
                    if LC > 4u {
                        a4 = mac(a4, x5, w0, w1, w2, w3); a5 = mac(a5, x6, w0, w1, w2, w3);
                        a6 = mac(a6, x7, w0, w1, w2, w3); a7 = mac(a7, x8, w0, w1, w2, w3);
                    }
                }
                if LT == 2u {
                    let w0 = ws[wb + 4u * LC]; let w1 = ws[wb + 5u * LC]; let w2 = ws[wb + 6u * LC]; let w3 = ws[wb + 7u * LC];
                    b0 = mac(b0, x1, w0, w1, w2, w3); b1 = mac(b1, x2, w0, w1, w2, w3);
                    b2 = mac(b2, x3, w0, w1, w2, w3); b3 = mac(b3, x4, w0, w1, w2, w3);
                    b4 = mac(b4, x5, w0, w1, w2, w3); b5 = mac(b5, x6, w0, w1, w2, w3);
                    b6 = mac(b6, x7, w0, w1, w2, w3); b7 = mac(b7, x8, w0, w1, w2, w3);
                }
            }
        }
        workgroupBarrier();
    }
    let i = g.y * 8u + row;
    if i >= p.sh { return; }
    let j = g.z * 16u + column;
    let quad = tile % p.tiles * LC + lane % LC;
    put(i, j, phase, quad, a0);
    if LC > 1u { put(i, j + 1u, phase, quad, a1); }
    if LC > 2u { put(i, j + 2u, phase, quad, a2); put(i, j + 3u, phase, quad, a3); }
    if LC > 4u {
        put(i, j + 4u, phase, quad, a4); put(i, j + 5u, phase, quad, a5);
        put(i, j + 6u, phase, quad, a6); put(i, j + 7u, phase, quad, a7);
    }
    if LT == 2u {
        put(i, j, phase, quad + LC, b0); put(i, j + 1u, phase, quad + LC, b1);
        put(i, j + 2u, phase, quad + LC, b2); put(i, j + 3u, phase, quad + LC, b3);
        put(i, j + 4u, phase, quad + LC, b4); put(i, j + 5u, phase, quad + LC, b5);
        put(i, j + 6u, phase, quad + LC, b6); put(i, j + 7u, phase, quad + LC, b7);
    }
}
