// patchify: every side x side square of a plane becomes a token, its pixels row by row, channels fastest
// Source   DiT models.py (facebookresearch/DiT at ed81ce2), the order of its unpatchify: [p, q, c]
// Layout   x [h, w, c4]; y [h / side * w / side, side * side * c4]
// Grid     one invocation a quad of y, 64 a workgroup along y
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, units: u32, c4: u32, w: u32, side: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read_write> y: array<Y4>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y + p.wg.y) * 64u + lane;
    if i >= p.units { return; }
    let square = p.side * p.side;
    let token = i / (square * p.c4);
    let within = i / p.c4 % square;
    let across = p.w / p.side;
    let row = token / across * p.side + within / p.side;
    let column = token % across * p.side + within % p.side;
    y[i - p.b0.y] = y_put(x_get(x[(row * p.w + column) * p.c4 + i % p.c4 - p.b0.x]));
}
