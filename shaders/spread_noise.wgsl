// spread_noise: y = noise * exp(base + slope * v), each value's standard deviation between two bounds
// Source   Nichol & Dhariwal 2021 (arXiv:2102.09672), equation 15, of the standard deviation
// Layout   noise, v, y [pixels, c4]
// Grid     one invocation a quad, 256 a workgroup along y
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, units: u32, base: f32, slope: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> noise: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y + p.wg.y) * 256u + lane;
    if i >= p.units { return; }
    y[i - p.b0.z] = noise[i - p.b0.x] * exp(p.base + p.slope * v[i - p.b0.y]);
}
