// combine: y = clamp(sum over k < count of c_k x_k, -clip, clip); an input with fewer channels counts as zero in the others
// Source   the update of every sampler (src/schedulers): x' = a x + b eps + c noise + history
// Layout   x_k [pixels, q_k quads], y [pixels, c4 quads]; inputs beyond count are bound and not read
// Grid     one invocation a quad of y, 256 a workgroup along y
// Numerics f32 sums in the order of k
struct Params {
    wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>,
    units: u32, c4: u32, count: u32, clip: f32,
    c_0: f32, c_1: f32, c_2: f32, c_3: f32, c_4: f32, c_5: f32,
    q_0: u32, q_1: u32, q_2: u32, q_3: u32, q_4: u32, q_5: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x0: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> x1: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> x2: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> x3: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> x4: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> x5: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> y: array<Y4>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y + p.wg.y) * 256u + lane;
    if i >= p.units { return; }
    let pixel = i / p.c4;
    let quad = i % p.c4;
    var sum = vec4(0.0);
    if quad < p.q_0 { sum = p.c_0 * x0[pixel * p.q_0 + quad - p.b0.x]; }
    if p.count > 1u && quad < p.q_1 { sum += p.c_1 * x1[pixel * p.q_1 + quad - p.b0.y]; }
    if p.count > 2u && quad < p.q_2 { sum += p.c_2 * x2[pixel * p.q_2 + quad - p.b0.z]; }
    if p.count > 3u && quad < p.q_3 { sum += p.c_3 * x3[pixel * p.q_3 + quad - p.b0.w]; }
    if p.count > 4u && quad < p.q_4 { sum += p.c_4 * x4[pixel * p.q_4 + quad - p.b1.x]; }
    if p.count > 5u && quad < p.q_5 { sum += p.c_5 * x5[pixel * p.q_5 + quad - p.b1.y]; }
    y[i - p.b1.z] = y_put(clamp(sum, vec4(-p.clip), vec4(p.clip)));
}
