// guidance_rescale: y = x * (1 + phi * (std(text) / std(x) - 1)), each std over the whole of its tensor
// Source   Lin et al. 2023 (arXiv:2305.08891), section 3.4, equations 15 and 16; diffusers rescale_noise_cfg
// Layout   text, x, y [pixels, c4]; pad channels count in neither sum
// Grid     one workgroup; two passes, sums of lanes joined in a fixed tree
// Memory   2 KiB of workgroup storage
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, units: u32, c4: u32, channels: u32, phi: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> text: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;
var<workgroup> sums: array<vec2<f32>, 256>;

fn total(lane: u32, own: vec2<f32>) -> vec2<f32> {
    workgroupBarrier();
    sums[lane] = own;
    workgroupBarrier();
    for (var level = 0u; level < 8u; level += 1u) {
        let half = 128u >> level;
        if lane < half { sums[lane] += sums[lane + half]; }
        workgroupBarrier();
    }
    return sums[0];
}

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
    var own = vec2(0.0);
    for (var i = lane; i < p.units; i += 256u) {
        own += vec2(dot(text[i - p.b0.x], vec4(1.0)), dot(x[i - p.b0.y], vec4(1.0)));
    }
    let mean = total(lane, own) / (f32(p.units / p.c4) * f32(p.channels));
    own = vec2(0.0);
    for (var i = lane; i < p.units; i += 256u) {
        let left = p.channels - 4u * (i % p.c4);
        let real = vec4<f32>(vec4(left) > vec4(0u, 1u, 2u, 3u));
        let a = (text[i - p.b0.x] - mean.x) * real;
        let b = (x[i - p.b0.y] - mean.y) * real;
        own += vec2(dot(a, a), dot(b, b));
    }
    let variance = total(lane, own);
    let ratio = select(1.0, sqrt(variance.x / variance.y), variance.y > 0.0);
    let factor = 1.0 + p.phi * (ratio - 1.0);
    for (var i = lane; i < p.units; i += 256u) { y[i - p.b0.z] = factor * x[i - p.b0.y]; }
}
