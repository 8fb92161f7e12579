// attention_softmax_lanes: s[i, h, j] = exp(s[i, h, j] - max_j s[i, h, j]) in place, second of the three passes of attention
// Layout   s [n, heads, pitch] in quads of keys, f32, pitch = ceil(m / 4) + 1; the last quad of a row gets 1 / the sum of the row
// Grid     x: one invocation a row of queries and heads, 8 a workgroup
// Numerics f32; query i sees keys below m, or 0 ..= first + i if causal; the others become 0, whatever they held
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, n: u32, m: u32, heads: u32, pitch: u32, first: u32, causal: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> s: array<vec4<f32>>;

fn masked(v: vec4<f32>, quad: u32, end: u32) -> vec4<f32> {
    return select(vec4(-1e30), v, vec4(quad * 4u) + vec4(0u, 1u, 2u, 3u) < vec4(end));
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = (wid.x + p.wg.x) * 8u + lane;
    if row >= p.n * p.heads { return; }
    let end = select(p.m, min(p.m, p.first + row / p.heads + 1u), p.causal == 1u);
    let at = row * p.pitch - p.b0.x;
    var peak = vec4(-1e30);
    for (var t = 0u; t < p.pitch - 1u; t += 1u) { peak = max(peak, masked(s[at + t], t, end)); }
    let top = max(max(peak.x, peak.y), max(peak.z, peak.w));
    var total = vec4<f32>();
    for (var t = 0u; t < p.pitch - 1u; t += 1u) {
        let e = exp(masked(s[at + t], t, end) - top);
        total += e;
        s[at + t] = e;
    }
    s[at + p.pitch - 1u] = vec4(1.0 / ((total.x + total.y) + (total.z + total.w)));
}
