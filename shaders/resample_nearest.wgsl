// resample_nearest: y[i, j] = x[floor(i h / oh), floor(j w / ow)]
// Source   torch.nn.functional.interpolate(mode="nearest")
// Layout   x [h, w, c4]; y [oh, ow, c4]
// Grid     one invocation a quad, 64 a workgroup along y
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, units: u32, c4: u32, h: u32, w: u32, oh: u32, ow: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read_write> y: array<Y4>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y + p.wg.y) * 64u + lane;
    if i >= p.units { return; }
    let quad = i % p.c4;
    let pixel = i / p.c4;
    let row = pixel / p.ow * p.h / p.oh;
    let column = pixel % p.ow * p.w / p.ow;
    y[i - p.b0.y] = y_put(x_get(x[(row * p.w + column) * p.c4 + quad - p.b0.x]));
}
