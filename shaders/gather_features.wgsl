// gather_features: for each pixel of a picture the nearest features, and behind them where in their cell the pixel lies and how large it is
// Source   yinboc/infd utils/geometry.py convert_liif_feat_coord_cell; nearest as torch.nn.functional.grid_sample(align_corners=False)
// Layout   x [h, w, c4]; table [rows + columns] quads (index in x, place in the cell, size, 0): for each row of y, then each column;
//          y [rows, columns, c4 + 1], the last quad being (row place, column place, row size, column size)
// Grid     one invocation a quad, 64 a workgroup along y
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, units: u32, c4: u32, w: u32, rows: u32, columns: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read> table: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<Y4>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y + p.wg.y) * 64u + lane;
    if i >= p.units { return; }
    let quad = i % (p.c4 + 1u);
    let pixel = i / (p.c4 + 1u);
    let row = table[pixel / p.columns - p.b0.y];
    let column = table[p.rows + pixel % p.columns - p.b0.y];
    var value = vec4(row.y, column.y, row.z, column.z);
    if quad < p.c4 { value = x_get(x[(u32(row.x) * p.w + u32(column.x)) * p.c4 + quad - p.b0.x]); }
    y[i - p.b0.z] = y_put(value);
}
