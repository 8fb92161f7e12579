// conv2d_3x3_matrix: conv2d_3x3_tile on matrix units: a tap is another place to load from in one staged patch, no im2col
// y[i, j, o] = act(bias[o] + sum_{dy, dx, c} w[o, c, dy, dx] * n(x[i + dy - 1, j + dx - 1, c]) + residual[i, j, o])
// Source   as conv2d_3x3_tile
// Layout   as conv2d_3x3_tile with LC = 8
// Window   as conv2d_3x3_lanes
// Grid     x: 16 WIDE output quads, y: 8 rows, z: 16 columns, anchored at y(0, 0); subgroups of SG invocations, each 4 x 2 WIDE products of
//          SIDE x SIDE: four at a side of 16, where a product is a row of 16 pixels by 16 channels
// Memory   in f16: patch of 10 x 18 pixels by 4 quads, 8.4 KiB (16.9 if split), and a row of taps of these quads, 6.8 KiB (12.8 if wide), each with 16 B between rows
//          so that they meet other banks; 4 KiB through which sums leave the matrix units
// Numerics n() in f32, rounded to f16 as a stored tensor would be; products of f16 are exact in f32; f32 sums in the order that the
//          unit has, the same whatever the grid
override SIDE: u32 = 16u;
override SG: u32 = 32u;
override WG: u32 = 128u;
override WIDE: u32 = 1u;                                 // 2: a workgroup takes 32 output quads, a subgroup 4 x 4 products
override SPLIT: u32 = 0u;                                // 1: x is f32 and staged as the two f16 that it is the sum of, to 21 bits
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

const XP: u32 = 6u;                                      // quads from pixel to pixel of xs
const LOW: u32 = 1080u;                                  // where the second parts are
var<workgroup> xs: array<vec4<f16>, LOW * (1u + SPLIT)>; // [10 rows][18 columns][4 quads]
var<workgroup> ws: array<vec4<f16>, 48u * (16u * WIDE + 2u)>; // [3 dx][16 c][16 WIDE quads of outputs]
var<workgroup> stage: array<vec4<f32>, 256>;                // [subgroup][SIDE][SIDE / 4]

