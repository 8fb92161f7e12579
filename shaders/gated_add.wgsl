// gated_add: y = residual + gate * x, one gate a channel
// Source   adaLN-Zero, Peebles & Xie 2022 (arXiv:2212.09748)
// Layout   x, residual, y [rows, c4]; gate [1, c4]
// Grid     one invocation a quad, 256 a workgroup along y
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, units: u32, c4: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read> gate: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> residual: array<Y4>;
@group(0) @binding(4) var<storage, read_write> y: array<Y4>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y + p.wg.y) * 256u + lane;
    if i >= p.units { return; }
    y[i - p.b0.w] = y_put(y_get(residual[i - p.b0.z]) + gate[i % p.c4 - p.b0.y] * x_get(x[i - p.b0.x]));
}
