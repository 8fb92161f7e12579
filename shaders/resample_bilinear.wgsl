// resample_bilinear: x sampled at the cell centres of another grid, half-pixel centres, edges clamped, no antialias
// Source   torch.nn.functional.interpolate(mode="bilinear", align_corners=False)
// Layout   x [h, w, c4]; y [rows, grid_w, c4], row 0 being grid row `row0` of grid_h
// Grid     one invocation a quad, 64 a workgroup along y
struct Params {
    wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>,
    units: u32, c4: u32, h: u32, w: u32, grid_h: u32, grid_w: u32, row0: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read_write> y: array<Y4>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y + p.wg.y) * 64u + lane;
    if i >= p.units { return; }
    let quad = i % p.c4;
    let token = i / p.c4;
    let row = p.row0 + token / p.grid_w;
    let column = token % p.grid_w;
    let v = max((f32(row) + 0.5) * (f32(p.h) / f32(p.grid_h)) - 0.5, 0.0);
    let u = max((f32(column) + 0.5) * (f32(p.w) / f32(p.grid_w)) - 0.5, 0.0);
    let i0 = min(u32(v), p.h - 1u); let i1 = min(i0 + 1u, p.h - 1u); let fv = v - f32(i0);
    let j0 = min(u32(u), p.w - 1u); let j1 = min(j0 + 1u, p.w - 1u); let fu = u - f32(j0);
    let b = quad - p.b0.x;
    let top = mix(x_get(x[(i0 * p.w + j0) * p.c4 + b]), x_get(x[(i0 * p.w + j1) * p.c4 + b]), fu);
    let bottom = mix(x_get(x[(i1 * p.w + j0) * p.c4 + b]), x_get(x[(i1 * p.w + j1) * p.c4 + b]), fu);
    y[i - p.b0.y] = y_put(mix(top, bottom, fv));
}
