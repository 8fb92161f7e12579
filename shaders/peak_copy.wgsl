// peak_copy: y = x, what the device can move, for comparison
// Grid     one invocation a vec4, 256 a workgroup along y
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, units: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y + p.wg.y) * 256u + lane;
    if i >= p.units { return; }
    y[i - p.b0.y] = x[i - p.b0.x];
}
