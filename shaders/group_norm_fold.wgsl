// group_norm_fold: per-channel scale = weight * rstd and shift = bias - mean * scale from the statistics of block rows
// Source   Wu & He 2018 (arXiv:1803.08494); torch.nn.GroupNorm, biased variance
// Layout   x [block rows][c4][mean, M2]; weight, bias [c4 * 4] (f32); y [scale c4 * 4][shift c4 * 4], first used for per-channel moments;
//          health counters
// Grid     one workgroup of 64: first a quad an invocation (rows merged top down), then a group an invocation
// Numerics f32, Chan's merge; a group whose variance is not below 1e20 adds 1 to health[watch]
struct Params {
    wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>,
    h: u32, w: u32, c4: u32, channels: u32, groups: u32, eps: f32, watch: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
@group(0) @binding(5) var<storage, read_write> health: array<atomic<u32>>;

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) lane: u32) {
    let rows = (p.h + 7u) / 8u;
    let yb = p.b0.w * 4u;                               // y is bound in quads, read in scalars
    let shifts = p.c4 * 4u - yb;
    for (var quad = lane; quad < p.c4; quad += 64u) {
        var n = 0.0;
        var mean = vec4<f32>();
        var m2 = vec4<f32>();
        for (var row = 0u; row < rows; row += 1u) {
            let at = (row * p.c4 + quad) * 2u - p.b0.x;
            let nb = f32(min(8u, p.h - row * 8u) * p.w);
            let total = n + nb;
            let d = x[at] - mean;
            mean += d * (nb / total);
            m2 += x[at + 1u] + d * d * (n * nb / total);
            n = total;
        }
        for (var c = 0u; c < 4u; c += 1u) {
            y[quad * 4u + c - yb] = mean[c];
            y[shifts + quad * 4u + c] = m2[c];
        }
    }
    storageBarrier();
    let size = p.channels / p.groups;
    let pixels = f32(p.h) * f32(p.w);
    for (var group = lane; group < p.groups; group += 64u) {
        var n = 0.0;
        var mean = 0.0;
        var m2 = 0.0;
        for (var c = group * size; c < (group + 1u) * size; c += 1u) {
            let total = n + pixels;
            let d = y[c - yb] - mean;
            mean += d * (pixels / total);
            m2 += y[shifts + c] + d * d * (n * pixels / total);
            n = total;
        }
        let variance = m2 / n;
        if (bitcast<u32>(variance) & 0x7fffffffu) >= bitcast<u32>(1e20) { atomicAdd(&health[p.watch - p.b1.x], 1u); }
        let rstd = inverseSqrt(variance + p.eps);
        for (var c = group * size; c < (group + 1u) * size; c += 1u) {
            let scale = weight[c - p.b0.y * 4u] * rstd;
            y[c - yb] = scale;
            y[shifts + c] = bias[c - p.b0.z * 4u] - mean * scale;
        }
    }
    for (var c = p.channels + lane; c < p.c4 * 4u; c += 64u) {
        y[c - yb] = 0.0;
        y[shifts + c] = 0.0;
    }
}
