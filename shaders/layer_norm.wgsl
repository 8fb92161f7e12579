// layer_norm: y = (x - mean) * rstd * weight + bias over the channels of each row
// Source   Ba et al. 2016 (arXiv:1607.06450); torch.nn.LayerNorm, biased variance
// Layout   x, y [rows, c4]; affine [weight c4][bias c4], zero in pad channels
// Grid     8 rows a workgroup of 64, 8 lanes a row, along y
// Memory   reads x three times, twice from cache; 2 KiB of workgroup storage
// Numerics f32, two passes; sums over lanes in a fixed tree
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, rows: u32, channels: u32, c4: u32, eps: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read> affine: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<Y4>;
var<workgroup> part: array<f32, 64>;
var<workgroup> part2: array<f32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = (wid.y + p.wg.y) * 8u + lane / 8u;
    let s = lane % 8u;
    let first = lane - s;
    let at = min(row, p.rows - 1u) * p.c4;
    var sum = vec4<f32>();
    for (var q = s; q < p.c4; q += 8u) { sum += x_get(x[at + q - p.b0.x]); }
    part[lane] = (sum.x + sum.y) + (sum.z + sum.w);
    workgroupBarrier();
    let mean = (((part[first] + part[first + 1u]) + (part[first + 2u] + part[first + 3u]))
        + ((part[first + 4u] + part[first + 5u]) + (part[first + 6u] + part[first + 7u]))) / f32(p.channels);
    var m2 = vec4<f32>();
    for (var q = s; q < p.c4; q += 8u) {
        let inside = vec4(q * 4u) + vec4(0u, 1u, 2u, 3u) < vec4(p.channels);
        let d = select(vec4<f32>(), x_get(x[at + q - p.b0.x]) - mean, inside);
        m2 += d * d;
    }
    part2[lane] = (m2.x + m2.y) + (m2.z + m2.w);
    workgroupBarrier();
    let variance = (((part2[first] + part2[first + 1u]) + (part2[first + 2u] + part2[first + 3u]))
        + ((part2[first + 4u] + part2[first + 5u]) + (part2[first + 6u] + part2[first + 7u]))) / f32(p.channels);
    let rstd = inverseSqrt(variance + p.eps);
    if row >= p.rows { return; }
    for (var q = s; q < p.c4; q += 8u) {
        y[at + q - p.b0.z] = y_put((x_get(x[at + q - p.b0.x]) - mean) * rstd * affine[q - p.b0.y] + affine[p.c4 + q - p.b0.y]);
    }
}
