// linear_lanes: y[m, o] = act(bias[o] + sum_k w[o, k] * x[m, k] + residual[m, o]); a 1x1 convolution is the same on pixels
// Source   torch.nn.Linear, torch.nn.Conv2d with kernel 1
// Layout   x [rows, k4], y and residual [rows, n4], bias [n4]; weights [n4 / LC][k4][4 k][LC]
// Grid     x: tiles of LC output quads, y: runs of 8 * LP rows
// Memory   no workgroup storage, see conv2d_3x3_lanes
// Numerics f32 sums in the order of k, whatever the grid
override LC: u32 = 8u;
override LP: u32 = 1u;
override RESIDUAL: u32 = 0u;
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, rows: u32, k4: u32, n4: u32, act: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read> wt: array<W4>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> residual: array<Y4>;
@group(0) @binding(5) var<storage, read_write> y: array<Y4>;

fn put(row: u32, quad: u32, v: vec4<f32>) {
    if row >= p.rows { return; }
    let at = row * p.n4 + quad;
    var r = v + bias[quad - p.b0.z];
    if RESIDUAL == 1u { r += y_get(residual[at - p.b0.w]); }
    y[at - p.b1.x] = y_put(activate(r, p.act));
}

@compute @workgroup_size(LC * LP)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = wid + p.wg.xyz;
    let quad = g.x * LC + lane % LC;
    let m0 = (g.y * LP + lane / LC) * 8u;
    let last = p.rows - 1u;
    let r0 = min(m0, last) * p.k4 - p.b0.x;
    let r1 = min(m0 + 1u, last) * p.k4 - p.b0.x;
    let r2 = min(m0 + 2u, last) * p.k4 - p.b0.x;
    let r3 = min(m0 + 3u, last) * p.k4 - p.b0.x;
    let r4 = min(m0 + 4u, last) * p.k4 - p.b0.x;
    let r5 = min(m0 + 5u, last) * p.k4 - p.b0.x;
    let r6 = min(m0 + 6u, last) * p.k4 - p.b0.x;
    let r7 = min(m0 + 7u, last) * p.k4 - p.b0.x;
    var a0 = vec4<f32>(); var a1 = vec4<f32>(); var a2 = vec4<f32>(); var a3 = vec4<f32>();
    var a4 = vec4<f32>(); var a5 = vec4<f32>(); var a6 = vec4<f32>(); var a7 = vec4<f32>();
    var wi = g.x * p.k4 * 4u * LC + lane % LC - p.b0.y;
    for (var k = 0u; k < p.k4; k += 1u) {
        let w0 = w_get(wt[wi]); let w1 = w_get(wt[wi + LC]); let w2 = w_get(wt[wi + 2u * LC]); let w3 = w_get(wt[wi + 3u * LC]);
        let x0 = x_get(x[r0 + k]);
        let x1 = x_get(x[r1 + k]);
        let x2 = x_get(x[r2 + k]);
        let x3 = x_get(x[r3 + k]);
        let x4 = x_get(x[r4 + k]);
        let x5 = x_get(x[r5 + k]);
        let x6 = x_get(x[r6 + k]);
        let x7 = x_get(x[r7 + k]);
        a0 += x0.x * w0 + x0.y * w1 + x0.z * w2 + x0.w * w3;
        a1 += x1.x * w0 + x1.y * w1 + x1.z * w2 + x1.w * w3;
        a2 += x2.x * w0 + x2.y * w1 + x2.z * w2 + x2.w * w3;
        a3 += x3.x * w0 + x3.y * w1 + x3.z * w2 + x3.w * w3;
        a4 += x4.x * w0 + x4.y * w1 + x4.z * w2 + x4.w * w3;
        a5 += x5.x * w0 + x5.y * w1 + x5.z * w2 + x5.w * w3;
        a6 += x6.x * w0 + x6.y * w1 + x6.z * w2 + x6.w * w3;
        a7 += x7.x * w0 + x7.y * w1 + x7.z * w2 + x7.w * w3;
        wi += 4u * LC;
    }
    if quad >= p.n4 { return; }
    put(m0, quad, a0); put(m0 + 1u, quad, a1); put(m0 + 2u, quad, a2); put(m0 + 3u, quad, a3);
    put(m0 + 4u, quad, a4); put(m0 + 5u, quad, a5); put(m0 + 6u, quad, a6); put(m0 + 7u, quad, a7);
}