// Called by all invocations alike, since it waits. `pixel` counts through the 8 x 16 of the tile.
fn put(c: MatC, sub: u32, lane: u32, g: vec3<u32>, pixel: u32, quad: u32) {
    let region = sub * SIDE * SIDE / 4u;
    coopStoreT(c, &stage[region], SIDE / 4u);
    workgroupBarrier();
    for (var n = 0u; n < SIDE * SIDE / 4u; n += SG) {
        let at = n + lane;
        if at < SIDE * SIDE / 4u {
            let px = pixel + at / (SIDE / 4u);
            let o = quad + at % (SIDE / 4u);
            let i = g.y * 8u + px / 16u;
            let j = g.z * 16u + px % 16u;
            if i < p.oh && j < p.ow && o < p.cout4 {
                var v = restored(stage[region + at]) + bias[o - p.b0.z];
                if RESIDUAL == 1u { v += y_get(residual[((i + p.rtop) * p.rw + j + p.rleft) * p.cout4 + o - p.b1.x]); }
                y[(i * p.ow + j) * p.cout4 + o - p.b1.y] = y_put(activate(v, p.act));
            }
        }
    }
    workgroupBarrier();
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = wid + p.wg.xyz;
    let width = 16u * WIDE;                              // output quads of the workgroup
    let pitch = width + 2u;                              // quads from row to row of ws
    let sub = lane / SG;
    let across = 32u / SIDE;                             // subgroups side by side
    let m0 = sub / across * 4u * SIDE;                   // the subgroup's first pixel and first output of the tile
    let n0 = sub % across * 2u * WIDE * SIDE;
    // Where its four runs of SIDE pixels lie in the patch.
    let x0 = m0 / 16u * 18u + m0 % 16u;
    let x1 = (m0 + SIDE) / 16u * 18u + (m0 + SIDE) % 16u;
    let x2 = (m0 + 2u * SIDE) / 16u * 18u + (m0 + 2u * SIDE) % 16u;
    let x3 = (m0 + 3u * SIDE) / 16u * 18u + (m0 + 3u * SIDE) % 16u;
    // What lies outside is read from inside and no part of a result: pixels and outputs are not stored, quads of c are zeros of x.
    let part = lane % 4u;
    let home = ((g.y * 8u + p.top) * p.w + g.z * 16u + p.left) * p.cin4 - p.b0.x;
    let abreast = WG / width;                            // rows of weights that are staged at a time, a power of two
    let above = lane / width;
    let o = min(g.x * width + lane % width, p.cout4 - 1u);
    let w0 = o / 8u * p.cin4 * 288u + o % 8u - p.b0.y;
    var c00 = MatC(); var c01 = MatC(); var c10 = MatC(); var c11 = MatC();
    var c20 = MatC(); var c21 = MatC(); var c30 = MatC(); var c31 = MatC();
    var c02 = MatC(); var c03 = MatC(); var c12 = MatC(); var c13 = MatC();
    var c22 = MatC(); var c23 = MatC(); var c32 = MatC(); var c33 = MatC();
    for (var k = 0u; k < p.cin4; k += 4u) {
        var scale = vec4<f32>();
        var shift = vec4<f32>();
        if NORM > 0u {
            let c = min(k + part, p.cin4 - 1u) - p.b0.w;
            scale = affine[c];
            shift = affine[p.cin4 + c];
        }
        for (var n = 0u; n < 720u; n += WG) {
            let slot = n / 4u + lane / 4u;
            if slot >= 180u { continue; }
            let iy = g.y * 8u + p.top + slot / 18u - 1u;   // row and column -1 wrap to 2^32 - 1
            let ix = g.z * 16u + p.left + slot % 18u - 1u;
            let inside = (iy < p.h) & (ix < p.w) & (k + part < p.cin4);
            let at = select(home, (iy * p.w + ix) * p.cin4 + k + part - p.b0.x, inside);
            if NORM == 0u && SPLIT == 0u {
                xs[slot * XP + part] = select(vec4<f16>(), x_half(x[at]), inside);
            } else {
                var v = x_get(x[at]);
                if NORM > 0u { v = v * scale + shift; }
                if NORM == 2u { v = silu(v); }
                if SPLIT == 0u { v = clamp(v, vec4(-65504.0), vec4(65504.0)); }
                v = select(vec4<f32>(), shrunk(v), inside);
                let high = staged(v);
                xs[slot * XP + part] = vec4<f16>(high);
                if SPLIT == 1u { xs[LOW + slot * XP + part] = vec4<f16>(v - high); }
            }
        }
        for (var dy = 0u; dy < 3u; dy += 1u) {
            for (var n = 0u; n < 768u * WIDE; n += WG) {   // (dx * 4 + quad) * 4 + c rows of outputs
                let c = n / width % 4u + above % 4u;
                let u = n / (4u * width) + above / 4u;   // quads of rows
                if abreast > 16u && u >= 12u { continue; }
                let quad = select(n / (4u * width) % 4u + above / 4u, u % 4u, abreast > 16u);
                let dx = select(n / (16u * width), u / 4u, abreast > 16u);
                let at = w0 + (dy * p.cin4 + min(k + quad, p.cin4 - 1u)) * 96u + dx * 32u + c * 8u;
                ws[(dx * 16u + quad * 4u + c) * pitch + lane % width] = w_half(wt[at]);
            }
            workgroupBarrier();
            for (var dx = 0u; dx < 3u; dx += 1u) {
                for (var s = 0u; s < 16u / SIDE; s += 1u) {
                    let wi = (dx * 16u + s * SIDE) * pitch + n0 / 4u;
                    let b0 = coopLoadT<MatB>(&ws[wi], pitch);
                    let b1 = coopLoadT<MatB>(&ws[wi + SIDE / 4u], pitch);
                    var b2 = MatB(); var b3 = MatB();
                    if WIDE == 2u {
                        b2 = coopLoadT<MatB>(&ws[wi + SIDE / 2u], pitch);
                        b3 = coopLoadT<MatB>(&ws[wi + 3u * SIDE / 4u], pitch);
                    }
                    for (var half = 0u; half < 1u + SPLIT; half += 1u) {
                        let xi = half * LOW + (dy * 18u + dx) * XP + s * SIDE / 4u;
                        let a0 = coopLoadT<MatA>(&xs[xi + x0 * XP], XP);
                        c00 = coopMultiplyAdd(a0, b0, c00); c01 = coopMultiplyAdd(a0, b1, c01);
                        if WIDE == 2u { c02 = coopMultiplyAdd(a0, b2, c02); c03 = coopMultiplyAdd(a0, b3, c03); }
                        let a1 = coopLoadT<MatA>(&xs[xi + x1 * XP], XP);
                        c10 = coopMultiplyAdd(a1, b0, c10); c11 = coopMultiplyAdd(a1, b1, c11);
                        if WIDE == 2u { c12 = coopMultiplyAdd(a1, b2, c12); c13 = coopMultiplyAdd(a1, b3, c13); }
                        let a2 = coopLoadT<MatA>(&xs[xi + x2 * XP], XP);
                        c20 = coopMultiplyAdd(a2, b0, c20); c21 = coopMultiplyAdd(a2, b1, c21);
                        if WIDE == 2u { c22 = coopMultiplyAdd(a2, b2, c22); c23 = coopMultiplyAdd(a2, b3, c23); }
                        let a3 = coopLoadT<MatA>(&xs[xi + x3 * XP], XP);
                        c30 = coopMultiplyAdd(a3, b0, c30); c31 = coopMultiplyAdd(a3, b1, c31);
                        if WIDE == 2u { c32 = coopMultiplyAdd(a3, b2, c32); c33 = coopMultiplyAdd(a3, b3, c33); }
                    }
                }
            }
            workgroupBarrier();
        }
    }
    let quad = g.x * width + n0 / 4u;
    let next = quad + SIDE / 4u;
    put(c00, sub, lane % SG, g, m0, quad);               put(c01, sub, lane % SG, g, m0, next);
    put(c10, sub, lane % SG, g, m0 + SIDE, quad);        put(c11, sub, lane % SG, g, m0 + SIDE, next);
    put(c20, sub, lane % SG, g, m0 + 2u * SIDE, quad);   put(c21, sub, lane % SG, g, m0 + 2u * SIDE, next);
    put(c30, sub, lane % SG, g, m0 + 3u * SIDE, quad);   put(c31, sub, lane % SG, g, m0 + 3u * SIDE, next);
    if WIDE == 2u {
        put(c02, sub, lane % SG, g, m0, quad + SIDE / 2u);
        put(c03, sub, lane % SG, g, m0, quad + 3u * SIDE / 4u);
        put(c12, sub, lane % SG, g, m0 + SIDE, quad + SIDE / 2u);
        put(c13, sub, lane % SG, g, m0 + SIDE, quad + 3u * SIDE / 4u);
        put(c22, sub, lane % SG, g, m0 + 2u * SIDE, quad + SIDE / 2u);
        put(c23, sub, lane % SG, g, m0 + 2u * SIDE, quad + 3u * SIDE / 4u);
        put(c32, sub, lane % SG, g, m0 + 3u * SIDE, quad + SIDE / 2u);
        put(c33, sub, lane % SG, g, m0 + 3u * SIDE, quad + 3u * SIDE / 4u);
    }
    stored(lane, WG, g.yz, g.x * width, width);
}
