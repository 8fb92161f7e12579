// conv2d_3x3_tile: y[i, j, o] = act(bias[o] + sum_{dy, dx, c} w[o, c, dy, dx] * n(x[i + dy - 1, j + dx - 1, c]) + residual[i, j, o])
// n(v) is v, v * scale[c] + shift[c], or the SiLU of that (NORM 0, 1, 2) inside the image, and 0 outside: padding follows it
// Source   torch.nn.GroupNorm (folded), torch.nn.SiLU, torch.nn.Conv2d, kernel 3, stride 1, padding 1 (zero)
// Layout   x [h, w, cin4], y [oh, ow, cout4], residual [.., rw, cout4], bias [cout4], affine [scale cin4][shift cin4];
//          weights [cout4 / LC][3 dy][cin4][3 dx][4 c][LC] along the output channels
// Window   as conv2d_3x3_lanes
// Grid     x: LT tiles of LC output quads, y: 8 rows, z: 16 columns, anchored at y(0, 0); 128 invocations of LC pixels in
//          a row by LT quads
// Memory   patch of 10 x 18 pixels by 2 quads, 5.6 KiB, and all taps of one input quad, 9 KiB at LC = 8, LT = 2. Global reads
//          and n() come to 1.41 an element and workgroup. A warp's groups of 8 lanes read rows whose pitch, 288 bytes, meets
//          four different quarters of the banks
// Registers 64 for sums, 40 for a row of the patch, 16 for weights. A row of taps takes 10 + 24 quads from workgroup memory
//          for 768 multiply-adds: 22 a quad, where 8 (one wave front of 512 bytes against 128 lanes) would balance
// Numerics f32 sums in the order c-quad, dy, dx, c, whatever the grid
override LC: u32 = 8u;
override LT: u32 = 1u;
override NORM: u32 = 0u;
override RESIDUAL: u32 = 0u;
struct Params {
    wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>,
    h: u32, w: u32, cin4: u32, cout4: u32, act: u32,
    oh: u32, ow: u32, top: u32, left: u32, rw: u32, rtop: u32, rleft: u32, limit: f32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read> wt: array<W4>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> affine: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> residual: array<Y4>;
@group(0) @binding(6) var<storage, read_write> y: array<Y4>;

const SLOTS: u32 = 180u;
var<workgroup> stage: array<vec4<f32>, 360>;               // [2 quads][10 rows][18 columns]
var<workgroup> ws: array<vec4<f32>, 36u * LC * LT>;     // [LT][3 dy][3 dx][4 c][LC]

fn mac(a: vec4<f32>, v: vec4<f32>, w0: vec4<f32>, w1: vec4<f32>, w2: vec4<f32>, w3: vec4<f32>) -> vec4<f32> {
    return a + v.x * w0 + v.y * w1 + v.z * w2 + v.w * w3;
}

fn put(i: u32, j: u32, quad: u32, v: vec4<f32>) {
    if i >= p.oh || j >= p.ow || quad >= p.cout4 { return; }
    var r = v + bias[quad - p.b0.z];
    if RESIDUAL == 1u { r += y_get(residual[((i + p.rtop) * p.rw + j + p.rleft) * p.cout4 + quad - p.b1.x]); }
    y[(i * p.ow + j) * p.cout4 + quad - p.b1.y] = y_put(activate(r, p.act));
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = wid + p.wg.xyz;
    let run = lane / LC;                                 // of 8 rows, then 16 / LC runs of LC pixels
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
        var scale = vec4<f32>();
        var shift = vec4<f32>();
        let c = min(k + part, p.cin4 - 1u);
        if NORM > 0u {
            scale = affine[c - p.b0.w];
            shift = affine[p.cin4 + c - p.b0.w];
        }
        for (var n = 0u; n < 3u; n += 1u) {
            let slot = (n * 128u + lane) / 2u;
            if slot < SLOTS {
                let iy = g.y * 8u + p.top + slot / 18u - 1u;   // row and column -1 wrap to 2^32 - 1
                let ix = g.z * 16u + p.left + slot % 18u - 1u;
                let inside = (iy < p.h) & (ix < p.w);
                var v = x_get(x[select(home, iy * p.w + ix, inside) * p.cin4 + c - p.b0.x]);
                if NORM > 0u { v = v * scale + shift; }
                if NORM == 2u { v = silu(v); }
                v = select(vec4<f32>(), v, inside);
                stage[part * SLOTS + slot] = v;
            }
        }
        for (var q = 0u; q < quads; q += 1u) {
            for (var n = 0u; n < 36u * LC * LT; n += 128u) {
                let s = n + lane;
                if s < 36u * LC * LT {
                    let line = s / (12u * LC);           // tile * 3 + dy
                    ws[s] = w_get(wt[((g.x * LT * 3u + line) * p.cin4 + k + q) * 12u * LC + s % (12u * LC) - p.b0.y]);
                }
            }
            workgroupBarrier();
            for (var dy = 0u; dy < 3u; dy += 1u) {
                let xi = q * SLOTS + (row + dy) * 18u + column;
                let wi = dy * 12u * LC + lane % LC;
                let wb = wi + 36u * LC;                  // of the second tile
                let x0 = stage[xi]; let x1 = stage[xi + 1u]; let x2 = stage[xi + 2u];
                var x3 = vec4<f32>(); var x4 = vec4<f32>(); var x5 = vec4<f32>(); var x6 = vec4<f32>();
                var x7 = vec4<f32>(); var x8 = vec4<f32>(); var x9 = vec4<f32>();
                if LC > 1u { x3 = stage[xi + 3u]; }
                if LC > 2u { x4 = stage[xi + 4u]; x5 = stage[xi + 5u]; }
                if LC > 4u { x6 = stage[xi + 6u]; x7 = stage[xi + 7u]; x8 = stage[xi + 8u]; x9 = stage[xi + 9u]; }
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
                {
                    let w0 = ws[wi + 8u * LC]; let w1 = ws[wi + 9u * LC]; let w2 = ws[wi + 10u * LC]; let w3 = ws[wi + 11u * LC];
                    a0 = mac(a0, x2, w0, w1, w2, w3);
                    if LC > 1u { a1 = mac(a1, x3, w0, w1, w2, w3); }
                    if LC > 2u { a2 = mac(a2, x4, w0, w1, w2, w3); a3 = mac(a3, x5, w0, w1, w2, w3); }
                    if LC > 4u {
                        a4 = mac(a4, x6, w0, w1, w2, w3); a5 = mac(a5, x7, w0, w1, w2, w3);
                        a6 = mac(a6, x8, w0, w1, w2, w3); a7 = mac(a7, x9, w0, w1, w2, w3);
                    }
                }
                if LT == 2u {
                    let w0 = ws[wb + 8u * LC]; let w1 = ws[wb + 9u * LC]; let w2 = ws[wb + 10u * LC]; let w3 = ws[wb + 11u * LC];
                    b0 = mac(b0, x2, w0, w1, w2, w3); b1 = mac(b1, x3, w0, w1, w2, w3);
                    b2 = mac(b2, x4, w0, w1, w2, w3); b3 = mac(b3, x5, w0, w1, w2, w3);
                    b4 = mac(b4, x6, w0, w1, w2, w3); b5 = mac(b5, x7, w0, w1, w2, w3);
                    b6 = mac(b6, x8, w0, w1, w2, w3); b7 = mac(b7, x9, w0, w1, w2, w3);
                }
            }
            workgroupBarrier();
        }
    }
    let i = g.y * 8u + row;
    let j = g.z * 16u + column;
    let quad = g.x * LT * LC + lane % LC;
    put(i, j, quad, a0);
    if LC > 1u { put(i, j + 1u, quad, a1); }
    if LC > 2u { put(i, j + 2u, quad, a2); put(i, j + 3u, quad, a3); }
    if LC > 4u {
        put(i, j + 4u, quad, a4); put(i, j + 5u, quad, a5);
        put(i, j + 6u, quad, a6); put(i, j + 7u, quad, a7);
    }
    if LT == 2u {
        put(i, j, quad + LC, b0); put(i, j + 1u, quad + LC, b1);
        put(i, j + 2u, quad + LC, b2); put(i, j + 3u, quad + LC, b3);
        put(i, j + 4u, quad + LC, b4); put(i, j + 5u, quad + LC, b5);
        put(i, j + 6u, quad + LC, b6); put(i, j + 7u, quad + LC, b7);
    }
    stored(lane, 128u, g.yz, g.x * LT * LC, LT * LC);
}
