// norm_apply: y = act(x * scale[c] + shift[c])
// Layout   x, y [pixels, c4]; affine [scale c4][shift c4]
// Grid     one invocation a quad, 256 a workgroup along y
// Memory   reads x once, writes y once
override SILU: u32 = 1u;
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, units: u32, c4: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read> affine: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<Y4>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y + p.wg.y) * 256u + lane;
    if i >= p.units { return; }
    let c = i % p.c4;
    var v = x_get(x[i - p.b0.x]) * affine[c - p.b0.y] + affine[p.c4 + c - p.b0.y];
    if SILU == 1u { v = silu(v); }
    y[i - p.b0.z] = y_put(v);
}
