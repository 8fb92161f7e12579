// linear_tile: y[m, o] = act(bias[o] + sum_k w[o, k] * x[m, k] + residual[m, o]); a 1x1 convolution is the same on pixels
// Source   torch.nn.Linear, torch.nn.Conv2d with kernel 1
// Layout   x [rows, k4], y and residual [rows, n4], bias [n4]; weights [n4 / LC][k4][4 k][LC]
// Grid     x: LT tiles of LC output quads, y: 64 rows; 64 invocations of LC rows by LT quads, an invocation's rows 64 / LC apart
// Memory   64 rows by 4 quads of x, in columns of 66 so that neither writing nor reading them meets a bank twice, 4.1 KiB, and
//          their weights, 4 KiB at LC = 8, LT = 2
// Registers 64 for sums, 32 for x, 16 for weights. A quad of k takes 8 + 8 quads from workgroup memory for 256 multiply-adds
// Numerics f32 sums in the order of k, whatever the grid
override LC: u32 = 8u;
override LT: u32 = 1u;
override RESIDUAL: u32 = 0u;
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, rows: u32, k4: u32, n4: u32, act: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read> wt: array<W4>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> residual: array<Y4>;
@group(0) @binding(5) var<storage, read_write> y: array<Y4>;

const PITCH: u32 = 66u;
var<workgroup> xs: array<vec4<f32>, 264>;               // [4 quads][66, rows 0 .. 63 in use]
var<workgroup> ws: array<vec4<f32>, 16u * LC * LT>;     // [LT][4 quads][4 k][LC]

fn mac(a: vec4<f32>, v: vec4<f32>, w0: vec4<f32>, w1: vec4<f32>, w2: vec4<f32>, w3: vec4<f32>) -> vec4<f32> {
    return a + v.x * w0 + v.y * w1 + v.z * w2 + v.w * w3;
}

fn put(row: u32, quad: u32, v: vec4<f32>) {
    if row >= p.rows || quad >= p.n4 { return; }
    let at = row * p.n4 + quad;
    var r = v + bias[quad - p.b0.z];
    if RESIDUAL == 1u { r += y_get(residual[at - p.b0.w]); }
    y[at - p.b1.x] = y_put(activate(r, p.act));
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = wid + p.wg.xyz;
    let m0 = g.y * 64u;
    let groups = 64u / LC;
    let group = lane / LC;
    let part = lane % 4u;
    let w0 = g.x * LT * p.k4 * 4u * LC - p.b0.y;         // what lies outside, here as in x, is read from inside and used for nothing
    var a0 = vec4<f32>(); var a1 = vec4<f32>(); var a2 = vec4<f32>(); var a3 = vec4<f32>();
    var a4 = vec4<f32>(); var a5 = vec4<f32>(); var a6 = vec4<f32>(); var a7 = vec4<f32>();
    var b0 = vec4<f32>(); var b1 = vec4<f32>(); var b2 = vec4<f32>(); var b3 = vec4<f32>();
    var b4 = vec4<f32>(); var b5 = vec4<f32>(); var b6 = vec4<f32>(); var b7 = vec4<f32>();
    for (var k = 0u; k < p.k4; k += 4u) {
        let quads = min(4u, p.k4 - k);
        for (var r = lane / 4u; r < 64u; r += 16u) {
            xs[part * PITCH + r] = x_get(x[min(m0 + r, p.rows - 1u) * p.k4 + min(k + part, p.k4 - 1u) - p.b0.x]);
        }
        for (var n = 0u; n < 16u * LC * LT; n += 64u) {
            let s = n + lane;
            if s < 16u * LC * LT {
                let at = s / (16u * LC) * p.k4 * 4u * LC + k * 4u * LC + s % (16u * LC);
                ws[s] = w_get(wt[w0 + min(at, LT * p.k4 * 4u * LC - 1u)]);
            }
        }
        workgroupBarrier();
        for (var q = 0u; q < quads; q += 1u) {
            let xi = q * PITCH + group;
            let wi = q * 4u * LC + lane % LC;
            let wb = wi + 16u * LC;                      // of the second tile
            let x0 = xs[xi];
            var x1 = vec4<f32>(); var x2 = vec4<f32>(); var x3 = vec4<f32>();
            var x4 = vec4<f32>(); var x5 = vec4<f32>(); var x6 = vec4<f32>(); var x7 = vec4<f32>();
            if LC > 1u { x1 = xs[xi + groups]; }
            if LC > 2u { x2 = xs[xi + 2u * groups]; x3 = xs[xi + 3u * groups]; }
            if LC > 4u { x4 = xs[xi + 4u * groups]; x5 = xs[xi + 5u * groups]; x6 = xs[xi + 6u * groups]; x7 = xs[xi + 7u * groups]; }
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
        }
        workgroupBarrier();
    }
    let m = m0 + group;
    let quad = g.x * LT * LC + lane % LC;
    put(m, quad, a0);
    if LC > 1u { put(m + groups, quad, a1); }
    if LC > 2u { put(m + 2u * groups, quad, a2); put(m + 3u * groups, quad, a3); }
    if LC > 4u {
        put(m + 4u * groups, quad, a4); put(m + 5u * groups, quad, a5);
        put(m + 6u * groups, quad, a6); put(m + 7u * groups, quad, a7);
    }
    if LT == 2u {
        put(m, quad + LC, b0); put(m + groups, quad + LC, b1);
        put(m + 2u * groups, quad + LC, b2); put(m + 3u * groups, quad + LC, b3);
        put(m + 4u * groups, quad + LC, b4); put(m + 5u * groups, quad + LC, b5);
        put(m + 6u * groups, quad + LC, b6); put(m + 7u * groups, quad + LC, b7);
    }
}
