// linear_matrix: y[m, o] = act(bias[o] + sum_k w[o, k] * x[m, k] + residual[m, o]) on matrix units; a 1x1 convolution is the same on pixels
// Source   torch.nn.Linear, torch.nn.Conv2d with kernel 1
// Layout   x [rows, k4], y and residual [rows, n4], bias [n4]; weights [n4 / 8][k4][4 k][8]
// Grid     x: 16 WIDE output quads, y: 128 rows; subgroups of SG invocations, each 4 x 2 WIDE products of SIDE x SIDE: four at a side of 16
// Memory   128 rows by 8 quads of x, 10 KiB (20 if split), and their weights, 4.5 KiB (8.5 if wide), in f16, rows 16 B longer than their values so that they
//          meet other banks; 4 KiB through which sums leave the matrix units
// Numerics products of f16 are exact in f32; f32 sums in the order that the unit has, the same whatever the grid
override SIDE: u32 = 16u;
override SG: u32 = 32u;
override WG: u32 = 128u;
override WIDE: u32 = 1u;                                 // 2: a workgroup takes 32 output quads, a subgroup 4 x 4 products
override SPLIT: u32 = 0u;                                // 1: x is f32 and staged as the two f16 that it is the sum of, to 21 bits
override RESIDUAL: u32 = 0u;
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, rows: u32, k4: u32, n4: u32, act: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read> wt: array<W4>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> residual: array<Y4>;
@group(0) @binding(5) var<storage, read_write> y: array<Y4>;

const XP: u32 = 10u;                                     // quads from row to row of xs
const LOW: u32 = 1280u;                                  // where the second parts are
var<workgroup> xs: array<vec4<f16>, LOW * (1u + SPLIT)>; // [128 rows][8 quads of k]
var<workgroup> ws: array<vec4<f16>, 32u * (16u * WIDE + 2u)>; // [32 k][16 WIDE quads of outputs]
var<workgroup> cs: array<vec4<f32>, 256>;                // [subgroup][SIDE][SIDE / 4]

fn stage(at: u32, value: X4, inside: bool) {
    if SPLIT == 0u {
        xs[at] = select(vec4<f16>(), x_half(value), inside);
    } else {
        let v = select(vec4<f32>(), shrunk(x_get(value)), inside);
        let high = staged(v);
        xs[at] = vec4<f16>(high);
        xs[LOW + at] = vec4<f16>(v - high);
    }
}

