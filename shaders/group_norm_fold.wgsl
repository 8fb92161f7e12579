// group_norm_fold: per-channel scale = weight * rstd and shift = bias - mean * scale from the statistics of block rows
// Source   Wu & He 2018 (arXiv:1803.08494); torch.nn.GroupNorm, biased variance
// Layout   x, x2 [block rows][c4][mean, M2] of one or two tensors whose channels follow each other, each padded to quads; groups may lie
//          across the seam; weight, bias [channels] (f32); y per tensor [scale c4 * 4][shift c4 * 4], first used for per-channel moments;
//          health counters
// Grid     one workgroup of 64: first a quad an invocation (rows merged top down), then a group an invocation
// Numerics f32, Chan's merge; a group whose variance is not below 1e20 adds 1 to health[watch]
struct Params {
    wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>,
    h: u32, w: u32, c4: u32, channels: u32, groups: u32, eps: f32, watch: u32, first: u32, first4: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> x2: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> weight: array<f32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
@group(0) @binding(6) var<storage, read_write> health: array<atomic<u32>>;

// Where a channel's scale and shift are in y, which is bound in quads and read in scalars. `c` counts the padded channels.
fn place(c: u32) -> vec2<u32> {
    let size = p.first4 * 4u;
    let at = select(vec2(size + c, p.c4 * 4u + c), vec2(c, size + c), c < size);
    return at - p.b1.x * 4u;
}

// The padded number of channel c.
fn padded(c: u32) -> u32 { return select(p.first4 * 4u - p.first + c, c, c < p.first); }

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) lane: u32) {
    let rows = (p.h + 7u) / 8u;
    for (var quad = lane; quad < p.c4; quad += 64u) {
        let second = quad >= p.first4;
        let pitch = select(p.first4, p.c4 - p.first4, second);
        let start = select(quad * 2u - p.b0.x, (quad - p.first4) * 2u - p.b0.y, second);
        var n = 0.0;
        var mean = vec4<f32>();
        var m2 = vec4<f32>();
        for (var row = 0u; row < rows; row += 1u) {
            let at = start + row * pitch * 2u;
            var mb = vec4<f32>();
            var vb = vec4<f32>();
            if second { mb = x2[at]; vb = x2[at + 1u]; } else { mb = x[at]; vb = x[at + 1u]; }
            let nb = f32(min(8u, p.h - row * 8u) * p.w);
            let total = n + nb;
            let d = mb - mean;
            mean += d * (nb / total);
            m2 += vb + d * d * (n * nb / total);
            n = total;
        }
        for (var c = 0u; c < 4u; c += 1u) {
            let at = place(quad * 4u + c);
            y[at.x] = mean[c];
            y[at.y] = m2[c];
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
            let at = place(padded(c));
            let total = n + pixels;
            let d = y[at.x] - mean;
            mean += d * (pixels / total);
            m2 += y[at.y] + d * d * (n * pixels / total);
            n = total;
        }
        let variance = m2 / n;
        if (bitcast<u32>(variance) & 0x7fffffffu) >= bitcast<u32>(1e20) { atomicAdd(&health[p.watch - p.b1.y], 1u); }
        let rstd = inverseSqrt(variance + p.eps);
        for (var c = group * size; c < (group + 1u) * size; c += 1u) {
            let at = place(padded(c));
            let scale = weight[c - p.b0.z * 4u] * rstd;
            y[at.x] = scale;
            y[at.y] = bias[c - p.b0.w * 4u] - mean * scale;
        }
    }
    for (var c = lane; c < p.c4 * 4u; c += 64u) {
        let second = c >= p.first4 * 4u;
        let own = select(c, c - p.first4 * 4u, second);
        if own < select(p.first, p.channels - p.first, second) { continue; }
        let at = place(c);
        y[at.x] = 0.0;
        y[at.y] = 0.0;
    }
}
