// attention_merge: y[i, h] = sum_r w_r part[r, i, h] / sum_r w_r, w_r = total_r exp(peak_r - max_r peak_r): attention over ranges of keys
// Source   Dao et al. 2022 (arXiv:2205.14135), section 3.1: two softmaxes become that of both
// Layout   part [ranges * n, heads * D4] f32 and state [ranges * n, heads] (peak, total, -, -) from attention_range; y [n, heads * D4]
// Grid     x: runs of 64 quads of y
// Numerics f32, ranges in ascending order
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, n: u32, heads: u32, d4: u32, ranges: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> part: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> state: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<Y4>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let quads = p.n * p.heads * p.d4;
    let quad = (wid.x + p.wg.x) * 64u + lane;
    if quad >= quads { return; }
    let row = quad / p.d4;
    let rows = p.n * p.heads;
    var top = -1e30;
    for (var r = 0u; r < p.ranges; r += 1u) { top = max(top, state[r * rows + row - p.b0.y].x); }
    var sum = vec4<f32>();
    var total = 0.0;
    for (var r = 0u; r < p.ranges; r += 1u) {
        let s = state[r * rows + row - p.b0.y];
        let weight = s.y * exp(s.x - top);
        sum += weight * part[r * quads + quad - p.b0.x];
        total += weight;
    }
    y[quad - p.b0.z] = y_put(sum / total);
}
