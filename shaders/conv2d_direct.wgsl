// conv2d_direct: y[i, j, o] = act(bias[o] + sum_{dy, dx, c} w[o, c, dy, dx] * x[S i + dy - top, S j + dx - left, c])
// Source   torch.nn.Conv2d with any square kernel, stride and (asymmetric) zero padding
// Layout   x [h, w, cin4], y [oh, ow, cout4], bias [cout4]; weights [cout4 / LC][K dy][cin4][K dx][4 c][LC]
// Window   top and left are the padding less the rows and columns of x before the first that y(0, 0) reads: they may be
//          negative (wrapped); what lies outside x is zero
// Grid     x: runs of 4 * LP output pixels, y: output rows, z: tiles of LC output quads
// Memory   no workgroup storage; the plain form, for strided convolutions and as an oracle of the others
// Numerics f32 sums in the order dy, c-quad, dx, c, whatever the grid
override LC: u32 = 8u;
override LP: u32 = 1u;
override K: u32 = 3u;
struct Params {
    wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>,
    h: u32, w: u32, cin4: u32, ow: u32, cout4: u32, stride: u32, top: u32, left: u32, act: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read> wt: array<W4>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<Y4>;

// One quad of row `iy`, zero outside. A coordinate left of 0 wraps to a huge one.
fn pixel(row: u32, ix: u32, k: u32) -> vec4<f32> {
    if ix >= p.w { return vec4<f32>(); }
    return x_get(x[(row + ix) * p.cin4 + k - p.b0.x]);
}

fn put(row: u32, j: u32, quad: u32, v: vec4<f32>) {
    if j >= p.ow { return; }
    y[(row + j) * p.cout4 + quad - p.b0.w] = y_put(activate(v, p.act));
}

@compute @workgroup_size(LC * LP)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = wid + p.wg.xyz;
    let quad = g.z * LC + lane % LC;
    let j0 = (g.x * LP + lane / LC) * 4u;
    let s = p.stride;
    let ix0 = j0 * s - p.left;
    var a0 = vec4<f32>(); var a1 = vec4<f32>(); var a2 = vec4<f32>(); var a3 = vec4<f32>();
    for (var dy = 0u; dy < K; dy += 1u) {
        let iy = g.y * s + dy - p.top;
        if iy >= p.h { continue; }
        let row = iy * p.w;
        var wi = (g.z * K + dy) * p.cin4 * K * 4u * LC + lane % LC - p.b0.y;
        for (var k = 0u; k < p.cin4; k += 1u) {
            for (var dx = 0u; dx < K; dx += 1u) {
                let w0 = w_get(wt[wi]); let w1 = w_get(wt[wi + LC]); let w2 = w_get(wt[wi + 2u * LC]); let w3 = w_get(wt[wi + 3u * LC]);
                let x0 = pixel(row, ix0 + dx, k);
                let x1 = pixel(row, ix0 + dx + s, k);
                let x2 = pixel(row, ix0 + dx + 2u * s, k);
                let x3 = pixel(row, ix0 + dx + 3u * s, k);
                a0 += x0.x * w0 + x0.y * w1 + x0.z * w2 + x0.w * w3;
                a1 += x1.x * w0 + x1.y * w1 + x1.z * w2 + x1.w * w3;
                a2 += x2.x * w0 + x2.y * w1 + x2.z * w2 + x2.w * w3;
                a3 += x3.x * w0 + x3.y * w1 + x3.z * w2 + x3.w * w3;
                wi += 4u * LC;
            }
        }
    }
    if quad >= p.cout4 { return; }
    let row = g.y * p.ow;
    // Once, not for every sum: a load has its price.
    let bias_a = bias[quad - p.b0.z];
    put(row, j0, quad, a0 + bias_a); put(row, j0 + 1u, quad, a1 + bias_a); put(row, j0 + 2u, quad, a2 + bias_a); put(row, j0 + 3u, quad, a3 + bias_a);
}
