// unpatchify: the reverse of patchify, for c4 of the s4 quads that a token has for each of its pixels, from quad `first` on
// Source   DiT models.py (facebookresearch/DiT at ed81ce2), unpatchify: a token is [p, q, c]
// Layout   x [h / side * w / side, side * side * s4]; y [h, w, c4]
// Grid     one invocation a quad of y, 64 a workgroup along y
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, units: u32, c4: u32, w: u32, side: u32, s4: u32, first: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read_write> y: array<Y4>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y + p.wg.y) * 64u + lane;
    if i >= p.units { return; }
    let row = i / p.c4 / p.w;
    let column = i / p.c4 % p.w;
    let token = row / p.side * (p.w / p.side) + column / p.side;
    let within = row % p.side * p.side + column % p.side;
    y[i - p.b0.y] = y_put(x_get(x[(token * p.side * p.side + within) * p.s4 + p.first + i % p.c4 - p.b0.x]));
}
