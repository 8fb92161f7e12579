// glu: y = a * act(b), a the first and b the second half of the channels
// Source   Shazeer 2020 (arXiv:2002.05202): GEGLU (diffusers: value first, gate second, GELU with erf), SwiGLU
// Layout   x [rows, 2 c4], y [rows, c4]; half the channels must be a multiple of 4
// Grid     one invocation a quad of y, 256 a workgroup along y
override ACT: u32 = 3u;
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, units: u32, c4: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read_write> y: array<Y4>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y + p.wg.y) * 256u + lane;
    if i >= p.units { return; }
    let at = (i / p.c4) * 2u * p.c4 + i % p.c4 - p.b0.x;
    y[i - p.b0.y] = y_put(x_get(x[at]) * activate(x_get(x[at + p.c4]), ACT));
}
