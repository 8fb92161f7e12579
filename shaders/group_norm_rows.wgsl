// group_norm_rows: merges the blocks of each block row, from left to right
// Source   Chan, Golub & LeVeque 1979: n = na + nb, d = mb - ma, mean = ma + d nb / n, M2 = Ma + Mb + d^2 na nb / n
// Layout   x [block rows][block columns][c4][mean, M2]; y [block rows][c4][mean, M2]
// Grid     one invocation a (block row, quad), 64 a workgroup along x
// Numerics f32; the order depends on the image's width only
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, h: u32, w: u32, c4: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = wid + p.wg.xyz;
    let columns = (p.w + 15u) / 16u;
    let i = g.x * 64u + lane;
    let row = i / p.c4;
    let quad = i % p.c4;
    if row >= (p.h + 7u) / 8u { return; }
    let rows_of_block = min(8u, p.h - row * 8u);
    var n = 0.0;
    var mean = vec4<f32>();
    var m2 = vec4<f32>();
    for (var column = 0u; column < columns; column += 1u) {
        let at = ((row * columns + column) * p.c4 + quad) * 2u - p.b0.x;
        let nb = f32(rows_of_block * min(16u, p.w - column * 16u));
        let total = n + nb;
        let d = x[at] - mean;
        mean += d * (nb / total);
        m2 += x[at + 1u] + d * d * (n * nb / total);
        n = total;
    }
    let to = (row * p.c4 + quad) * 2u - p.b0.y;
    y[to] = mean;
    y[to + 1u] = m2;
}
