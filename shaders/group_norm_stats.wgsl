// group_norm_stats: mean and M2 = sum (x - mean)^2 of every channel over blocks of 8 rows x 16 columns
// Source   Chan, Golub & LeVeque 1979 (mergeable moments); Wu & He 2018 (arXiv:1803.08494) for what they are for
// Layout   x [h, w, c4]; y [block rows][block columns][c4][mean, M2]
// Grid     x: (block column, quad) pairs, 64 a workgroup, quads fastest; y: block rows
// Reads    common/moments.wgsl
// Memory   reads x once, eight pixels at a time; blocks are anchored at pixel (0, 0) and cut only by the image's edge,
//          so a band of rows that starts at a multiple of 8 gives the same numbers as the whole
// Numerics f32 over the values as stored: runs of 8 pixels, each about its own mean, merged in order: as a convolution does it with
//          its own result (block_statistics.wgsl), so that who does it changes no bit; M2 of a block that holds a non-finite or saturated value is 3e38
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, h: u32, w: u32, c4: u32, limit: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

fn value(at: u32, n: u32, count: u32) -> vec4<f32> { return x_get(x[at + min(n, count - 1u) * p.c4]); }

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
    var block = Moments(0.0, vec4<f32>(), vec4<f32>());
    var largest = vec4<u32>();
    for (var r = i0; r < i1; r += 1u) {
        for (var first = j0; first < j1; first += 8u) {
            let at = (r * p.w + first) * p.c4 + quad - p.b0.x;
            let count = min(j1 - first, 8u);
            let v0 = value(at, 0u, count); let v1 = value(at, 1u, count); let v2 = value(at, 2u, count); let v3 = value(at, 3u, count);
            let v4 = value(at, 4u, count); let v5 = value(at, 5u, count); let v6 = value(at, 6u, count); let v7 = value(at, 7u, count);
            largest = max(largest, largest_bits(v0, v1, v2, v3, v4, v5, v6, v7));
            block = merged(block, run_moments(count, v0, v1, v2, v3, v4, v5, v6, v7));
        }
    }
    let to = ((g.y * columns + column) * p.c4 + quad) * 2u - p.b0.y;
    y[to] = block.mean;
    y[to + 1u] = select(block.m2, vec4(3e38), largest >= vec4(bitcast<u32>(p.limit)));
}
