// linear_lanes: y[m, o] = act(bias[o] + sum_k w[o, k] * x[m, k] + residual[m, o]); a 1x1 convolution is the same on pixels
// Source   torch.nn.Linear, torch.nn.Conv2d with kernel 1
// Layout   x [rows, k4], y and residual [rows, n4], bias [n4]; weights [n4 / LC][k4][4 k][LC], LC even
// Grid     x: CL pairs of output quads, y: runs of 8 * RL rows; an invocation takes 8 rows by one pair
// Memory   no workgroup storage, see conv2d_3x3_lanes. lavapipe asks a price for every load, so a pair of quads of packed f16
//          is one load: 8 rows by 8 outputs take 24 loads for 256 multiply-adds a lane, 8 by 4 outputs took 24 for 128
// Numerics f32 sums from the bias on in the order of k, whatever the grid
override LC: u32 = 8u;
override CL: u32 = 8u;
override RL: u32 = 1u;
override RESIDUAL: u32 = 0u;
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, rows: u32, k4: u32, n4: u32, act: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read> wt: array<W8>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> residual: array<Y4>;
@group(0) @binding(5) var<storage, read_write> y: array<Y4>;

fn put(row: u32, quad: u32, lo: vec4<f32>, hi: vec4<f32>) {
    if row >= p.rows || quad >= p.n4 { return; }
    let at = row * p.n4 + quad;
    var a = lo;
    var b = hi;
    let both = quad + 1u < p.n4;
    if RESIDUAL == 1u {
        a += y_get(residual[at - p.b0.w]);
        if both { b += y_get(residual[at + 1u - p.b0.w]); }
    }
    y[at - p.b1.x] = y_put(activate(a, p.act));
    if both { y[at + 1u - p.b1.x] = y_put(activate(b, p.act)); }
}

@compute @workgroup_size(CL * RL)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = wid + p.wg.xyz;
    let quad = (g.x * CL + lane % CL) * 2u;
    let m0 = (g.y * RL + lane / CL) * 8u;
    let last = p.rows - 1u;
    let r0 = min(m0, last) * p.k4 - p.b0.x;
    let r1 = min(m0 + 1u, last) * p.k4 - p.b0.x;
    let r2 = min(m0 + 2u, last) * p.k4 - p.b0.x;
    let r3 = min(m0 + 3u, last) * p.k4 - p.b0.x;
    let r4 = min(m0 + 4u, last) * p.k4 - p.b0.x;
    let r5 = min(m0 + 5u, last) * p.k4 - p.b0.x;
    let r6 = min(m0 + 6u, last) * p.k4 - p.b0.x;
    let r7 = min(m0 + 7u, last) * p.k4 - p.b0.x;
    // Sums begin with the bias, so it is loaded once: a load has its price, an epilogue's one in eight of all time at 128 inputs.
    let bias_a = bias[min(quad, p.n4 - 1u) - p.b0.z];
    let bias_b = bias[min(quad + 1u, p.n4 - 1u) - p.b0.z];
    var a0 = bias_a; var a1 = bias_a; var a2 = bias_a; var a3 = bias_a; var a4 = bias_a; var a5 = bias_a; var a6 = bias_a; var a7 = bias_a;
    var b0 = bias_b; var b1 = bias_b; var b2 = bias_b; var b3 = bias_b; var b4 = bias_b; var b5 = bias_b; var b6 = bias_b; var b7 = bias_b;
    // A lane beyond the last pair reads that pair again.
    let source = min(quad, (p.n4 - 1u) / 2u * 2u);
    var wi = (source / LC * p.k4 * 4u * LC + source % LC - p.b0.y) / 2u;
    for (var k = 0u; k < p.k4; k += 1u) {
        let w0 = wt[wi]; let w1 = wt[wi + LC / 2u]; let w2 = wt[wi + LC]; let w3 = wt[wi + 3u * LC / 2u];
        let x0 = x_get(x[r0 + k]);
        let x1 = x_get(x[r1 + k]);
        let x2 = x_get(x[r2 + k]);
        let x3 = x_get(x[r3 + k]);
        let x4 = x_get(x[r4 + k]);
        let x5 = x_get(x[r5 + k]);
        let x6 = x_get(x[r6 + k]);
        let x7 = x_get(x[r7 + k]);
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
        wi += 2u * LC;
    }
    put(m0, quad, a0, b0); put(m0 + 1u, quad, a1, b1); put(m0 + 2u, quad, a2, b2); put(m0 + 3u, quad, a3, b3);
    put(m0 + 4u, quad, a4, b4); put(m0 + 5u, quad, a5, b5); put(m0 + 6u, quad, a6, b6); put(m0 + 7u, quad, a7, b7);
}