// Called by all invocations alike, since it waits.
fn put(c: MatC, sub: u32, lane: u32, row: u32, quad: u32) {
    let region = sub * SIDE * SIDE / 4u;
    coopStoreT(c, &cs[region], SIDE / 4u);
    workgroupBarrier();
    for (var n = 0u; n < SIDE * SIDE / 4u; n += SG) {
        let i = n + lane;
        let r = row + i / (SIDE / 4u);
        let o = quad + i % (SIDE / 4u);
        if i < SIDE * SIDE / 4u && r < p.rows && o < p.n4 {
            let at = r * p.n4 + o;
            var v = restored(cs[region + i]) + bias[o - p.b0.z];
            if RESIDUAL == 1u { v += y_get(residual[at - p.b0.w]); }
            y[at - p.b1.x] = y_put(activate(v, p.act));
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
    let m0 = sub / across * 4u * SIDE;                   // the subgroup's first row and first output of the tile
    let n0 = sub % across * 2u * WIDE * SIDE;
    // What lies outside is read from inside and no part of a result: rows and outputs are not stored, quads of k are zeros of x.
    let part = lane % 8u;
    let o = min(g.x * width + lane % width, p.n4 - 1u);
    let w0 = o / 8u * p.k4 * 32u + o % 8u - p.b0.y;
    var c00 = MatC(); var c01 = MatC(); var c10 = MatC(); var c11 = MatC();
    var c20 = MatC(); var c21 = MatC(); var c30 = MatC(); var c31 = MatC();
    var c02 = MatC(); var c03 = MatC(); var c12 = MatC(); var c13 = MatC();
    var c22 = MatC(); var c23 = MatC(); var c32 = MatC(); var c33 = MatC();
    for (var k = 0u; k < p.k4; k += 8u) {
        for (var n = 0u; n < 1024u; n += WG) {
            let r = n / 8u + lane / 8u;
            let at = min(g.y * 128u + r, p.rows - 1u) * p.k4 + min(k + part, p.k4 - 1u) - p.b0.x;
            stage(r * XP + part, x[at], k + part < p.k4);
        }
        for (var n = 0u; n < 512u * WIDE; n += WG) {
            let c = n / width + lane / width;
            ws[c * pitch + lane % width] = w_half(wt[w0 + min(4u * k + c, 4u * p.k4 - 1u) * 8u]);
        }
        workgroupBarrier();
        for (var s = 0u; s < 32u / SIDE; s += 1u) {
            let wi = s * SIDE * pitch + n0 / 4u;
            let b0 = coopLoadT<MatB>(&ws[wi], pitch);
            let b1 = coopLoadT<MatB>(&ws[wi + SIDE / 4u], pitch);
            var b2 = MatB(); var b3 = MatB();
            if WIDE == 2u {
                b2 = coopLoadT<MatB>(&ws[wi + SIDE / 2u], pitch);
                b3 = coopLoadT<MatB>(&ws[wi + 3u * SIDE / 4u], pitch);
            }
            for (var part = 0u; part < 1u + SPLIT; part += 1u) {
                let xi = part * LOW + m0 * XP + s * SIDE / 4u;
                let a0 = coopLoadT<MatA>(&xs[xi], XP);
                c00 = coopMultiplyAdd(a0, b0, c00); c01 = coopMultiplyAdd(a0, b1, c01);
                if WIDE == 2u { c02 = coopMultiplyAdd(a0, b2, c02); c03 = coopMultiplyAdd(a0, b3, c03); }
                let a1 = coopLoadT<MatA>(&xs[xi + SIDE * XP], XP);
                c10 = coopMultiplyAdd(a1, b0, c10); c11 = coopMultiplyAdd(a1, b1, c11);
                if WIDE == 2u { c12 = coopMultiplyAdd(a1, b2, c12); c13 = coopMultiplyAdd(a1, b3, c13); }
                let a2 = coopLoadT<MatA>(&xs[xi + 2u * SIDE * XP], XP);
                c20 = coopMultiplyAdd(a2, b0, c20); c21 = coopMultiplyAdd(a2, b1, c21);
                if WIDE == 2u { c22 = coopMultiplyAdd(a2, b2, c22); c23 = coopMultiplyAdd(a2, b3, c23); }
                let a3 = coopLoadT<MatA>(&xs[xi + 3u * SIDE * XP], XP);
                c30 = coopMultiplyAdd(a3, b0, c30); c31 = coopMultiplyAdd(a3, b1, c31);
                if WIDE == 2u { c32 = coopMultiplyAdd(a3, b2, c32); c33 = coopMultiplyAdd(a3, b3, c33); }
            }
        }
        workgroupBarrier();
    }
    let row = g.y * 128u + m0;
    let quad = g.x * width + n0 / 4u;
    let next = quad + SIDE / 4u;
    put(c00, sub, lane % SG, row, quad);               put(c01, sub, lane % SG, row, next);
    put(c10, sub, lane % SG, row + SIDE, quad);        put(c11, sub, lane % SG, row + SIDE, next);
    put(c20, sub, lane % SG, row + 2u * SIDE, quad);   put(c21, sub, lane % SG, row + 2u * SIDE, next);
    put(c30, sub, lane % SG, row + 3u * SIDE, quad);   put(c31, sub, lane % SG, row + 3u * SIDE, next);
    if WIDE == 2u {
        put(c02, sub, lane % SG, row, quad + SIDE / 2u);
        put(c03, sub, lane % SG, row, quad + 3u * SIDE / 4u);
        put(c12, sub, lane % SG, row + SIDE, quad + SIDE / 2u);
        put(c13, sub, lane % SG, row + SIDE, quad + 3u * SIDE / 4u);
        put(c22, sub, lane % SG, row + 2u * SIDE, quad + SIDE / 2u);
        put(c23, sub, lane % SG, row + 2u * SIDE, quad + 3u * SIDE / 4u);
        put(c32, sub, lane % SG, row + 3u * SIDE, quad + SIDE / 2u);
        put(c33, sub, lane % SG, row + 3u * SIDE, quad + 3u * SIDE / 4u);
    }
}
