// group_norm_stats: mean and M2 = sum (x - mean)^2 of every channel over blocks of 8 rows x 16 columns
// Source   Chan, Golub & LeVeque 1979 (mergeable moments); Wu & He 2018 (arXiv:1803.08494) for what they are for
// Layout   x [h, w, c4]; y [block rows][block columns][c4][mean, M2]
// Grid     x: (block column, quad) pairs, 64 a workgroup, quads fastest; y: block rows
// Memory   reads x twice (the second time from cache); blocks are anchored at pixel (0, 0) and cut only by the image's edge,
//          so a band of rows that starts at a multiple of 8 gives the same numbers as the whole
// Numerics f32, two passes over the values as stored, each summed over runs of 8 pixels and then over the 16 runs: the order in which a
//          convolution sums its own result (block_statistics.wgsl), so that who does it changes no bit; M2 of a block that holds a non-finite or saturated value is 3e38
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, h: u32, w: u32, c4: u32, limit: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = wid + p.wg.xyz;
    let columns = (p.w + 15u) / 16u;
    let i = g.x * 64u + lane;
    let column = i / p.c4;
    let quad = i % p.c4;
    if column >= columns { return; }
    let i0 = g.y * 8u; let i1 = min(i0 + 8u, p.h);
    let j0 = column * 16u; let j1 = min(j0 + 16u, p.w);
    var sum = vec4<f32>();
    var bad = vec4<bool>();
    for (var r = i0; r < i1; r += 1u) {
        for (var first = j0; first < j1; first += 8u) {
            var run = vec4<f32>();
            for (var j = first; j < min(first + 8u, j1); j += 1u) {
                let v = x_get(x[(r * p.w + j) * p.c4 + quad - p.b0.x]);
                let size = bitcast<vec4<u32>>(v) & vec4(0x7fffffffu);
                bad = bad | (size >= vec4(bitcast<u32>(p.limit)));
                run += v;
            }
            sum += run;
        }
    }
    let mean = sum / f32((i1 - i0) * (j1 - j0));
    var m2 = vec4<f32>();
    for (var r = i0; r < i1; r += 1u) {
        for (var first = j0; first < j1; first += 8u) {
            var run = vec4<f32>();
            for (var j = first; j < min(first + 8u, j1); j += 1u) {
                let d = x_get(x[(r * p.w + j) * p.c4 + quad - p.b0.x]) - mean;
                run = fma(d, d, run);
            }
            m2 += run;
        }
    }
    let at = ((g.y * columns + column) * p.c4 + quad) * 2u - p.b0.y;
    y[at] = mean;
    y[at + 1u] = select(m2, vec4(3e38), bad);
}
